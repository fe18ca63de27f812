//! The decoder: a compressed stream in, blocks of bytes and an [`Index`] out, in one pass.
//!
//! Any input gives bytes or an error. Memory is bounded by the two buffers and the index.

use std::io::{self, Read};

use super::bits::Bits;
use super::block::{Body, MAX_HEADER_BYTES, Tables};
use super::border::{Border, BorderKind};
use super::error::{DecodeError, Fault};
use super::gzip::{TRAILER_BYTES, read_header};
use super::index::{Checkpoint, Index, MemberSpan, Observer, Span, SpanKind};
use super::input::Input;
use super::output::{Output, Place, Resume, Sink};
use super::tokens::{self, Cursor, Limits, Stop};

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
    let mut decoder = Decoder::new(
        Input::new(source),
        Tables::new(),
        Output::empty(limit_bytes),
        sink,
        Index::default(),
    );
    let decoded = match container {
        Container::Raw => decoder.raw(),
        Container::Gzip => decoder.members(BorderKind::Member).map(drop),
    };
    decoded
        .and_then(|()| decoder.flush(None))
        .map_err(|failure| decoder.error(failure))?;
    Ok(Decoded {
        compressed_bytes: decoder.position_bits().div_ceil(8),
        index: decoder.observer,
        members: decoder.members,
    })
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

/// A decoder at work.
pub(super) struct Decoder<'a, R, S, O> {
    pub(super) input: Input<R>,
    pub(super) bits: Bits,
    pub(super) tables: Tables,
    pub(super) output: Output,
    pub(super) sink: &'a mut S,
    pub(super) observer: O,
    /// Ends at the first border that is not before this position.
    pub(super) until_bits: u64,
    /// Where the member began; `None` if that was before the decoder did.
    pub(super) member: Option<MemberStart>,
    /// The end of the member that had begun before the decoder did.
    pub(super) head: Option<Trailer>,
    members: u64,
}

/// Where a member begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemberStart {
    /// Compressed offset of its header.
    pub(super) start_bytes: u64,
    /// Uncompressed offset.
    pub(super) output_bytes: u64,
}

/// A member's end, and what was seen of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Checksum of the bytes that were seen.
    pub(super) crc: u32,
    /// How many they were.
    pub(super) len_bytes: u64,
    /// Checksum of the whole member, as it says.
    pub(super) expected_crc: u32,
    /// Length of the whole member modulo 2^32, as it says.
    pub(super) expected_len: u32,
    /// Compressed position behind it.
    pub(super) end_bits: u64,
    /// Uncompressed offset there.
    pub(super) output_bytes: u64,
}

impl<'a, R: Read, S: Sink, O: Observer> Decoder<'a, R, S, O> {
    pub(super) fn new(
        input: Input<R>,
        tables: Tables,
        output: Output,
        sink: &'a mut S,
        observer: O,
    ) -> Self {
        Self {
            input,
            bits: Bits::default(),
            tables,
            output,
            sink,
            observer,
            until_bits: u64::MAX,
            member: None,
            head: None,
            members: 0,
        }
    }

    /// A bare deflate stream.
    fn raw(&mut self) -> Result<(), Failure> {
        self.output.begin_member();
        while !self.block()? {}
        self.members = 1;
        Ok(())
    }

    /// Gzip members and their blocks from a border of this kind on. The border at which it ends before
    /// [`Decoder::until_bits`], or `None` at the stream's end.
    pub(super) fn members(&mut self, at: BorderKind) -> Result<Option<Border>, Failure> {
        let mut kind = at;
        loop {
            let border = Border {
                position_bits: self.position_bits(),
                kind,
            };
            if border.position_bits >= self.until_bits || self.observer.is_full() {
                return Ok(Some(border));
            }
            let history = self.output.history(kind);
            self.sink
                .border(border, self.output.offset_bytes(), history);
            if kind == BorderKind::Member {
                self.header()?;
                kind = BorderKind::Block;
            } else if self.block()? {
                self.trailer()?;
                if !self.another_member()? {
                    return Ok(None);
                }
                kind = BorderKind::Member;
            }
        }
    }

    fn header(&mut self) -> Result<(), Failure> {
        let start_bytes = self.position_bits() / 8;
        read_header(|| {
            self.input
                .byte(&mut self.bits)?
                .ok_or(Failure::Fault(Fault::Truncated))
        })?;
        self.output.begin_member();
        self.member = Some(MemberStart {
            start_bytes,
            output_bytes: self.output.offset_bytes(),
        });
        Ok(())
    }

    /// Whether a member follows. Zeros behind the last one are padding, as gzip(1) has it.
    pub(super) fn another_member(&mut self) -> Result<bool, Failure> {
        match self.input.peek_byte(&mut self.bits)? {
            None => Ok(false),
            Some(0x1f) => Ok(true),
            Some(_) => {
                while let Some(byte) = self.input.byte(&mut self.bits)? {
                    if byte != 0 {
                        return Err(Fault::TrailingData.into());
                    }
                }
                Ok(false)
            }
        }
    }

    pub(super) fn trailer(&mut self) -> Result<(), Failure> {
        self.bits.align();
        let mut trailer = [0; TRAILER_BYTES];
        for byte in &mut trailer {
            *byte = self.input.byte(&mut self.bits)?.ok_or(Fault::Truncated)?;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3] = trailer;
        let found = Trailer {
            crc: self.output.finish_crc(),
            len_bytes: self.output.member_bytes(),
            expected_crc: u32::from_le_bytes([c0, c1, c2, c3]),
            expected_len: u32::from_le_bytes([l0, l1, l2, l3]),
            end_bits: self.position_bits(),
            output_bytes: self.output.offset_bytes(),
        };
        self.members += 1;
        let Some(start) = self.member.take() else {
            // What went before is not known here.
            self.head = Some(found);
            return Ok(());
        };
        found.check(found.crc, found.len_bytes)?;
        self.observer.member(MemberSpan {
            start_bytes: start.start_bytes,
            end_bytes: found.end_bits / 8,
            output_bytes: start.output_bytes,
            len_bytes: found.len_bytes,
        });
        Ok(())
    }

    /// One block; whether it is its member's last one.
    pub(super) fn block(&mut self) -> Result<bool, Failure> {
        self.input.ensure(&mut self.bits, MAX_HEADER_BYTES)?;
        self.input.begin_checksum(&self.bits);
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
            crc: self.input.checksum(&self.bits),
        };
        self.observer.block(span, self.output.offset_bytes());
        Ok(header.is_last)
    }

    pub(super) fn coded(&mut self, block_bytes: u64, header_bits: u64) -> Result<(), Failure> {
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
                self.observer.checkpoint(checkpoint, block_bytes);
                let resume = self.resume(header_bits, 0);
                self.flush(Some(resume))?;
            }
            if self.bits.next() >= limits.input {
                self.input.fill(&mut self.bits)?;
            }
        }
    }

    pub(super) fn stored(&mut self, mut left: usize, header_bits: u64) -> Result<(), Failure> {
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
        let history_bytes = self.output.history(BorderKind::Block).len();
        Resume {
            output_bytes: self.output.offset_bytes(),
            history_bytes: history_bytes as u32,
            place: Place::Inside {
                header_bits,
                position_bits: self.position_bits(),
                stored_bytes,
            },
        }
    }

    pub(super) fn flush(&mut self, resume: Option<Resume>) -> Result<(), Failure> {
        if let Some(index) = self.observer.index() {
            self.sink.indexed(index);
        }
        self.output.flush(self.sink, resume)
    }

    pub(super) fn position_bits(&self) -> u64 {
        self.input.dropped_bytes * 8 + self.bits.position_bits()
    }

    pub(super) fn error(&self, failure: Failure) -> DecodeError {
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

impl Trailer {
    /// Compares what the member says with what it is.
    pub(super) fn check(&self, crc: u32, len_bytes: u64) -> Result<(), Fault> {
        if crc != self.expected_crc {
            return Err(Fault::Crc);
        }
        // The length modulo 2^32.
        if len_bytes as u32 != self.expected_len {
            return Err(Fault::Length);
        }
        Ok(())
    }
}
