//! Appends entries to a plan: cuts chunks, joins segments, opens and closes members.

use std::ops::Range;

use crate::layer::entry::{DataSegment, Entry, EntryKind};
use crate::layer::header;
use crate::layer::plan::packs::{GiantChunk, Home};
use crate::layer::plan::{
    ChunkPlace, LayerPlan, Member, PACK_LEAD_BYTES, PlanOptions, RowPlace, RowSource, Segment,
    TocRow,
};
use crate::layer::scan::tar::BLOCK_BYTES;

/// Appends to the plan; the last member stays open for what follows its chunk.
#[derive(Debug)]
pub(in crate::layer) struct Builder {
    /// Length of the source's tar, or more where it is not known: then each payload's padding is
    /// taken to be there.
    spool_bytes: u64,
    plan: LayerPlan,
    open: Option<Member>,
    before_landmark: bool,
    /// Entries from this index on need a header of their own: they leave the source's order, and a
    /// global header applied to them.
    pub(super) rewrite_from: u32,
}

impl Builder {
    /// An empty plan for a source whose tar has `spool_bytes`.
    pub(in crate::layer) fn new(spool_bytes: u64, options: PlanOptions) -> Self {
        Self {
            spool_bytes,
            plan: LayerPlan {
                chunk_bytes: options.chunk_bytes.max(1),
                min_chunk_bytes: options.min_chunk_bytes,
                ..LayerPlan::default()
            },
            open: None,
            before_landmark: true,
            rewrite_from: u32::MAX,
        }
    }

    /// What has been planned. The last member is not among the plan's while it may grow, nor is its
    /// last segment settled.
    pub(in crate::layer) fn plan(&self) -> &LayerPlan {
        &self.plan
    }

    /// Appends the entry of this number.
    pub(in crate::layer) fn entry(&mut self, index: u32, entry: &Entry) {
        self.header(index, entry);
        let first_member = self.next_member();
        let chunks = if entry.kind == EntryKind::Regular {
            let chunk_bytes = u64::from(self.plan.chunk_bytes);
            self.contents(entry, |at| at + chunk_bytes)
        } else {
            0
        };
        self.row(TocRow {
            source: RowSource::Entry(index),
            chunks,
            place: RowPlace::From(first_member),
        });
        if self.before_landmark && entry.kind == EntryKind::Regular {
            self.plan.prefetch.files += 1;
            self.plan.prefetch.bytes += entry.size_bytes;
        }
    }

    /// Appends the entry of this number, whose `chunks` are elsewhere, too: for each that has a copy in
    /// a pack, `copies` has its member.
    pub(super) fn giant(
        &mut self,
        index: u32,
        entry: &Entry,
        chunks: &[GiantChunk],
        copies: &[u32],
    ) {
        self.header(index, entry);
        let first_member = self.next_member();
        let mut ends = chunks.iter().map(|chunk| chunk.bytes.end);
        self.contents(entry, |at| ends.next().unwrap_or(at));
        let first = count(self.plan.scattered.len());
        for ((chunk, &copy), own) in chunks.iter().zip(copies).zip(first_member..) {
            let is_copied = chunk.home != Home::Natural;
            self.plan.scattered.push(if is_copied { copy } else { own });
        }
        self.row(TocRow {
            source: RowSource::Entry(index),
            chunks: count(chunks.len()),
            place: RowPlace::Scattered(first),
        });
        self.plan.prefetch.packed.files += 1;
    }

    fn header(&mut self, index: u32, entry: &Entry) {
        if entry.sparse.is_some() || self.rewrite_from <= index {
            let bytes = header::rewritten(entry);
            self.literal(&bytes);
        } else {
            self.spool(entry.header.offset_bytes, entry.header.len_bytes);
        }
    }

    /// The chunks of a regular file, and the padding behind them. `chunk_end` gives where the chunk
    /// ends that begins at an offset of the file.
    fn contents(&mut self, entry: &Entry, mut chunk_end: impl FnMut(u64) -> u64) -> u32 {
        let data = entry.data();
        let (mut at, mut chunks) = (0, 0);
        while at < entry.size_bytes {
            let end = chunk_end(at).clamp(at + 1, entry.size_bytes);
            let place = match (chunks, end == entry.size_bytes) {
                (0, true) => ChunkPlace::Whole,
                (0, false) => ChunkPlace::First,
                (_, true) => ChunkPlace::Last,
                (_, false) => ChunkPlace::Middle,
            };
            self.chunk(&data, at..end, 0, place);
            at = end;
            chunks += 1;
        }
        let padding = entry.size_bytes.next_multiple_of(BLOCK_BYTES) - entry.size_bytes;
        let stored_end = entry.payload.end_bytes();
        if entry.sparse.is_none() && stored_end + padding <= self.spool_bytes {
            // As it is in the source, so that the uncompressed stream stays the same.
            self.spool(stored_end, padding);
        } else {
            self.zeros(padding);
        }
        chunks
    }

    /// A member with these bytes of a file, and `lead_bytes` of none before them.
    fn chunk(
        &mut self,
        data: &[DataSegment],
        bytes: Range<u64>,
        lead_bytes: u32,
        place: ChunkPlace,
    ) {
        self.begin_member();
        if let Some(member) = &mut self.open {
            member.lead_bytes = lead_bytes;
            member.place = place;
        }
        self.zeros(u64::from(lead_bytes));
        let mut at = bytes.start;
        let ends_before = |segment: &DataSegment| {
            segment.file_offset_bytes + segment.stored.len_bytes <= bytes.start
        };
        for segment in &data[data.partition_point(ends_before)..] {
            if segment.file_offset_bytes >= bytes.end {
                break;
            }
            if segment.file_offset_bytes > at {
                self.zeros(segment.file_offset_bytes - at);
                at = segment.file_offset_bytes;
            }
            let skipped = at - segment.file_offset_bytes;
            let len = (segment.stored.len_bytes - skipped).min(bytes.end - at);
            self.spool(segment.stored.offset_bytes + skipped, len);
            at += len;
        }
        self.zeros(bytes.end - at);
        if let Some(member) = &mut self.open {
            member.chunk_bytes = member.len_bytes - lead_bytes;
        }
    }

    /// Appends a pack with these bytes of files, each in a member of its own. Gives the first one's.
    pub(super) fn pack(&mut self, name: &str, pieces: &[(&Entry, Range<u64>)]) -> u32 {
        let len = |(_, bytes): &(&Entry, Range<u64>)| bytes.end - bytes.start;
        let held_bytes: u64 = pieces.iter().map(len).sum();
        let size_bytes = held_bytes + pieces.len() as u64 * u64::from(PACK_LEAD_BYTES);
        self.literal(&header::plain_file(name, size_bytes));
        let first_member = self.next_member();
        for (entry, bytes) in pieces {
            let lead_bytes = PACK_LEAD_BYTES;
            self.chunk(&entry.data(), bytes.clone(), lead_bytes, ChunkPlace::Copy);
        }
        self.zeros(size_bytes.next_multiple_of(BLOCK_BYTES) - size_bytes);
        let packed = &mut self.plan.prefetch.packed;
        if self.before_landmark {
            packed.chunks += pieces.len() as u64;
            packed.bytes += held_bytes;
        } else {
            packed.first_bytes += held_bytes;
        }
        first_member
    }

    /// Appends a landmark file.
    pub(in crate::layer) fn landmark(&mut self, name: &'static str) {
        self.literal(&header::plain_file(name, 1));
        let first_member = self.next_member();
        self.plan.landmark_member = first_member;
        self.begin_member();
        self.literal(&[LANDMARK_CONTENTS]);
        if let Some(member) = &mut self.open {
            member.chunk_bytes = 1;
        }
        self.zeros(BLOCK_BYTES - 1);
        self.row(TocRow {
            source: RowSource::Landmark(name),
            chunks: 1,
            place: RowPlace::From(first_member),
        });
        self.before_landmark = false;
    }

    /// Index of the member that would begin next.
    fn next_member(&self) -> u32 {
        count(self.plan.members.len()) + u32::from(self.open.is_some())
    }

    fn begin_member(&mut self) {
        if let Some(member) = self.open.take() {
            self.plan.members.push(member);
        }
        let first_segment = count(self.plan.segments.len());
        self.open = Some(Member {
            first_segment,
            segments: 0,
            len_bytes: 0,
            lead_bytes: 0,
            chunk_bytes: 0,
            place: ChunkPlace::Whole,
        });
    }

    fn row(&mut self, row: TocRow) {
        self.plan.rows.push(row);
    }

    fn spool(&mut self, offset_bytes: u64, len_bytes: u64) {
        self.append(len_bytes, |skipped, len_bytes| Segment::Spool {
            offset_bytes: offset_bytes + skipped,
            len_bytes,
        });
    }

    fn zeros(&mut self, len_bytes: u64) {
        self.append(len_bytes, |_, len_bytes| Segment::Zeros { len_bytes });
    }

    fn literal(&mut self, bytes: &[u8]) {
        let start = count(self.plan.literals.len());
        self.plan.literals.extend_from_slice(bytes);
        self.append(bytes.len() as u64, |skipped, len_bytes| Segment::Literal {
            offset: start + count_u64(skipped),
            len_bytes,
        });
    }

    /// Appends a run of bytes to the open member. A run that would make the part behind the chunk
    /// longer than a chunk goes on in a member of its own: memory stays bounded however many
    /// entries without contents follow each other.
    fn append(&mut self, mut len_bytes: u64, segment: impl Fn(u64, u32) -> Segment) {
        let mut skipped = 0;
        while len_bytes > 0 {
            if self
                .open
                .is_none_or(|m| tail_bytes(&m) >= self.tail_limit())
            {
                self.begin_member();
            }
            let limit = self.tail_limit();
            let Some(member) = &mut self.open else { return };
            let room = limit - tail_bytes(member);
            let len = count_u64(len_bytes.min(u64::from(room)));
            let next = segment(skipped, len);
            let joined = member.segments > 0
                && self
                    .plan
                    .segments
                    .last_mut()
                    .is_some_and(|last| join(last, next));
            if !joined {
                self.plan.segments.push(next);
                member.segments += 1;
            }
            member.len_bytes += len;
            self.plan.tar_bytes += u64::from(len);
            skipped += u64::from(len);
            len_bytes -= u64::from(len);
        }
    }

    /// Longest part of a member that is no chunk; a chunk itself is at most this long too.
    fn tail_limit(&self) -> u32 {
        self.plan.chunk_bytes.max(MIN_TAIL_BYTES)
    }

    /// Closes the last member.
    pub(in crate::layer) fn finish(mut self) -> LayerPlan {
        if let Some(member) = self.open.take() {
            self.plan.members.push(member);
        }
        self.plan
    }
}

/// The one byte of a landmark file (eStargz specification, "Prioritized Files and Landmark Files").
const LANDMARK_CONTENTS: u8 = 0x0f;
/// Headers share a member up to this size even when chunks are tiny.
const MIN_TAIL_BYTES: u32 = 64 << 10;

/// Extends `last` by `next` where they follow each other.
fn join(last: &mut Segment, next: Segment) -> bool {
    match (last, next) {
        (
            Segment::Spool {
                offset_bytes,
                len_bytes,
            },
            Segment::Spool {
                offset_bytes: next_offset,
                len_bytes: next_len,
            },
        ) if *offset_bytes + u64::from(*len_bytes) == next_offset => {
            *len_bytes += next_len;
            true
        }
        (
            Segment::Zeros { len_bytes },
            Segment::Zeros {
                len_bytes: next_len,
            },
        ) => {
            *len_bytes += next_len;
            true
        }
        _ => false,
    }
}

/// What stands in a member besides its chunk and what is before that.
fn tail_bytes(member: &Member) -> u32 {
    // While the lead is being written it is not there yet.
    member
        .len_bytes
        .saturating_sub(member.lead_bytes + member.chunk_bytes)
}

/// Entries, members and literals of one layer are counted in 32 bits; `scan` bounds their number.
fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a layer has fewer than 2^32 parts")
}

fn count_u64(n: u64) -> u32 {
    u32::try_from(n).expect("a run within a member is shorter than 4 GiB")
}
