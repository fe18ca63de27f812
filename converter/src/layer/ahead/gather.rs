//! Gather: the tar as it passes by in, groups of members out, in the order of the source.
//!
//! Bytes are hashed as they are copied, for the source's DiffID and for all that they count for in the
//! new layer.

use std::collections::VecDeque;
use std::ops::Range;

use crossbeam::channel::Sender;

use crate::image::{Digest, Hasher};
use crate::layer::ahead::budget::Budget;
use crate::layer::buffers::Buffers;
use crate::layer::choice::Sampler;
use crate::layer::deflate::{Index, MIN_RUN_BYTES};
use crate::layer::digests::MemberDigests;
use crate::layer::encode::{Encoder, Gathered, runs, stands_at};
use crate::layer::entry::Entry;
use crate::layer::plan::{
    Builder, GROUP_BYTES, LANDMARK_NAMES, LayerPlan, Member, PlanOptions, Segment,
    has_reserved_name, is_full,
};
use crate::layer::scan::Follow;

/// Bytes that wait until the index knows where their blocks lie; more are given up. Blocks are some
/// 100 KiB long where they are not made to annoy. Half of it may wait until a way is chosen.
const MAX_WAITING_BYTES: u64 = 48 << 20;
/// So many may wait however little memory there is: all of a small layer.
const MIN_WAITING_BYTES: u64 = 1 << 20;
/// Bytes of runs that are compressed to see which way is better, before the first group is sent.
const SAMPLE_BYTES: u64 = 8 << 20;

/// How members are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Copy,
    Compress,
}

/// A group on its way to a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) gathered: Gathered,
    pub(super) cost_bytes: u64,
    /// Where the blocks of its runs lie, if these are to be copied.
    pub(super) index: Option<Index>,
}

/// Where groups go.
pub(super) struct Feed<'a> {
    pub(super) jobs: Sender<Job>,
    pub(super) budget: &'a Budget,
    pub(super) buffers: &'a Buffers,
}

/// Follows a scan.
pub(super) struct Gatherer<'a> {
    feed: Option<Feed<'a>>,
    builder: Option<Builder>,
    /// Once nothing is appended.
    plan: LayerPlan,
    entries: u32,
    place: Place,
    /// The group that the member at this place is in.
    group: Gathered,
    group_cost_bytes: u64,
    hashers: Hashers,
    /// Bytes from this place on that have passed already.
    passed: Vec<u8>,
    index: Index,
    /// Groups that are whole but for their index.
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    way: Option<Way>,
    way_of_large_files: Way,
    sampler: Sampler<'a>,
    max_waiting_bytes: u64,
    sent: u64,
}

/// A group that waits for its index.
struct Waiting {
    gathered: Gathered,
    cost_bytes: u64,
    /// The bytes of the source that it is made of.
    source_bytes: Range<u64>,
}

/// Of all bytes up to a place.
#[derive(Debug, Default)]
struct Hashers {
    /// The source's own, once its bytes and the members' are not the same ones.
    source: Option<Hasher>,
    members: MemberDigests,
}

impl Hashers {
    /// From here on the source's bytes are not the members'.
    fn source(&mut self) -> &mut Hasher {
        let members = &self.members;
        self.source.get_or_insert_with(|| members.so_far())
    }
}

/// How far the plan's members are filled.
#[derive(Debug, Default)]
struct Place {
    /// The first member that is not whole.
    member: usize,
    is_begun: bool,
    /// How much of it is there.
    member_bytes: usize,
    /// Of it: its first segment that is not whole, and how much of that is there.
    segment: usize,
    segment_bytes: u32,
    /// Uncompressed offset of the next byte.
    at: u64,
}

enum Filled {
    Wholly,
    /// More bytes are needed.
    Partly,
    /// Bytes are needed that have passed.
    Backwards,
}

impl Place {
    /// Goes on with `member` of `plan`, with `bytes` as the next ones of the source; how many of these
    /// are behind it, and hashed, then.
    fn fill(
        &mut self,
        plan: &LayerPlan,
        member: &Member,
        bytes: &[u8],
        raw: &mut Vec<u8>,
        hashers: &mut Hashers,
    ) -> (usize, Filled) {
        let segments = plan.segments_of(member);
        let mut done = 0;
        while let Some(segment) = segments.get(self.segment) {
            match *segment {
                Segment::Spool {
                    offset_bytes,
                    len_bytes,
                } => {
                    let wanted = offset_bytes + u64::from(self.segment_bytes);
                    let Some(gap) = wanted.checked_sub(self.at) else {
                        return (done, Filled::Backwards);
                    };
                    let gap = gap.min((bytes.len() - done) as u64);
                    if gap > 0 {
                        hashers.source().update(&bytes[done..][..gap as usize]);
                    }
                    done += gap as usize;
                    self.at += gap;
                    let left = (len_bytes - self.segment_bytes) as usize;
                    let len = left.min(bytes.len() - done);
                    if self.at < wanted {
                        return (done, Filled::Partly);
                    }
                    let taken = &bytes[done..done + len];
                    raw.extend_from_slice(taken);
                    let Hashers { source, members } = hashers;
                    members.bytes(taken, member, self.member_bytes, source.as_mut());
                    done += len;
                    self.member_bytes += len;
                    self.at += len as u64;
                    self.segment_bytes += len as u32;
                    if len < left {
                        return (done, Filled::Partly);
                    }
                }
                Segment::Literal { .. } | Segment::Zeros { .. } => {
                    let start = raw.len();
                    if let Segment::Literal { offset, len_bytes } = *segment {
                        let offset = offset as usize;
                        raw.extend_from_slice(&plan.literals[offset..][..len_bytes as usize]);
                    } else {
                        raw.resize(start + segment.len_bytes() as usize, 0);
                    }
                    let made = &raw[start..];
                    hashers.source();
                    hashers.members.bytes(made, member, self.member_bytes, None);
                    self.member_bytes += made.len();
                }
            }
            self.segment += 1;
            self.segment_bytes = 0;
        }
        *self = Self {
            member: self.member + 1,
            at: self.at,
            ..Self::default()
        };
        (done, Filled::Wholly)
    }
}

impl<'a> Gatherer<'a> {
    /// `sampler` says which way is better, unless it is known.
    pub(super) fn new(
        options: PlanOptions,
        way: Option<Way>,
        sampler: Sampler<'a>,
        feed: Feed<'a>,
    ) -> Self {
        Self {
            // That all padding is there shows at the end.
            builder: Some(Builder::new(u64::MAX, options)),
            plan: LayerPlan::default(),
            entries: 0,
            place: Place::default(),
            group: Gathered::default(),
            group_cost_bytes: 0,
            hashers: Hashers::default(),
            passed: Vec::new(),
            index: Index::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            way,
            way_of_large_files: if options.chunk_bytes as usize >= MIN_RUN_BYTES {
                Way::Copy
            } else {
                Way::Compress
            },
            sampler,
            max_waiting_bytes: (feed.budget.limit_bytes() / 2)
                .clamp(MIN_WAITING_BYTES, MAX_WAITING_BYTES),
            sent: 0,
            feed: Some(feed),
        }
    }

    /// The plan and the way of the groups that were sent, if they have one yet; none if not all of the
    /// plan's members are there.
    pub(super) fn whole(&self) -> Option<(&LayerPlan, Option<Way>)> {
        let is_whole = self.feed.is_some()
            && self.builder.is_none()
            && self.place.member == self.plan.members.len();
        is_whole.then_some((&self.plan, self.way))
    }

    /// Sends the rest, which goes the same way. Gives the plan, the digests and how many groups were sent.
    pub(super) fn finish(
        mut self,
        way: Way,
        index: Option<&Index>,
    ) -> (LayerPlan, MemberDigests, u64) {
        self.way = Some(way);
        self.send(index);
        (self.plan, self.hashers.members, self.sent)
    }

    fn give_up(&mut self, reason: &str) {
        if let Some(feed) = self.feed.take() {
            tracing::debug!(reason, at = self.place.at, "not encoded ahead");
            feed.budget.close();
        }
        self.skip_passed();
        self.waiting = VecDeque::new();
        self.group = Gathered::default();
    }

    /// Bytes that are of no more use are hashed.
    fn skip_passed(&mut self) {
        let passed = std::mem::take(&mut self.passed);
        self.hashers.source().update(&passed);
    }

    /// Takes what of `bytes` the members known so far consist of; how much that is. Nothing more is
    /// taken once nobody wants it.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        loop {
            let plan = self.builder.as_ref().map_or(&self.plan, Builder::plan);
            let Some(member) = plan.members.get(self.place.member).copied() else {
                return done;
            };
            if !self.place.is_begun && !self.begin(member.len_bytes) {
                return done;
            }
            let plan = self.builder.as_ref().map_or(&self.plan, Builder::plan);
            let raw = &mut self.group.raw;
            let rest = &bytes[done..];
            let (len, filled) = self.place.fill(plan, &member, rest, raw, &mut self.hashers);
            done += len;
            match filled {
                Filled::Partly => return done,
                Filled::Backwards => {
                    self.give_up("entries overlap");
                    return done;
                }
                Filled::Wholly => {}
            }
            let chunk_digest = self.hashers.members.end(&member);
            let chunk_digests = self.group.chunk_digests.get_or_insert_default();
            chunk_digests.push(chunk_digest);
            self.group.runs.push(runs(plan, &member));
            self.group.source_bytes.push(stands_at(plan, &member));
            self.group.members.push(member);
            if is_full(self.group.raw.len() as u64) {
                self.end_group();
            }
        }
    }

    /// Makes room for a member of `len_bytes`; false if nobody wants it.
    fn begin(&mut self, len_bytes: u32) -> bool {
        let Some(feed) = &self.feed else {
            return false;
        };
        let cost_bytes = Encoder::cost_of(u64::from(len_bytes), 1);
        if !feed.budget.take(cost_bytes) {
            self.give_up("encoding has ended");
            return false;
        }
        if self.group.members.is_empty() {
            self.group.offset_bytes = self.place.at;
            // Room for many small members at once: growing for each would move them all.
            let room_bytes = u64::from(len_bytes).max(GROUP_BYTES);
            self.group.raw = feed.buffers.take_empty(room_bytes as usize);
        }
        self.group.raw.reserve_exact(len_bytes as usize);
        self.place.is_begun = true;
        self.group_cost_bytes += cost_bytes;
        true
    }

    fn end_group(&mut self) {
        let group = std::mem::take(&mut self.group);
        if group.members.is_empty() {
            return;
        }
        self.waiting_bytes += group.raw.len() as u64;
        self.waiting.push_back(Waiting {
            source_bytes: group.offset_bytes..self.place.at,
            cost_bytes: std::mem::take(&mut self.group_cost_bytes),
            gathered: group,
        });
        self.decide();
        self.send(None);
        if self.way.is_some() && self.waiting_bytes > self.max_waiting_bytes {
            self.give_up("a block is too long");
        }
    }

    /// Settles which way the layer goes, once there is enough to tell.
    fn decide(&mut self) {
        if self.way.is_some() || self.waiting.is_empty() {
            return;
        }
        let known_bytes = self.index.output_bytes();
        let groups = self.waiting.iter().map(|waiting| &waiting.gathered);
        let samples: Vec<_> = groups
            .flat_map(Gathered::copyable)
            .filter(|(_, run)| run.source_bytes + run.len_bytes as u64 <= known_bytes)
            .collect();
        let sampled: u64 = samples.iter().map(|(bytes, _)| bytes.len() as u64).sum();
        if sampled < SAMPLE_BYTES && self.waiting_bytes < self.max_waiting_bytes / 2 {
            return;
        }
        if samples.is_empty() {
            let are_small = self
                .waiting
                .iter()
                .all(|waiting| waiting.gathered.copyable().next().is_none());
            self.way = Some(if are_small {
                // Others may follow, unless chunks are always too small.
                self.way_of_large_files
            } else {
                // So long a block has fixed codes, and is large for that.
                Way::Compress
            });
            return;
        }
        match self.sampler.copies(&samples, &self.index) {
            Ok(true) => self.way = Some(Way::Copy),
            Ok(false) => self.way = Some(Way::Compress),
            Err(error) => self.give_up(&error.to_string()),
        }
    }

    /// Sends the groups that can be worked on, with their parts of the `whole` index if that is known.
    fn send(&mut self, whole: Option<&Index>) {
        let Some(way) = self.way else { return };
        while let Some(front) = self.waiting.front() {
            let Range { start, end } = front.source_bytes;
            let index = match way {
                Way::Copy => {
                    let index = whole.unwrap_or(&self.index);
                    if end > index.output_bytes() {
                        return;
                    }
                    let part = index.part(start, end);
                    self.index.forget_before(start);
                    Some(part)
                }
                Way::Compress => None,
            };
            let (Some(waiting), Some(feed)) = (self.waiting.pop_front(), &self.feed) else {
                return;
            };
            let gathered = waiting.gathered;
            self.waiting_bytes -= gathered.raw.len() as u64;
            feed.budget.hand_on();
            let job = Job {
                number: self.sent,
                gathered,
                cost_bytes: waiting.cost_bytes,
                index,
            };
            self.sent += 1;
            if feed.jobs.send(job).is_err() {
                self.give_up("encoding has ended");
            }
        }
    }

    /// Gives what has passed to the members known so far.
    fn catch_up(&mut self) {
        let mut passed = std::mem::take(&mut self.passed);
        let done = self.advance(&passed);
        if self.feed.is_some() {
            passed.drain(..done);
            self.passed = passed;
        } else {
            self.hashers.source().update(&passed[done..]);
        }
    }
}

impl Follow for Gatherer<'_> {
    fn bytes(&mut self, bytes: &[u8], index: Index) {
        let mut rest = bytes;
        if self.feed.is_some() {
            self.index.append(index);
            if self.passed.is_empty() {
                rest = &bytes[self.advance(bytes)..];
            }
        }
        // Behind the last entry there is nothing to be kept.
        if self.feed.is_some() && self.builder.is_some() {
            self.passed.extend_from_slice(rest);
            self.decide();
            self.send(None);
            // No header is so long: the tar is damaged, and nobody reads on.
            if self.passed.len() as u64 > MAX_WAITING_BYTES {
                self.give_up("no entry follows");
            }
        } else {
            self.hashers.source().update(rest);
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let index = self.entries;
        self.entries += 1;
        if self.feed.is_none() || has_reserved_name(entry) {
            return;
        }
        if let Some(builder) = &mut self.builder {
            builder.entry(index, entry);
        }
        self.catch_up();
    }

    fn end(&mut self) {
        if let Some(mut builder) = self.builder.take() {
            builder.landmark(LANDMARK_NAMES[1]);
            self.plan = builder.finish();
        }
        if self.feed.is_some() {
            self.catch_up();
            self.skip_passed();
            self.end_group();
        }
    }

    fn diff_id(&mut self) -> Digest {
        self.skip_passed();
        self.hashers.source().clone().finish()
    }
}
