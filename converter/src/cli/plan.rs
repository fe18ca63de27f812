//! `esgz inspect --plan`: what a conversion would prefetch, why, and what that costs and saves.

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::cli::args::InspectArgs;
use crate::cli::failure::{Failure, USAGE};
use crate::cli::output::{self, Size, printable};
use crate::cli::profile_place::artifact_options;
use crate::cli::reading;
use crate::cli::registry;
use crate::cli::wanted::warn_missed;
use crate::convert::{ImageError, scan_image};
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::PlanOptions;
use crate::planner::{self, Choice, Costs, Decision, Explained, HotPack, Plan, PlannerOptions};
use crate::simulate::{Constants, Link};
use crate::source::SourceImage;

/// Files of the list that are printed.
const SHOWN_FILES: usize = 20;

/// What was planned.
struct Planned<'a> {
    image: &'a SourceImage,
    layers: &'a [ScannedLayer],
    link: Link,
    choice: &'a Choice,
    files: Vec<Explained>,
}

pub(super) fn print(
    image: &SourceImage,
    args: &InspectArgs,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let Some(profile) = &args.plan.profile else {
        let message = "--plan needs --profile".to_owned();
        return Err(Failure::message(USAGE, message));
    };
    let registry = registry::options(&args.registry, Some(&args.registry_user))?;
    let artifacts = artifact_options(&registry, &reading::default_scratch(), cancel);
    let profile = profile.read(&artifacts)?;
    let link = args.plan.assume_link.unwrap_or(Link::FAST);
    let plan = PlanOptions::default();
    let costs = Costs::new(link, Constants::measured(), plan);
    let options = PlannerOptions {
        hot_pack: args.plan.hot_pack.into(),
        growth: args.plan.hot_pack_growth,
        costs: Some(costs),
        ..PlannerOptions::default()
    };
    let scan = reading::usual_scan_options();
    let layers = scan_image(image, &scan, reading::all_cores(), cancel)?;
    let choice = planner::choose(&profile, &layers, &options, &costs, plan);
    let choice = choice.map_err(ImageError::from)?;
    warn_missed(&choice.best().placements);
    let taken = match choice.best().plan {
        Plan::WholeFiles => PlannerOptions {
            hot_pack: HotPack::Off,
            ..options
        },
        Plan::NoPrefetch | Plan::ByCosts => options,
    };
    let mut files = planner::explain(&profile, &layers, &taken, &costs);
    files.sort_by_key(|file| std::cmp::Reverse(file.size_bytes));
    let planned = Planned {
        image,
        layers: &layers,
        link,
        choice: &choice,
        files,
    };
    if args.json {
        output::json(&planned.json())
    } else {
        planned.text()
    }
}

impl Planned<'_> {
    fn json(&self) -> Value {
        let plans = self.choice.candidates.iter().map(|candidate| {
            json!({
                "plan": candidate.plan,
                "prediction": candidate.prediction,
            })
        });
        let files = self.files.iter().map(|file| {
            json!({
                "layer": file.file.layer,
                "path": self.path(file),
                "size_bytes": file.size_bytes,
                "touched_bytes": file.touched_bytes,
                "placement": placement(&file.decision),
                "limited": file.is_limited,
                "prefetched_bytes": prefetched_bytes(file),
                "reason": reason(file),
                "costs": file.costs,
            })
        });
        json!({
            "reference": self.image.reference.to_string(),
            "manifest": self.image.manifest.id.digest,
            "link": {
                "bytes_per_second": self.link.bytes_per_second,
                "round_trip_seconds": self.link.round_trip_seconds,
            },
            "chosen": self.choice.best().plan,
            "plans": plans.collect::<Vec<Value>>(),
            "files": files.collect::<Vec<Value>>(),
        })
    }

    fn text(&self) -> Result<(), Failure> {
        output::line(format_args!("link       {}", self.link))?;
        output::line(format_args!(
            "\n{:<14} {:>8} {:>10} {:>9} {:>10} {:>10}",
            "plan", "ready", "received", "requests", "prefetch", "unused"
        ))?;
        for (index, candidate) in self.choice.candidates.iter().enumerate() {
            let prediction = &candidate.prediction;
            let layers = prediction.layers.iter();
            let prefetch: u64 = layers.clone().map(|layer| layer.prefetch_bytes).sum();
            let unused: u64 = layers.map(|layer| layer.unused_bytes).sum();
            let name = match candidate.plan {
                Plan::NoPrefetch => "nothing",
                Plan::WholeFiles => "whole files",
                Plan::ByCosts => "by costs",
            };
            let chosen = if index == self.choice.chosen {
                "  chosen"
            } else {
                ""
            };
            output::line(format_args!(
                "{name:<14} {:>6.1} s {:>10} {:>9} {:>10} {:>10}{chosen}",
                prediction.seconds,
                Size(prediction.bytes),
                prediction.requests,
                Size(prefetch),
                Size(unused)
            ))?;
        }
        for (title, of) in [
            ("prefetched whole", "whole"),
            ("prefetched in part", "ranges"),
            ("left to on-demand reads", "on-demand"),
        ] {
            let mut files = self
                .files
                .iter()
                .filter(|file| placement(&file.decision) == of);
            let (count, bytes) = files.clone().fold((0_u64, 0), |(count, bytes), file| {
                (count + 1, bytes + prefetched_bytes(file))
            });
            output::line(format_args!(
                "\n{title}: {count} files, {} prefetched",
                Size(bytes)
            ))?;
            for file in files.by_ref().take(SHOWN_FILES) {
                self.line(file)?;
            }
            let more = files.count();
            if more > 0 {
                output::line(format_args!("{:>12}  and {more} smaller ones", "…"))?;
            }
        }
        Ok(())
    }

    fn line(&self, file: &Explained) -> Result<(), Failure> {
        output::line(format_args!(
            "{:>12}  {}: {}",
            Size(file.size_bytes).to_string(),
            printable(&self.path(file)),
            reason(file)
        ))
    }

    fn path(&self, file: &Explained) -> String {
        let entries = &self.layers[file.file.layer as usize].entries;
        let path = entries[file.file.entry as usize].path().unwrap_or_default();
        String::from_utf8_lossy(&path).into_owned()
    }
}

fn placement(decision: &Decision) -> &'static str {
    match decision {
        Decision::Whole => "whole",
        Decision::Ranges(_) => "ranges",
        Decision::OnDemand => "on-demand",
    }
}

fn prefetched_bytes(file: &Explained) -> u64 {
    match &file.decision {
        Decision::Whole => file.size_bytes,
        Decision::Ranges(hot) => hot.iter().map(|range| range.end - range.start).sum(),
        Decision::OnDemand => 0,
    }
}

fn reason(file: &Explained) -> String {
    if file.touched_bytes == 0 {
        return "opened, not read".to_owned();
    }
    let costs = file.costs;
    let prices = format!(
        "whole {:.0} ms, in part {:.0} ms, on demand {:.0} ms",
        costs.whole_seconds * 1e3,
        costs.packed_seconds * 1e3,
        costs.on_demand_seconds * 1e3
    );
    let touched = Size(file.touched_bytes);
    let limited = match (&file.decision, file.is_limited) {
        (_, false) => "",
        (Decision::Ranges(_), true) => ", narrow, as packs may not grow",
        (Decision::Whole | Decision::OnDemand, true) => ", not packed, as packs may not grow",
    };
    match &file.decision {
        Decision::Ranges(hot) => {
            let count = hot.len();
            format!("{touched} touched, {count} ranges{limited}; {prices}")
        }
        Decision::Whole if file.size_bytes < PlannerOptions::GIANT_BYTES => {
            format!("{touched} touched, no giant")
        }
        Decision::Whole | Decision::OnDemand => format!("{touched} touched{limited}; {prices}"),
    }
}
