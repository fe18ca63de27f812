//! A gzip blob decoded in sections, on several threads; its bytes in order, as one thread makes them.
//!
//! Where sections may begin is only proposed (`borders`). The joiner takes those that fit; what is
//! between is decoded here, one border after the other.

use std::cell::Cell;

use crossbeam::channel::Sender;

use crate::blob::Blob;
use crate::cancel::{Cancel, Cancelled};
use crate::layer::buffers::Buffers;
use crate::layer::deflate::{
    Begin, Block, Border, Container, DecodeError, Index, Joiner, Known, Scratch, Section, Sink,
    decode, decode_section,
};
use crate::layer::in_order::{Costed, Parallel, in_order};
use crate::layer::index_cache::CachedIndex;
use crate::layer::scan::borders::{self, Borders, Proposed};
use crate::layer::scan::inflate::InflateError;
use crate::layer::scan::passing::Passage;

/// What a section has beyond what was said, at most: the headers between chunks.
const SURPLUS_BYTES: u64 = 1 << 20;
/// Memory of a section besides its bytes: a history at either end, places of blocks, parts of buffers.
const SECTION_COST_BYTES: u64 = 1 << 20;
/// So many proposals that were wrong, and no more are tried.
const MAX_MISSES: u64 = 16;

/// Who says where sections may begin.
pub(super) enum Proposer<'a> {
    /// An index of an earlier run.
    Index(CachedIndex),
    /// The blob.
    Members(Borders<'a>),
}

/// A blob, decoded to its end.
pub(super) struct Joined {
    pub(super) index: Index,
    /// Sections that were decoded apart and joined.
    pub(super) sections: u64,
    /// Proposals that were wrong.
    pub(super) misses: u64,
}

/// Where the bytes go.
#[derive(Clone, Copy)]
pub(super) struct Onward<'a> {
    pub(super) sender: &'a Sender<Passage>,
    pub(super) buffers: &'a Buffers,
    pub(super) limit_bytes: u64,
    /// Whether the growing index is sent as well.
    pub(super) is_index_wanted: bool,
}

/// Decodes `blob` to its end.
///
/// # Errors
/// As decoding it on one thread.
pub(super) fn inflate_sections(
    blob: &Blob,
    proposer: Proposer<'_>,
    onward: Onward<'_>,
    parallel: Parallel,
    cancels: &[&Cancel],
) -> Result<Joined, InflateError> {
    let (borders, index) = match proposer {
        Proposer::Index(ref index) => (borders::of_index(index), Some(index)),
        Proposer::Members(borders) => (borders, None),
    };
    let joined = run(blob, borders, index, onward, parallel, cancels);
    let Err(InflateError::Gzip(_)) = joined else {
        return joined;
    };
    // The first fault of the whole stream, as it is without sections.
    decode(
        blob.clone(),
        Container::Gzip,
        onward.limit_bytes,
        &mut Nowhere,
    )?;
    joined
}

/// Forgets what it is given.
struct Nowhere;

impl Sink for Nowhere {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        Some(block.into_buffer())
    }
}

/// Between two borders.
struct Job {
    begin: Border,
    point: Option<usize>,
    until_bits: u64,
    limit_bytes: u64,
}

/// What became of a job.
struct Done {
    begin: Border,
    history: Vec<u8>,
    blocks: Vec<Block>,
    /// `None` if it is of no use: its history is not there, or its bytes are too many.
    section: Option<Result<Section, DecodeError>>,
}

enum Failure {
    Inflate(InflateError),
    Cancelled,
}

impl From<Cancelled> for Failure {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<InflateError> for Failure {
    fn from(error: InflateError) -> Self {
        Self::Inflate(error)
    }
}

fn run(
    blob: &Blob,
    borders: Borders<'_>,
    index: Option<&CachedIndex>,
    onward: Onward<'_>,
    parallel: Parallel,
    cancels: &[&Cancel],
) -> Result<Joined, InflateError> {
    let misses = Cell::new(0);
    let mut line = Line {
        blob,
        onward,
        joiner: Joiner::default(),
        scratch: Scratch::default(),
        sections: 0,
        misses: &misses,
        known: onward.is_index_wanted.then(Known::default),
    };
    let jobs = jobs(borders).take_while(|_| misses.get() < MAX_MISSES);
    let made = in_order(
        parallel,
        &Cancel::default(),
        jobs,
        Scratch::default,
        |scratch, job| Ok(decode_job(blob, index, &job, scratch, onward.buffers)),
        |done| {
            if cancels.iter().any(|cancel| cancel.is_cancelled()) {
                return Err(Failure::Cancelled);
            }
            line.take(done)
        },
    );
    let made = made.and_then(|()| line.catch_up(u64::MAX));
    match made {
        Ok(()) => Ok(Joined {
            index: line.joiner.finish(),
            sections: line.sections,
            misses: misses.get(),
        }),
        Err(Failure::Inflate(error)) => Err(error),
        // Whoever cancelled says so.
        Err(Failure::Cancelled) => Err(InflateError::SinkClosed),
    }
}

/// From each border to the next. Behind the last one, nobody knows how much there is.
fn jobs(borders: Borders<'_>) -> impl Iterator<Item = Costed<Job>> {
    let mut borders = borders.peekable();
    std::iter::from_fn(move || {
        let Proposed {
            border,
            point,
            len_bytes,
        } = borders.next()?;
        let until_bits = borders.peek()?.border.position_bits;
        let limit_bytes = len_bytes.saturating_add(SURPLUS_BYTES);
        Some(Costed {
            cost_bytes: limit_bytes.saturating_add(SECTION_COST_BYTES),
            job: Job {
                begin: border,
                point,
                until_bits,
                limit_bytes,
            },
        })
    })
}

fn decode_job(
    blob: &Blob,
    index: Option<&CachedIndex>,
    job: &Job,
    scratch: &mut Scratch,
    buffers: &Buffers,
) -> Done {
    let mut done = Done {
        begin: job.begin,
        history: Vec::new(),
        blocks: Vec::new(),
        section: None,
    };
    if let (Some(point), Some(index)) = (job.point, index) {
        match index.history(point) {
            Ok(history) => done.history = history,
            Err(error) => {
                tracing::debug!(point, %error, "a history of an index is of no use");
                return done;
            }
        }
    }
    let mut sink = Collect {
        blocks: Vec::new(),
        left_bytes: job.limit_bytes,
        buffers,
    };
    let begin = Begin {
        border: job.begin,
        history: &done.history,
    };
    let section = decode_section(blob, begin, job.until_bits, scratch, &mut sink);
    done.blocks = sink.blocks;
    done.section = match section {
        Err(DecodeError::SinkClosed) => None,
        section => Some(section),
    };
    done
}

/// Keeps blocks, within a limit.
struct Collect<'a> {
    blocks: Vec<Block>,
    left_bytes: u64,
    buffers: &'a Buffers,
}

impl Sink for Collect<'_> {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        let len_bytes = block.bytes().len() as u64;
        self.left_bytes = self.left_bytes.checked_sub(len_bytes)?;
        self.blocks.push(block);
        Some(self.buffers.reuse())
    }
}

/// Sends blocks on as they come.
struct Through<'a> {
    onward: Onward<'a>,
    /// Before those that a block counts.
    before_bytes: u64,
    total_bytes: u64,
    is_too_large: bool,
    /// What the index has grown by, to be sent with the next block.
    index: Index,
}

impl Sink for Through<'_> {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        self.total_bytes += block.bytes().len() as u64;
        if self.total_bytes > self.onward.limit_bytes {
            self.is_too_large = true;
            return None;
        }
        let block = block.behind(self.before_bytes);
        let index = std::mem::take(&mut self.index);
        self.onward.sender.send(Passage { block, index }).ok()?;
        Some(self.onward.buffers.reuse())
    }
}

/// The stream in order.
struct Line<'a> {
    blob: &'a Blob,
    onward: Onward<'a>,
    joiner: Joiner,
    scratch: Scratch,
    sections: u64,
    misses: &'a Cell<u64>,
    /// How much of the index has been sent, if it is sent.
    known: Option<Known>,
}

impl<'a> Line<'a> {
    /// Joins a section if it is the next one; else what it holds is decoded again later.
    fn take(&mut self, done: Done) -> Result<(), Failure> {
        self.catch_up(done.begin.position_bits)?;
        let begin = Begin {
            border: done.begin,
            history: &done.history,
        };
        let section = done.section.filter(|_| self.joiner.fits(&begin));
        let Some(section) = section else {
            self.misses.set(self.misses.get() + 1);
            for block in done.blocks {
                self.onward.buffers.give_back(block.into_buffer());
            }
            return Ok(());
        };
        self.sections += 1;
        let mut through = Through::new(self.onward, &self.joiner, &mut self.known);
        for block in done.blocks {
            if through.block(block).is_none() {
                return Err(through.failure().into());
            }
        }
        self.join(section).map_err(Into::into)
    }

    /// Decodes up to the first border that is not before `until_bits`, or the stream's end.
    fn catch_up(&mut self, until_bits: u64) -> Result<(), Failure> {
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(next) = self.joiner.next()
            && next.border.position_bits < until_bits
        {
            let mut through = Through::new(self.onward, &self.joiner, &mut self.known);
            let section = decode_section(self.blob, next, until_bits, &mut scratch, &mut through);
            if let Err(DecodeError::SinkClosed) = section {
                return Err(through.failure().into());
            }
            self.join(section)?;
        }
        self.scratch = scratch;
        Ok(())
    }

    fn join(&mut self, section: Result<Section, DecodeError>) -> Result<(), InflateError> {
        let before_bytes = self.joiner.before_bytes();
        let section = section.map_err(|error| error.behind(before_bytes));
        Ok(section.and_then(|section| self.joiner.append(section))?)
    }
}

impl<'a> Through<'a> {
    /// Goes on where `joiner` is; of its index those have been sent that are `known`.
    fn new(onward: Onward<'a>, joiner: &Joiner, known: &mut Option<Known>) -> Self {
        let index = known
            .as_mut()
            .map(|known| joiner.index().settled_after(known));
        Self {
            onward,
            before_bytes: joiner.before_bytes(),
            total_bytes: joiner.output_bytes(),
            is_too_large: false,
            index: index.unwrap_or_default(),
        }
    }

    fn failure(&self) -> InflateError {
        if self.is_too_large {
            InflateError::TooLarge {
                limit_bytes: self.onward.limit_bytes,
            }
        } else {
            InflateError::SinkClosed
        }
    }
}

#[cfg(test)]
mod tests;
