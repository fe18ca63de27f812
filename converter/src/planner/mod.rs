//! The planner: a profile and scanned layers in, for each layer what is prefetched whole, what in part
//! and what not at all out. Pure and deterministic.
//!
//! It decides file by file, by [`PlannerOptions`]. How a layer is laid out then is
//! [`layer::plan`](crate::layer::plan)'s.

mod ranges;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ops::Range;

use crate::layer::entry::{EntryKind, FileId, ScannedLayer, clean_path};
use crate::layer::placement::{Giant, Placement};
use crate::profile::{Located, Prioritized, Profile, ProfiledFile, locate};

use ranges::{total_bytes, widened};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannerOptions {
    /// Whether there are packs.
    pub hot_pack: HotPack,
    /// Files from this size on are giants; smaller ones are prefetched whole.
    pub giant_bytes: u64,
    /// Fetched before and behind what was touched: the kernel reads around a page that it needs.
    pub margin_bytes: u64,
    /// Ranges that are not further apart are one: what lies between costs less than a miss.
    pub gap_bytes: u64,
    /// A file of which more than this is hot, margins and gaps included, is prefetched whole.
    pub whole_percent: u64,
}

impl PlannerOptions {
    /// Default of [`PlannerOptions::giant_bytes`].
    pub const GIANT_BYTES: u64 = 8 << 20;
    /// Default of [`PlannerOptions::margin_bytes`]: as far as FUSE reads around a fault.
    pub const MARGIN_BYTES: u64 = 128 << 10;
    /// Default of [`PlannerOptions::gap_bytes`].
    pub const GAP_BYTES: u64 = 1 << 20;
    /// Default of [`PlannerOptions::whole_percent`].
    pub const WHOLE_PERCENT: u64 = 60;
}

impl Default for PlannerOptions {
    fn default() -> Self {
        Self {
            hot_pack: HotPack::Auto,
            giant_bytes: Self::GIANT_BYTES,
            margin_bytes: Self::MARGIN_BYTES,
            gap_bytes: Self::GAP_BYTES,
            whole_percent: Self::WHOLE_PERCENT,
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
    let Located { files, missed } = locate(profile, layers);
    let trust = Trust::of(profile);
    let mut placed = Placements {
        layers: vec![Placement::default(); layers.len()],
        missed,
    };
    for wanted in gathered(&files, layers) {
        let layer = &mut placed.layers[wanted.file.layer as usize];
        match decide(&wanted, trust, options) {
            Decision::Whole => layer.whole.extend(wanted.names),
            Decision::OnDemand => layer.on_demand.extend(wanted.names),
            Decision::Ranges(hot) => layer.giants.push(Giant {
                entry: wanted.file.entry,
                hot,
            }),
        }
    }
    placed
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
enum Decision {
    Whole,
    Ranges(Vec<Range<u64>>),
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
    let hot = widened(
        touched,
        *profiled_bytes,
        options.margin_bytes,
        options.gap_bytes,
    );
    if exceeds(total_bytes(&hot), *profiled_bytes, whole_percent) {
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
mod tests;
