//! The decoder: a compressed stream in, blocks of bytes and an [`Index`] out, in one pass.
//!
//! Any input gives bytes or an error. Memory is bounded by the two buffers and the index.

use std::io::{self, Read};

use libdeflater::Crc;

use super::bits::{Bits, PADDING_BYTES};
use super::block::{Body, MAX_HEADER_BYTES, Tables};
use super::error::{DecodeError, Fault};
use super::gzip::{TRAILER_BYTES, read_header};
use super::index::{Checkpoint, Index, Span, SpanKind};
use super::tokens::{self, Cursor, Limits, SLACK_BYTES, Stop, TURN_INPUT_BYTES};

/// How far back a match may reach.
pub(super) const WINDOW_BYTES: usize = 32 << 10;
/// Input read at once.
const INPUT_BYTES: usize = 256 << 10;
/// Output given away at once. Both buffers stay within a core's second-level cache.
const OUTPUT_BYTES: usize = 512 << 10;
/// A whole output buffer: history, output, slack.
const BUFFER_BYTES: usize = WINDOW_BYTES + OUTPUT_BYTES + SLACK_BYTES;

/// What the deflate stream is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Gzip members, any number above 0, with zeros behind the last one at most.
    Gzip,
    /// A single bare deflate stream; what follows it is left alone.
    Raw,
}

/// Some uncompressed bytes, in order.
#[derive(Debug)]
pub struct Block {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Block {
    /// All of `buffer`.
    pub fn of(buffer: Vec<u8>) -> Self {
        let end = buffer.len();
        Self {
            buffer,
            start: 0,
            end,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The buffer that holds them, to be given back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

/// Receives the uncompressed bytes.
pub trait Sink {
    /// Takes a block and returns a buffer for a later one: best that of an earlier block, at worst an
    /// empty one. `None` stops the decoder.
    fn block(&mut self, block: Block) -> Option<Vec<u8>>;
}

/// A stream that was decoded to its end.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Where its blocks lie.
    pub index: Index,
    /// Compressed bytes that belong to the stream, padding behind it included.
    pub compressed_bytes: u64,
    /// Gzip members; 1 for a raw stream.
    pub members: u64,
}

/// Decodes `source` to its end, at most `limit_bytes` uncompressed.
///
/// # Errors
/// [`DecodeError`]; what was decoded before has reached `sink`, but for less than one block.
pub fn decode(
    source: impl Read,
    container: Container,
    limit_bytes: u64,
    sink: &mut impl Sink,
) -> Result<Decoded, DecodeError> {
    let mut decoder = Decoder {
        input: Input::new(source),
        bits: Bits::default(),
        tables: Tables::new(),
        output: Output::new(limit_bytes),
        sink,
        index: Index::default(),
    };
    let members = decoder
        .stream(container)
        .and_then(|members| decoder.output.flush(decoder.sink).map(|()| members))
        .map_err(|failure| decoder.error(failure))?;
    Ok(Decoded {
        compressed_bytes: decoder.position_bits().div_ceil(8),
        index: decoder.index,
        members,
    })
}

/// Why decoding ends early, before places are known.
enum Failure {
    Fault(Fault),
    Read(io::Error),
    TooLarge,
    SinkClosed,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

struct Decoder<'a, R, S> {
    input: Input<R>,
    bits: Bits,
    tables: Tables,
    output: Output,
    sink: &'a mut S,
    index: Index,
}

impl<R: Read, S: Sink> Decoder<'_, R, S> {
    /// The whole stream; how many members it had.
    fn stream(&mut self, container: Container) -> Result<u64, Failure> {
        if container == Container::Raw {
            self.member()?;
            return Ok(1);
        }
        let mut members = 0;
        loop {
            read_header(|| {
                self.input
                    .byte(&mut self.bits)?
                    .ok_or(Failure::Fault(Fault::Truncated))
            })?;
            self.member()?;
            self.trailer()?;
            members += 1;
            match self.input.peek_byte(&mut self.bits)? {
                None => return Ok(members),
                Some(0x1f) => {}
                Some(_) => {
                    // Zeros behind the last member are padding, as gzip(1) has it.
                    while let Some(byte) = self.input.byte(&mut self.bits)? {
                        if byte != 0 {
                            return Err(Fault::TrailingData.into());
                        }
                    }
                    return Ok(members);
                }
            }
        }
    }

    /// The blocks of a member.
    fn member(&mut self) -> Result<(), Failure> {
        self.output.begin_member();
        loop {
            let is_last = self.block()?;
            if is_last {
                return Ok(());
            }
        }
    }

    fn trailer(&mut self) -> Result<(), Failure> {
        self.bits.align();
        let mut trailer = [0; TRAILER_BYTES];
        for byte in &mut trailer {
            *byte = self.input.byte(&mut self.bits)?.ok_or(Fault::Truncated)?;
        }
        let [crc @ .., l0, l1, l2, l3] = trailer;
        if crc != self.output.finish_crc().to_le_bytes() {
            return Err(Fault::Crc.into());
        }
        // The length modulo 2^32.
        #[expect(clippy::cast_possible_truncation, reason = "so defined")]
        let len_bytes = self.output.member_bytes() as u32;
        if u32::from_le_bytes([l0, l1, l2, l3]) != len_bytes {
            return Err(Fault::Length.into());
        }
        Ok(())
    }

    /// One block; whether it is its member's last one.
    fn block(&mut self) -> Result<bool, Failure> {
        self.input.ensure(&mut self.bits, MAX_HEADER_BYTES)?;
        let header_bits = self.position_bits();
        let output_bytes = self.output.offset_bytes();
        let header = self.tables.read_header(&mut self.bits, self.input.bytes());
        self.input.check_end(&self.bits)?;
        let header = header?;
        let kind = match header.body {
            Body::Stored { len_bytes } => {
                self.stored(usize::from(len_bytes))?;
                SpanKind::Stored
            }
            Body::Coded => {
                self.coded(output_bytes)?;
                SpanKind::Coded
            }
        };
        let span = Span {
            header_bits,
            end_bits: self.position_bits(),
            output_bytes,
            kind,
        };
        self.index.block(span, self.output.offset_bytes());
        Ok(header.is_last)
    }

    fn coded(&mut self, block_bytes: u64) -> Result<(), Failure> {
        loop {
            let mut cursor = Cursor {
                bits: self.bits,
                written: self.output.written,
            };
            let limits = Limits {
                input: self.input.limit(),
                history: self.output.history,
            };
            let stop = tokens::decode(
                &self.tables,
                self.input.bytes(),
                &mut self.output.buffer,
                &mut cursor,
                limits,
            );
            self.bits = cursor.bits;
            self.output.written = cursor.written;
            self.input.check_end(&self.bits)?;
            if stop? == Stop::EndOfBlock {
                return Ok(());
            }
            if self.output.is_full() {
                let checkpoint = Checkpoint {
                    position_bits: self.position_bits(),
                    output_bytes: self.output.offset_bytes(),
                };
                self.index.checkpoint(checkpoint, block_bytes);
                self.output.flush(self.sink)?;
            }
            if self.bits.next() >= limits.input {
                self.input.fill(&mut self.bits)?;
            }
        }
    }

    fn stored(&mut self, mut left: usize) -> Result<(), Failure> {
        while left > 0 {
            if self.output.is_full() {
                self.output.flush(self.sink)?;
            }
            let bytes = self.input.rest(&mut self.bits, left)?;
            if bytes.is_empty() {
                return Err(Fault::Truncated.into());
            }
            let copied = self.output.append(bytes);
            self.bits = Bits::at_byte(self.bits.next() + copied);
            left -= copied;
        }
        Ok(())
    }

    fn position_bits(&self) -> u64 {
        self.input.dropped_bytes * 8 + self.bits.position_bits()
    }

    fn error(&self, failure: Failure) -> DecodeError {
        match failure {
            Failure::Fault(fault) => DecodeError::Corrupt {
                fault,
                position_bits: self.position_bits(),
                output_bytes: self.output.offset_bytes(),
            },
            Failure::Read(source) => DecodeError::Read {
                offset_bytes: self.input.dropped_bytes + self.input.end as u64,
                source,
            },
            Failure::TooLarge => DecodeError::TooLarge {
                limit_bytes: self.output.limit_bytes,
            },
            Failure::SinkClosed => DecodeError::SinkClosed,
        }
    }
}

/// A stretch of the compressed stream, with padding behind it.
struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are input.
    end: usize,
    /// The source has no more than the buffer.
    at_end: bool,
    /// Bytes of the stream before the buffer.
    dropped_bytes: u64,
}

impl<R: Read> Input<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; INPUT_BYTES + PADDING_BYTES],
            end: 0,
            at_end: false,
            dropped_bytes: 0,
        }
    }

    /// Input and the padding behind it.
    fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// [`Limits::input`]. At the source's end the padding may be read, but never all of it: a
    /// position that is so far has consumed bits that are none.
    fn limit(&self) -> usize {
        if self.at_end {
            self.end + 8
        } else {
            self.end.saturating_sub(TURN_INPUT_BYTES + 8)
        }
    }

    /// Fails when bits behind the source's end were consumed.
    fn check_end(&self, bits: &Bits) -> Result<(), Fault> {
        if self.at_end && bits.position_bits() > self.end as u64 * 8 {
            return Err(Fault::Truncated);
        }
        Ok(())
    }

    /// Drops what is consumed and fills the buffer again.
    fn fill(&mut self, bits: &mut Bits) -> Result<(), Failure> {
        let consumed = usize::try_from(bits.position_bits() / 8).unwrap_or(usize::MAX);
        let dropped = consumed.min(self.end);
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

    /// Fills the buffer unless `len` bytes are there, or all that are left.
    fn ensure(&mut self, bits: &mut Bits, len: usize) -> Result<(), Failure> {
        if !self.at_end && bits.next() + len > self.end {
            self.fill(bits)?;
        }
        Ok(())
    }

    /// At most `len` of the next bytes of a position that is at a byte's border; empty at the end.
    fn rest(&mut self, bits: &mut Bits, len: usize) -> Result<&[u8], Failure> {
        bits.align();
        self.ensure(bits, 1)?;
        let start = bits.next().min(self.end);
        Ok(&self.buffer[start..self.end.min(start + len)])
    }

    fn peek_byte(&mut self, bits: &mut Bits) -> Result<Option<u8>, Failure> {
        Ok(self.rest(bits, 1)?.first().copied())
    }

    fn byte(&mut self, bits: &mut Bits) -> Result<Option<u8>, Failure> {
        let byte = self.peek_byte(bits)?;
        if byte.is_some() {
            *bits = Bits::at_byte(bits.next() + 1);
        }
        Ok(byte)
    }
}

/// The uncompressed bytes that were not given away, behind the history that matches mean.
struct Output {
    buffer: Vec<u8>,
    /// Bytes of the buffer that hold data.
    written: usize,
    /// Of these, how many were given away before: the history.
    given: usize,
    /// First byte of the buffer that belongs to the current member.
    history: usize,
    /// Uncompressed offset of the buffer's first byte.
    base_bytes: u64,
    limit_bytes: u64,
    crc: Crc,
    /// First byte of the buffer that is not in `crc`.
    summed: usize,
    /// Uncompressed offset at which the current member began.
    member_bytes: u64,
}

impl Output {
    fn new(limit_bytes: u64) -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            written: 0,
            given: 0,
            history: 0,
            base_bytes: 0,
            limit_bytes,
            crc: Crc::new(),
            summed: 0,
            member_bytes: 0,
        }
    }

    fn offset_bytes(&self) -> u64 {
        self.base_bytes + self.written as u64
    }

    fn is_full(&self) -> bool {
        self.written >= BUFFER_BYTES - SLACK_BYTES
    }

    fn begin_member(&mut self) {
        self.crc = Crc::new();
        self.summed = self.written;
        self.history = self.written;
        self.member_bytes = self.offset_bytes();
    }

    fn member_bytes(&self) -> u64 {
        self.offset_bytes() - self.member_bytes
    }

    fn finish_crc(&mut self) -> u32 {
        self.crc.update(&self.buffer[self.summed..self.written]);
        self.summed = self.written;
        self.crc.sum()
    }

    /// Copies as much of `bytes` as there is room for; how much.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let room = (BUFFER_BYTES - SLACK_BYTES).saturating_sub(self.written);
        let len = bytes.len().min(room);
        self.buffer[self.written..self.written + len].copy_from_slice(&bytes[..len]);
        self.written += len;
        len
    }

    /// Gives the bytes away and keeps the history.
    fn flush(&mut self, sink: &mut impl Sink) -> Result<(), Failure> {
        if self.offset_bytes() > self.limit_bytes {
            return Err(Failure::TooLarge);
        }
        if self.written == self.given {
            return Ok(());
        }
        self.finish_crc();
        let kept = self.written.min(WINDOW_BYTES);
        let dropped = self.written - kept;
        let mut window = [0; WINDOW_BYTES];
        window[..kept].copy_from_slice(&self.buffer[dropped..self.written]);
        let block = Block {
            buffer: std::mem::take(&mut self.buffer),
            start: self.given,
            end: self.written,
        };
        self.buffer = sink.block(block).ok_or(Failure::SinkClosed)?;
        self.buffer.resize(BUFFER_BYTES, 0);
        self.buffer[..kept].copy_from_slice(&window[..kept]);
        self.base_bytes += dropped as u64;
        self.written = kept;
        self.given = kept;
        self.summed = kept;
        self.history = self.history.saturating_sub(dropped);
        Ok(())
    }
}
