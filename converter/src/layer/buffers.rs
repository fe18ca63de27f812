//! Buffers that are used again: a fresh one of a megabyte costs a page fault for every 4 KiB.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller buffers are cheap to make.
pub(super) const REUSED_BUFFER_BYTES: usize = 512 << 10;

/// Buffers that went through a pipeline. Their contents are whatever was in them last.
#[derive(Debug)]
pub struct Buffers {
    idle: Mutex<Idle>,
    limit_bytes: usize,
}

/// Those that nobody has, the one that came back first in front.
#[derive(Debug, Default)]
struct Idle {
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Default for Buffers {
    /// For a pipeline that itself bounds how many there are.
    fn default() -> Self {
        Self::within(usize::MAX)
    }
}

impl Buffers {
    /// Those that nobody has take at most `limit_bytes`.
    pub fn within(limit_bytes: usize) -> Self {
        Self {
            idle: Mutex::default(),
            limit_bytes,
        }
    }

    /// Memory that a buffer for `len_bytes` takes: a sixteenth more at most, as lengths that are nearly
    /// the same share buffers.
    pub fn size_bytes(len_bytes: usize) -> usize {
        if len_bytes < REUSED_BUFFER_BYTES {
            return len_bytes;
        }
        let step = 1 << (len_bytes.ilog2() - 4);
        len_bytes.next_multiple_of(step)
    }

    /// A buffer of exactly `len_bytes` with unspecified contents.
    pub fn take(&self, len_bytes: usize) -> Vec<u8> {
        match self.find(len_bytes) {
            // Only what was cut off has to be filled again.
            Some(mut buffer) => {
                buffer.resize(len_bytes, 0);
                buffer
            }
            None => {
                // Of zeros that the kernel makes when they are touched.
                let mut buffer = vec![0; Self::size_bytes(len_bytes)];
                buffer.truncate(len_bytes);
                buffer
            }
        }
    }

    /// An empty buffer with room for `len_bytes`, to be appended to.
    pub fn take_empty(&self, len_bytes: usize) -> Vec<u8> {
        let found = self.find(len_bytes);
        let mut buffer = found.unwrap_or_else(|| Vec::with_capacity(Self::size_bytes(len_bytes)));
        buffer.clear();
        buffer
    }

    /// A buffer that was given back, as it is, or an empty one.
    pub fn reuse(&self) -> Vec<u8> {
        self.idle().take(|_| true).unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() < REUSED_BUFFER_BYTES {
            return;
        }
        let mut idle = self.idle();
        idle.bytes += buffer.capacity();
        idle.buffers.push_back(buffer);
        // What came back first is of a size that is not asked for any more.
        while idle.bytes > self.limit_bytes && idle.take(|_| true).is_some() {}
    }

    /// Forgets those that nobody has.
    pub fn clear(&self) {
        *self.idle() = Idle::default();
    }

    /// One of the right size, so that no small job holds a large buffer.
    fn find(&self, len_bytes: usize) -> Option<Vec<u8>> {
        let size_bytes = Self::size_bytes(len_bytes);
        if size_bytes < REUSED_BUFFER_BYTES {
            return None;
        }
        self.idle().take(|buffer| buffer.capacity() == size_bytes)
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn take(&mut self, is_wanted: impl Fn(&Vec<u8>) -> bool) -> Option<Vec<u8>> {
        let at = self.buffers.iter().position(is_wanted)?;
        let buffer = self.buffers.remove(at)?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_in_nearly_the_same_length() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1 << 20);
        first.truncate(7);
        let place = first.as_ptr();
        buffers.give_back(first);
        let smaller = buffers.take(600 << 10);
        assert_ne!(smaller.as_ptr(), place);
        let again = buffers.take((1 << 20) - 99);
        assert_eq!((again.as_ptr(), again.len()), (place, (1 << 20) - 99));
        buffers.give_back(again);
        let empty = buffers.take_empty(1 << 20);
        assert_eq!((empty.as_ptr(), empty.len()), (place, 0));
        assert_eq!(buffers.take(100).len(), 100);
        assert_eq!(buffers.take(2 << 20).len(), 2 << 20);
    }

    #[test]
    fn a_buffer_takes_hardly_more_than_its_length() {
        for len in (0..5_000_000).step_by(9973) {
            let size = Buffers::size_bytes(len);
            assert!(size >= len && size <= len + len / 16, "{len}: {size}");
            assert!(Buffers::default().take(len).capacity() >= len, "{len}");
        }
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let buffers = Buffers::within(3 << 20);
        for _ in 0..9 {
            buffers.give_back(vec![0; 1 << 20]);
        }
        assert_eq!(buffers.idle().bytes, 3 << 20);
        let kept = buffers.take(1 << 20);
        buffers.clear();
        assert_eq!(buffers.idle().bytes, 0);
        buffers.give_back(kept);
        assert_eq!(buffers.idle().bytes, 1 << 20);
        buffers.give_back(vec![0; 3 << 20]);
        assert_eq!(buffers.idle().buffers.len(), 1);
        buffers.give_back(vec![0; 4 << 20]);
        assert_eq!(buffers.idle().bytes, 0);
        assert_eq!(buffers.reuse(), Vec::<u8>::new());
    }
}
