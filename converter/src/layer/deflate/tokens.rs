//! The inner loop: tokens in, bytes out. All of a decoder's time is spent here.
//!
//! One loop serves the middle and the ends of a stream: the input has padding behind it and the
//! output has [`SLACK_BYTES`], so that the loop asks once a turn whether both have room.

use super::bits::{Bits, Source};
use super::block::Tables;
use super::error::Fault;
use super::huffman::{END, EXCEPTIONAL, LITERAL, SECOND, value};

/// A turn writes at most three literals and a match of 258 bytes, and a copy writes up to a whole
/// [`Chunk`] past its end.
pub(super) const SLACK_BYTES: usize = 258 + 3 + 64;
/// A turn refills at most twice and reads eight bytes each time.
pub(super) const TURN_INPUT_BYTES: usize = 24;

/// Most matches are no longer.
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

/// Decodes until the block ends or a limit is reached: that of the input, or less than
/// [`SLACK_BYTES`] of output are left.
///
/// Slices of a fixed size, taken once a turn, spare the checks of single bytes.
pub(super) fn decode(
    tables: &Tables,
    input: &[u8],
    output: &mut [u8],
    cursor: &mut Cursor,
    limits: Limits,
) -> Result<Stop, Fault> {
    let (litlen, distance) = (&tables.litlen, &tables.distance);
    let input = input
        .get(..limits.input + TURN_INPUT_BYTES)
        .unwrap_or(input);
    let mut written = cursor.written;
    let Some(mut source) = Source::new(&cursor.bits, input) else {
        return Ok(Stop::Limit);
    };
    // Looked up before the refill, from bits that are there: no look-up waits for a refill.
    source.refill();
    let mut entry = litlen.primary(source.buffer);
    let stop = loop {
        if source.rest.len() <= TURN_INPUT_BYTES {
            break Ok(Stop::Limit);
        }
        let Some(room) = output
            .get_mut(written..)
            .and_then(|rest| rest.first_chunk_mut::<SLACK_BYTES>())
        else {
            break Ok(Stop::Limit);
        };
        // 56 bits: three literals of the primary table, or two and a length.
        source.refill();
        let mut saved = source.buffer;
        source.consume(entry);
        if entry & LITERAL != 0 {
            room[0] = literal(entry);
            written += 1;
            saved = source.buffer;
            entry = litlen.primary(saved);
            source.consume(entry);
            if entry & LITERAL != 0 {
                room[1] = literal(entry);
                written += 1;
                saved = source.buffer;
                entry = litlen.primary(saved);
                source.consume(entry);
                if entry & LITERAL != 0 {
                    room[2] = literal(entry);
                    written += 1;
                    entry = litlen.primary(source.buffer);
                    continue;
                }
            }
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & SECOND != 0 {
                saved = source.buffer;
                entry = litlen.second(entry, saved);
                source.consume(entry);
                if entry & LITERAL != 0 {
                    if let Some(byte) = output.get_mut(written) {
                        *byte = literal(entry);
                    }
                    written += 1;
                    entry = litlen.primary(source.buffer);
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
        source.refill();
        saved = source.buffer;
        entry = distance.primary(saved);
        if entry & EXCEPTIONAL != 0 {
            if entry & SECOND == 0 {
                break Err(Fault::Symbol);
            }
            source.consume(entry);
            saved = source.buffer;
            entry = distance.second(entry, saved);
            if entry & EXCEPTIONAL != 0 {
                break Err(Fault::Symbol);
            }
        }
        source.consume(entry);
        let back = value(entry, saved);
        entry = litlen.primary(source.buffer);
        let Some((past, future)) = output.split_at_mut_checked(written) else {
            break Ok(Stop::Limit);
        };
        if back > past.len() - limits.history {
            break Err(Fault::Distance);
        }
        let from = past.len() - back;
        match (
            past[from..].first_chunk::<CHUNK_BYTES>(),
            future.first_chunk_mut::<CHUNK_BYTES>(),
        ) {
            (Some(chunk), Some(target)) => {
                *target = *chunk;
                let mut done = CHUNK_BYTES;
                while done < len {
                    copy_chunk(output, from + done, written + done);
                    done += CHUNK_BYTES;
                }
            }
            _ => copy_near(output, written, back, len),
        }
        written += len;
    };
    *cursor = Cursor {
        bits: source.position(input),
        written,
    };
    stop
}

#[inline(always)]
fn literal(entry: u32) -> u8 {
    // The byte lies in bits 16 to 23.
    (entry >> 16) as u8
}

/// A match that overlaps itself within a chunk. What is copied repeats with the period `back`, so
/// it is lengthened by doubling until a chunk fits between source and target.
#[inline(never)]
fn copy_near(output: &mut [u8], to: usize, back: usize, len: usize) {
    let from = to - back;
    if back == 1 {
        let byte = output.get(from).copied().unwrap_or_default();
        if let Some(run) = output.get_mut(to..to + len) {
            run.fill(byte);
        }
        return;
    }
    let mut period = back;
    while period < CHUNK_BYTES {
        copy_chunk(output, from, from + period);
        period *= 2;
    }
    let mut done = from + period;
    while done < to + len {
        copy_chunk(output, done - period, done);
        done += CHUNK_BYTES;
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
