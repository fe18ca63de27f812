//! The inner loop: tokens in, bytes out. All of a decoder's time is spent here.
//!
//! One loop serves the middle and the ends of a stream: the input has padding behind it and the
//! output has [`SLACK_BYTES`], so that the loop asks once a turn whether both have room.

use super::bits::Bits;
use super::block::Tables;
use super::error::Fault;
use super::huffman::{END, EXCEPTIONAL, LITERAL, SECOND, value};

/// A turn writes at most three literals and a match of 258 bytes, and a copy writes up to a whole
/// [`Chunk`] past its end.
pub(super) const SLACK_BYTES: usize = 258 + 3 + 64;
/// A turn refills at most twice and reads eight bytes each time.
pub(super) const TURN_INPUT_BYTES: usize = 24;

const CHUNK_BYTES: usize = 32;
type Chunk = [u8; CHUNK_BYTES];

/// Where the decoder stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// In the input.
    pub(super) bits: Bits,
    /// In the output.
    pub(super) written: usize,
}

/// How far the loop may go before a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// No turn begins when the next byte of the input is this or later; at least
    /// [`TURN_INPUT_BYTES`] of input or padding follow.
    pub(super) input: usize,
    /// No turn begins when the output is this long; [`SLACK_BYTES`] follow.
    pub(super) output: usize,
    /// First byte of the output that a match may mean.
    pub(super) history: usize,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The block's end was read.
    EndOfBlock,
    /// A limit was reached.
    Limit,
}

/// Decodes until the block ends or a limit is reached.
pub(super) fn decode(
    tables: &Tables,
    input: &[u8],
    output: &mut [u8],
    cursor: &mut Cursor,
    limits: Limits,
) -> Result<Stop, Fault> {
    let (litlen, distance) = (&tables.litlen, &tables.distance);
    let Cursor {
        mut bits,
        mut written,
    } = *cursor;
    let stop = loop {
        if bits.next() >= limits.input || written >= limits.output {
            break Ok(Stop::Limit);
        }
        // 56 bits: three literals of the primary table, or two and a length.
        bits.refill(input);
        let mut saved = bits.peek();
        let mut entry = litlen.primary(saved);
        bits.consume(entry);
        if entry & LITERAL != 0 {
            put(output, &mut written, entry);
            saved = bits.peek();
            entry = litlen.primary(saved);
            bits.consume(entry);
            if entry & LITERAL != 0 {
                put(output, &mut written, entry);
                saved = bits.peek();
                entry = litlen.primary(saved);
                bits.consume(entry);
                if entry & LITERAL != 0 {
                    put(output, &mut written, entry);
                    continue;
                }
            }
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & SECOND != 0 {
                saved = bits.peek();
                entry = litlen.second(entry, saved);
                bits.consume(entry);
                if entry & LITERAL != 0 {
                    put(output, &mut written, entry);
                    continue;
                }
            }
            if entry & END != 0 {
                break Ok(Stop::EndOfBlock);
            }
            if entry & EXCEPTIONAL != 0 {
                break Err(Fault::Symbol);
            }
        }
        let len = value(entry, saved);
        bits.refill(input);
        saved = bits.peek();
        entry = distance.primary(saved);
        if entry & EXCEPTIONAL != 0 {
            if entry & SECOND == 0 {
                break Err(Fault::Symbol);
            }
            bits.consume(entry);
            saved = bits.peek();
            entry = distance.second(entry, saved);
            if entry & EXCEPTIONAL != 0 {
                break Err(Fault::Symbol);
            }
        }
        bits.consume(entry);
        let back = value(entry, saved);
        if back > written - limits.history {
            break Err(Fault::Distance);
        }
        copy_match(output, written, back, len);
        written += len;
    };
    *cursor = Cursor { bits, written };
    stop
}

#[inline(always)]
fn put(output: &mut [u8], written: &mut usize, entry: u32) {
    if let Some(byte) = output.get_mut(*written) {
        #[expect(clippy::cast_possible_truncation, reason = "the byte lies in bits 16 to 23")]
        let literal = (entry >> 16) as u8;
        *byte = literal;
    }
    *written += 1;
}

/// Copies `len` bytes from `back` bytes before `to`; may write up to a [`Chunk`] more.
#[inline(always)]
fn copy_match(output: &mut [u8], to: usize, back: usize, len: usize) {
    let from = to - back;
    if back >= CHUNK_BYTES {
        copy_chunk(output, from, to);
        let mut done = CHUNK_BYTES;
        while done < len {
            copy_chunk(output, from + done, to + done);
            done += CHUNK_BYTES;
        }
    } else if back == 1 {
        let byte = output.get(from).copied().unwrap_or_default();
        if let Some(run) = output.get_mut(to..to + len) {
            run.fill(byte);
        }
    } else {
        copy_near(output, from, back, len);
    }
}

/// A match that overlaps itself within a chunk. What is copied repeats with the period `back`, so
/// it is lengthened by doubling until a chunk fits between source and target.
fn copy_near(output: &mut [u8], from: usize, back: usize, len: usize) {
    let end = from + back + len;
    let mut period = back;
    while period < CHUNK_BYTES {
        copy_chunk(output, from, from + period);
        period *= 2;
    }
    let mut to = from + period;
    while to < end {
        copy_chunk(output, to - period, to);
        to += CHUNK_BYTES;
    }
}

#[inline(always)]
fn copy_chunk(output: &mut [u8], from: usize, to: usize) {
    let Some(chunk) = output
        .get(from..)
        .and_then(|rest| rest.first_chunk::<CHUNK_BYTES>())
    else {
        return;
    };
    let chunk: Chunk = *chunk;
    if let Some(target) = output
        .get_mut(to..)
        .and_then(|rest| rest.first_chunk_mut::<CHUNK_BYTES>())
    {
        *target = chunk;
    }
}
