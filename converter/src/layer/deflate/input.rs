//! The decoder's input: a stream read into a buffer with padding behind it.

use std::io::{self, Read};

use libdeflater::Crc;

use super::bits::{Bits, PADDING_BYTES};
use super::decode::Failure;
use super::error::Fault;
use super::tokens::TURN_INPUT_BYTES;

/// Input read at once.
const INPUT_BYTES: usize = 64 << 10;

/// A stretch of the compressed stream, with padding behind it.
pub(super) struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are input.
    pub(super) end: usize,
    /// The source has no more than the buffer.
    at_end: bool,
    /// Bytes of the stream before the buffer.
    pub(super) dropped_bytes: u64,
    /// Of the bytes since [`Input::begin_checksum`].
    crc: Crc,
    /// Those before this one of the buffer are in it.
    summed: usize,
}

impl<R: Read> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; INPUT_BYTES + PADDING_BYTES],
            end: 0,
            at_end: false,
            dropped_bytes: 0,
            crc: Crc::new(),
            summed: 0,
        }
    }

    /// Input and the padding behind it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// [`Limits::input`]. At the source's end the padding may be read, but never all of it: a
    /// position that is so far has consumed bits that are none.
    pub(super) fn limit(&self) -> usize {
        if self.at_end {
            self.end + 8
        } else {
            self.end.saturating_sub(TURN_INPUT_BYTES + 8)
        }
    }

    /// Fails when bits behind the source's end were consumed.
    pub(super) fn check_end(&self, bits: &Bits) -> Result<(), Fault> {
        if self.at_end && bits.position_bits() > self.end as u64 * 8 {
            return Err(Fault::Truncated);
        }
        Ok(())
    }

    /// Drops what is consumed and fills the buffer again.
    pub(super) fn fill(&mut self, bits: &mut Bits) -> Result<(), Failure> {
        let consumed = usize::try_from(bits.position_bits() / 8).unwrap_or(usize::MAX);
        let dropped = consumed.min(self.end);
        self.sum_to(dropped);
        self.summed = self.summed.saturating_sub(dropped);
        self.buffer.copy_within(dropped..self.end, 0);
        self.end -= dropped;
        self.dropped_bytes += dropped as u64;
        bits.rebase(dropped);
        while !self.at_end && self.end < INPUT_BYTES {
            match self.source.read(&mut self.buffer[self.end..INPUT_BYTES]) {
                Ok(0) => self.at_end = true,
                Ok(len) => self.end += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Read(error)),
            }
        }
        self.buffer[self.end..][..PADDING_BYTES].fill(0);
        Ok(())
    }

    /// A checksum begins with the byte that the position is in.
    pub(super) fn begin_checksum(&mut self, bits: &Bits) {
        self.crc = Crc::new();
        let byte = usize::try_from(bits.position_bits() / 8).unwrap_or(usize::MAX);
        self.summed = byte.min(self.end);
    }

    /// The checksum up to the last byte of which the position is behind a bit.
    pub(super) fn checksum(&mut self, bits: &Bits) -> u32 {
        let byte = usize::try_from(bits.position_bits().div_ceil(8)).unwrap_or(usize::MAX);
        self.sum_to(byte.min(self.end));
        self.crc.sum()
    }

    fn sum_to(&mut self, byte: usize) {
        if let Some(bytes) = self.buffer.get(self.summed..byte) {
            self.crc.update(bytes);
            self.summed = byte;
        }
    }

    /// Fills the buffer unless `len` bytes are there, or all that are left.
    pub(super) fn ensure(&mut self, bits: &mut Bits, len: usize) -> Result<(), Failure> {
        if !self.at_end && bits.next() + len > self.end {
            self.fill(bits)?;
        }
        Ok(())
    }

    /// At most `len` of the next bytes of a position that is at a byte's border; empty at the end.
    pub(super) fn rest(&mut self, bits: &mut Bits, len: usize) -> Result<&[u8], Failure> {
        bits.align();
        self.ensure(bits, 1)?;
        let start = bits.next().min(self.end);
        Ok(&self.buffer[start..self.end.min(start + len)])
    }

    pub(super) fn peek_byte(&mut self, bits: &mut Bits) -> Result<Option<u8>, Failure> {
        Ok(self.rest(bits, 1)?.first().copied())
    }

    pub(super) fn byte(&mut self, bits: &mut Bits) -> Result<Option<u8>, Failure> {
        let byte = self.peek_byte(bits)?;
        if byte.is_some() {
            *bits = Bits::at_byte(bits.next() + 1);
        }
        Ok(byte)
    }
}
