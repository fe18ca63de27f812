//! Plan: entries and a prefetch list in, the output's exact order, members and TOC rows out.
//!
//! Pure and deterministic: the plan depends on the entries, the list and the options alone, never
//! on threads. Nothing is read or compressed here. The layout is docs/estargz.md's: a gzip member
//! begins at every chunk (or may begin there, see [`groups`]); what follows a payload (padding, next headers) stays in its last member.

mod builder;
mod groups;
mod order;
mod packs;

use std::collections::HashMap;

use crate::blob::ReadAt as _;
use crate::image::Digest;
use crate::layer::entry::ScannedLayer;
use crate::layer::placement::Placement;

pub(in crate::layer) use builder::Builder;
pub(in crate::layer) use groups::{GROUP_BYTES, is_full};
pub use groups::{Group, groups};
pub(in crate::layer) use order::has_reserved_name;
pub use order::{LANDMARK_NAMES, TOC_NAME, is_pack, is_reserved};
pub use packs::{FIRST_PACK_NAME, HOT_PACK_NAME, PACK_LEAD_BYTES, PACK_PREFIX};

use packs::{CutGiant, Home};

/// How a layer is cut.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    /// Uncompressed bytes in a chunk; the last chunk of a file may be shorter. Not 0.
    pub chunk_bytes: u32,
    /// Compressed bytes that a gzip member has at least, where small chunks can share it; 0 gives
    /// every chunk a member of its own.
    pub min_chunk_bytes: u32,
}

impl PlanOptions {
    /// Chunks as the reference cuts them unless told otherwise.
    pub const DEFAULT_CHUNK_BYTES: u32 = 4 << 20;
    /// Smaller chunks would make the TOC as large as the data: a row takes some 200 bytes.
    pub const MIN_CHUNK_BYTES: u32 = 1 << 10;
    /// A chunk is held in memory as a whole, here and by readers.
    pub const MAX_CHUNK_BYTES: u32 = 128 << 20;
    /// Members that hold more are compressed by one worker, in memory.
    pub const MAX_MIN_CHUNK_BYTES: u32 = 4 << 20;
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: Self::DEFAULT_CHUNK_BYTES,
            min_chunk_bytes: 0,
        }
    }
}

/// Why a layer cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A hardlink names no entry of its layer.
    #[error("hardlink \"{name}\" in layer {layer} has no target \"{target}\"")]
    MissingLinkTarget {
        /// The layer's digest.
        layer: Digest,
        /// The hardlink.
        name: String,
        /// What it names.
        target: String,
    },
}

/// A layer's output in order.
#[derive(Clone, Debug, Default)]
pub struct LayerPlan {
    /// Members in the order in which they are written.
    pub members: Vec<Member>,
    /// What the members are made of; a member owns a run of these.
    pub segments: Vec<Segment>,
    /// Bytes that are in no spool: made headers, landmarks.
    pub literals: Vec<u8>,
    /// Rows of the TOC, in its order.
    pub rows: Vec<TocRow>,
    /// The members of chunks that do not follow each other; a row owns a run of these.
    pub scattered: Vec<u32>,
    /// Uncompressed size of all members together.
    pub tar_bytes: u64,
    /// [`PlanOptions::chunk_bytes`] as it was used.
    pub chunk_bytes: u32,
    /// [`PlanOptions::min_chunk_bytes`]; unless it is 0, members are only where gzip members may
    /// begin, see [`groups`].
    pub min_chunk_bytes: u32,
    /// The member of the landmark.
    pub landmark_member: u32,
    /// What lies before the landmark.
    pub prefetch: Prefetch,
}

impl LayerPlan {
    /// What `member` is made of.
    pub fn segments_of(&self, member: &Member) -> &[Segment] {
        let first = member.first_segment as usize;
        &self.segments[first..first + member.segments as usize]
    }

    /// The members of a row's chunks, in the file's order.
    pub fn members_of(&self, row: &TocRow) -> impl ExactSizeIterator<Item = usize> + Clone {
        let place = row.place;
        (0..row.chunks).map(move |chunk| match place {
            RowPlace::From(member) => (member + chunk) as usize,
            RowPlace::Scattered(first) => self.scattered[(first + chunk) as usize] as usize,
        })
    }

    /// Where in the spool the first spooled byte of `member` lies.
    pub fn spool_offset(&self, member: &Member) -> Option<u64> {
        self.segments_of(member)
            .iter()
            .find_map(|segment| match *segment {
                Segment::Spool { offset_bytes, .. } => Some(offset_bytes),
                _ => None,
            })
    }
}

/// What lies before the prefetch landmark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetch {
    /// Regular files that are there as a whole.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// What is there of giants.
    pub packed: Packed,
}

/// What lies in packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Giants.
    pub files: u64,
    /// Chunks in the pack before the landmark.
    pub chunks: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Bytes of the first chunks in the pack behind the landmark, which are not prefetched.
    pub first_bytes: u64,
}

/// One gzip member, or a part of one that several share ([`groups`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// First of its segments in [`LayerPlan::segments`].
    pub first_segment: u32,
    /// How many segments it has.
    pub segments: u32,
    /// Uncompressed bytes, all segments together.
    pub len_bytes: u32,
    /// How many of them, from the start, belong to no file: [`PACK_LEAD_BYTES`] in a pack, else 0.
    pub lead_bytes: u32,
    /// How many of them, behind those, are a chunk; 0 for a member of headers alone.
    pub chunk_bytes: u32,
    /// Which chunk of its file that is.
    pub place: ChunkPlace,
}

/// Where in its file a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkPlace {
    /// It is the file's only one; or there is none.
    Whole,
    /// The first of several.
    First,
    /// Neither the first nor the last.
    Middle,
    /// The last of several.
    Last,
    /// In a pack: its bytes are in the file's own entry, too.
    Copy,
}

/// A run of uncompressed output bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Copied from the spool at this offset.
    Spool {
        /// Uncompressed offset in the source's tar.
        offset_bytes: u64,
        /// Length.
        len_bytes: u32,
    },
    /// Copied from [`LayerPlan::literals`] at this offset.
    Literal {
        /// Offset there.
        offset: u32,
        /// Length.
        len_bytes: u32,
    },
    /// Zeros: a hole, or padding.
    Zeros {
        /// Length.
        len_bytes: u32,
    },
}

impl Segment {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u32 {
        match *self {
            Self::Spool { len_bytes, .. }
            | Self::Literal { len_bytes, .. }
            | Self::Zeros { len_bytes } => len_bytes,
        }
    }
}

/// What a TOC row describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSource {
    /// An entry of the layer, by index.
    Entry(u32),
    /// A landmark file, by name.
    Landmark(&'static str),
}

/// One file of the TOC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TocRow {
    /// Where name, owner and so on come from.
    pub source: RowSource,
    /// How many chunks the file has; 0 for an empty one and for all that are not regular.
    pub chunks: u32,
    /// Where they are; no meaning when there are none.
    pub place: RowPlace,
}

/// Where the chunks of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowPlace {
    /// In members that follow each other, from this one on.
    From(u32),
    /// In those of [`LayerPlan::scattered`], from this index on.
    Scattered(u32),
}

/// Lays out `layer` with what `placement` names in front.
///
/// # Errors
/// [`PlanError`] names the entry that cannot be laid out.
pub fn plan_layer(
    layer: &ScannedLayer,
    placement: &Placement,
    options: PlanOptions,
) -> Result<LayerPlan, PlanError> {
    let order = order::order(layer, &placement.whole)?;
    let mut builder = Builder::new(layer.spool.len_bytes(), options);
    if !order.prioritized.is_empty() {
        builder.rewrite_from = layer.first_under_global.unwrap_or(u32::MAX);
    }
    let giants = packs::giants(layer, &placement.giants, &order, builder.plan().chunk_bytes);
    let mut copies = Copies::of(&giants);
    let entry = |index: u32| &layer.entries[index as usize];

    let has_hot_pack = giants
        .iter()
        .any(|giant| giant.has_chunks_in(Home::HotPack));
    let is_prefetched = has_hot_pack || !order.prioritized.is_empty();
    if is_prefetched {
        builder.prefetch();
        copies.pack(Home::HotPack, HOT_PACK_NAME, &giants, layer, &mut builder);
        for &index in &order.prioritized {
            builder.entry(index, entry(index));
        }
        builder.landmark(LANDMARK_NAMES[0]);
    }
    copies.pack(
        Home::FirstPack,
        FIRST_PACK_NAME,
        &giants,
        layer,
        &mut builder,
    );
    let numbers: HashMap<u32, usize> = giants.iter().map(|giant| giant.entry).zip(0..).collect();
    for &index in &order.rest {
        match numbers.get(&index) {
            Some(&number) => builder.giant(
                index,
                entry(index),
                &giants[number].chunks,
                &copies.0[number],
            ),
            None => builder.entry(index, entry(index)),
        }
    }
    if !is_prefetched {
        // Behind the rest: up to here the stream is the source's, and so is its digest (`ahead`).
        builder.landmark(LANDMARK_NAMES[1]);
    }
    Ok(builder.finish())
}

/// The members in packs, by giant and chunk; of chunks that have none there, what they have has no
/// meaning.
struct Copies(Vec<Vec<u32>>);

impl Copies {
    fn of(giants: &[CutGiant]) -> Self {
        let none = |giant: &CutGiant| vec![0; giant.chunks.len()];
        Self(giants.iter().map(none).collect())
    }

    /// Appends the pack with the chunks that are at `home`, unless there are none.
    fn pack(
        &mut self,
        home: Home,
        name: &str,
        giants: &[CutGiant],
        layer: &ScannedLayer,
        builder: &mut Builder,
    ) {
        let mut pieces = Vec::new();
        let mut copies = Vec::new();
        for (giant, members) in giants.iter().zip(&mut self.0) {
            for (chunk, member) in giant.chunks.iter().zip(members) {
                if chunk.home == home {
                    let entry = &layer.entries[giant.entry as usize];
                    pieces.push((entry, chunk.bytes.clone()));
                    copies.push(member);
                }
            }
        }
        if pieces.is_empty() {
            return;
        }
        let first = builder.pack(name, &pieces);
        for (member, number) in copies.into_iter().zip(first..) {
            *member = number;
        }
    }
}

/// Whether a layer of which nothing is prioritised keeps the order that its entries have in the source,
/// but for landmarks and TOC, which are left out.
///
/// # Errors
/// As [`plan_layer`].
pub(in crate::layer) fn keeps_order(layer: &ScannedLayer) -> Result<bool, PlanError> {
    let order = order::order(layer, &[])?;
    let named = |index: &u32| !order::has_reserved_name(&layer.entries[*index as usize]);
    let indices = 0..u32::try_from(layer.entries.len()).unwrap_or(u32::MAX);
    Ok(order.rest.into_iter().eq(indices.filter(named)))
}

#[cfg(test)]
mod tests;
