//! The planner: a profile and scanned layers in, for each layer what is prefetched whole, what in part
//! and what not at all out. Pure and deterministic.
//!
//! It decides file by file, by [`PlannerOptions`]. How a layer is laid out then is
//! [`layer::plan`](crate::layer::plan)'s.

mod budget;
mod choice;
mod costs;
mod estimate;
mod ranges;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ops::Range;

use crate::layer::entry::{EntryKind, FileId, ScannedLayer, clean_path};
use crate::layer::placement::{Giant, Placement};
use crate::profile::{Located, Prioritized, Profile, ProfiledFile, locate};

pub use choice::{Candidate, Choice, Plan, choose};
pub use costs::{Costs, FileCosts};
pub use ranges::Margins;
use ranges::{pieces, total_bytes, widened};

/// Whether the touched ranges of big files are put into packs (docs/hot-pack.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotPack {
    /// Where that pays: of a giant of which no more than [`PlannerOptions::whole_percent`] is hot, and whose
    /// ranges are known.
    #[default]
    Auto,
    /// Of every giant of which a part is not hot, also where its ranges are lower bounds.
    On,
    /// Never: each touched file is prefetched whole.
    Off,
}

/// By what the planner decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannerOptions {
    /// Whether there are packs.
    pub hot_pack: HotPack,
    /// Files from this size on are giants; smaller ones are prefetched whole.
    pub giant_bytes: u64,
    /// Fetched around what was touched: the kernel reads around a page that it needs, and ahead.
    pub margins: Margins,
    /// Ranges that are not further apart are one: what lies between costs less than a miss.
    pub gap_bytes: u64,
    /// What is read around what was touched, while somebody waits. What is prefetched besides is in chunks of its own,
    /// so that it is inflated only if it is read all the same.
    pub read_around: Margins,
    /// Shorter chunks of that kind would cost more than to inflate them with their neighbours.
    pub shortest_cold_bytes: u64,
    /// A file of which more than this is hot, margins and gaps included, is prefetched whole.
    pub whole_percent: u64,
    /// So much of their bytes the layers may grow by, all together and estimated, rows of the TOC included. Packs that
    /// need more are made narrower, or their files prefetched whole, unless packs are asked for.
    pub growth: f64,
    /// With prices these decide instead of [`Self::gap_bytes`] and, unless packs are asked for, of
    /// [`Self::whole_percent`].
    pub costs: Option<Costs>,
}

impl PlannerOptions {
    /// Default of [`PlannerOptions::giant_bytes`].
    pub const GIANT_BYTES: u64 = 8 << 20;
    /// Default of [`PlannerOptions::margins`], for a device that reads 128 KiB ahead, as FUSE does (`mm/filemap.c`,
    /// Linux 6.18): a fault reads 64 KiB before it and as much behind it; and where the next page that is touched is
    /// one of the last 32 KiB of these, or the first of the next window, 128 KiB more each time.
    pub const MARGINS: Margins = Margins {
        before_bytes: 128 << 10,
        behind_bytes: 256 << 10,
    };
    /// Default of [`PlannerOptions::gap_bytes`].
    pub const GAP_BYTES: u64 = 512 << 10;
    /// Default of [`PlannerOptions::read_around`]: what a fault reads. What comes ahead of the next one is read while
    /// nobody waits.
    pub const READ_AROUND: Margins = Margins {
        before_bytes: 64 << 10,
        behind_bytes: 64 << 10,
    };
    /// Default of [`PlannerOptions::shortest_cold_bytes`].
    pub const SHORTEST_COLD_BYTES: u64 = 128 << 10;
    /// Default of [`PlannerOptions::whole_percent`].
    pub const WHOLE_PERCENT: u64 = 50;
    /// Default of [`PlannerOptions::growth`].
    pub const GROWTH: f64 = 0.06;
}

impl Default for PlannerOptions {
    fn default() -> Self {
        Self {
            hot_pack: HotPack::Auto,
            giant_bytes: Self::GIANT_BYTES,
            margins: Self::MARGINS,
            gap_bytes: Self::GAP_BYTES,
            read_around: Self::READ_AROUND,
            shortest_cold_bytes: Self::SHORTEST_COLD_BYTES,
            whole_percent: Self::WHOLE_PERCENT,
            growth: Self::GROWTH,
            costs: None,
        }
    }
}

/// What becomes of an image's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placements {
    /// For each layer, base first.
    pub layers: Vec<Placement>,
    /// Paths to be prefetched that no layer has, in order.
    pub missed: Vec<String>,
}

impl From<Prioritized> for Placements {
    /// What a list names is prefetched whole.
    fn from(prioritized: Prioritized) -> Self {
        let Prioritized { layers, missed } = prioritized;
        Self {
            layers: layers.into_iter().map(Placement::of_whole).collect(),
            missed,
        }
    }
}

/// Decides for all files of `profile`, in the order of their first touch.
pub fn place(profile: &Profile, layers: &[ScannedLayer], options: &PlannerOptions) -> Placements {
    let (decided, missed) = decisions(profile, layers, options);
    let mut placed = Placements {
        layers: vec![Placement::default(); layers.len()],
        missed,
    };
    for Decided {
        wanted, decision, ..
    } in decided
    {
        let layer = &mut placed.layers[wanted.file.layer as usize];
        match decision {
            Decision::Whole => layer.whole.extend(wanted.names),
            Decision::OnDemand => layer.on_demand.extend(wanted.names),
            Decision::Ranges(hot) => {
                let read = wanted.widened(options.read_around, 0);
                layer.giants.push(Giant {
                    entry: wanted.file.entry,
                    hot: pieces(&hot, &read, options.shortest_cold_bytes),
                });
            }
        }
    }
    placed
}

/// What becomes of a file of the profile.
struct Decided {
    wanted: Wanted,
    decision: Decision,
    /// Whether [`PlannerOptions::growth`] asked for less than was decided for the file alone.
    is_limited: bool,
}

/// What is decided, and the paths that no layer has.
fn decisions(
    profile: &Profile,
    layers: &[ScannedLayer],
    options: &PlannerOptions,
) -> (Vec<Decided>, Vec<String>) {
    let Located { files, missed } = locate(profile, layers);
    let trust = Trust::of(profile);
    let decided = gathered(&files, layers).into_iter().map(|wanted| {
        let layer = &layers[wanted.file.layer as usize];
        let options = PlannerOptions {
            costs: options.costs.map(|costs| costs.for_layer(layer)),
            ..*options
        };
        let decision = decide(&wanted, trust, &options);
        Decided {
            wanted,
            decision,
            is_limited: false,
        }
    });
    let mut decided: Vec<_> = decided.collect();
    if options.hot_pack == HotPack::Auto {
        budget::keep(&mut decided, layers, options);
    }
    (decided, missed)
}

/// A file that the profile names, and why it becomes what it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The entry that holds its bytes.
    pub file: FileId,
    /// Its size.
    pub size_bytes: u64,
    /// What was touched of it.
    pub touched_bytes: u64,
    /// What becomes of it.
    pub decision: Decision,
    /// Whether less of it is packed than would be best, or nothing, for [`PlannerOptions::growth`].
    pub is_limited: bool,
    /// What each of the three would cost, if nothing else were fetched.
    pub costs: FileCosts,
}

/// What [`place`] decides, file by file, with prices.
pub fn explain(
    profile: &Profile,
    layers: &[ScannedLayer],
    options: &PlannerOptions,
    costs: &Costs,
) -> Vec<Explained> {
    let (decided, _) = decisions(profile, layers, options);
    let explained = decided.into_iter().map(|decided| {
        let Decided {
            wanted,
            decision,
            is_limited,
        } = decided;
        let costs = costs.for_layer(&layers[wanted.file.layer as usize]);
        let gap_bytes = match options.costs {
            Some(_) => costs.gap_bytes(),
            None => options.gap_bytes,
        };
        let hot = match &decision {
            Decision::Ranges(hot) => hot.clone(),
            Decision::Whole | Decision::OnDemand => wanted.widened(options.margins, gap_bytes),
        };
        let read = wanted.widened(options.read_around, 0);
        Explained {
            file: wanted.file,
            size_bytes: wanted.size_bytes,
            touched_bytes: total_bytes(&wanted.widened(Margins::NONE, 0)),
            decision,
            is_limited,
            costs: costs.of_file(wanted.size_bytes, &hot, &read),
        }
    });
    explained.collect()
}

/// How far a profile's ranges can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// They are what was touched.
    Exact,
    /// More may have been touched.
    LowerBounds,
}

impl Trust {
    fn of(profile: &Profile) -> Self {
        match profile.collector.ranges {
            None => Self::Exact,
            Some(_) => Self::LowerBounds,
        }
    }
}

/// What is known of a file, whatever its names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// The entry that holds the bytes.
    file: FileId,
    /// The entries by which the file was named, in order.
    names: Vec<u32>,
    size_bytes: u64,
    /// The file's size when it was profiled.
    profiled_bytes: u64,
    /// (offset, length), in any order; may overlap.
    touched: Vec<(u64, u64)>,
}

impl Wanted {
    /// What was touched with `margins`, see [`widened`]; within the file as it was profiled.
    fn widened(&self, margins: Margins, gap_bytes: u64) -> Vec<Range<u64>> {
        widened(&self.touched, self.profiled_bytes, margins, gap_bytes)
    }
}

/// The files in order; two rows that mean the same file are one.
fn gathered(files: &[(&ProfiledFile, FileId)], layers: &[ScannedLayer]) -> Vec<Wanted> {
    let mut links = Links::new(layers);
    let mut wanted: Vec<Wanted> = Vec::with_capacity(files.len());
    let mut places: HashMap<FileId, usize> = HashMap::with_capacity(files.len());
    for &(profiled, named) in files {
        let file = links.target(named);
        match places.entry(file) {
            Slot::Vacant(slot) => {
                slot.insert(wanted.len());
                wanted.push(Wanted {
                    file,
                    names: vec![named.entry],
                    size_bytes: layers[file.layer as usize].entries[file.entry as usize].size_bytes,
                    profiled_bytes: profiled.size_bytes,
                    touched: profiled.ranges.clone(),
                });
            }
            Slot::Occupied(slot) => {
                let known = &mut wanted[*slot.get()];
                if !known.names.contains(&named.entry) {
                    known.names.push(named.entry);
                }
                known.touched.extend_from_slice(&profiled.ranges);
            }
        }
    }
    wanted
}

/// Hardlinks of the layers, followed to the entries that hold the bytes.
struct Links<'a> {
    layers: &'a [ScannedLayer],
    /// Paths of a layer, made when a link of it is met; the last entry of a path wins.
    paths: HashMap<u32, HashMap<Vec<u8>, u32>>,
}

impl<'a> Links<'a> {
    fn new(layers: &'a [ScannedLayer]) -> Self {
        Self {
            layers,
            paths: HashMap::new(),
        }
    }

    /// The entry at the end of the chain; the link itself where it leads to none.
    fn target(&mut self, named: FileId) -> FileId {
        let entries = &self.layers[named.layer as usize].entries;
        let mut entry = named.entry;
        // A chain that is longer is a circle.
        for _ in 0..entries.len() {
            let link = &entries[entry as usize];
            if link.kind != EntryKind::Hardlink {
                return FileId { entry, ..named };
            }
            let paths = self.paths.entry(named.layer).or_insert_with(|| {
                let numbered = (0..).zip(entries);
                numbered
                    .filter_map(|(index, entry)| Some((entry.path()?, index)))
                    .collect()
            });
            let target = clean_path(&link.link_name).and_then(|path| paths.get(&path));
            match target {
                Some(&target) => entry = target,
                None => return named,
            }
        }
        named
    }
}

/// What becomes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is prefetched whole.
    Whole,
    /// These ranges are.
    Ranges(Vec<Range<u64>>),
    /// Nothing is.
    OnDemand,
}

fn decide(wanted: &Wanted, trust: Trust, options: &PlannerOptions) -> Decision {
    let Wanted {
        size_bytes,
        profiled_bytes,
        touched,
        ..
    } = wanted;
    // Opened but not read: its metadata, which the TOC carries, was all that was needed.
    if touched.is_empty() {
        return Decision::OnDemand;
    }
    let whole_percent = match options.hot_pack {
        HotPack::Off => return Decision::Whole,
        HotPack::Auto if trust == Trust::LowerBounds => return Decision::Whole,
        HotPack::Auto => options.whole_percent,
        HotPack::On => 99,
    };
    if *size_bytes < options.giant_bytes {
        return Decision::Whole;
    }
    let gap_bytes = options.costs.map(|costs| costs.gap_bytes());
    let hot = wanted.widened(options.margins, gap_bytes.unwrap_or(options.gap_bytes));
    let is_whole = match options.costs {
        Some(costs) if options.hot_pack == HotPack::Auto => {
            let read = wanted.widened(options.read_around, 0);
            let price = costs.of_file(*profiled_bytes, &hot, &read);
            if price.on_demand_seconds < price.whole_seconds.min(price.packed_seconds) {
                return Decision::OnDemand;
            }
            price.whole_seconds <= price.packed_seconds
        }
        _ => exceeds(total_bytes(&hot), *profiled_bytes, whole_percent),
    };
    if is_whole {
        Decision::Whole
    } else if size_bytes == profiled_bytes {
        Decision::Ranges(hot)
    } else {
        // Another build of the file: where its ranges are now is not known, only that they are few.
        Decision::OnDemand
    }
}

/// Whether `part` is more than `percent` of `whole`.
fn exceeds(part: u64, whole: u64, percent: u64) -> bool {
    u128::from(part) * 100 > u128::from(whole) * u128::from(percent)
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]
mod tests;
