//! What of a blob has been fetched: `fs/remote/blob.go` keeps it in units, and asks for those that are missing
//! in one request.

use std::ops::Range;

/// The units of one blob.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    size_bytes: u64,
    unit_bytes: u64,
    have: Vec<bool>,
}

impl Fetched {
    pub(super) fn nothing(size_bytes: u64, unit_bytes: u64) -> Self {
        let units = size_bytes.div_ceil(unit_bytes);
        Self {
            size_bytes,
            unit_bytes,
            have: vec![false; usize::try_from(units).unwrap_or(0)],
        }
    }

    /// The units that hold any of `bytes` and are not here.
    pub(super) fn missing(&self, bytes: Range<u64>) -> Vec<u32> {
        let end = bytes.end.min(self.size_bytes).div_ceil(self.unit_bytes);
        let start = (bytes.start / self.unit_bytes).min(end);
        let range = start as usize..end as usize;
        let units = range.start as u32..;
        units
            .zip(&self.have[range])
            .filter(|&(_, have)| !have)
            .map(|(unit, _)| unit)
            .collect()
    }

    /// How long these units are together.
    pub(super) fn len_bytes(&self, units: &[u32]) -> u64 {
        units.iter().map(|&unit| self.unit_len(unit)).sum()
    }

    fn unit_len(&self, unit: u32) -> u64 {
        let start = u64::from(unit) * self.unit_bytes;
        self.unit_bytes.min(self.size_bytes - start)
    }

    pub(super) fn add(&mut self, units: &[u32]) {
        for &unit in units {
            self.have[unit as usize] = true;
        }
    }

    /// Adds those of `units` that `arrived_bytes` of an answer hold as a whole.
    pub(super) fn add_arrived(&mut self, units: &[u32], arrived_bytes: u64) {
        let mut left = arrived_bytes;
        for &unit in units {
            let len = self.unit_len(unit);
            if left < len {
                break;
            }
            left -= len;
            self.have[unit as usize] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_fetched_in_units() {
        let mut fetched = Fetched::nothing(250, 100);
        assert_eq!(fetched.missing(0..0), [] as [u32; 0]);
        assert_eq!(fetched.missing(10..20), [0]);
        assert_eq!(fetched.missing(99..101), [0, 1]);
        assert_eq!(fetched.missing(100..200), [1]);
        assert_eq!(fetched.missing(240..999), [2]);
        assert_eq!(fetched.missing(900..999), [] as [u32; 0]);
        assert_eq!(fetched.len_bytes(&[0, 2]), 150);
        fetched.add(&[1]);
        assert_eq!(fetched.missing(0..250), [0, 2]);
        // The last unit is short; what arrived in part is not there.
        fetched.add_arrived(&[0, 2], 149);
        assert_eq!(fetched.missing(0..250), [2]);
        fetched.add_arrived(&[0, 2], 150);
        assert_eq!(fetched.missing(0..250), [] as [u32; 0]);
    }
}
