//! Bytes among which no compressor finds much, told from a sample of them.

/// So many bytes from the start of every stretch are looked at. A shorter one at the end counts too.
const STRETCH_BYTES: usize = 4096;
const SAMPLE_BYTES: usize = 128;

/// Of less, a sample says too little: of this much it is 2048 bytes.
const MIN_BYTES: usize = 64 << 10;

/// Two bytes of the sample are equal at most this many times as often as among random ones, in percent.
/// More than in the smallest sample of random bytes, so that they are told whatever their number.
const MOST_PERCENT: u64 = 105;

/// Whether all values occur about equally often among `bytes`: what is encrypted, compressed already, or full of
/// floating point numbers' low bits. That depends on the bytes alone, by whole numbers, so it is the same
/// everywhere.
pub(super) fn looks_random(bytes: &[u8]) -> bool {
    if bytes.len() < MIN_BYTES {
        return false;
    }
    let mut counts = [0_u32; 256];
    for stretch in bytes.chunks(STRETCH_BYTES) {
        for &byte in &stretch[..stretch.len().min(SAMPLE_BYTES)] {
            counts[usize::from(byte)] += 1;
        }
    }
    let ordered_pairs = |count: u64| u128::from(count) * u128::from(count.saturating_sub(1));
    let sampled: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let equal_pairs: u128 = counts
        .iter()
        .map(|&count| ordered_pairs(count.into()))
        .sum();
    // Of random bytes every 256th pair is equal.
    equal_pairs * 256 * 100 <= ordered_pairs(sampled) * u128::from(MOST_PERCENT)
}

#[cfg(test)]
pub(super) mod tests {
    use super::{MIN_BYTES, looks_random};

    /// Random bytes, the same everywhere (splitmix64).
    pub(in super::super) fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)).to_le_bytes()
        });
        words.flatten().take(len).collect()
    }

    #[test]
    fn noise_looks_random_and_nothing_that_has_a_pattern_does() {
        for len in [MIN_BYTES, MIN_BYTES + 77, 1 << 20, 4 << 20] {
            for seed in 1..20 {
                assert!(looks_random(&noise(len, seed)), "{len} {seed}");
            }
            // Seven bits of eight, and a byte in sixteen that is zero.
            let seven: Vec<u8> = noise(len, 1).iter().map(|byte| byte & 0x7f).collect();
            assert!(!looks_random(&seven), "{len}");
            let mut zeros = noise(len, 1);
            zeros.iter_mut().step_by(16).for_each(|byte| *byte = 0);
            assert!(!looks_random(&zeros), "{len}");
            assert!(!looks_random(&vec![0; len]), "{len}");
        }
    }

    #[test]
    fn what_is_short_is_not_told() {
        assert!(!looks_random(&noise(MIN_BYTES - 1, 1)));
        assert!(!looks_random(&[]));
    }
}
