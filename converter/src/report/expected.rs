//! When a container of the image would be ready, shipped in each way, over each link.

use super::Report;
use super::measured::Measured;
use super::ways::{unoptimized, whole_files};
use crate::simulate::{ImageModel, Link, Prediction, Pulling, simulate};

/// A way to ship an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As it is.
    This,
    /// What ctr-remote would prefetch.
    WholeFiles,
    /// eStargz, and nothing prefetched.
    Unoptimized,
    /// Downloaded and unpacked.
    Plain,
}

impl Way {
    pub(super) const ALL: [Self; 4] =
        [Self::This, Self::WholeFiles, Self::Unoptimized, Self::Plain];

    /// As a page says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::This => "this image",
            Self::WholeFiles => "ctr-remote\u{2019}s plan",
            Self::Unoptimized => "eStargz, not optimised",
            Self::Plain => "plain pull",
        }
    }

    /// What it means.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::This => "pulled lazily, with what it has before its landmarks prefetched",
            Self::WholeFiles => "every file that was opened is prefetched, whole",
            Self::Unoptimized => "pulled lazily, nothing is prefetched",
            Self::Plain => "all layers downloaded and unpacked before the start",
        }
    }

    /// In the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::This => "this",
            Self::WholeFiles => "whole",
            Self::Unoptimized => "lazy",
            Self::Plain => "plain",
        }
    }

    /// In the runs of a benchmark.
    fn contender(self) -> &'static str {
        match self {
            Self::This => "esgz",
            Self::WholeFiles => "ctr-remote",
            Self::Unoptimized => "estargz",
            Self::Plain => "plain",
        }
    }
}

/// One way over one link.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) way: Way,
    pub(super) predicted: Prediction,
    /// Median, least and most of the measured seconds.
    pub(super) measured: Option<(f64, f64, f64)>,
}

impl Start {
    /// What counts: what was measured, else what is predicted.
    pub(super) fn seconds(&self) -> f64 {
        self.measured
            .map_or(self.predicted.seconds, |(median, ..)| median)
    }
}

/// All ways over one link, in the order of [`Way::ALL`].
#[derive(Clone, Debug)]
pub(super) struct OverLink {
    pub(super) link: Link,
    pub(super) starts: Vec<Start>,
}

impl OverLink {
    pub(super) fn start(&self, way: Way) -> &Start {
        let found = self.starts.iter().find(|start| start.way == way);
        found.expect("every way is predicted")
    }
}

/// All ways over all links.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// In the order in which links were asked for, then those that were only measured.
    pub(super) links: Vec<OverLink>,
}

impl Expected {
    pub(super) fn of(report: &Report<'_>) -> Self {
        let unoptimized = unoptimized(report.image);
        let whole_files = whole_files(report.image, report.profile);
        let image = |way| match way {
            Way::This => report.image,
            Way::WholeFiles => &whole_files,
            Way::Unoptimized => &unoptimized,
            Way::Plain => report.source.unwrap_or(report.image),
        };
        let mut links: Vec<Link> = Vec::new();
        let measured = report.measured.iter().map(|measured| measured.link);
        for link in report.links.iter().copied().chain(measured) {
            if !links.contains(&link) {
                links.push(link);
            }
        }
        let over = |link| OverLink {
            link,
            starts: Way::ALL
                .into_iter()
                .map(|way| start(report, image(way), way, link))
                .collect(),
        };
        Self {
            links: links.into_iter().map(over).collect(),
        }
    }

    /// Whether anything was measured.
    pub(super) fn is_measured(&self) -> bool {
        let starts = self.links.iter().flat_map(|link| &link.starts);
        starts.into_iter().any(|start| start.measured.is_some())
    }

    /// The first link at which both were measured, else the first.
    pub(super) fn headline(&self) -> Option<&OverLink> {
        let is_measured = |over: &&OverLink| {
            [Way::This, Way::WholeFiles]
                .iter()
                .all(|&way| over.start(way).measured.is_some())
        };
        self.links.iter().find(is_measured).or(self.links.first())
    }
}

fn start(report: &Report<'_>, image: &ImageModel, way: Way, link: Link) -> Start {
    let pulling = match way {
        Way::Plain => Pulling::Eager,
        _ => Pulling::Lazy,
    };
    let of_way =
        |measured: &&Measured| measured.contender == way.contender() && measured.link == link;
    let measured = report.measured.iter().find(of_way);
    Start {
        way,
        predicted: simulate(image, report.profile, link, pulling, report.constants),
        measured: measured.and_then(|measured| {
            let least = *measured.seconds.first()?;
            Some((measured.median_seconds(), least, *measured.seconds.last()?))
        }),
    }
}
