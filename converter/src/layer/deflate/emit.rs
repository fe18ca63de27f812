//! The emitter: a member's bytes and where they stood in the source in, one gzip member out.
//!
//! A member is a series of parts: what the cutter takes from the source, bit by bit, and everything
//! else, compressed again. The blocks of all parts follow each other without padding, and the last
//! one is marked as such at the end.

use std::ops::Range;

use libdeflater::{Compressor, Crc};

use super::bit_copy::BitWriter;
use super::bits::PADDING_BYTES;
use super::block::{Body, Tables};
use super::check::Reread;
use super::cut::{Cutter, Piece};
use super::error::{Fault, TranscodeError};
use super::gzip::{PLAIN_HEADER, TRAILER_BYTES, behind_names};
use super::index::Index;
use super::walk::Stretch;
use crate::layer::spool::ReadAt;

/// A run of a member's bytes that stands in the source as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it begins in the member's bytes.
    pub start: usize,
    /// How many bytes it has.
    pub len_bytes: usize,
    /// Its uncompressed offset in the source.
    pub source_bytes: u64,
}

/// How many of a member's bytes went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// Uncompressed bytes whose tokens were copied.
    pub copied_bytes: u64,
    /// Uncompressed bytes that were compressed again.
    pub recompressed_bytes: u64,
    /// Whether the member is known to inflate to its bytes.
    pub is_proven: bool,
}

/// Shorter runs are compressed again: that is cheap, and often smaller.
pub const MIN_RUN_BYTES: usize = 256 << 10;
/// A part taken from a stream has at least so many bytes; below, a block's table costs more than
/// compressing again.
const MIN_CUT_BYTES: u64 = 16 << 10;

/// Memory beyond a member's length that a worker keeps of the source.
const HELD_ABOVE_BYTES: usize = 1 << 20;

/// A member that is copied as a whole has at most so many bytes more than what it holds, and one more in
/// 1024: what is written must stay within what was counted for it.
const MAX_WHOLE_SURPLUS_BYTES: usize = 100;

/// What is not worth copying.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    /// Bytes of a run that is too short.
    pub(super) run_bytes: usize,
    /// Bytes of the part of it that can be copied, where that is too short.
    pub(super) cut_bytes: u64,
    /// Bytes by which a part may be longer than what it means; no compressor makes that.
    pub(super) growth_bytes: u64,
}

/// A compressed stream that can be read again, and its index.
pub struct Source<'a, R: ?Sized> {
    /// The compressed bytes, those of which `index` was made.
    pub compressed: &'a R,
    /// Where its blocks lie.
    pub index: &'a Index,
}

/// Makes members; a worker has one and keeps it.
pub struct Transcoder {
    compressor: Compressor,
    cutter: Cutter,
    tables: Tables,
    scratch: Vec<u8>,
    thresholds: Thresholds,
    /// The longest member so far.
    longest_bytes: usize,
}

/// A stored block holds no more.
const MAX_STORED_BYTES: usize = 65535;

impl Transcoder {
    /// A worker that compresses with `compressor` what it cannot copy.
    pub fn new(compressor: Compressor) -> Self {
        let thresholds = Thresholds {
            run_bytes: MIN_RUN_BYTES,
            cut_bytes: MIN_CUT_BYTES,
            growth_bytes: 0,
        };
        Self::with_thresholds(compressor, thresholds)
    }

    /// Memory that a worker holds from member to member, at most, if the longest has `longest_bytes`: the
    /// source's bytes for it, and what is compressed again.
    pub fn held_bytes(longest_bytes: u64) -> u64 {
        2 * longest_bytes + 2 * HELD_ABOVE_BYTES as u64
    }

    /// With other thresholds than in use: tests cut at every byte.
    pub(super) fn with_thresholds(compressor: Compressor, thresholds: Thresholds) -> Self {
        Self {
            compressor,
            cutter: Cutter::new(),
            tables: Tables::new(),
            scratch: Vec::new(),
            thresholds,
            longest_bytes: 0,
        }
    }

    /// Appends to `member` a gzip member of `bytes`. `runs` lie within them, in order, without
    /// overlaps. The result depends on the arguments and the version alone.
    ///
    /// With `check`, and if `bytes` are those that came out of the scan, the member is proven where that takes
    /// less time than to inflate it: what is compressed again is inflated, what is copied is compared with the
    /// source bit by bit, and the source with what was scanned. Else, where the source is not what it was when it was indexed, and this is not noticed
    /// here, a reader of the member notices: the checksum is that of `bytes`.
    ///
    /// # Errors
    /// [`TranscodeError`] when the source cannot be read, or is seen to have changed; `member` is empty
    /// then.
    pub fn member<R: ReadAt + ?Sized>(
        &mut self,
        bytes: &[u8],
        runs: &[Run],
        source: &Source<'_, R>,
        member: &mut Vec<u8>,
        mut check: Option<&mut Reread>,
    ) -> Result<Emitted, TranscodeError> {
        member.extend_from_slice(&PLAIN_HEADER);
        let mut blocks = Blocks::after(std::mem::take(member), check.is_some());
        let mut emitted = Emitted::default();
        let mut done = 0;
        let Thresholds {
            run_bytes,
            cut_bytes,
            growth_bytes,
        } = self.thresholds;
        for run in runs.iter().filter(|run| run.len_bytes >= run_bytes) {
            let whole = run.source_bytes..run.source_bytes + run.len_bytes as u64;
            let range = run.start..run.start + run.len_bytes;
            let to_prove = blocks.is_proven().then(|| bytes.get(range)).flatten();
            let cut = self
                .cutter
                .cut(source.index, source.compressed, whole, to_prove)?;
            let Some(cut) = cut else {
                continue;
            };
            let len_bytes = cut.end_bytes - cut.start_bytes;
            if len_bytes < cut_bytes
                || cut.coded_bits() / 8 > len_bytes.saturating_add(growth_bytes)
            {
                continue;
            }
            let place = |offset: u64| run.start + (offset - run.source_bytes) as usize;
            let copied = place(cut.start_bytes)..place(cut.end_bytes);
            self.recompress(&bytes[done..copied.start], &mut blocks, &mut check);
            blocks.is_known &= cut.is_proven;
            for piece in &cut.pieces {
                match piece {
                    Piece::Stored(range) => {
                        blocks.stored(&bytes[place(range.start)..place(range.end)]);
                    }
                    coded => blocks.coded(self.cutter.compressed(), coded),
                }
            }
            emitted.copied_bytes += copied.len() as u64;
            done = copied.end;
        }
        self.recompress(&bytes[done..], &mut blocks, &mut check);
        self.longest_bytes = self.longest_bytes.max(bytes.len());
        self.cutter
            .hold_at_most(self.longest_bytes + HELD_ABOVE_BYTES);
        emitted.recompressed_bytes = bytes.len() as u64 - emitted.copied_bytes;
        emitted.is_proven = blocks.is_proven();
        *member = blocks.finish();
        let mut crc = Crc::new();
        crc.update(bytes);
        member.extend_from_slice(&crc.sum().to_le_bytes());
        // The length modulo 2^32 (RFC 1952, 2.3.1).
        let len_bytes = bytes.len() as u32;
        member.extend_from_slice(&len_bytes.to_le_bytes());
        Ok(emitted)
    }

    /// Appends to `member` the source's own gzip member of `bytes`, which stand there from `source_bytes`
    /// on, if one holds exactly these: byte for byte, but for the header of one that has a name or comment
    /// (Go's reader refuses long ones). False if there is none, or it is too long.
    ///
    /// # Errors
    /// As [`Transcoder::member`]; `member` is as it was then.
    pub fn whole_member<R: ReadAt + ?Sized>(
        &mut self,
        bytes: &[u8],
        source_bytes: u64,
        source: &Source<'_, R>,
        member: &mut Vec<u8>,
    ) -> Result<bool, TranscodeError> {
        let end_bytes = source_bytes + bytes.len() as u64;
        let Some(place) = source.index.member_of(source_bytes, end_bytes) else {
            return Ok(false);
        };
        let len = usize::try_from(place.end - place.start).unwrap_or(usize::MAX);
        if len > bytes.len() + bytes.len() / 1024 + MAX_WHOLE_SURPLUS_BYTES {
            return Ok(false);
        }
        self.scratch.resize(len, 0);
        source
            .compressed
            .read_exact_at(&mut self.scratch, place.start)
            .map_err(|error| TranscodeError::Read {
                offset_bytes: place.start,
                source: error,
            })?;
        let mut crc = Crc::new();
        crc.update(bytes);
        let changed = TranscodeError::Changed {
            position_bits: place.start * 8,
        };
        let trailer = self.scratch.last_chunk::<TRAILER_BYTES>();
        let expected = u64::from(crc.sum()) | (bytes.len() as u64) << 32;
        if trailer.is_none_or(|trailer| u64::from_le_bytes(*trailer) != expected) {
            return Err(changed);
        }
        match behind_names(&self.scratch) {
            Ok(None) => member.extend_from_slice(&self.scratch),
            Ok(Some(rest)) => {
                member.extend_from_slice(&PLAIN_HEADER);
                member.extend_from_slice(rest);
            }
            Err(_) => return Err(changed),
        }
        Ok(true)
    }

    /// Compresses `bytes` and appends the blocks.
    fn recompress(&mut self, bytes: &[u8], blocks: &mut Blocks, check: &mut Option<&mut Reread>) {
        if bytes.is_empty() && !blocks.is_empty() {
            return;
        }
        let bound = self.compressor.deflate_compress_bound(bytes.len());
        self.scratch.resize(bound + PADDING_BYTES, 0);
        let len = self
            .compressor
            .deflate_compress(bytes, &mut self.scratch[..bound])
            .expect("the buffer has the size that libdeflate asks for");
        self.scratch[len..][..PADDING_BYTES].fill(0);
        if let (true, Some(check)) = (blocks.is_proven(), check) {
            blocks.is_known &= check.is_deflate_of(&self.scratch[..len], bytes);
        }
        append_stream(&mut self.tables, &self.scratch, len, bytes, blocks)
            .expect("libdeflate makes valid streams");
    }
}

/// Appends the blocks of a raw deflate stream of `bytes`, `len` bytes of `compressed`.
fn append_stream(
    tables: &mut Tables,
    compressed: &[u8],
    len: usize,
    bytes: &[u8],
    blocks: &mut Blocks,
) -> Result<(), Fault> {
    let stretch = Stretch::new(compressed, len);
    let (mut at, mut start) = (0, 0);
    loop {
        let place = stretch.header(tables, at)?;
        match place.body {
            Body::Stored { len_bytes } => {
                let end = start + usize::from(len_bytes);
                blocks.stored(bytes.get(start..end).ok_or(Fault::Length)?);
                start = end;
                at = place.body_bits + u64::from(len_bytes) * 8;
            }
            Body::Coded => {
                let end = stretch.tokens(tables, place.body_bits, |token| {
                    start += token.len_bytes as usize;
                    std::ops::ControlFlow::Continue(())
                })?;
                let end = end.ok_or(Fault::Truncated)?;
                blocks.coded(compressed, &Piece::Whole(at..end));
                at = end;
            }
        }
        if place.is_last {
            return Ok(());
        }
    }
}

/// Blocks of one deflate stream as they are written.
struct Blocks {
    writer: BitWriter,
    /// Where the last block's header is: its first bit says that it is the last one.
    last_header_bits: Option<u64>,
    /// Whether what is written is compared with what it is made of.
    is_compared: bool,
    /// Whether that has been the same so far.
    is_same: bool,
    /// Whether what it is made of is known to make the member's bytes.
    is_known: bool,
}

impl Blocks {
    fn after(bytes: Vec<u8>, is_compared: bool) -> Self {
        Self {
            writer: BitWriter::after(bytes),
            last_header_bits: None,
            is_compared,
            is_same: true,
            is_known: true,
        }
    }

    /// Whether all so far is known to inflate to the member's bytes.
    fn is_proven(&self) -> bool {
        self.is_compared && self.is_same && self.is_known
    }

    fn is_empty(&self) -> bool {
        self.last_header_bits.is_none()
    }

    /// Appends a block of tokens from `compressed`.
    fn coded(&mut self, compressed: &[u8], piece: &Piece) {
        match piece {
            Piece::Whole(bits) => {
                self.begin();
                self.copy(compressed, bits.start + 1..bits.end);
            }
            Piece::Part {
                header_bits,
                token_bits,
                end_of_block,
            } => {
                self.begin();
                self.copy(compressed, header_bits.start + 1..header_bits.end);
                self.copy(compressed, token_bits.clone());
                self.put(u64::from(end_of_block.bits), u32::from(end_of_block.count));
            }
            Piece::Stored(_) => debug_assert!(false, "a stored block's bytes come from elsewhere"),
        }
    }

    /// Appends stored blocks, at least one.
    fn stored(&mut self, mut bytes: &[u8]) {
        loop {
            let (block, rest) = bytes.split_at(bytes.len().min(MAX_STORED_BYTES));
            self.begin();
            self.put(0, 2);
            self.writer.align();
            let len = block.len() as u64;
            self.put(len | (len ^ 0xffff) << 16, 32);
            self.writer.put_bytes(block);
            self.is_same &= !self.is_proven() || self.writer.ends_with(block);
            if rest.is_empty() {
                return;
            }
            bytes = rest;
        }
    }

    /// The bit that says whether a block is the last one; not so far.
    fn begin(&mut self) {
        self.last_header_bits = Some(self.writer.position_bits());
        self.put(0, 1);
    }

    fn put(&mut self, bits: u64, count: u32) {
        let position_bits = self.writer.position_bits();
        self.writer.put(bits, count);
        self.is_same &= self.writer.bits(position_bits, count) == bits;
    }

    fn copy(&mut self, compressed: &[u8], Range { start, end }: Range<u64>) {
        let position_bits = self.writer.position_bits();
        self.writer.copy(compressed, start, end);
        let is_compared = self.is_proven();
        self.is_same &= !is_compared || self.writer.holds(position_bits, compressed, start, end);
    }

    /// The whole stream; its last block is marked.
    fn finish(mut self) -> Vec<u8> {
        if let Some(position_bits) = self.last_header_bits {
            self.writer.set(position_bits);
        }
        self.writer.finish()
    }
}
