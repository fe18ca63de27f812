//! The decoder's output: a buffer that begins with the history, and who receives the bytes.

use libdeflater::Crc;

use super::border::{Border, BorderKind};
use super::decode::Failure;
use super::index::Index;
use super::tokens::SLACK_BYTES;

/// How far back a match may reach.
pub(super) const WINDOW_BYTES: usize = 32 << 10;
/// Output given away at once. Both buffers stay within a core's second-level cache.
const OUTPUT_BYTES: usize = 512 << 10;
/// A whole output buffer: history, output, slack.
const BUFFER_BYTES: usize = WINDOW_BYTES + OUTPUT_BYTES + SLACK_BYTES;

/// Some uncompressed bytes, in order.
#[derive(Debug)]
pub struct Block {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    resume: Option<Resume>,
}

/// A place between two tokens, blocks or members of a stream where decoding can begin again, given the bytes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Uncompressed offset of the next byte.
    pub output_bytes: u64,
    /// How many bytes before it matches may mean: at most 32 KiB.
    pub history_bytes: u32,
    pub(super) place: Place,
}

/// A compressed position, and what stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Inside a block.
    Inside {
        /// Where the block begins.
        header_bits: u64,
        /// The next token, or the next byte of a stored block.
        position_bits: u64,
        /// Bytes of a stored block that are left; 0 in any other.
        stored_bytes: u32,
    },
    /// Between two blocks or members.
    Border(Border),
}

impl Resume {
    /// At a border with so much before it.
    pub(super) fn at_border(border: Border, output_bytes: u64, history_bytes: usize) -> Self {
        Self {
            output_bytes,
            history_bytes: history_bytes as u32,
            place: Place::Border(border),
        }
    }
}

impl Block {
    /// All of `buffer`.
    pub fn of(buffer: Vec<u8>) -> Self {
        let end = buffer.len();
        Self {
            buffer,
            start: 0,
            end,
            resume: None,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Where decoding can begin again behind them: known but at a stream's end. Then the history is
    /// at the end of [`Block::bytes`].
    pub fn resume(&self) -> Option<Resume> {
        self.resume
    }

    /// The same bytes as a part of a stream in which `before_bytes` go before what they were part of.
    #[must_use]
    pub fn behind(mut self, before_bytes: u64) -> Self {
        if let Some(resume) = &mut self.resume {
            resume.output_bytes += before_bytes;
        }
        self
    }

    /// The buffer that holds them, to be given back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

/// Receives the uncompressed bytes.
pub trait Sink {
    /// Sees the index of what was decoded so far, each time before it is given a block. The last of the
    /// stream's blocks may not be in it yet, or not settled.
    fn indexed(&mut self, _index: &Index) {}

    /// Takes a block and returns a buffer for a later one: best that of an earlier block, at worst an
    /// empty one. `None` stops the decoder.
    fn block(&mut self, block: Block) -> Option<Vec<u8>>;

    /// Sees every border of a gzip stream before what stands there: `output_bytes` uncompressed bytes lie
    /// before it, of which `history` is what matches may mean. Some of these are not given away yet.
    fn border(&mut self, border: Border, output_bytes: u64, history: &[u8]) {
        let _ = (border, output_bytes, history);
    }
}

/// The uncompressed bytes that were not given away, behind the history that matches mean.
pub(super) struct Output {
    pub(super) buffer: Vec<u8>,
    /// Bytes of the buffer that hold data.
    pub(super) written: usize,
    /// Of these, how many were given away before: the history.
    given: usize,
    /// First byte of the buffer that belongs to the current member.
    pub(super) history: usize,
    /// Uncompressed offset of the buffer's first byte.
    base_bytes: u64,
    pub(super) limit_bytes: u64,
    crc: Crc,
    /// First byte of the buffer that is not in `crc`.
    summed: usize,
    /// Uncompressed offset at which the current member began.
    member_bytes: u64,
}

impl Output {
    /// An output at a stream's start.
    pub(super) fn empty(limit_bytes: u64) -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            ..Self::new(limit_bytes)
        }
    }

    fn new(limit_bytes: u64) -> Self {
        Self {
            buffer: Vec::new(),
            written: 0,
            given: 0,
            history: 0,
            base_bytes: 0,
            limit_bytes,
            crc: Crc::new(),
            summed: 0,
            member_bytes: 0,
        }
    }

    pub(super) fn offset_bytes(&self) -> u64 {
        self.base_bytes + self.written as u64
    }

    pub(super) fn is_full(&self) -> bool {
        self.written >= BUFFER_BYTES - SLACK_BYTES
    }

    pub(super) fn begin_member(&mut self) {
        self.crc = Crc::new();
        self.summed = self.written;
        self.history = self.written;
        self.member_bytes = self.offset_bytes();
    }

    pub(super) fn member_bytes(&self) -> u64 {
        self.offset_bytes() - self.member_bytes
    }

    /// The bytes that matches behind a border of this kind may mean.
    pub(super) fn history(&self, kind: BorderKind) -> &[u8] {
        let start = match kind {
            BorderKind::Member => self.written,
            BorderKind::Block => self
                .history
                .max(self.written.saturating_sub(WINDOW_BYTES))
                .min(self.written),
        };
        self.buffer.get(start..self.written).unwrap_or_default()
    }

    pub(super) fn finish_crc(&mut self) -> u32 {
        self.crc.update(&self.buffer[self.summed..self.written]);
        self.summed = self.written;
        self.crc.sum()
    }

    /// Copies as much of `bytes` as there is room for; how much.
    pub(super) fn append(&mut self, bytes: &[u8]) -> usize {
        let room = (BUFFER_BYTES - SLACK_BYTES).saturating_sub(self.written);
        let len = bytes.len().min(room);
        self.buffer[self.written..self.written + len].copy_from_slice(&bytes[..len]);
        self.written += len;
        len
    }

    /// An output that goes on at the offset `output_bytes`, where `history` stands before. The member's
    /// checksum and length are those of what follows then.
    pub(super) fn behind(buffer: Vec<u8>, output_bytes: u64, history: &[u8]) -> Self {
        let mut output = Self {
            buffer,
            ..Self::new(u64::MAX)
        };
        output.buffer.resize(BUFFER_BYTES, 0);
        output.buffer[..history.len()].copy_from_slice(history);
        output.written = history.len();
        output.given = history.len();
        output.summed = history.len();
        output.base_bytes = output_bytes.saturating_sub(history.len() as u64);
        output.member_bytes = output.offset_bytes();
        output
    }

    /// Gives the bytes away and keeps the history. `resume` is where the stream goes on.
    pub(super) fn flush(
        &mut self,
        sink: &mut impl Sink,
        resume: Option<Resume>,
    ) -> Result<(), Failure> {
        if self.offset_bytes() > self.limit_bytes {
            return Err(Failure::TooLarge);
        }
        if self.written == self.given {
            return Ok(());
        }
        self.finish_crc();
        let kept = self.written.min(WINDOW_BYTES);
        let dropped = self.written - kept;
        let mut window = [0; WINDOW_BYTES];
        window[..kept].copy_from_slice(&self.buffer[dropped..self.written]);
        let block = Block {
            buffer: std::mem::take(&mut self.buffer),
            start: self.given,
            end: self.written,
            resume,
        };
        self.buffer = sink.block(block).ok_or(Failure::SinkClosed)?;
        self.buffer.resize(BUFFER_BYTES, 0);
        self.buffer[..kept].copy_from_slice(&window[..kept]);
        self.base_bytes += dropped as u64;
        self.written = kept;
        self.given = kept;
        self.summed = kept;
        self.history = self.history.saturating_sub(dropped);
        Ok(())
    }
}
