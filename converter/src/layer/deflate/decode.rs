//! The decoder: a compressed stream in, blocks of bytes and an [`Index`] out, in one pass.
//!
//! Any input gives bytes or an error. Memory is bounded by the two buffers and the index.

use std::io::{self, Read};

use super::bits::{Bits, PADDING_BYTES};
use super::block::{Body, MAX_HEADER_BYTES, Tables};
use super::error::{DecodeError, Fault};
use super::gzip::{TRAILER_BYTES, read_header};
use super::index::{Checkpoint, Index, Span, SpanKind};
use super::input::Input;
use super::output::{Output, Resume, Sink, WINDOW_BYTES};
use super::tokens::{self, Cursor, Limits, Stop};
use crate::blob::ReadAt;

/// What the deflate stream is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Gzip members, any number above 0, with zeros behind the last one at most.
    Gzip,
    /// A single bare deflate stream; what follows it is left alone.
    Raw,
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
        output: Output::empty(limit_bytes),
        sink,
        index: Index::default(),
    };
    let members = decoder
        .stream(container)
        .and_then(|members| decoder.flush(None).map(|()| members))
        .map_err(|failure| decoder.error(failure))?;
    Ok(Decoded {
        compressed_bytes: decoder.position_bits().div_ceil(8),
        index: decoder.index,
        members,
    })
}

/// Buffers and tables of a decoder that is used again.
#[derive(Default)]
pub struct Scratch {
    tables: Tables,
    output: Vec<u8>,
    header: Vec<u8>,
}

/// Decodes a gzip stream from `resume` on, where `history` stands before, until `sink` wants no more or
/// the stream ends.
///
/// # Errors
/// [`DecodeError`]; that the sink has enough is none.
pub fn decode_from<R: ReadAt + ?Sized>(
    compressed: &R,
    resume: &Resume,
    history: &[u8],
    scratch: &mut Scratch,
    sink: &mut impl Sink,
) -> Result<(), DecodeError> {
    let read_error = |offset_bytes, source| DecodeError::Read {
        offset_bytes,
        source,
    };
    let header_bytes = resume.header_bits / 8;
    let len = compressed.len_bytes().saturating_sub(header_bytes);
    let len = usize::try_from(len)
        .unwrap_or(usize::MAX)
        .min(MAX_HEADER_BYTES + 8);
    scratch.header.resize(len, 0);
    compressed
        .read_exact_at(&mut scratch.header, header_bytes)
        .map_err(|error| read_error(header_bytes, error))?;
    scratch.header.resize(len + PADDING_BYTES, 0);
    let mut bits = Bits::at_bit(&scratch.header, resume.header_bits % 8);
    let header = scratch.tables.read_header(&mut bits, &scratch.header);
    let is_last = header
        .map_err(|fault| DecodeError::Corrupt {
            fault,
            position_bits: resume.header_bits,
            output_bytes: resume.output_bytes,
        })?
        .is_last;

    let start_bytes = resume.position_bits / 8;
    let mut decoder = Decoder {
        input: Input::new(Tail {
            compressed,
            offset_bytes: start_bytes,
        }),
        bits: Bits::default(),
        tables: std::mem::take(&mut scratch.tables),
        output: Output::behind(std::mem::take(&mut scratch.output), resume, history),
        sink,
        index: Index::default(),
    };
    decoder.input.dropped_bytes = start_bytes;
    let decoded = decoder
        .input
        .fill(&mut decoder.bits)
        .and_then(|()| {
            decoder.bits = Bits::at_bit(decoder.input.bytes(), resume.position_bits % 8);
            decoder.rest(resume, is_last)
        })
        .and_then(|()| decoder.flush(None));
    let decoded = match decoded {
        Err(Failure::SinkClosed) => Ok(()),
        decoded => decoded.map_err(|failure| decoder.error(failure)),
    };
    scratch.tables = decoder.tables;
    scratch.output = decoder.output.buffer;
    decoded
}

/// Bytes from an offset on, as a stream.
struct Tail<'a, R: ?Sized> {
    compressed: &'a R,
    offset_bytes: u64,
}

impl<R: ReadAt + ?Sized> Read for Tail<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self
            .compressed
            .len_bytes()
            .saturating_sub(self.offset_bytes);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.compressed
            .read_exact_at(&mut buffer[..len], self.offset_bytes)?;
        self.offset_bytes += len as u64;
        Ok(len)
    }
}

/// Why decoding ends early, before places are known.
pub(super) enum Failure {
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
                self.stored(usize::from(len_bytes), header_bits)?;
                SpanKind::Stored
            }
            Body::Coded => {
                self.coded(output_bytes, header_bits)?;
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

    fn coded(&mut self, block_bytes: u64, header_bits: u64) -> Result<(), Failure> {
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
                let resume = self.resume(header_bits, 0);
                self.flush(Some(resume))?;
            }
            if self.bits.next() >= limits.input {
                self.input.fill(&mut self.bits)?;
            }
        }
    }

    fn stored(&mut self, mut left: usize, header_bits: u64) -> Result<(), Failure> {
        self.bits.align();
        while left > 0 {
            if self.output.is_full() {
                let resume = self.resume(header_bits, left as u32);
                self.flush(Some(resume))?;
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

    /// Here, in the block whose header is at `header_bits`.
    fn resume(&self, header_bits: u64, stored_bytes: u32) -> Resume {
        let history_bytes = self.output.written - self.output.history;
        Resume {
            output_bytes: self.output.offset_bytes(),
            history_bytes: history_bytes.min(WINDOW_BYTES) as u32,
            header_bits,
            position_bits: self.position_bits(),
            stored_bytes,
        }
    }

    /// The rest of a stream from the middle of a block on. What went before is not known, so the
    /// checksum of the first member is not compared.
    fn rest(&mut self, resume: &Resume, is_last: bool) -> Result<(), Failure> {
        match resume.stored_bytes {
            0 => self.coded(resume.output_bytes, resume.header_bits)?,
            left => self.stored(left as usize, resume.header_bits)?,
        }
        if !is_last {
            while !self.block()? {}
        }
        self.bits.align();
        for _ in 0..TRAILER_BYTES {
            self.input.byte(&mut self.bits)?.ok_or(Fault::Truncated)?;
        }
        if self.input.peek_byte(&mut self.bits)? == Some(0x1f) {
            self.stream(Container::Gzip)?;
        }
        Ok(())
    }

    fn flush(&mut self, resume: Option<Resume>) -> Result<(), Failure> {
        self.sink.indexed(&self.index);
        self.output.flush(self.sink, resume)
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
