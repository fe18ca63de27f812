//! Report: one HTML page that says what an image's workload reads at its start, what of that is prefetched, and how
//! much sooner the container is ready for it.
//!
//! Enters: what the image's TOCs say, a profile, links, and measured runs if there are any. Leaves: a page that needs
//! nothing else, no script and no other file. Pure: the same input gives the same bytes.

mod expected;
mod measured;
mod page;
mod ranges;
mod usage;
mod ways;

#[cfg(test)]
mod tests;

use crate::profile::Profile;
use crate::simulate::{Constants, ImageModel, Link};

pub use measured::{Measured, MeasuredError};

use expected::Expected;
use usage::Usage;

/// What a report is made of.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// The image as the user named it.
    pub reference: &'a str,
    /// Its TOCs.
    pub image: &'a ImageModel,
    /// What it was made of, where that is known.
    pub source: Option<&'a ImageModel>,
    /// What its workload touches.
    pub profile: &'a Profile,
    /// Between node and registry, at least one; the first is in the headline.
    pub links: &'a [Link],
    /// Measured runs of it, if there are any.
    pub measured: &'a [Measured],
    /// Of the node for which is predicted.
    pub constants: &'a Constants,
}

impl Report<'_> {
    /// The links that are asked for without others: from a data centre's own to a far one.
    pub const LINKS: [Link; 4] = [
        Link::FAST,
        Link {
            bytes_per_second: 1250e6,
            round_trip_seconds: 0.001,
        },
        Link::SLOW,
        Link {
            bytes_per_second: 6.25e6,
            round_trip_seconds: 0.080,
        },
    ];

    /// The page.
    pub fn html(&self) -> String {
        let usage = Usage::of(self.image, self.profile);
        let expected = Expected::of(self);
        page::page(self, &usage, &expected)
    }
}
