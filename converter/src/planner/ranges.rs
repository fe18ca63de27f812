//! Ranges of a file: from the pages that were touched to the bytes that are worth fetching. Pure.

use std::ops::Range;

/// Fetched around what was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margins {
    /// Before it.
    pub before_bytes: u64,
    /// Behind it.
    pub behind_bytes: u64,
}

impl Margins {
    /// Nothing around it.
    pub(super) const NONE: Self = Self {
        before_bytes: 0,
        behind_bytes: 0,
    };

    /// No wider than `others` on either side.
    pub(super) fn within(self, others: Self) -> Self {
        Self {
            before_bytes: self.before_bytes.min(others.before_bytes),
            behind_bytes: self.behind_bytes.min(others.behind_bytes),
        }
    }
}

/// The touched ranges (offset and length, as a profile has them) with `margins` around each, within
/// `size_bytes`. What then lies no more than `gap_bytes` apart is one range. Ascending and
/// disjoint, whatever the order of `touched`.
pub(super) fn widened(
    touched: &[(u64, u64)],
    size_bytes: u64,
    margins: Margins,
    gap_bytes: u64,
) -> Vec<Range<u64>> {
    let mut wide: Vec<Range<u64>> = touched
        .iter()
        .filter(|&&(offset, len)| len > 0 && offset < size_bytes)
        .map(|&(offset, len)| {
            let end = offset
                .saturating_add(len)
                .saturating_add(margins.behind_bytes);
            offset.saturating_sub(margins.before_bytes)..end.min(size_bytes)
        })
        .collect();
    wide.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(wide.len());
    for range in wide {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap_bytes) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// `hot` cut so that what a run is expected to read, `read`, and what lies between are ranges of their own: the
/// reader inflates whole chunks, and no chunk goes across a border. What lies between and is shorter than
/// `shortest_bytes` stays with what is read before or behind it; of what is twice as long, so much is cut off again
/// where it follows what is read, as far as a read-ahead comes. The same bytes as `hot`; ascending and disjoint, as
/// both lists have to be.
pub(super) fn pieces(
    hot: &[Range<u64>],
    read: &[Range<u64>],
    shortest_bytes: u64,
) -> Vec<Range<u64>> {
    let mut pieces = Vec::with_capacity(hot.len() + read.len());
    for hot in hot {
        let first = read.partition_point(|read| read.end <= hot.start);
        let within = read[first..].iter().take_while(|r| r.start < hot.end);
        // Where the piece begins that is not cut yet, and how far it is read.
        let (mut start, mut read_to) = (hot.start, hot.start);
        let end = std::iter::once(hot.end..hot.end);
        for next in within.cloned().chain(end) {
            let cold_bytes = next.start.saturating_sub(read_to);
            if cold_bytes >= shortest_bytes.max(1) {
                let is_behind = read_to > start;
                let ahead = if is_behind && cold_bytes / 2 >= shortest_bytes {
                    read_to + shortest_bytes
                } else {
                    next.start
                };
                let parts = [start..read_to, read_to..ahead, ahead..next.start];
                pieces.extend(parts.into_iter().filter(|part| !part.is_empty()));
                start = next.start;
            }
            read_to = next.end.min(hot.end);
        }
        if start < hot.end {
            pieces.push(start..hot.end);
        }
    }
    pieces
}

/// Bytes of all ranges together.
pub(super) fn total_bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths(ranges: &[Range<u64>]) -> Vec<(u64, u64)> {
        let length = |range: &Range<u64>| (range.start, range.end - range.start);
        ranges.iter().map(length).collect()
    }

    fn both(bytes: u64) -> Margins {
        Margins {
            before_bytes: bytes,
            behind_bytes: bytes,
        }
    }

    #[test]
    fn margins_may_differ() {
        let margins = Margins {
            before_bytes: 10,
            behind_bytes: 25,
        };
        assert_eq!(
            widened(&[(100, 5), (200, 5), (990, 5)], 1000, margins, 60),
            [90..230, 980..1000]
        );
        assert_eq!(
            widened(&[(100, 5), (200, 5)], 1000, margins, 59),
            [90..130, 190..230]
        );
    }

    #[test]
    fn margins_are_added_and_gaps_closed() {
        let check = |touched: &[(u64, u64)], expected: &[Range<u64>]| {
            assert_eq!(
                widened(touched, 1000, both(10), 50),
                expected,
                "{touched:?}"
            );
        };
        check(&[], &[]);
        check(&[(100, 20)], &[90..130]);
        // At both ends of the file.
        check(&[(0, 1), (995, 5)], &[0..11, 985..1000]);
        // 50 bytes between the margins are closed, 51 are not.
        check(&[(100, 10), (180, 10)], &[90..200]);
        check(&[(100, 10), (181, 10)], &[90..120, 171..201]);
        // A chain; one within another; out of order.
        check(&[(100, 10), (180, 10), (260, 10)], &[90..280]);
        check(&[(100, 200), (150, 10)], &[90..310]);
        check(&[(500, 10), (100, 10)], &[90..120, 490..520]);
        // What is no range of the file.
        check(&[(100, 0), (1000, 5), (2000, 5)], &[]);
        check(&[(990, u64::MAX)], &[980..1000]);
        check(&[(0, 1000)], &[0..1000]);
    }

    #[test]
    fn what_is_read_and_what_is_not_are_apart() {
        let check = |hot: &[Range<u64>], read: &[Range<u64>], expected: &[Range<u64>]| {
            assert_eq!(pieces(hot, read, 50), expected, "{hot:?}, {read:?}");
        };
        check(&[], &[], &[]);
        check(&[], &[5..9], &[]);
        check(
            &[0..900],
            &[100..200, 299..310],
            &[0..100, 100..200, 200..299, 299..310, 310..360, 360..900],
        );
        // At both ends, and across them.
        check(
            &[100..500],
            &[0..200, 300..900],
            &[100..200, 200..250, 250..300, 300..500],
        );
        // 50 bytes are a piece, 49 are not.
        check(
            &[0..300],
            &[50..100, 150..250],
            &[0..50, 50..100, 100..150, 150..250, 250..300],
        );
        check(&[0..299], &[49..100, 149..250], &[0..299]);
        // Nothing is read, or everything is.
        check(&[10..90, 200..220], &[], &[10..90, 200..220]);
        check(&[10..90], &[0..300], &[10..90]);
        // Ranges of others.
        check(
            &[100..400, 600..900],
            &[0..100, 450..500, 700..750],
            &[100..400, 600..700, 700..750, 750..800, 800..900],
        );
    }

    #[test]
    fn without_margin_and_gap_ranges_stay() {
        assert_eq!(
            widened(&[(0, 10), (10, 5), (16, 4)], 100, Margins::NONE, 0),
            [0..15, 16..20]
        );
        assert_eq!(total_bytes(&[0..15, 16..20]), 19);
        assert_eq!(total_bytes(&[]), 0);
    }

    proptest! {
        /// The same bytes, in pieces of which each is read or is not, but for what is short.
        #[test]
        fn pieces_are_what_was_cut(
            hot in prop::collection::vec((0..3000_u64, 1..600_u64), 0..8),
            read in prop::collection::vec((0..3000_u64, 1..200_u64), 0..20),
            shortest in 0..100_u64,
        ) {
            let hot = widened(&hot, 4000, Margins::NONE, 0);
            let read = widened(&read, 4000, Margins::NONE, 0);
            let pieces = pieces(&hot, &read, shortest);
            prop_assert_eq!(widened(&lengths(&pieces), 4000, Margins::NONE, 0), hot);
            for pair in pieces.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
            }
            for piece in &pieces {
                prop_assert!(!piece.is_empty());
                let mut reached = piece.start;
                let mut is_read = false;
                for read in &read {
                    let (start, end) = (read.start.max(piece.start), read.end.min(piece.end));
                    if start < end {
                        prop_assert!(start - reached < shortest.max(1));
                        (reached, is_read) = (end, true);
                    }
                }
                prop_assert!(!is_read || piece.end - reached < shortest.max(1));
            }
        }

        /// Every touched byte is in a range; ranges are ascending, within the file and further apart
        /// than a gap; none is without a touched byte.
        #[test]
        fn ranges_hold_what_was_touched(
            touched in prop::collection::vec((0..5000_u64, 0..600_u64), 0..20),
            size in 1..4000_u64,
            before in 0..300_u64,
            behind in 0..300_u64,
            gap in 0..300_u64,
        ) {
            let margins = Margins { before_bytes: before, behind_bytes: behind };
            let ranges = widened(&touched, size, margins, gap);
            for &(offset, len) in &touched {
                for byte in offset..(offset + len).min(size) {
                    prop_assert!(ranges.iter().any(|range| range.contains(&byte)));
                }
            }
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end + gap < pair[1].start);
            }
            for range in &ranges {
                prop_assert!(range.start < range.end && range.end <= size);
                let begins = |&&(offset, len): &&(u64, u64)| len > 0 && range.contains(&offset);
                prop_assert_ne!(touched.iter().filter(begins).count(), 0);
            }
        }
    }
}
