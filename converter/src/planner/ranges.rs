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
    fn without_margin_and_gap_ranges_stay() {
        assert_eq!(
            widened(&[(0, 10), (10, 5), (16, 4)], 100, Margins::NONE, 0),
            [0..15, 16..20]
        );
        assert_eq!(total_bytes(&[0..15, 16..20]), 19);
        assert_eq!(total_bytes(&[]), 0);
    }

    proptest! {
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
