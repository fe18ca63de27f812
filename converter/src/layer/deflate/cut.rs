//! The cutter: which tokens of a stream can stand for a run of bytes by themselves.
//!
//! Of a run from s to e, the part from p to q is taken as it is: p is the first border of a token at
//! or behind s after which no match of the run reaches back before s, q the last border at or before
//! e. Only the blocks at s, for at most 32 KiB, and at e are decoded again.

mod blocks;
mod proof;

use std::ops::{ControlFlow, Range};

use super::block::{Body, CodeBits, Tables};
use super::error::{Fault, TranscodeError};
use super::index::{Checkpoint, Index};
use super::output::WINDOW_BYTES;
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
    /// Whether they are known to make the run's bytes.
    pub(super) is_proven: bool,
}

impl Cut {
    /// How long the blocks of tokens are.
    pub(super) fn coded_bits(&self) -> u64 {
        let bits = |piece: &Piece| match piece {
            Piece::Whole(bits) => bits.end - bits.start,
            Piece::Part {
                header_bits,
                token_bits,
                ..
            } => header_bits.end - header_bits.start + token_bits.end - token_bits.start,
            Piece::Stored(_) => 0,
        };
        self.pieces.iter().map(bits).sum()
    }
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

/// Finds cuts; keeps its tables and buffers from run to run.
pub(super) struct Cutter {
    tables: Tables,
    compressed: Vec<u8>,
    /// What of it belongs to the last run.
    filled_bytes: usize,
    blocks: Vec<Block>,
}

/// A block of the run, with positions in the buffer.
#[derive(Clone, Copy, Debug)]
struct Block {
    header_bits: u64,
    end_bits: u64,
    is_stored: bool,
    /// [`Span::crc`](super::index::Span), if the block has a span of its own.
    crc: Option<u32>,
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
            filled_bytes: 0,
            blocks: Vec::new(),
        }
    }

    /// The compressed bytes that the last cut's pieces mean.
    pub(super) fn compressed(&self) -> &[u8] {
        &self.compressed[..self.filled_bytes]
    }

    /// Gives memory beyond so much back: a stream may be much longer than what it means.
    pub(super) fn hold_at_most(&mut self, len_bytes: usize) {
        self.compressed.truncate(len_bytes);
        self.compressed.shrink_to(len_bytes);
        self.filled_bytes = self.filled_bytes.min(len_bytes);
    }

    /// Cuts the bytes `run` out of the stream; `None` if nothing of it can be taken. With `bytes`, which are those
    /// of `run`, the cut is proven where that is cheap.
    pub(super) fn cut<R: ReadAt + ?Sized>(
        &mut self,
        index: &Index,
        source: &R,
        run: Range<u64>,
        bytes: Option<&[u8]>,
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
        let is_proven = match bytes {
            Some(bytes) => self
                .prove(&loaded, (start, end), run.start, bytes)
                .map_err(changed)?,
            None => false,
        };
        Ok(Some(Cut {
            start_bytes: start.output_bytes,
            end_bytes: end.output_bytes,
            pieces,
            is_proven,
        }))
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
