//! Packs: how giants are cut, and which of their chunks have a copy where (docs/hot-pack.md). Pure.

use std::collections::HashSet;
use std::ops::Range;

use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::placement::Giant;
use crate::layer::plan::order::Order;

/// What the names of packs begin with, in the root directory. Extractors skip names of this kind, which
/// are AUFS's own, or keep them where no runtime shows them.
pub const PACK_PREFIX: &str = ".wh..wh.esgz.";
/// The pack before the landmark: what is prefetched of giants.
pub const HOT_PACK_NAME: &str = ".wh..wh.esgz.hot";
/// The pack behind the landmark: the first chunk of each giant.
pub const FIRST_PACK_NAME: &str = ".wh..wh.esgz.hot0";
/// Before each chunk in a pack stands so much that belongs to no file: its row has an `innerOffset`
/// then, and readers do not take it for the place where the file before it ends.
pub const PACK_LEAD_BYTES: u32 = 1;

/// A first chunk is about so long, which is not prefetched: the header of a library. Each of them that is read
/// fetches what lies 2 MiB behind *its* start, and so all of them together have to be short: else each fetches a little
/// that the one before did not.
const FIRST_CHUNK_BYTES: u64 = 16 << 10;

/// Where the bytes of a chunk are to which its row leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// In the file's own tar entry.
    Natural,
    /// In the pack before the landmark.
    HotPack,
    /// In the pack behind it.
    FirstPack,
}

/// A stretch of a giant with a row of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GiantChunk {
    /// Bytes of the file.
    pub(super) bytes: Range<u64>,
    pub(super) home: Home,
}

/// A giant as it is cut.
#[derive(Clone, Debug)]
pub(super) struct CutGiant {
    pub(super) entry: u32,
    pub(super) chunks: Vec<GiantChunk>,
}

impl CutGiant {
    pub(super) fn has_chunks_in(&self, home: Home) -> bool {
        self.chunks.iter().any(|chunk| chunk.home == home)
    }
}

/// The giants of a layer in their order. One that is prefetched whole all the same, as a hardlink to it
/// is, or that the layer does not keep, is none.
pub(super) fn giants(
    layer: &ScannedLayer,
    giants: &[Giant],
    order: &Order,
    chunk_bytes: u32,
) -> Vec<CutGiant> {
    if giants.is_empty() {
        return Vec::new();
    }
    let mut rest: HashSet<u32> = order.rest.iter().copied().collect();
    let mut cut_giants = Vec::with_capacity(giants.len());
    for giant in giants {
        let entry = &layer.entries[giant.entry as usize];
        // Removed, as a second mention would put a chunk into two places.
        if entry.kind != EntryKind::Regular || !rest.remove(&giant.entry) {
            continue;
        }
        let chunks = cut(entry.size_bytes, &giant.hot, u64::from(chunk_bytes));
        if chunks.iter().any(|chunk| chunk.home != Home::Natural) {
            cut_giants.push(CutGiant {
                entry: giant.entry,
                chunks,
            });
        }
    }
    cut_giants
}

/// Cuts a file of `size_bytes` at the borders of its `hot` ranges, and what is longer than a chunk
/// at chunks. Ranges that are out of order or too long are cut back.
fn cut(size_bytes: u64, hot: &[Range<u64>], chunk_bytes: u64) -> Vec<GiantChunk> {
    let mut chunks = Vec::new();
    let mut add = |bytes: Range<u64>, home: Home| {
        let mut at = bytes.start;
        while at < bytes.end {
            let is_first = at == 0 && home != Home::Natural;
            let (len, home) = if is_first {
                (
                    first_chunk_bytes(bytes.end).min(chunk_bytes),
                    Home::FirstPack,
                )
            } else {
                (chunk_bytes, home)
            };
            let end = bytes.end.min(at.saturating_add(len));
            chunks.push(GiantChunk {
                bytes: at..end,
                home,
            });
            at = end;
        }
    };
    let mut reached = 0;
    for range in hot {
        let start = range.start.max(reached);
        let end = range.end.min(size_bytes);
        if start < end {
            add(reached..start, Home::Natural);
            add(start..end, Home::HotPack);
            reached = end;
        }
    }
    add(reached..size_bytes, Home::Natural);
    chunks
}

/// How much of a range at the file's start goes into its first chunk: all of it, where else a small rest
/// would be left.
fn first_chunk_bytes(range_bytes: u64) -> u64 {
    if range_bytes <= 2 * FIRST_CHUNK_BYTES {
        range_bytes
    } else {
        FIRST_CHUNK_BYTES
    }
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn giants_are_cut_at_their_hot_ranges() {
        use Home::{FirstPack as F, HotPack as H, Natural as N};
        let check = |size, hot: &[Range<u64>], expected: &[(u64, Home)]| {
            let ends: Vec<_> = cut(size, hot, 100)
                .into_iter()
                .map(|chunk| (chunk.bytes.end, chunk.home))
                .collect();
            assert_eq!(ends, expected, "{hot:?}");
        };
        check(250, &[], &[(100, N), (200, N), (250, N)]);
        check(250, &[0..30], &[(30, F), (130, N), (230, N), (250, N)]);
        check(250, &[40..50], &[(40, N), (50, H), (150, N), (250, N)]);
        // Ranges and what is between them are cut from their own start.
        check(
            600,
            &[0..20, 150..400],
            &[
                (20, F),
                (120, N),
                (150, N),
                (250, H),
                (350, H),
                (400, H),
                (500, N),
                (600, N),
            ],
        );
        // The last chunk, all chunks, ranges that touch each other.
        check(120, &[0..20, 110..120], &[(20, F), (110, N), (120, H)]);
        check(120, &[0..20, 20..120], &[(20, F), (120, H)]);
        check(150, &[0..150], &[(100, F), (150, H)]);
        check(50, &[0..50], &[(50, F)]);
        // What is no range is none.
        check(50, &[10..10, 60..70], &[(50, N)]);
        check(50, &[20..30, 10..25, 25..99], &[(20, N), (30, H), (50, H)]);
    }

    #[test]
    fn a_first_chunk_is_small() {
        let first = |range: u64| {
            let chunks = cut(64 << 20, &[0..range], 4 << 20);
            assert_eq!(chunks[0].home, Home::FirstPack);
            (chunks[0].bytes.end, chunks[1].home)
        };
        assert_eq!(first(5 << 10), (5 << 10, Home::Natural));
        assert_eq!(first(32 << 10), (32 << 10, Home::Natural));
        assert_eq!(first((32 << 10) + 1), (16 << 10, Home::HotPack));
        assert_eq!(first(132 << 10), (16 << 10, Home::HotPack));
    }

    proptest! {
        /// Chunks follow each other, none is too long; what is hot is in a pack, nothing else is.
        #[test]
        fn chunks_make_up_the_file(
            size in 0..3000_u64,
            hot in prop::collection::vec((0..3000_u64, 0..900_u64), 0..8),
            chunk_bytes in 1..500_u64,
        ) {
            let mut hot: Vec<Range<u64>> = hot.iter().map(|&(at, len)| at..at + len).collect();
            hot.sort_by_key(|range| range.start);
            let chunks = cut(size, &hot, chunk_bytes);
            let mut reached = 0;
            for chunk in &chunks {
                prop_assert_eq!(chunk.bytes.start, reached);
                reached = chunk.bytes.end;
                prop_assert!(reached > chunk.bytes.start);
                prop_assert!(reached - chunk.bytes.start <= chunk_bytes);
                prop_assert_eq!(chunk.home == Home::FirstPack,
                    chunk.bytes.start == 0 && chunk.home != Home::Natural);
                for byte in chunk.bytes.clone() {
                    let is_hot = hot.iter().any(|range| range.contains(&byte));
                    prop_assert_eq!(is_hot, chunk.home != Home::Natural);
                }
            }
            prop_assert_eq!(reached, size);
        }
    }
}
