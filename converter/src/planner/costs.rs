//! What it costs until a file's touched bytes are there: seconds, from the link and the node's rates.
//!
//! Enters: a link, constants, sizes. Leaves: seconds, and from them where it pays to cut a file. Pure.

use std::ops::Range;

use crate::blob::ReadAt as _;
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::PlanOptions;
use crate::planner::ranges::total_bytes;
use crate::simulate::{Constants, Link};

/// How often bytes between two touched ranges are touched by the next run of the same workload: by a read-ahead that
/// came another way, by a thread that was faster.
const TOUCHED_NEXT_TIME: f64 = 0.25;
/// Gaps are rounded to this, so that a slightly other link gives the same layout.
const GAP_STEP_BYTES: u64 = 256 << 10;
/// However slow the link: what lies further apart has nothing to do with each other.
const LONGEST_GAP_BYTES: u64 = 4 << 20;
/// A file that is packed is missed so often all the same: first chunks come together, but each run touches something
/// else besides.
const MISSES_OF_A_PACKED_FILE: f64 = 0.5;

/// Prices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Between node and registry.
    pub link: Link,
    /// Rules and rates of the node.
    pub constants: Constants,
    /// Uncompressed bytes in a chunk.
    pub chunk_bytes: u64,
    /// Compressed bytes for an uncompressed one, in the layer in question.
    pub share: f64,
}

/// What becomes of a file costs so many seconds, for each of the three.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct FileCosts {
    /// Prefetched whole.
    pub whole_seconds: f64,
    /// Its touched ranges prefetched in a pack.
    pub packed_seconds: f64,
    /// Fetched chunk by chunk when it is read.
    pub on_demand_seconds: f64,
}

impl Costs {
    /// Prices for this link, where `plan` cuts files. A layer's own share comes with [`Costs::for_layer`].
    pub fn new(link: Link, constants: Constants, plan: PlanOptions) -> Self {
        Self {
            link,
            constants,
            chunk_bytes: u64::from(plan.chunk_bytes),
            share: 0.5,
        }
    }

    /// The same for the files of `layer`.
    pub(super) fn for_layer(&self, layer: &ScannedLayer) -> Self {
        let all = layer.spool.len_bytes().max(1) as f64;
        Self {
            share: (layer.size_bytes as f64 / all).min(1.0),
            ..*self
        }
    }

    /// Until so many compressed bytes have come through the link, nothing else being transferred.
    fn fetch_seconds(&self, compressed_bytes: f64) -> f64 {
        compressed_bytes / self.link.bytes_per_second
    }

    /// Until one core has inflated, hashed and cached so many bytes.
    fn inflate_seconds(&self, bytes: f64) -> f64 {
        bytes / self.constants.inflate_bytes_per_second
    }

    /// Until a chunk of `bytes` is there that nobody has prefetched.
    pub fn miss_seconds(&self, bytes: u64) -> f64 {
        let chunk = bytes as f64;
        let peeked = (chunk * self.share).max(self.constants.peek_bytes as f64);
        self.link.round_trip_seconds + self.fetch_seconds(peeked) + self.inflate_seconds(chunk)
    }

    /// Touched ranges that are no further apart are one: to fetch and inflate what lies between costs no more than to
    /// miss it as often as it is touched the next time.
    pub fn gap_bytes(&self) -> u64 {
        let missed = TOUCHED_NEXT_TIME * self.miss_seconds(self.chunk_bytes);
        let a_byte = self.fetch_seconds(self.share) + self.inflate_seconds(1.0);
        let gap = (missed / a_byte).min(LONGEST_GAP_BYTES as f64) as u64;
        (gap / GAP_STEP_BYTES).max(1) * GAP_STEP_BYTES
    }

    /// Prices of a file of `size_bytes` of which `hot` would be packed, margins and gaps included, and `read` is read.
    /// Both are ascending and disjoint.
    pub fn of_file(&self, size_bytes: u64, hot: &[Range<u64>], read: &[Range<u64>]) -> FileCosts {
        let size = size_bytes as f64;
        let (hot_bytes, read_bytes) = (total_bytes(hot) as f64, total_bytes(read) as f64);
        // A prefetch is inflated by all cores, before anybody reads; a pack when it is read.
        let cores = f64::from(self.constants.cores.max(1));
        let miss = self.miss_seconds(self.chunk_bytes.min(size_bytes));
        let chunks = self.chunks(size_bytes, hot);
        let on_demand: f64 = chunks.map(|bytes| self.miss_seconds(bytes)).sum();
        FileCosts {
            whole_seconds: self.fetch_seconds(size * self.share)
                + self.inflate_seconds(size) / cores,
            packed_seconds: self.fetch_seconds(hot_bytes * self.share)
                + self.inflate_seconds(read_bytes)
                + MISSES_OF_A_PACKED_FILE * miss,
            on_demand_seconds: on_demand,
        }
    }

    /// Lengths of a file's chunks, cut from its start, that hold anything hot.
    fn chunks(&self, size_bytes: u64, hot: &[Range<u64>]) -> impl Iterator<Item = u64> {
        let chunk = self.chunk_bytes.max(1);
        let count = size_bytes.div_ceil(chunk);
        (0..count).filter_map(move |number| {
            let start = number * chunk;
            let end = size_bytes.min(start + chunk);
            // Behind the ranges that end before it.
            let next = hot.partition_point(|range| range.end <= start);
            let is_hot = hot.get(next).is_some_and(|range| range.start < end);
            is_hot.then_some(end - start)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A million bytes a second each way, 100 ms there and back; chunks and peeks of 1 MiB.
    fn costs() -> Costs {
        Costs {
            link: Link {
                bytes_per_second: 1e6,
                round_trip_seconds: 0.1,
            },
            constants: Constants {
                peek_bytes: MIB,
                inflate_bytes_per_second: 1e6,
                cores: 2,
                ..Constants::measured()
            },
            chunk_bytes: MIB,
            share: 0.5,
        }
    }

    #[test]
    fn files_have_three_prices() {
        let second = MIB as f64 / 1e6;
        let check = |size: u64, hot: &[Range<u64>], expected: [f64; 3]| {
            let costs = costs().of_file(size, hot, hot);
            let found = [
                costs.whole_seconds,
                costs.packed_seconds,
                costs.on_demand_seconds,
            ];
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9, "{hot:?}: {costs:?}");
            }
        };
        // A peek is 1 MiB, which holds two chunks of this layer; each miss has its own all the same.
        let miss = 0.1 + 2.0 * second;
        let whole = 0..MIB;
        check(
            MIB,
            std::slice::from_ref(&whole),
            [second, 1.5 * second + miss / 2.0, miss],
        );
        check(
            8 * MIB,
            &[0..10, 20..30],
            [8.0 * second, 30e-6 + miss / 2.0, miss],
        );
        let border = MIB - 1..MIB + 1;
        check(
            8 * MIB,
            std::slice::from_ref(&border),
            [8.0 * second, 3e-6 + miss / 2.0, 2.0 * miss],
        );
        check(8 * MIB, &[], [8.0 * second, miss / 2.0, 0.0]);
        // The last chunk is short: less to inflate.
        let short = 0.1 + second + 10e-6;
        let end = MIB..MIB + 5;
        check(
            MIB + 10,
            std::slice::from_ref(&end),
            [second + 1e-5, 7.5e-6 + miss / 2.0, short],
        );
    }

    #[test]
    fn gaps_grow_with_the_price_of_a_miss() {
        let at = |text: &str| {
            let link: Link = text.parse().unwrap();
            let costs = Costs {
                share: 0.4,
                ..Costs::new(link, Constants::measured(), PlanOptions::default())
            };
            costs.gap_bytes()
        };
        assert!(at("1gbit,100ms") > at("1gbit,10ms"));
        assert_eq!(at("1gbit,10s"), LONGEST_GAP_BYTES);
        let usual = at("1gbit,10ms");
        assert!((512 << 10..=2 * MIB).contains(&usual), "{usual}");
    }

    proptest! {
        /// A cheaper link makes nothing dearer; more hot bytes make nothing cheaper.
        #[test]
        fn prices_follow_what_is_bought(
            size in 1..64 * MIB, at in 0..64 * MIB, len in 1..64 * MIB, share in 0.01..1.0_f64,
            wider in 1.0..9.0_f64,
        ) {
            let start = at % size;
            let hot = start..size.min(start + len);
            let less = start..(hot.end - (hot.end - start) / 2);
            let dear = Costs { share, ..costs() };
            let mut cheap = dear;
            cheap.link.bytes_per_second *= wider;
            cheap.link.round_trip_seconds /= wider;
            let all = |costs: FileCosts| [costs.whole_seconds, costs.packed_seconds, costs.on_demand_seconds];
            let of = |costs: Costs, hot: &[Range<u64>], read: &[Range<u64>]| all(costs.of_file(size, hot, read));
            let (hot, less) = (std::slice::from_ref(&hot), std::slice::from_ref(&less));
            let price = of(dear, hot, hot);
            for (cheaper, price) in of(cheap, hot, hot).iter().zip(price) {
                prop_assert!(*cheaper <= price);
            }
            for (cheaper, price) in of(dear, less, less).iter().chain(&of(dear, hot, less)).zip(price.iter().cycle()) {
                prop_assert!(*cheaper <= price + 1e-9);
            }
        }
    }
}
