//! Where a laid out layer's chunks will lie in its blob, before any of them is compressed.
//!
//! Enters: a scanned layer and its plan. Leaves: what its TOC will say to a simulation. A chunk's compressed length is
//! taken from the source, where that is gzip: from the blocks that hold it, else from the layer's ratio.

use crate::blob::ReadAt as _;
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::{LayerPlan, Member, Segment};
use crate::layer::toc::{self, OwnerNames, Toc, TocEntry};
use crate::simulate::{Contents, LayerModel};

/// Header, trailer, and what deflate needs for very little.
const MEMBER_BYTES: f64 = 30.0;
/// What of tar headers remains when they are compressed.
const HEADER_SHARE: f64 = 0.15;
/// Of a TOC's JSON, likewise: digests do not compress.
const TOC_SHARE: f64 = 0.4;
/// Two digests in a row, as text.
const DIGESTS_BYTES: u64 = 180;

/// The layer as a node will see it.
pub(super) fn layer_model(layer: &ScannedLayer, plan: &LayerPlan) -> LayerModel {
    let mut at = 0_u64;
    let mut offsets = Vec::with_capacity(plan.members.len());
    for member in &plan.members {
        offsets.push(at);
        at += member_bytes(layer, plan, member);
    }
    let mut names = OwnerNames::default();
    let mut entries: Vec<TocEntry<'_>> = Vec::with_capacity(plan.rows.len());
    for row in &plan.rows {
        let mut first = toc::first_row(layer, row.source, &mut names);
        let members = plan.members_of(row);
        let count = members.len();
        let mut reached = 0;
        for (number, member) in members.enumerate() {
            let chunk = &plan.members[member];
            let mut next = if number == 0 {
                first.clone()
            } else {
                TocEntry {
                    name: first.name.clone(),
                    kind: "chunk".into(),
                    ..TocEntry::default()
                }
            };
            next.offset = offsets[member];
            next.inner_offset = u64::from(chunk.lead_bytes);
            next.chunk_offset = reached;
            if number + 1 < count {
                next.chunk_size = u64::from(chunk.chunk_bytes);
            }
            reached += u64::from(chunk.chunk_bytes);
            entries.push(next);
        }
        if count == 0 {
            first.offset = 0;
            entries.push(first);
        }
    }
    let rows = entries.len() as u64;
    let toc = Toc {
        version: 1,
        entries,
    };
    let json_bytes = serde_json::to_vec(&toc).map_or(0, |json| json.len() as u64);
    let json_bytes = json_bytes + rows * DIGESTS_BYTES;
    LayerModel {
        digest: layer.digest,
        size_bytes: at + (json_bytes as f64 * TOC_SHARE) as u64 + 100,
        contents: Some(Contents::new(&toc, at, json_bytes)),
    }
}

fn member_bytes(layer: &ScannedLayer, plan: &LayerPlan, member: &Member) -> u64 {
    let segments = plan.segments_of(member).iter();
    let compressed: f64 = segments
        .map(|segment| match *segment {
            Segment::Spool {
                offset_bytes,
                len_bytes,
            } => compressed_bytes(layer, offset_bytes, u64::from(len_bytes)),
            Segment::Literal { len_bytes, .. } => f64::from(len_bytes) * HEADER_SHARE,
            Segment::Zeros { .. } => 0.0,
        })
        .sum();
    (compressed + MEMBER_BYTES) as u64
}

/// Compressed bytes of a stretch of the layer's tar.
pub(super) fn compressed_bytes(layer: &ScannedLayer, offset_bytes: u64, len_bytes: u64) -> f64 {
    match &layer.deflate {
        Some(index) => index.compressed_bytes(offset_bytes..offset_bytes + len_bytes),
        None => len_bytes as f64 * ratio(layer),
    }
}

/// Compressed bytes of the layer.
pub(super) fn layer_bytes(layer: &ScannedLayer) -> u64 {
    match &layer.deflate {
        Some(_) => layer.size_bytes,
        None => (layer.spool.len_bytes() as f64 * ratio(layer)) as u64,
    }
}

/// Of a layer that is no gzip.
fn ratio(layer: &ScannedLayer) -> f64 {
    let all = layer.spool.len_bytes().max(1) as f64;
    // A layer that is not compressed will be.
    (layer.size_bytes as f64 / all).min(0.5)
}
