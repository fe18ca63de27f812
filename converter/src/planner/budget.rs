//! How much longer packs may make an image: what they hold is stored twice.
//!
//! Enters: what was decided, and scanned layers. Leaves: decisions whose packs fit, with narrower ranges, or with
//! files that are prefetched whole instead. Pure; compressed lengths are those of the source.

use std::cmp::Reverse;
use std::ops::Range;

use crate::layer::entry::ScannedLayer;
use crate::planner::estimate::{compressed_bytes, layer_bytes};
use crate::planner::ranges::total_bytes;
use crate::planner::{Decided, Decision, Margins, PlannerOptions, Wanted};

/// What an entry adds to any eStargz layer: a row, two digests in it, the ends of a member. 183 to 260 bytes in the
/// images of `cargo xtask bench readiness`: `estargz` less `plain`, over the entries that `esgz inspect` counts.
const ROW_BYTES: u64 = 215;
/// So much of the image is for packs in any case: where rows take nearly all of the allowance, as there are many small
/// files, a sparse giant is worth it still.
const LEAST_SHARE: f64 = 0.01;

const KIB: u64 = 1 << 10;

/// Margins and gaps in place of the planner's, one after the other. The last one is what a fault reads.
const NARROWER: [(Margins, u64); 3] = [
    (margins(64 * KIB, 128 * KIB), 256 * KIB),
    (margins(64 * KIB, 64 * KIB), 128 * KIB),
    (margins(64 * KIB, 64 * KIB), 0),
];

const fn margins(before_bytes: u64, behind_bytes: u64) -> Margins {
    Margins {
        before_bytes,
        behind_bytes,
    }
}

/// A giant in a pack.
struct Packed {
    /// Where it stands among the decisions.
    at: usize,
    /// Compressed.
    bytes: u64,
}

/// Makes packs smaller until they fit into `options.growth`: those that take most get narrower ranges first; and if
/// none can be narrowed any more, those of which most is hot are prefetched whole.
pub(super) fn keep(decided: &mut [Decided], layers: &[ScannedLayer], options: &PlannerOptions) {
    let allowed = allowed_bytes(layers, options.growth);
    let mut packed: Vec<Packed> = Vec::new();
    for (at, one) in decided.iter().enumerate() {
        if let Decision::Ranges(hot) = &one.decision {
            let bytes = stored_bytes(layers, &one.wanted, hot);
            packed.push(Packed { at, bytes });
        }
    }
    let mut all: u64 = packed.iter().map(|giant| giant.bytes).sum();
    for (margins, gap_bytes) in NARROWER {
        packed.sort_by_key(|giant| (Reverse(giant.bytes), giant.at));
        for giant in &mut packed {
            if all <= allowed {
                return;
            }
            let one = &mut decided[giant.at];
            let hot = one
                .wanted
                .widened(margins.within(options.margins), gap_bytes);
            let bytes = stored_bytes(layers, &one.wanted, &hot);
            if bytes < giant.bytes {
                all -= giant.bytes - bytes;
                giant.bytes = bytes;
                one.decision = Decision::Ranges(hot);
                one.is_limited = true;
            }
        }
    }
    // In millionths.
    let hot_part = |giant: &Packed| match &decided[giant.at] {
        Decided {
            wanted,
            decision: Decision::Ranges(hot),
            ..
        } => u128::from(total_bytes(hot)) * 1_000_000 / u128::from(wanted.size_bytes.max(1)),
        _ => 0,
    };
    packed.sort_by_key(|giant| (Reverse(hot_part(giant)), giant.at));
    for giant in &packed {
        if all <= allowed {
            return;
        }
        all -= giant.bytes;
        let one = &mut decided[giant.at];
        one.decision = Decision::Whole;
        one.is_limited = true;
    }
}

/// For packs, of what the image may grow by: what rows leave.
fn allowed_bytes(layers: &[ScannedLayer], growth: f64) -> u64 {
    let image: u64 = layers.iter().map(layer_bytes).sum();
    let rows: u64 = layers.iter().map(|layer| layer.entries.len() as u64).sum();
    let share = |share: f64| (image as f64 * share) as u64;
    let left = share(growth).saturating_sub(rows * ROW_BYTES);
    left.max(share(LEAST_SHARE.min(growth)))
}

fn stored_bytes(layers: &[ScannedLayer], wanted: &Wanted, hot: &[Range<u64>]) -> u64 {
    let layer = &layers[wanted.file.layer as usize];
    let stretches = layer.entries[wanted.file.entry as usize].data();
    let stretch_bytes = hot.iter().flat_map(|hot| {
        // Of a sparse file what is stored; its holes take nothing.
        stretches.iter().map(move |stretch| {
            let from = stretch.file_offset_bytes;
            let start = hot.start.max(from);
            let end = hot.end.min(from + stretch.stored.len_bytes);
            if start >= end {
                return 0.0;
            }
            compressed_bytes(
                layer,
                stretch.stored.offset_bytes + (start - from),
                end - start,
            )
        })
    });
    stretch_bytes.sum::<f64>() as u64
}
