//! Bits of a deflate stream, lowest first, from a slice.
//!
//! The slice ends with [`PADDING_BYTES`] zeros that are no input: a refill never has to ask whether
//! eight bytes are left. Whoever owns the slice compares [`Bits::position_bits`] with the true end.

/// Zeros behind the last byte of an input buffer.
pub(super) const PADDING_BYTES: usize = 64;

/// A position in a slice of input, with the next bits at hand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bits {
    /// The next bits; those above `count` are 0 or true input that the next refill reads again.
    buffer: u64,
    /// Bits taken from the slice and not consumed, in the low six bits. Above them lies garbage,
    /// since a table entry is subtracted as a whole.
    count: u32,
    /// Next byte of the slice.
    next: usize,
}

impl Bits {
    /// At byte `next` of the slice.
    pub(super) fn at_byte(next: usize) -> Self {
        Self {
            buffer: 0,
            count: 0,
            next,
        }
    }

    /// At bit `position_bits` of `input`.
    pub(super) fn at_bit(input: &[u8], position_bits: u64) -> Self {
        let mut bits = Self::at_byte(usize::try_from(position_bits / 8).unwrap_or(usize::MAX));
        bits.refill(input);
        bits.consume((position_bits % 8) as u32);
        bits
    }

    /// At least 56 bits are at hand afterwards.
    #[inline(always)]
    pub(super) fn refill(&mut self, input: &[u8]) {
        self.buffer |= load(input, self.next) << (self.count & 63);
        self.next = self
            .next
            .wrapping_add(7)
            .wrapping_sub(((self.count >> 3) & 7) as usize);
        self.count |= 56;
    }

    /// The next 64 bits, of which those at hand are true.
    #[inline(always)]
    pub(super) fn peek(&self) -> u64 {
        self.buffer
    }

    /// Consumes `entry & 63` bits.
    #[inline(always)]
    pub(super) fn consume(&mut self, entry: u32) {
        self.buffer = self.buffer.wrapping_shr(entry);
        self.count = self.count.wrapping_sub(entry);
    }

    /// Takes `count` bits, at most 32, that are at hand.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "masked")]
        let value = (self.buffer & ((1 << count) - 1)) as u32;
        self.consume(count);
        value
    }

    /// Next byte that a refill reads.
    #[inline(always)]
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// Bits of the slice that are consumed.
    #[inline(always)]
    pub(super) fn position_bits(&self) -> u64 {
        (self.next as u64 * 8).wrapping_sub(u64::from(self.count & 63))
    }

    /// The first byte that is not touched, and the position moved there.
    pub(super) fn align(&mut self) -> usize {
        let byte = usize::try_from(self.position_bits().div_ceil(8)).unwrap_or(usize::MAX);
        *self = Self::at_byte(byte);
        byte
    }

    /// The position after the first `dropped_bytes` of the slice are gone.
    pub(super) fn rebase(&mut self, dropped_bytes: usize) {
        self.next = self.next.wrapping_sub(dropped_bytes);
    }
}

/// [`Bits`] for the inner loop: what is left of the input is a slice, so that a refill has a single
/// check, or none after a look at the slice's length.
pub(super) struct Source<'a> {
    /// As in [`Bits`].
    pub(super) buffer: u64,
    count: u32,
    /// Input that is not in the buffer.
    pub(super) rest: &'a [u8],
}

impl<'a> Source<'a> {
    /// At the position `bits` of `input`; `None` if that lies behind its end.
    pub(super) fn new(bits: &Bits, input: &'a [u8]) -> Option<Self> {
        Some(Self {
            buffer: bits.buffer,
            count: bits.count,
            rest: input.get(bits.next..)?,
        })
    }

    /// At least 56 bits are at hand afterwards, if eight bytes are left.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let Some(bytes) = self.rest.first_chunk::<8>() else {
            return;
        };
        self.buffer |= u64::from_le_bytes(*bytes).wrapping_shl(self.count);
        self.rest = &self.rest[7 - ((self.count >> 3) & 7) as usize..];
        self.count |= 56;
    }

    /// Consumes `entry & 63` bits.
    #[inline(always)]
    pub(super) fn consume(&mut self, entry: u32) {
        self.buffer = self.buffer.wrapping_shr(entry);
        self.count = self.count.wrapping_sub(entry);
    }

    /// The position in `input`, of which this is a part up to its end.
    pub(super) fn position(&self, input: &[u8]) -> Bits {
        Bits {
            buffer: self.buffer,
            count: self.count,
            next: input.len() - self.rest.len(),
        }
    }
}

/// Eight bytes at `at`; 0 where the slice has no eight bytes there.
#[inline(always)]
fn load(input: &[u8], at: usize) -> u64 {
    input
        .get(at..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
