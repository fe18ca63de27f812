//! The bit copier: a stretch of bits from anywhere in a slice to the end of a growing stream.
//!
//! Once the target is at a byte's border, a step makes eight bytes from two overlapping words of the
//! source: no carry goes from step to step, so that the compiler makes vectors of them. Safe code
//! throughout; it runs at the speed of memory.

/// A stream of bits, lowest first.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits that are no whole byte yet.
    pending: u64,
    /// How many; less than 8 between calls.
    pending_count: u32,
}

/// Most bits that [`BitWriter::put`] takes.
const MAX_PUT_BITS: u32 = 56;

impl BitWriter {
    /// Goes on behind the last byte of `bytes`.
    pub(super) fn after(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            pending: 0,
            pending_count: 0,
        }
    }

    /// Bits so far, with all that was there before.
    pub(super) fn position_bits(&self) -> u64 {
        self.bytes.len() as u64 * 8 + u64::from(self.pending_count)
    }

    /// Appends the `count` lowest bits of `bits`, at most [`MAX_PUT_BITS`]; the others are 0.
    pub(super) fn put(&mut self, bits: u64, count: u32) {
        self.pending |= bits << self.pending_count;
        self.pending_count += count;
        let whole = (self.pending_count / 8) as usize;
        self.bytes
            .extend_from_slice(&self.pending.to_le_bytes()[..whole.min(8)]);
        self.pending = self
            .pending
            .checked_shr(self.pending_count & !7)
            .unwrap_or(0);
        self.pending_count %= 8;
    }

    /// Fills up the last byte with zeros.
    pub(super) fn align(&mut self) {
        self.put(0, (8 - self.pending_count) % 8);
    }

    /// Appends whole bytes at a byte's border, which [`BitWriter::align`] makes.
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(self.pending_count == 0, "bytes begin at a byte's border");
        self.bytes.extend_from_slice(bytes);
    }

    /// Sets a bit that was written as 0.
    pub(super) fn set(&mut self, position_bits: u64) {
        let byte = usize::try_from(position_bits / 8).unwrap_or(usize::MAX);
        let bit = position_bits % 8;
        match self.bytes.get_mut(byte) {
            Some(byte) => *byte |= 1 << bit,
            None => self.pending |= 1 << bit,
        }
    }

    /// Appends the bits of `source` from `start_bits` up to `end_bits`, which lies within it.
    pub(super) fn copy(&mut self, source: &[u8], start_bits: u64, end_bits: u64) {
        let mut at = start_bits;
        let mut left = end_bits.saturating_sub(start_bits);
        let to_border = u64::from((8 - self.pending_count) % 8).min(left);
        self.copy_few(source, &mut at, &mut left, to_border);
        if left >= 8 {
            let first = usize::try_from(at / 8).unwrap_or(usize::MAX);
            let len = usize::try_from(left / 8).unwrap_or(usize::MAX);
            self.copy_bytes(source, first, (at % 8) as u32, len);
            at += left / 8 * 8;
            left %= 8;
        }
        let rest = left;
        self.copy_few(source, &mut at, &mut left, rest);
    }

    fn copy_few(&mut self, source: &[u8], at: &mut u64, left: &mut u64, count: u64) {
        if count == 0 {
            return;
        }
        debug_assert!(count < u64::from(MAX_PUT_BITS), "a byte's rest");
        self.put(bits_of(source, *at, count as u32), count as u32);
        *at += count;
        *left -= count;
    }

    /// Appends `len` bytes that begin `shift` bits behind byte `first` of `source`.
    fn copy_bytes(&mut self, source: &[u8], first: usize, shift: u32, len: usize) {
        let Some(source) = source.get(first..) else {
            return;
        };
        if shift == 0 {
            self.bytes
                .extend_from_slice(source.get(..len).unwrap_or_default());
            return;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        let target = &mut self.bytes[start..];
        // A word from its own byte on, and one from the next byte on for the highest bits.
        let (words, _) = target.as_chunks_mut::<8>();
        let (low, _) = source.as_chunks::<8>();
        let (high, _) = source.get(1..).unwrap_or_default().as_chunks::<8>();
        let mut made = 0;
        for ((target, low), high) in words.iter_mut().zip(low).zip(high) {
            let low = u64::from_le_bytes(*low) >> shift;
            let high = u64::from_le_bytes(*high) << (8 - shift);
            *target = (low | high).to_le_bytes();
            made += 8;
        }
        debug_assert!(made <= len, "no more than was asked for");
        let target = &mut self.bytes[start + made..];
        let source = source.get(made..).unwrap_or_default();
        for (index, target) in target.iter_mut().enumerate() {
            let low = source.get(index).copied().unwrap_or(0) >> shift;
            let high = source.get(index + 1).copied().unwrap_or(0) << (8 - shift);
            *target = low | high;
        }
    }

    /// Whether the bits from `position_bits` on are those of `source` from `start_bits` up to `end_bits`.
    pub(super) fn holds(
        &self,
        position_bits: u64,
        source: &[u8],
        start_bits: u64,
        end_bits: u64,
    ) -> bool {
        let len = end_bits.saturating_sub(start_bits);
        let to_border = position_bits.wrapping_neg() % 8;
        let lead = to_border.min(len);
        let whole = (len - lead) / 8;
        let behind = lead + whole * 8;
        let is_same = |from: u64, count: u64| {
            self.bits(position_bits + from, count as u32)
                == bits_of(source, start_bits + from, count as u32)
        };
        let place = |bits: u64| usize::try_from(bits / 8).unwrap_or(usize::MAX);
        let bytes = usize::try_from(whole).unwrap_or(usize::MAX);
        let from = start_bits + lead;
        let made = self.bytes.get(place(position_bits + lead)..);
        let made = made.and_then(|rest| rest.get(..bytes));
        let source_bytes = source.get(place(from)..).unwrap_or_default();
        is_same(0, lead)
            && made.is_some_and(|made| is_shifted(made, source_bytes, (from % 8) as u32))
            && is_same(behind, len - behind)
    }

    /// The `count` bits from a position on, at most [`MAX_PUT_BITS`]; 0 where nothing is.
    pub(super) fn bits(&self, position_bits: u64, count: u32) -> u64 {
        let first = usize::try_from(position_bits / 8).unwrap_or(usize::MAX);
        let mut word = [0; 8];
        for (index, byte) in word.iter_mut().enumerate() {
            let at = first.wrapping_add(index);
            *byte = match self.bytes.get(at) {
                Some(byte) => *byte,
                None if at == self.bytes.len() => self.pending as u8,
                None => 0,
            };
        }
        u64::from_le_bytes(word) >> (position_bits % 8) & ((1 << count) - 1)
    }

    /// Whether the last bytes are these.
    pub(super) fn ends_with(&self, bytes: &[u8]) -> bool {
        self.pending_count == 0 && self.bytes.ends_with(bytes)
    }

    /// The stream with its last byte filled up.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.align();
        self.bytes
    }
}

/// The `count` bits of `source` from a position on, at most [`MAX_PUT_BITS`]; 0 where nothing is.
fn bits_of(source: &[u8], position_bits: u64, count: u32) -> u64 {
    let first = usize::try_from(position_bits / 8).unwrap_or(usize::MAX);
    let rest = source.get(first..).unwrap_or_default();
    let mut word = [0; 8];
    for (byte, source) in word.iter_mut().zip(rest) {
        *byte = *source;
    }
    u64::from_le_bytes(word) >> (position_bits % 8) & ((1 << count) - 1)
}

/// Whether `made` are the bytes of `source` from bit `shift` on.
fn is_shifted(made: &[u8], source: &[u8], shift: u32) -> bool {
    if shift == 0 {
        return source.get(..made.len()) == Some(made);
    }
    // No branch inside, so that the compiler makes vectors of it.
    let (words, _) = made.as_chunks::<8>();
    let (low, _) = source.as_chunks::<8>();
    let (high, _) = source.get(1..).unwrap_or_default().as_chunks::<8>();
    let mut difference = 0;
    let mut compared = 0;
    for ((made, low), high) in words.iter().zip(low).zip(high) {
        let low = u64::from_le_bytes(*low) >> shift;
        let high = u64::from_le_bytes(*high) << (8 - shift);
        difference |= u64::from_le_bytes(*made) ^ (low | high);
        compared += 8;
    }
    let source = source.get(compared..).unwrap_or_default();
    for (index, made) in made[compared..].iter().enumerate() {
        let low = source.get(index).copied().unwrap_or(0) >> shift;
        let high = source.get(index + 1).copied().unwrap_or(0) << (8 - shift);
        difference |= u64::from(made ^ (low | high));
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::BitWriter;

    fn bits(bytes: &[u8]) -> Vec<bool> {
        let of = |byte: u8| (0..8).map(move |bit| byte >> bit & 1 == 1);
        bytes.iter().copied().flat_map(of).collect()
    }

    proptest! {
        #[test]
        fn copies_any_range_to_any_position(
            source in prop::collection::vec(any::<u8>(), 0..200),
            copies in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..6),
            lead in 0_u32..9,
        ) {
            let all = bits(&source);
            let mut writer = BitWriter::after(vec![7]);
            writer.put(0, lead);
            let mut expected = bits(&[7]);
            expected.extend(vec![false; lead as usize]);
            for (a, b) in copies {
                let (a, b) = (a.index(all.len() + 1), b.index(all.len() + 1));
                let (start, end) = (a.min(b), a.max(b));
                writer.copy(&source, start as u64, end as u64);
                let position = expected.len() as u64;
                expected.extend(&all[start..end]);
                prop_assert_eq!(writer.position_bits(), expected.len() as u64);
                prop_assert!(writer.holds(position, &source, start as u64, end as u64));
                // One bit that is another is noticed, wherever it is.
                if start < end {
                    let mut other = source.clone();
                    let bit = start + (a * 31 + b) % (end - start);
                    other[bit / 8] ^= 1 << (bit % 8);
                    prop_assert!(!writer.holds(position, &other, start as u64, end as u64));
                }
            }
            expected.resize(expected.len().next_multiple_of(8), false);
            prop_assert_eq!(bits(&writer.finish()), expected);
        }
    }
}
