//! Decoding from the middle of a stream on: from a noted place inside a block, or from a border.

use std::io::{self, Read};

use super::bits::{Bits, PADDING_BYTES};
use super::block::{MAX_HEADER_BYTES, Tables};
use super::border::BorderKind;
use super::decode::{Decoder, Failure};
use super::error::DecodeError;
use super::index::Observer;
use super::input::Input;
use super::output::{Output, Place, Resume, Sink};
use crate::blob::ReadAt;

/// Buffers and tables of a decoder that is used again.
#[derive(Default)]
pub struct Scratch {
    tables: Tables,
    output: Vec<u8>,
    header: Vec<u8>,
}

impl Scratch {
    /// Takes back what a decoder used.
    pub(super) fn take_back<R: Read, S: Sink, O: Observer>(
        &mut self,
        decoder: Decoder<'_, R, S, O>,
    ) -> O {
        self.tables = decoder.tables;
        self.output = decoder.output.buffer;
        decoder.observer
    }

    /// A decoder whose next bits are those at `position_bits`, behind `history`; the offset of its next
    /// byte is `output_bytes`.
    pub(super) fn decoder<'a, 'b, R: ReadAt + ?Sized, S: Sink, O: Observer>(
        &mut self,
        compressed: &'b R,
        position_bits: u64,
        (output_bytes, history): (u64, &[u8]),
        sink: &'a mut S,
        observer: O,
    ) -> Decoder<'a, Tail<'b, R>, S, O> {
        let start_bytes = position_bits / 8;
        let mut input = Input::new(Tail {
            compressed,
            offset_bytes: start_bytes,
        });
        input.dropped_bytes = start_bytes;
        Decoder::new(
            input,
            std::mem::take(&mut self.tables),
            Output::behind(std::mem::take(&mut self.output), output_bytes, history),
            sink,
            observer,
        )
    }
}

impl<R: Read, S: Sink, O: Observer> Decoder<'_, R, S, O> {
    /// Fills the input for the first time; the next bits are those from `first_bit` of its first byte.
    pub(super) fn start(&mut self, first_bit: u64) -> Result<(), Failure> {
        self.input.fill(&mut self.bits)?;
        self.bits = Bits::at_bit(self.input.bytes(), first_bit);
        Ok(())
    }
}

/// Decodes a gzip stream from `resume` on, where `history` stands before, until `sink` wants no more or
/// the stream ends. The checksum of the member that has begun before is not compared.
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
    let (position_bits, is_last) = match resume.place {
        Place::Border(border) => (border.position_bits, false),
        Place::Inside {
            header_bits,
            position_bits,
            ..
        } => {
            let is_last = read_tables(compressed, header_bits, resume.output_bytes, scratch)?;
            (position_bits, is_last)
        }
    };
    let output = (resume.output_bytes, history);
    let mut decoder = scratch.decoder(compressed, position_bits, output, sink, ());
    let decoded = decoder
        .start(position_bits % 8)
        .and_then(|()| rest(&mut decoder, resume, is_last))
        .and_then(|()| decoder.output.flush(decoder.sink, None));
    let decoded = match decoded {
        Err(Failure::SinkClosed) => Ok(()),
        decoded => decoded.map_err(|failure| decoder.error(failure)),
    };
    scratch.take_back(decoder);
    decoded
}

/// Reads the header of a block that began before; whether it is its member's last one.
fn read_tables<R: ReadAt + ?Sized>(
    compressed: &R,
    header_bits: u64,
    output_bytes: u64,
    scratch: &mut Scratch,
) -> Result<bool, DecodeError> {
    let offset_bytes = header_bits / 8;
    let len = compressed.len_bytes().saturating_sub(offset_bytes);
    let len = usize::try_from(len)
        .unwrap_or(usize::MAX)
        .min(MAX_HEADER_BYTES + 8);
    scratch.header.resize(len, 0);
    compressed
        .read_exact_at(&mut scratch.header, offset_bytes)
        .map_err(|source| DecodeError::Read {
            offset_bytes,
            source,
        })?;
    scratch.header.resize(len + PADDING_BYTES, 0);
    let mut bits = Bits::at_bit(&scratch.header, header_bits % 8);
    let header = scratch.tables.read_header(&mut bits, &scratch.header);
    let header = header.map_err(|fault| DecodeError::Corrupt {
        fault,
        position_bits: header_bits,
        output_bytes,
    })?;
    Ok(header.is_last)
}

/// The rest of a stream; `is_last` is said of the block that has begun.
fn rest<R: Read, S: Sink, O: Observer>(
    decoder: &mut Decoder<'_, R, S, O>,
    resume: &Resume,
    is_last: bool,
) -> Result<(), Failure> {
    let kind = match resume.place {
        Place::Border(border) => border.kind,
        Place::Inside {
            header_bits,
            stored_bytes,
            ..
        } => {
            match stored_bytes {
                0 => decoder.coded(resume.output_bytes, header_bits)?,
                left => decoder.stored(left as usize, header_bits)?,
            }
            if !is_last {
                BorderKind::Block
            } else {
                decoder.trailer()?;
                if !decoder.another_member()? {
                    return Ok(());
                }
                BorderKind::Member
            }
        }
    };
    decoder.members(kind).map(drop)
}

/// Bytes from an offset on, as a stream.
pub(super) struct Tail<'a, R: ?Sized> {
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
