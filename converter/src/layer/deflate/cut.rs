//! The cutter: which tokens of a stream can stand for a run of bytes by themselves.
//!
//! Of a run from s to e, the part from p to q is taken as it is: p is the first border of a token at
//! or behind s after which no match of the run reaches back before s, q the last border at or before
//! e. Only the blocks at s, for at most 32 KiB, and at e are decoded again.

use std::ops::{ControlFlow, Range};

use super::bits::PADDING_BYTES;
use super::block::{Body, CodeBits, MAX_HEADER_BYTES, Tables};
use super::decode::WINDOW_BYTES;
use super::error::{Fault, TranscodeError};
use super::index::{Checkpoint, Index, Span, SpanKind};
use super::walk::{BlockPlace, Stretch, Token};
use crate::layer::spool::ReadAt;

/// The part of a run that can be taken as it is. Positions in bits are those of
/// [`Cutter::compressed`].
#[derive(Debug)]
pub(super) struct Cut {
    /// Its first byte, as uncompressed offset: p.
    pub(super) start_bytes: u64,
    /// The offset behind its last byte: q.
    pub(super) end_bytes: u64,
    /// The blocks that make it, in order.
    pub(super) pieces: Vec<Piece>,
}

/// A block to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A block of tokens from its header to behind its end-of-block code.
    Whole(Range<u64>),
    /// Some of a block's tokens.
    Part {
        header_bits: Range<u64>,
        token_bits: Range<u64>,
        end_of_block: CodeBits,
    },
    /// Bytes of a stored block, as uncompressed offsets.
    Stored(Range<u64>),
}

/// Compressed bytes of a run beyond which they are not worth reading: a stream with blocks that carry
/// nothing.
const MAX_COMPRESSED_BYTES: u64 = 1 << 20;

/// Finds cuts; keeps its tables and buffers from run to run.
pub(super) struct Cutter {
    tables: Tables,
    compressed: Vec<u8>,
    blocks: Vec<Block>,
}

/// A block of the run, with positions in the buffer.
#[derive(Clone, Copy, Debug)]
struct Block {
    header_bits: u64,
    end_bits: u64,
    is_stored: bool,
    start_bytes: u64,
    end_bytes: u64,
    /// Where its tokens are known to begin, but for those at its start.
    resume: Option<Checkpoint>,
}

/// A place between two tokens.
#[derive(Clone, Copy, Debug)]
struct Border {
    block: usize,
    /// No meaning in a stored block.
    position_bits: u64,
    output_bytes: u64,
}

/// What is in the buffer, and where.
struct Loaded {
    /// Compressed bytes of the stream, from the buffer's start on.
    len_bytes: usize,
    /// The first block's header, when it lies too far before.
    header: Option<Range<usize>>,
    /// Position in the stream of the buffer's first bit.
    base_bits: u64,
}

impl Cutter {
    pub(super) fn new() -> Self {
        Self {
            tables: Tables::new(),
            compressed: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// The compressed bytes that the last cut's pieces mean.
    pub(super) fn compressed(&self) -> &[u8] {
        &self.compressed
    }

    /// Cuts the bytes `run` out of the stream; `None` if nothing of it can be taken.
    pub(super) fn cut<R: ReadAt + ?Sized>(
        &mut self,
        index: &Index,
        source: &R,
        run: Range<u64>,
    ) -> Result<Option<Cut>, TranscodeError> {
        let Some((first, last)) = index.spans_of(run.start, run.end) else {
            return Ok(None);
        };
        let Some(loaded) = self.load(index, source, &run, first, last)? else {
            return Ok(None);
        };
        let changed = |_: Fault| TranscodeError::Changed {
            position_bits: loaded.base_bits,
        };
        self.find_blocks(index, &loaded, &run, first, last)
            .map_err(changed)?;
        let Some(start) = self.find_start(&loaded, &run).map_err(changed)? else {
            return Ok(None);
        };
        let end = self.find_end(index, &loaded, run.end).map_err(changed)?;
        if end.output_bytes <= start.output_bytes {
            return Ok(None);
        }
        let pieces = self.pieces(&loaded, start, end).map_err(changed)?;
        Ok(Some(Cut {
            start_bytes: start.output_bytes,
            end_bytes: end.output_bytes,
            pieces,
        }))
    }

    /// Reads the compressed bytes of the spans, but of a long block at either end only what is needed;
    /// `None` if that is out of proportion.
    fn load<R: ReadAt + ?Sized>(
        &mut self,
        index: &Index,
        source: &R,
        run: &Range<u64>,
        first: usize,
        last: usize,
    ) -> Result<Option<Loaded>, TranscodeError> {
        self.blocks.clear();
        let (Some((first, first_end)), Some((last, last_end))) =
            (index.span(first), index.span(last))
        else {
            return Ok(None);
        };
        let resume = resume_of(index, &first, first_end, run.start);
        let start_bits = resume.map_or(first.header_bits, |c| c.position_bits);
        let end_bits = index
            .checkpoint_after(run.end, last_end)
            .filter(|_| last.kind == SpanKind::Coded)
            .map_or(last.end_bits, |c| c.position_bits);
        let (start, end) = (start_bits / 8, end_bits.div_ceil(8));
        if end - start > 2 * (run.end - run.start) + MAX_COMPRESSED_BYTES {
            return Ok(None);
        }
        self.compressed.clear();
        let range = append_range(&mut self.compressed, source, start..end)?;
        let len_bytes = range.len();
        let header = if resume.is_some() {
            let start = first.header_bits / 8;
            let end = (start + MAX_HEADER_BYTES as u64 + 1).min(source.len_bytes());
            Some(append_range(&mut self.compressed, source, start..end)?)
        } else {
            None
        };
        Ok(Some(Loaded {
            len_bytes,
            header,
            base_bits: start * 8,
        }))
    }

    fn find_blocks(
        &mut self,
        index: &Index,
        loaded: &Loaded,
        run: &Range<u64>,
        first: usize,
        last: usize,
    ) -> Result<(), Fault> {
        for number in first..=last {
            let Some((span, end_bytes)) = index.span(number) else {
                continue;
            };
            if span.kind == SpanKind::Several {
                self.walk_span(loaded, &span, end_bytes)?;
                continue;
            }
            let resume = (number == first)
                .then(|| resume_of(index, &span, end_bytes, run.start))
                .flatten();
            let header_bits = match (&loaded.header, resume) {
                (Some(header), Some(_)) => header.start as u64 * 8 + span.header_bits % 8,
                _ => span.header_bits - loaded.base_bits,
            };
            self.blocks.push(Block {
                header_bits,
                end_bits: span.end_bits - loaded.base_bits,
                is_stored: span.kind == SpanKind::Stored,
                start_bytes: span.output_bytes,
                end_bytes,
                resume: resume.map(|c| Checkpoint {
                    position_bits: c.position_bits - loaded.base_bits,
                    ..c
                }),
            });
        }
        Ok(())
    }

    /// The blocks of a span of several, but for empty ones.
    fn walk_span(&mut self, loaded: &Loaded, span: &Span, end_bytes: u64) -> Result<(), Fault> {
        let stretch = Stretch::new(&self.compressed, loaded.len_bytes);
        let mut at = span.header_bits - loaded.base_bits;
        let mut start_bytes = span.output_bytes;
        while start_bytes < end_bytes {
            let place = stretch.header(&mut self.tables, at)?;
            let (end_bits, len_bytes) = match place.body {
                Body::Stored { len_bytes } => (
                    place.body_bits + u64::from(len_bytes) * 8,
                    u64::from(len_bytes),
                ),
                Body::Coded => {
                    let mut len_bytes = 0;
                    let end = stretch.tokens(&self.tables, place.body_bits, |token| {
                        len_bytes += token.len_bytes;
                        if start_bytes + len_bytes > end_bytes {
                            return ControlFlow::Break(());
                        }
                        ControlFlow::Continue(())
                    })?;
                    (end.ok_or(Fault::Length)?, len_bytes)
                }
            };
            if len_bytes > 0 {
                self.blocks.push(Block {
                    header_bits: at,
                    end_bits,
                    is_stored: matches!(place.body, Body::Stored { .. }),
                    start_bytes,
                    end_bytes: start_bytes + len_bytes,
                    resume: None,
                });
            }
            start_bytes += len_bytes;
            at = end_bits;
            if place.is_last && start_bytes < end_bytes {
                at = stretch.next_member(end_bits)?;
            }
        }
        if start_bytes == end_bytes {
            Ok(())
        } else {
            Err(Fault::Length)
        }
    }

    /// Reads the header of a block of tokens; its tables are in place then.
    fn open(&mut self, loaded: &Loaded, block: &Block) -> Result<BlockPlace, Fault> {
        let separate = loaded
            .header
            .as_ref()
            .filter(|header| block.header_bits >= header.start as u64 * 8);
        let end = separate.map_or(loaded.len_bytes, |header| header.end);
        let place =
            Stretch::new(&self.compressed, end).header(&mut self.tables, block.header_bits)?;
        match place.body {
            Body::Coded => Ok(place),
            Body::Stored { .. } => Err(Fault::BlockType),
        }
    }

    /// Gives the tokens of a block to `visit`, with the uncompressed offset of each.
    fn visit(
        &mut self,
        loaded: &Loaded,
        block: &Block,
        resume: Option<Checkpoint>,
        mut visit: impl FnMut(Token, u64) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let place = self.open(loaded, block)?;
        let from = resume.unwrap_or(Checkpoint {
            position_bits: place.body_bits,
            output_bytes: block.start_bytes,
        });
        let mut at = from.output_bytes;
        let end = Stretch::new(&self.compressed, loaded.len_bytes).tokens(
            &self.tables,
            from.position_bits,
            |token| {
                let start_bytes = at;
                at += token.len_bytes;
                visit(token, start_bytes)
            },
        )?;
        match end {
            Some(end_bits) if (end_bits, at) != (block.end_bits, block.end_bytes) => {
                Err(Fault::Length)
            }
            _ => Ok(()),
        }
    }

    /// p: see the module. `None` if there is no such border in the run.
    fn find_start(&mut self, loaded: &Loaded, run: &Range<u64>) -> Result<Option<Border>, Fault> {
        let proven = run.start + WINDOW_BYTES as u64;
        // No border before this one will do.
        let mut earliest = run.start;
        let mut found: Option<Border> = None;
        for number in 0..self.blocks.len() {
            let block = self.blocks[number];
            if block.start_bytes >= run.end || (found.is_some() && block.start_bytes >= proven) {
                break;
            }
            if block.is_stored {
                if found.is_none() && block.end_bytes > earliest {
                    found = Some(Border {
                        block: number,
                        position_bits: 0,
                        output_bytes: block.start_bytes.max(earliest),
                    });
                }
                continue;
            }
            self.visit(loaded, &block, block.resume, |token, start| {
                let end = start + token.len_bytes;
                if start < run.start {
                    earliest = earliest.max(end);
                } else if token.back_bytes > start - run.start {
                    earliest = end;
                    found = None;
                } else if found.is_none() && start >= earliest {
                    found = Some(Border {
                        block: number,
                        position_bits: token.start_bits,
                        output_bytes: start,
                    });
                }
                // The next token may lie behind what was loaded.
                if end >= run.end || (found.is_some() && end >= proven) {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(found.filter(|border| border.output_bytes < run.end))
    }

    /// q: see the module.
    fn find_end(&mut self, index: &Index, loaded: &Loaded, run_end: u64) -> Result<Border, Fault> {
        let number = self
            .blocks
            .partition_point(|block| block.start_bytes < run_end)
            .checked_sub(1)
            .ok_or(Fault::Length)?;
        let block = self.blocks[number];
        let mut border = Border {
            block: number,
            position_bits: block.end_bits,
            output_bytes: run_end,
        };
        if block.is_stored || block.end_bytes == run_end {
            return Ok(border);
        }
        let resume = index
            .checkpoint_before(block.start_bytes, run_end)
            .map(|c| Checkpoint {
                position_bits: c.position_bits - loaded.base_bits,
                ..c
            })
            .or(block.resume);
        if let Some(checkpoint) = resume
            && checkpoint.output_bytes == run_end
        {
            border.position_bits = checkpoint.position_bits;
            return Ok(border);
        }
        self.visit(loaded, &block, resume, |token, start| {
            border.position_bits = token.start_bits;
            border.output_bytes = start;
            if start + token.len_bytes > run_end {
                return ControlFlow::Break(());
            }
            border.position_bits = token.end_bits;
            border.output_bytes = start + token.len_bytes;
            if border.output_bytes == run_end {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(border)
    }

    /// The blocks between two borders.
    fn pieces(&mut self, loaded: &Loaded, start: Border, end: Border) -> Result<Vec<Piece>, Fault> {
        let mut pieces = Vec::with_capacity(end.block - start.block + 1);
        for number in start.block..=end.block {
            let block = self.blocks[number];
            let from_bytes = block.start_bytes.max(start.output_bytes);
            let to_bytes = block.end_bytes.min(end.output_bytes);
            if from_bytes >= to_bytes {
                continue;
            }
            if block.is_stored {
                pieces.push(Piece::Stored(from_bytes..to_bytes));
                continue;
            }
            if from_bytes == block.start_bytes && to_bytes == block.end_bytes {
                pieces.push(Piece::Whole(block.header_bits..block.end_bits));
                continue;
            }
            let place = self.open(loaded, &block)?;
            let from = if from_bytes > block.start_bytes {
                start.position_bits
            } else {
                place.body_bits
            };
            let to = if to_bytes < block.end_bytes {
                end.position_bits
            } else {
                block.end_bits - u64::from(place.end_of_block.count)
            };
            pieces.push(Piece::Part {
                header_bits: block.header_bits..place.body_bits,
                token_bits: from..to,
                end_of_block: place.end_of_block,
            });
        }
        Ok(pieces)
    }
}

/// Where the tokens of a long block can be read from, if not from its start.
fn resume_of(index: &Index, span: &Span, end_bytes: u64, offset_bytes: u64) -> Option<Checkpoint> {
    (span.kind == SpanKind::Coded && offset_bytes < end_bytes)
        .then(|| index.checkpoint_before(span.output_bytes, offset_bytes))
        .flatten()
}

/// Reads a range of compressed bytes to the end of `buffer`, padding behind it; where they are there.
fn append_range<R: ReadAt + ?Sized>(
    buffer: &mut Vec<u8>,
    source: &R,
    range: Range<u64>,
) -> Result<Range<usize>, TranscodeError> {
    let offset_bytes = range.start;
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let start = buffer.len();
    buffer.resize(start + len, 0);
    source
        .read_exact_at(&mut buffer[start..], offset_bytes)
        .map_err(|source| TranscodeError::Read {
            offset_bytes,
            source,
        })?;
    buffer.resize(start + len + PADDING_BYTES, 0);
    Ok(start..start + len)
}
