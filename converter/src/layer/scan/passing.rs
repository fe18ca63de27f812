//! The uncompressed tar as it passes by: hashed, kept, and readable for a while by the tar reader.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use crossbeam::channel::Receiver;

use crate::blob::ReadAt;
use crate::image::{Digest, Hasher};
use crate::layer::buffers::Buffers;
use crate::layer::deflate::{Block, Index};
use crate::layer::entry::Entry;
use crate::layer::scan::Follow;
use crate::layer::scan::kept::Kept;

/// Bytes that stay readable behind the front: the tar reader looks back over an extension header.
const READABLE_BYTES: u64 = 2 << 20;

/// A tar that can be read once, forwards.
pub(super) struct Passing<'a, 'f> {
    receiver: &'a Receiver<Passage>,
    buffers: &'a Buffers,
    state: RefCell<State<'f>>,
}

/// Bytes on their way from the decoder.
pub(super) struct Passage {
    pub(super) block: Block,
    /// What is settled of the index since the last passage, if somebody wants to know.
    pub(super) index: Index,
}

struct State<'f> {
    /// Blocks that are still readable, with their offsets.
    blocks: VecDeque<(u64, Block)>,
    end_bytes: u64,
    has_ended: bool,
    /// Used if nobody follows.
    hasher: Hasher,
    kept: Kept,
    follow: Option<&'f mut dyn Follow>,
    /// Where keeping failed, and how; nothing is kept from there on.
    failure: Option<(u64, io::Error)>,
}

/// A tar that has passed.
pub(super) struct Passed {
    pub(super) diff_id: Digest,
    pub(super) len_bytes: u64,
    pub(super) kept: Kept,
    /// Keeping failed after so many bytes.
    pub(super) failure: Option<(u64, io::Error)>,
}

impl<'a, 'f> Passing<'a, 'f> {
    pub(super) fn new(
        receiver: &'a Receiver<Passage>,
        buffers: &'a Buffers,
        kept: Kept,
        follow: Option<&'f mut dyn Follow>,
    ) -> Self {
        Self {
            receiver,
            buffers,
            state: RefCell::new(State {
                blocks: VecDeque::new(),
                end_bytes: 0,
                has_ended: false,
                hasher: Hasher::default(),
                kept,
                follow,
                failure: None,
            }),
        }
    }

    /// Shows an entry to who follows.
    pub(super) fn entry(&self, entry: &Entry) {
        if let Some(follow) = &mut self.state.borrow_mut().follow {
            follow.entry(entry);
        }
    }

    /// Says to who follows that there are no more entries.
    pub(super) fn end(&self) {
        if let Some(follow) = &mut self.state.borrow_mut().follow {
            follow.end();
        }
    }

    /// Lets the rest pass.
    pub(super) fn finish(self) -> Passed {
        self.pass(u64::MAX);
        let state = self.state.into_inner();
        Passed {
            diff_id: match state.follow {
                Some(follow) => follow.diff_id(),
                None => state.hasher.finish(),
            },
            len_bytes: state.end_bytes,
            kept: state.kept,
            failure: state.failure,
        }
    }

    /// Waits until there are `upto_bytes`, or the end.
    fn pass(&self, upto_bytes: u64) {
        let state = &mut *self.state.borrow_mut();
        while state.end_bytes < upto_bytes && !state.has_ended {
            // After a failure the sender is told to stop by nobody taking blocks.
            let next = match state.failure {
                None => self.receiver.recv().ok(),
                Some(_) => None,
            };
            let Some(Passage { block, index }) = next else {
                state.has_ended = true;
                return;
            };
            let bytes = block.bytes();
            let start_bytes = state.end_bytes;
            state.end_bytes += bytes.len() as u64;
            if let Err(error) = state.kept.block(&block, state.end_bytes) {
                state.failure = Some((start_bytes, error));
            }
            match &mut state.follow {
                Some(follow) => follow.bytes(bytes, index),
                None => state.hasher.update(bytes),
            }
            state.blocks.push_back((start_bytes, block));
            let readable = state.end_bytes.saturating_sub(READABLE_BYTES);
            while let Some((start, block)) = state.blocks.front()
                && start + block.bytes().len() as u64 <= readable
            {
                if let Some((_, block)) = state.blocks.pop_front() {
                    self.buffers.give_back(block.into_buffer());
                }
            }
        }
    }
}

impl ReadAt for Passing<'_, '_> {
    /// As far as is known.
    fn len_bytes(&self) -> u64 {
        self.state.borrow().end_bytes
    }

    fn available(&self, upto_bytes: u64) -> u64 {
        self.pass(upto_bytes);
        self.state.borrow().end_bytes.min(upto_bytes)
    }

    /// Fails for bytes that have passed too long ago.
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.pass(offset_bytes.saturating_add(buffer.len() as u64));
        let state = self.state.borrow();
        let mut done = 0;
        let first = state
            .blocks
            .partition_point(|(start, _)| *start <= offset_bytes)
            .checked_sub(1)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        for (start, block) in state.blocks.range(first..) {
            let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let from = usize::try_from(offset_bytes + done as u64 - start).unwrap_or(usize::MAX);
            let bytes = block.bytes().get(from..).unwrap_or_default();
            let len = bytes.len().min(rest.len());
            rest[..len].copy_from_slice(&bytes[..len]);
            done += len;
        }
        if done < buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use super::*;
    use crate::layer::scan::kept::Keep;

    #[test]
    fn what_passes_is_readable_for_a_while() {
        let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n / 251) as u8).collect();
        let (sender, receiver) = unbounded();
        for part in bytes.chunks(300_000) {
            let passage = Passage {
                block: Block::of(part.to_vec()),
                index: Index::default(),
            };
            sender.send(passage).unwrap();
        }
        drop(sender);
        let buffers = Buffers::default();
        let kept = Kept::new(Keep::Spool, None, &std::env::temp_dir()).unwrap();
        let passing = Passing::new(&receiver, &buffers, kept, None);
        assert_eq!(passing.available(10), 10);
        for at in [0, 299_990, 3 << 20, (3 << 20) - 1_000_000] {
            let mut buffer = vec![0; 400_000];
            passing.read_exact_at(&mut buffer, at as u64).unwrap();
            assert!(buffer == bytes[at..at + 400_000], "{at}");
        }
        assert!(passing.read_exact_at(&mut [0], 0).is_err());
        assert_eq!(passing.available(u64::MAX), bytes.len() as u64);
        assert!(passing.read_exact_at(&mut [0], bytes.len() as u64).is_err());
        let passed = passing.finish();
        assert_eq!(passed.diff_id, Digest::of(&bytes));
        let mut all = vec![0; bytes.len()];
        let spool = passed.kept.finish(passed.len_bytes);
        spool.read_exact_at(&mut all, 0).unwrap();
        assert!(all == bytes);
    }
}
