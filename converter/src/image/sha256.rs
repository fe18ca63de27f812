//! SHA-256 (FIPS 180-4) of one stream, or of several streams at once.
//!
//! A conversion hashes nearly every byte for three digests: the chunk's, the file's and the layer's.
//! The processor's SHA instructions wait for each other within one digest; with several digests side
//! by side they do not, and of the same bytes the message schedule is computed once. Two digests cost
//! together about half as much again as one. More of them come at the instructions' own rate, which is
//! what bounds a conversion's hashing: only fewer bytes would make it faster.

use sha2::block_api::compress256;

const BLOCK_BYTES: usize = 64;
/// First 32 bits of the fractional parts of the square roots of the first 8 primes.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// A digest in the making.
#[derive(Clone, Debug)]
pub(super) struct Sha256 {
    state: [u32; 8],
    /// The bytes behind the last whole block; `len_bytes` says how many.
    partial: [u8; BLOCK_BYTES],
    len_bytes: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self {
            state: INITIAL,
            partial: [0; BLOCK_BYTES],
            len_bytes: 0,
        }
    }
}

impl Sha256 {
    fn partial_bytes(&self) -> usize {
        (self.len_bytes % BLOCK_BYTES as u64) as usize
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        update_all([self], bytes);
    }

    /// Takes as many of `bytes` as the last block lacks, and gives the others.
    fn fill_block<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = self.len_bytes.wrapping_neg() % BLOCK_BYTES as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(missing as usize));
        self.update(head);
        rest
    }

    pub(super) fn finish(mut self) -> [u8; 32] {
        let len_bits = self.len_bytes.wrapping_mul(8);
        let filled = self.partial_bytes();
        let mut end = [[0; BLOCK_BYTES]; 2];
        end[0][..filled].copy_from_slice(&self.partial[..filled]);
        end[0][filled] = 0x80;
        // The length takes the last eight bytes; where they are taken, one block more is needed.
        let blocks = if filled < BLOCK_BYTES - 8 { 1 } else { 2 };
        end[blocks - 1][BLOCK_BYTES - 8..].copy_from_slice(&len_bits.to_be_bytes());
        compress256(&mut self.state, &end[..blocks]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }
}

/// Adds `bytes` to each of `hashers`.
pub(super) fn update_all<const N: usize>(mut hashers: [&mut Sha256; N], bytes: &[u8]) {
    let filled = hashers[0].partial_bytes();
    if hashers
        .iter()
        .any(|hasher| hasher.partial_bytes() != filled)
    {
        // Their blocks begin at different bytes: nothing can be shared.
        for hasher in hashers {
            update_all([hasher], bytes);
        }
        return;
    }
    let head_bytes = match filled {
        0 => 0,
        filled => (BLOCK_BYTES - filled).min(bytes.len()),
    };
    let (head, rest) = bytes.split_at(head_bytes);
    let (blocks, tail) = rest.as_chunks::<BLOCK_BYTES>();
    for hasher in &mut hashers {
        hasher.partial[filled..filled + head.len()].copy_from_slice(head);
        if !head.is_empty() && filled + head.len() == BLOCK_BYTES {
            compress256(&mut hasher.state, std::slice::from_ref(&hasher.partial));
        }
    }
    if !blocks.is_empty() {
        let mut states = hashers.each_ref().map(|hasher| hasher.state);
        compress(&mut states, blocks);
        for (hasher, state) in hashers.iter_mut().zip(states) {
            hasher.state = state;
        }
    }
    for hasher in hashers {
        // `tail` is empty where the head has not filled its block.
        hasher.partial[..tail.len()].copy_from_slice(tail);
        hasher.len_bytes += bytes.len() as u64;
    }
}

/// Adds to each of `hashers` its own of `bytes`.
pub(super) fn update_two(hashers: [&mut Sha256; 2], bytes: [&[u8]; 2]) {
    let [one, two] = hashers;
    let rests = [one.fill_block(bytes[0]), two.fill_block(bytes[1])];
    let [one_blocks, two_blocks] = rests.map(|rest| rest.as_chunks::<BLOCK_BYTES>().0);
    let both = one_blocks.len().min(two_blocks.len());
    let mut states = [one.state, two.state];
    compress_apart(&mut states, [&one_blocks[..both], &two_blocks[..both]]);
    for ((hasher, state), rest) in [one, two].into_iter().zip(states).zip(rests) {
        hasher.state = state;
        hasher.len_bytes += (both * BLOCK_BYTES) as u64;
        hasher.update(&rest[both * BLOCK_BYTES..]);
    }
}

/// Adds `blocks` to each of `states`.
fn compress<const N: usize>(states: &mut [[u32; 8]; N], blocks: &[[u8; BLOCK_BYTES]]) {
    #[cfg(target_arch = "x86_64")]
    if N > 1 && x86::compress(states, blocks) {
        return;
    }
    for state in states {
        compress256(state, blocks);
    }
}

/// Adds to each of `states` its own blocks; there are as many for both.
fn compress_apart(states: &mut [[u32; 8]; 2], blocks: [&[[u8; BLOCK_BYTES]]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if x86::compress_apart(states, blocks) {
        return;
    }
    for (state, blocks) in states.iter_mut().zip(blocks) {
        compress256(state, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The SHA extensions' instructions (Intel SDM volume 1, "SHA-256 instructions").
    #![allow(unsafe_code)]

    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    use super::BLOCK_BYTES;

    /// First 32 bits of the fractional parts of the cube roots of the first 64 primes.
    const K: [u32; 64] = [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ];

    /// Whether the processor has the instructions.
    fn are_there() -> bool {
        is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
    }

    /// `false`, and nothing done, where the processor lacks the instructions.
    pub(super) fn compress<const N: usize>(
        states: &mut [[u32; 8]; N],
        blocks: &[[u8; BLOCK_BYTES]],
    ) -> bool {
        if !are_there() {
            return false;
        }
        // SAFETY: the processor has every feature that the function is compiled for.
        unsafe { compress_blocks(states, blocks.iter().map(|block| [block])) };
        true
    }

    /// The same, where each state has its own blocks.
    pub(super) fn compress_apart(
        states: &mut [[u32; 8]; 2],
        [one, two]: [&[[u8; BLOCK_BYTES]]; 2],
    ) -> bool {
        if !are_there() {
            return false;
        }
        let blocks = one.iter().zip(two).map(|(one, two)| [one, two]);
        // SAFETY: the processor has every feature that the function is compiled for.
        unsafe { compress_blocks(states, blocks) };
        true
    }

    /// `blocks` are given `M` at a time: one for all states, or one for each.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn compress_blocks<'a, const N: usize, const M: usize>(
        states: &mut [[u32; 8]; N],
        blocks: impl Iterator<Item = [&'a [u8; BLOCK_BYTES]; M]>,
    ) {
        const { assert!(M == 1 || M == N) };
        // The instructions keep a state as (a, b, e, f) and (c, d, g, h), a and c highest.
        let words = |w: [u32; 4]| {
            _mm_set_epi32(
                w[0].cast_signed(),
                w[1].cast_signed(),
                w[2].cast_signed(),
                w[3].cast_signed(),
            )
        };
        let mut abef = [_mm_setzero_si128(); N];
        let mut cdgh = [_mm_setzero_si128(); N];
        for n in 0..N {
            let [a, b, c, d, e, f, g, h] = states[n];
            abef[n] = words([a, b, e, f]);
            cdgh[n] = words([c, d, g, h]);
        }
        for blocks in blocks {
            let (abef_before, cdgh_before) = (abef, cdgh);
            let mut w = [[_mm_setzero_si128(); 4]; M];
            for m in 0..M {
                for (w, bytes) in w[m].iter_mut().zip(blocks[m].as_chunks::<16>().0) {
                    *w = big_endian_words(bytes);
                }
            }
            // Written out, so that the words stay in registers: a loop finds them by a computed index, in
            // memory, and each step waits until the last one's word has come back from there.
            macro_rules! four_rounds {
                ($($four:literal)*) => { $(
                    let k = &K[4 * $four..4 * $four + 4];
                    let k = words([k[3], k[2], k[1], k[0]]);
                    let mut wk = [_mm_setzero_si128(); M];
                    for m in 0..M {
                        wk[m] = _mm_add_epi32(w[m][$four % 4], k);
                    }
                    for n in 0..N {
                        cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], wk[n % M]);
                    }
                    if $four < 12 {
                        // The four words that are needed four steps later take the place of these.
                        for w in &mut w {
                            let (now, next) = (w[$four % 4], w[($four + 1) % 4]);
                            let last = w[($four + 3) % 4];
                            let middle = _mm_alignr_epi8(last, w[($four + 2) % 4], 4);
                            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, next), middle);
                            w[$four % 4] = _mm_sha256msg2_epu32(sum, last);
                        }
                    }
                    for n in 0..N {
                        let wk_high = _mm_shuffle_epi32(wk[n % M], 0x0e);
                        abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], wk_high);
                    }
                )* };
            }
            four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for n in 0..N {
                abef[n] = _mm_add_epi32(abef[n], abef_before[n]);
                cdgh[n] = _mm_add_epi32(cdgh[n], cdgh_before[n]);
            }
        }
        for n in 0..N {
            let word = |v: __m128i| {
                [
                    _mm_extract_epi32(v, 3).cast_unsigned(),
                    _mm_extract_epi32(v, 2).cast_unsigned(),
                    _mm_extract_epi32(v, 1).cast_unsigned(),
                    _mm_extract_epi32(v, 0).cast_unsigned(),
                ]
            };
            let ([a, b, e, f], [c, d, g, h]) = (word(abef[n]), word(cdgh[n]));
            states[n] = [a, b, c, d, e, f, g, h];
        }
    }

    #[target_feature(enable = "sse2,ssse3")]
    fn big_endian_words(bytes: &[u8; 16]) -> __m128i {
        let (halves, _) = bytes.as_chunks::<8>();
        let half = |n: usize| i64::from_le_bytes(halves[n]);
        let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        _mm_shuffle_epi8(_mm_set_epi64x(half(1), half(0)), order)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;

    proptest! {
        /// Streams that share some of their bytes have the digests that sha2 gives them.
        #[test]
        fn digests_equal_those_of_sha2(
            parts in prop::collection::vec((0..8_u8, prop::collection::vec(any::<u8>(), 0..300)), 0..12),
        ) {
            let mut ours: [Sha256; 3] = std::array::from_fn(|_| Sha256::default());
            let mut theirs: [sha2::Sha256; 3] = std::array::from_fn(|_| sha2::Sha256::new());
            for (streams, bytes) in &parts {
                let [a, b, c] = &mut ours;
                match streams {
                    0..3 => update_all([a, b, c], bytes),
                    3 => update_all([a, b], bytes),
                    4 => update_all([b, c], bytes),
                    5 => a.update(bytes),
                    6 => b.update(bytes),
                    _ => c.update(bytes),
                }
                let [a, b, c] = match streams {
                    0..3 => [true, true, true],
                    3 => [true, true, false],
                    4 => [false, true, true],
                    5 => [true, false, false],
                    6 => [false, true, false],
                    _ => [false, false, true],
                };
                for (hasher, _) in theirs.iter_mut().zip([a, b, c]).filter(|(_, given)| *given) {
                    hasher.update(bytes);
                }
            }
            for (ours, theirs) in ours.into_iter().zip(theirs) {
                prop_assert_eq!(ours.finish(), <[u8; 32]>::from(theirs.finalize()));
            }
        }

        /// So have two streams with bytes of their own.
        #[test]
        fn digests_of_two_streams_equal_those_of_sha2(
            parts in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..700), prop::collection::vec(any::<u8>(), 0..700)),
                0..6,
            ),
        ) {
            let mut ours: [Sha256; 2] = std::array::from_fn(|_| Sha256::default());
            let mut theirs: [sha2::Sha256; 2] = std::array::from_fn(|_| sha2::Sha256::new());
            for (one, two) in &parts {
                update_two(ours.each_mut(), [one, two]);
                theirs[0].update(one);
                theirs[1].update(two);
            }
            for (ours, theirs) in ours.into_iter().zip(theirs) {
                prop_assert_eq!(ours.finish(), <[u8; 32]>::from(theirs.finalize()));
            }
        }
    }
}
