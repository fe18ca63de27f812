//! The index: where the blocks of a deflate stream lie, enough to cut it anywhere later.
//!
//! Only what decoding knows anyway is kept: a block's two ends. Headers and tokens near a border
//! are decoded again when it is cut. Small blocks share a span, so that no stream, however often it
//! was flushed, has an index of more than one percent of its bytes.

use std::ops::Range;

/// What a span of the stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpanKind {
    /// One block of tokens.
    Coded,
    /// One stored block.
    Stored,
    /// Several blocks, perhaps of several gzip members.
    Several,
}

/// A block, or small blocks that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Compressed position of the first block's header.
    pub(super) header_bits: u64,
    /// Compressed position behind the last block's end.
    pub(super) end_bits: u64,
    /// Uncompressed offset of its first byte; it ends where the next span begins.
    pub(super) output_bytes: u64,
    pub(super) kind: SpanKind,
    /// CRC-32 of all compressed bytes of which a bit is the block's; of no meaning for several blocks.
    pub(super) crc: u32,
}

/// A border between two tokens inside a long block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Compressed position.
    pub(super) position_bits: u64,
    /// Uncompressed offset.
    pub(super) output_bytes: u64,
}

/// A gzip member of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemberSpan {
    /// Compressed offset of its header.
    pub(super) start_bytes: u64,
    /// Compressed offset behind its trailer.
    pub(super) end_bytes: u64,
    /// Uncompressed offset of its first byte.
    pub(super) output_bytes: u64,
    /// Uncompressed bytes.
    pub(super) len_bytes: u64,
}

/// Learns what a decoder passes by.
pub(super) trait Observer {
    /// A finished block, of which `span` has the ends; `end_bytes` is the uncompressed offset behind it.
    fn block(&mut self, span: Span, end_bytes: u64);

    /// A border inside the block that began at `block_bytes`.
    fn checkpoint(&mut self, checkpoint: Checkpoint, block_bytes: u64);

    /// A finished member.
    fn member(&mut self, member: MemberSpan);

    /// What it has learned, if that is an index.
    fn index(&self) -> Option<&Index> {
        None
    }

    /// Whether it can learn no more.
    fn is_full(&self) -> bool {
        false
    }
}

/// Learns nothing.
impl Observer for () {
    fn block(&mut self, _: Span, _: u64) {}
    fn checkpoint(&mut self, _: Checkpoint, _: u64) {}
    fn member(&mut self, _: MemberSpan) {}
}

/// Where the blocks of a compressed stream lie. At most 1 % of the uncompressed size in memory,
/// usually less than 0.1 %.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    spans: Vec<Span>,
    checkpoints: Vec<Checkpoint>,
    members: Vec<MemberSpan>,
    output_bytes: u64,
    stored_bytes: u64,
}

/// How much of a growing index somebody has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::layer) struct Known {
    spans: usize,
    checkpoints: usize,
    members: usize,
}

/// Blocks shorter than this share a span: two of 32 bytes each in 8 KiB are 0.8 %.
const MIN_SPAN_BYTES: u64 = 8 << 10;
/// Shorter members are not worth being known: with their spans they would take more than 1 %.
const MIN_MEMBER_BYTES: u64 = 32 << 10;

impl Index {
    /// Uncompressed bytes of the whole stream.
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    /// How many of these lay in stored blocks.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Memory that the index takes.
    pub fn memory_bytes(&self) -> u64 {
        let spans = self.spans.len() * size_of::<Span>();
        let checkpoints = self.checkpoints.len() * size_of::<Checkpoint>();
        let members = self.members.len() * size_of::<MemberSpan>();
        (spans + checkpoints + members) as u64
    }

    /// What this index of a growing stream has more than one that had `known`, and will keep: all blocks
    /// but the last, which later ones may join.
    pub(in crate::layer) fn settled_after(&self, known: &mut Known) -> Self {
        let settled = self.spans.len().saturating_sub(1);
        let Some(last) = self.spans.get(settled) else {
            return Self::default();
        };
        let output_bytes = last.output_bytes;
        let spans = self.spans[known.spans..settled].to_vec();
        let checkpoints = &self.checkpoints[known.checkpoints..];
        let count = checkpoints.partition_point(|c| c.output_bytes < output_bytes);
        let checkpoints = checkpoints[..count].to_vec();
        let members = &self.members[known.members..];
        let whole = members.partition_point(|m| m.output_bytes + m.len_bytes <= output_bytes);
        let members = members[..whole].to_vec();
        known.spans = settled;
        known.checkpoints += count;
        known.members += whole;
        Self {
            spans,
            checkpoints,
            members,
            output_bytes,
            stored_bytes: 0,
        }
    }

    /// Appends what follows, as [`Index::settled_after`] gives it.
    pub(in crate::layer) fn append(&mut self, more: Self) {
        self.spans.extend(more.spans);
        self.checkpoints.extend(more.checkpoints);
        self.members.extend(more.members);
        self.output_bytes = self.output_bytes.max(more.output_bytes);
    }

    /// The part that cuts between two offsets need; they find the same in it as in the whole.
    pub(in crate::layer) fn part(&self, start_bytes: u64, end_bytes: u64) -> Self {
        let Some((first, last)) = self.spans_of(start_bytes, end_bytes) else {
            return Self::default();
        };
        let first_member = self
            .members
            .partition_point(|member| member.output_bytes < start_bytes);
        let end_member = self
            .members
            .partition_point(|member| member.output_bytes < end_bytes);
        let start_bytes = self.spans[first].output_bytes;
        let end_bytes = self.span(last).map_or(0, |(_, end_bytes)| end_bytes);
        let before = |offset: u64| {
            self.checkpoints
                .partition_point(|c| c.output_bytes < offset)
        };
        Self {
            spans: self.spans[first..=last].to_vec(),
            checkpoints: self.checkpoints[before(start_bytes)..before(end_bytes)].to_vec(),
            members: self.members[first_member..end_member].to_vec(),
            output_bytes: end_bytes,
            stored_bytes: 0,
        }
    }

    /// Drops what lies before an offset. Cuts behind it find the same as before.
    pub(in crate::layer) fn forget_before(&mut self, offset_bytes: u64) {
        let held = self
            .spans
            .partition_point(|span| span.output_bytes <= offset_bytes);
        self.spans.drain(..held.saturating_sub(1));
        let start_bytes = self.spans.first().map_or(0, |span| span.output_bytes);
        let held = self
            .checkpoints
            .partition_point(|c| c.output_bytes < start_bytes);
        self.checkpoints.drain(..held);
        let held = self
            .members
            .partition_point(|member| member.output_bytes < offset_bytes);
        self.members.drain(..held);
    }

    /// About where in the compressed stream the byte at `offset_bytes` stands, in bits.
    pub fn compressed_bits(&self, offset_bytes: u64) -> u64 {
        let behind = self
            .spans
            .partition_point(|span| span.output_bytes <= offset_bytes);
        let Some((span, end_bytes)) = behind.checked_sub(1).and_then(|n| self.span(n)) else {
            return 0;
        };
        let into = offset_bytes.min(end_bytes) - span.output_bytes;
        let len_bits = u128::from(span.end_bits - span.header_bits);
        let part = u128::from(into) * len_bits / u128::from((end_bytes - span.output_bytes).max(1));
        span.header_bits + u64::try_from(part).unwrap_or(0)
    }

    /// The compressed bytes of the gzip member that holds exactly the bytes from `start_bytes` to
    /// `end_bytes`, if there is one.
    pub(super) fn member_of(&self, start_bytes: u64, end_bytes: u64) -> Option<Range<u64>> {
        let number = self
            .members
            .binary_search_by_key(&start_bytes, |member| member.output_bytes)
            .ok()?;
        let member = self.members.get(number)?;
        let found = member.output_bytes + member.len_bytes == end_bytes;
        found.then_some(member.start_bytes..member.end_bytes)
    }

    /// Numbers of the spans that hold the bytes from `start_bytes` to `end_bytes`; `None` if they are
    /// none, or not all of this stream.
    pub(super) fn spans_of(&self, start_bytes: u64, end_bytes: u64) -> Option<(usize, usize)> {
        if start_bytes >= end_bytes || end_bytes > self.output_bytes {
            return None;
        }
        let holding = |offset: u64| {
            self.spans
                .partition_point(|span| span.output_bytes <= offset)
                .checked_sub(1)
        };
        Some((holding(start_bytes)?, holding(end_bytes - 1)?))
    }

    /// How many compressed bytes hold this stretch of the uncompressed stream, about: within a block all bytes count
    /// alike. 0 for what lies behind the end.
    pub fn compressed_bytes(&self, output: Range<u64>) -> f64 {
        let bits = self.position_bits(output.end) - self.position_bits(output.start);
        bits.max(0.0) / 8.0
    }

    fn position_bits(&self, offset_bytes: u64) -> f64 {
        let behind = self
            .spans
            .partition_point(|span| span.output_bytes <= offset_bytes);
        let Some((span, end_bytes)) = behind.checked_sub(1).and_then(|number| self.span(number))
        else {
            return self
                .spans
                .first()
                .map_or(0.0, |span| span.header_bits as f64);
        };
        let len_bytes = (end_bytes - span.output_bytes).max(1) as f64;
        let into = (offset_bytes - span.output_bytes) as f64 / len_bytes;
        let len_bits = (span.end_bits - span.header_bits) as f64;
        span.header_bits as f64 + len_bits * into.min(1.0)
    }

    /// The span of this number and the uncompressed offset behind it.
    pub(super) fn span(&self, number: usize) -> Option<(Span, u64)> {
        let span = *self.spans.get(number)?;
        let end = self
            .spans
            .get(number + 1)
            .map_or(self.output_bytes, |next| next.output_bytes);
        Some((span, end))
    }

    /// The last checkpoint inside a block that is not behind `offset_bytes`; `from_bytes` is where the
    /// block begins.
    pub(super) fn checkpoint_before(
        &self,
        from_bytes: u64,
        offset_bytes: u64,
    ) -> Option<Checkpoint> {
        let behind = self
            .checkpoints
            .partition_point(|c| c.output_bytes <= offset_bytes);
        let checkpoint = *self.checkpoints.get(behind.checked_sub(1)?)?;
        (checkpoint.output_bytes > from_bytes).then_some(checkpoint)
    }

    /// The first checkpoint inside a block that is not before `offset_bytes`; `to_bytes` is where the
    /// block ends.
    pub(super) fn checkpoint_after(&self, offset_bytes: u64, to_bytes: u64) -> Option<Checkpoint> {
        let first = self
            .checkpoints
            .partition_point(|c| c.output_bytes < offset_bytes);
        let checkpoint = *self.checkpoints.get(first)?;
        (checkpoint.output_bytes < to_bytes).then_some(checkpoint)
    }
}

impl Observer for Index {
    fn index(&self) -> Option<&Index> {
        Some(self)
    }

    fn block(&mut self, span: Span, end_bytes: u64) {
        let len_bytes = end_bytes - span.output_bytes;
        self.output_bytes = end_bytes;
        if len_bytes == 0 {
            // An empty block carries nothing.
            return;
        }
        if span.kind == SpanKind::Stored {
            self.stored_bytes += len_bytes;
        }
        if len_bytes < MIN_SPAN_BYTES
            && let Some(last) = self.spans.last_mut()
            && span.output_bytes - last.output_bytes < MIN_SPAN_BYTES
        {
            last.kind = SpanKind::Several;
            last.end_bits = span.end_bits;
            return;
        }
        self.spans.push(span);
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint, block_bytes: u64) {
        if checkpoint.output_bytes - block_bytes >= MIN_SPAN_BYTES {
            self.checkpoints.push(checkpoint);
        }
    }

    fn member(&mut self, member: MemberSpan) {
        if member.len_bytes >= MIN_MEMBER_BYTES {
            self.members.push(member);
        }
    }
}

#[cfg(test)]
impl Index {
    /// Whether both are of the same stream.
    pub(in crate::layer) fn is_equivalent(&self, other: &Self) -> bool {
        self.without_checkpoints() == other.without_checkpoints()
    }

    /// What does not depend on how the stream was decoded.
    pub(super) fn without_checkpoints(&self) -> Self {
        Self {
            checkpoints: Vec::new(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_lengths_are_taken_from_blocks() {
        let mut index = Index::default();
        let mut block = |bits: Range<u64>, output: Range<u64>| {
            let span = Span {
                header_bits: bits.start,
                end_bits: bits.end,
                output_bytes: output.start,
                kind: SpanKind::Coded,
                crc: 0,
            };
            index.block(span, output.end);
        };
        block(80..880, 0..100_000);
        block(880..8880, 100_000..200_000);
        let check = |output: Range<u64>, expected: f64| {
            let found = index.compressed_bytes(output.clone());
            assert!((found - expected).abs() < 1e-6, "{output:?}: {found}");
        };
        check(0..100_000, 100.0);
        check(0..200_000, 1100.0);
        check(50_000..100_000, 50.0);
        check(50_000..150_000, 550.0);
        check(150_000..900_000, 500.0);
        check(300_000..400_000, 0.0);
        check(0..0, 0.0);
        assert_eq!(Index::default().compressed_bytes(0..10), 0.0);
    }
}
