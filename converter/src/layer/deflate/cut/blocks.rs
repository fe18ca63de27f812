//! The blocks of a run: what is read of the source for a cut, and where its blocks lie there.

use std::ops::{ControlFlow, Range};

use super::{Block, Cutter, Loaded};
use crate::layer::deflate::bits::PADDING_BYTES;
use crate::layer::deflate::block::{Body, MAX_HEADER_BYTES};
use crate::layer::deflate::error::{Fault, TranscodeError};
use crate::layer::deflate::index::{Checkpoint, Index, Span, SpanKind};
use crate::layer::deflate::walk::Stretch;
use crate::layer::spool::ReadAt;

/// Compressed bytes of a run beyond which they are not worth reading: a stream with blocks that carry
/// nothing.
const MAX_COMPRESSED_BYTES: u64 = 1 << 20;

impl Cutter {
    /// Reads the compressed bytes of the spans, but of a long block at either end only what is needed;
    /// `None` if that is out of proportion.
    pub(super) fn load<R: ReadAt + ?Sized>(
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
        // What is noted inside a block depends on how the stream was decoded, and must not decide. A block
        // of tokens takes no more than two bytes for one.
        let between_bits = last.header_bits.saturating_sub(first.end_bits);
        let ends = [Some(first), (last != first).then_some(last)];
        let shared = ends
            .into_iter()
            .flatten()
            .filter(|span| span.kind == SpanKind::Several);
        let shared_bits: u64 = shared.map(|span| span.end_bits - span.header_bits).sum();
        if (between_bits + shared_bits) / 8 > 2 * (run.end - run.start) + MAX_COMPRESSED_BYTES {
            return Ok(None);
        }
        self.filled_bytes = 0;
        let len_bytes = self.append(source, start..end)?.len();
        let header = if resume.is_some() {
            let start = first.header_bits / 8;
            let end = (start + MAX_HEADER_BYTES as u64 + 1).min(source.len_bytes());
            Some(self.append(source, start..end)?)
        } else {
            None
        };
        Ok(Some(Loaded {
            len_bytes,
            header,
            base_bits: start * 8,
        }))
    }

    /// Reads a range of compressed bytes behind those that are there, and padding behind it; where it is then.
    fn append<R: ReadAt + ?Sized>(
        &mut self,
        source: &R,
        range: Range<u64>,
    ) -> Result<Range<usize>, TranscodeError> {
        let offset_bytes = range.start;
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let start = self.filled_bytes;
        let end = start.saturating_add(len);
        self.filled_bytes = end.saturating_add(PADDING_BYTES);
        // What is left of other runs is overwritten: zeros for gigabytes would cost as much as reading.
        if self.compressed.len() < self.filled_bytes {
            self.compressed.resize(self.filled_bytes, 0);
        }
        source
            .read_exact_at(&mut self.compressed[start..end], offset_bytes)
            .map_err(|source| TranscodeError::Read {
                offset_bytes,
                source,
            })?;
        self.compressed[end..self.filled_bytes].fill(0);
        Ok(start..end)
    }

    pub(super) fn find_blocks(
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
                crc: Some(span.crc),
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
                    crc: None,
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
}

/// Where the tokens of a long block can be read from, if not from its start.
fn resume_of(index: &Index, span: &Span, end_bytes: u64, offset_bytes: u64) -> Option<Checkpoint> {
    (span.kind == SpanKind::Coded && offset_bytes < end_bytes)
        .then(|| index.checkpoint_before(span.output_bytes, offset_bytes))
        .flatten()
}
