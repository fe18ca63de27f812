//! Walking a stretch of a stream again: blocks and tokens, no bytes.
//!
//! Only borders of chunks and spans of small blocks are walked, so this is written for clarity.

use std::ops::ControlFlow;

use super::bits::Bits;
use super::block::{Body, CodeBits, Tables};
use super::error::Fault;
use super::gzip::{TRAILER_BYTES, read_header};
use super::huffman::{END, EXCEPTIONAL, LITERAL, SECOND, value};

/// A token: a literal byte, or a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Position of its first bit.
    pub(super) start_bits: u64,
    /// Position behind its last bit.
    pub(super) end_bits: u64,
    /// How many bytes it makes.
    pub(super) len_bytes: u64,
    /// How far back the match reaches; 0 for a literal.
    pub(super) back_bytes: u64,
    /// The literal.
    pub(super) byte: u8,
}

/// Compressed bytes and the padding behind them.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a> {
    padded: &'a [u8],
    len_bytes: usize,
}

/// A block's place in a [`Stretch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockPlace {
    pub(super) is_last: bool,
    /// First token, or first stored byte.
    pub(super) body_bits: u64,
    pub(super) body: Body,
    /// The end-of-block code of a block of tokens.
    pub(super) end_of_block: CodeBits,
}

impl<'a> Stretch<'a> {
    /// The first `len_bytes` of `padded`, which has `bits::PADDING_BYTES` more.
    pub(super) fn new(padded: &'a [u8], len_bytes: usize) -> Self {
        Self { padded, len_bytes }
    }

    fn check(&self, bits: &Bits) -> Result<(), Fault> {
        if bits.position_bits() > self.len_bytes as u64 * 8 {
            return Err(Fault::Truncated);
        }
        Ok(())
    }

    /// Reads the header at `header_bits`; `tables` are those of the block then.
    pub(super) fn header(
        &self,
        tables: &mut Tables,
        header_bits: u64,
    ) -> Result<BlockPlace, Fault> {
        let mut bits = Bits::at_bit(self.padded, header_bits);
        let header = tables.read_header(&mut bits, self.padded)?;
        self.check(&bits)?;
        Ok(BlockPlace {
            is_last: header.is_last,
            body_bits: bits.position_bits(),
            body: header.body,
            end_of_block: tables.end_of_block,
        })
    }

    /// Gives the tokens from `start_bits` on to `visit`, until it breaks or the block ends; the
    /// position behind the block then.
    pub(super) fn tokens(
        &self,
        tables: &Tables,
        start_bits: u64,
        mut visit: impl FnMut(Token) -> ControlFlow<()>,
    ) -> Result<Option<u64>, Fault> {
        let mut bits = Bits::at_bit(self.padded, start_bits);
        loop {
            let start_bits = bits.position_bits();
            bits.refill(self.padded);
            let mut saved = bits.peek();
            let mut entry = tables.litlen.primary(saved);
            bits.consume(entry);
            if entry & SECOND != 0 {
                saved = bits.peek();
                entry = tables.litlen.second(entry, saved);
                bits.consume(entry);
            }
            let (len_bytes, back_bytes, byte) = if entry & LITERAL != 0 {
                (1, 0, (entry >> 16) as u8)
            } else if entry & EXCEPTIONAL != 0 {
                self.check(&bits)?;
                if entry & END == 0 {
                    return Err(Fault::Symbol);
                }
                return Ok(Some(bits.position_bits()));
            } else {
                let len_bytes = value(entry, saved) as u64;
                (len_bytes, Self::distance(tables, &mut bits)?, 0)
            };
            self.check(&bits)?;
            let token = Token {
                start_bits,
                end_bits: bits.position_bits(),
                len_bytes,
                back_bytes,
                byte,
            };
            if visit(token).is_break() {
                return Ok(None);
            }
        }
    }

    /// 56 bits were there before the length, which takes at most 20; a distance takes at most 28.
    fn distance(tables: &Tables, bits: &mut Bits) -> Result<u64, Fault> {
        let mut saved = bits.peek();
        let mut entry = tables.distance.primary(saved);
        if entry & EXCEPTIONAL != 0 {
            if entry & SECOND == 0 {
                return Err(Fault::Symbol);
            }
            bits.consume(entry);
            saved = bits.peek();
            entry = tables.distance.second(entry, saved);
            if entry & EXCEPTIONAL != 0 {
                return Err(Fault::Symbol);
            }
        }
        bits.consume(entry);
        Ok(value(entry, saved) as u64)
    }

    /// The position of the next member's first block; `end_bits` is where a member's last block ends.
    pub(super) fn next_member(&self, end_bits: u64) -> Result<u64, Fault> {
        let bytes = self.padded.get(..self.len_bytes).ok_or(Fault::Truncated)?;
        let start = usize::try_from(end_bits.div_ceil(8)).unwrap_or(usize::MAX);
        let mut at = start.saturating_add(TRAILER_BYTES);
        read_header(|| {
            let byte = bytes.get(at).copied().ok_or(Fault::Truncated)?;
            at += 1;
            Ok::<u8, Fault>(byte)
        })?;
        Ok(at as u64 * 8)
    }
}
