//! Buffers that are used again: a fresh one of a megabyte costs a page fault for every 4 KiB.

use crossbeam::queue::SegQueue;

/// Smaller buffers are cheap to make, and a large one must not be held by a small member: its
/// cost would be counted too low.
pub(super) const REUSED_BUFFER_BYTES: usize = 512 << 10;

/// Buffers that went through a pipeline. Their contents are whatever was in them last.
#[derive(Debug, Default)]
pub struct Buffers(SegQueue<Vec<u8>>);

impl Buffers {
    /// A buffer of exactly `len_bytes` with unspecified contents.
    pub fn take(&self, len_bytes: usize) -> Vec<u8> {
        let reused = if len_bytes >= REUSED_BUFFER_BYTES {
            self.0.pop()
        } else {
            None
        };
        match reused {
            // Only what was cut off has to be filled again.
            Some(mut buffer) => {
                buffer.resize(len_bytes, 0);
                buffer
            }
            None => vec![0; len_bytes],
        }
    }

    /// An empty buffer for `len_bytes`.
    pub fn empty(&self, len_bytes: usize) -> Vec<u8> {
        let reused = (len_bytes >= REUSED_BUFFER_BYTES)
            .then(|| self.0.pop())
            .flatten();
        let mut buffer = reused.unwrap_or_default();
        buffer.clear();
        buffer.reserve_exact(len_bytes);
        buffer
    }

    /// A buffer that was given back, as it is, or an empty one.
    pub fn reuse(&self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= REUSED_BUFFER_BYTES {
            self.0.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_in_any_length() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1 << 20);
        first.truncate(7);
        let place = first.as_ptr();
        buffers.give_back(first);
        let again = buffers.take(600 << 10);
        assert_eq!((again.as_ptr(), again.len()), (place, 600 << 10));
        buffers.give_back(again);
        assert_eq!(buffers.take(100).len(), 100);
        assert_eq!(buffers.take(2 << 20).len(), 2 << 20);
    }
}
