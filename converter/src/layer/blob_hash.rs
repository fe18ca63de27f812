//! The digests of blobs, on a thread of its own; of one that is read and one that is written at the same
//! time together, which takes little longer than either alone.

use std::collections::VecDeque;
use std::thread::Scope;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::image::{Digest, Hasher};
use crate::layer::buffers::Buffers;

/// Parts that wait for the thread.
const QUEUE: usize = 1;
/// Parts that are held at once, beside those that wait for the other blob's: those in the queue, one that
/// is being hashed, and one that waits for room.
pub(super) const HASHED_PARTS: u64 = QUEUE as u64 + 2;

/// A run of a blob: the start of a buffer that may be longer.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) buffer: Vec<u8>,
    pub(super) len_bytes: usize,
}

/// Takes the parts of one blob in order.
pub(super) struct BlobHasher {
    side: usize,
    messages: Sender<Message>,
}

enum Message {
    Part(usize, Part),
    End(usize, Sender<Digest>),
}

impl BlobHasher {
    /// For one blob; buffers of hashed parts go to `buffers`.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        buffers: &'scope Buffers,
    ) -> Self {
        let [one] = start(scope, buffers, 0);
        one
    }

    /// For two; up to `waiting_bytes` of each wait for bytes of the other.
    pub(super) fn start_two<'scope>(
        scope: &'scope Scope<'scope, '_>,
        buffers: &'scope Buffers,
        waiting_bytes: usize,
    ) -> [Self; 2] {
        start(scope, buffers, waiting_bytes)
    }

    /// Takes the next part.
    pub(super) fn take(&self, part: Part) {
        // The thread lives as long as somebody sends, unless it panicked: the scope passes that on.
        let _ = self.messages.send(Message::Part(self.side, part));
    }

    /// The digest of all parts.
    pub(super) fn finish(self) -> Digest {
        let (sender, receiver) = bounded(1);
        let _ = self.messages.send(Message::End(self.side, sender));
        receiver
            .recv()
            .expect("the hashing thread has not panicked")
    }
}

fn start<'scope, const N: usize>(
    scope: &'scope Scope<'scope, '_>,
    buffers: &'scope Buffers,
    waiting_bytes: usize,
) -> [BlobHasher; N] {
    let (messages, receiver) = bounded(QUEUE);
    scope.spawn(move || hash::<N>(&receiver, buffers, waiting_bytes));
    std::array::from_fn(|side| BlobHasher {
        side,
        messages: messages.clone(),
    })
}

/// What is known of a blob so far.
#[derive(Default)]
struct Side {
    hasher: Hasher,
    /// Parts that are not hashed yet; of the first one, so many bytes are.
    parts: VecDeque<Part>,
    hashed_bytes: usize,
    /// Bytes that are not hashed yet.
    waiting_bytes: usize,
}

impl Side {
    fn push(&mut self, part: Part) {
        if part.len_bytes == 0 {
            return;
        }
        self.waiting_bytes += part.len_bytes;
        self.parts.push_back(part);
    }

    /// So many bytes of the first part more are hashed now.
    fn advance(&mut self, bytes: usize, buffers: &Buffers) {
        self.hashed_bytes += bytes;
        self.waiting_bytes -= bytes;
        while let Some(part) = self.parts.front()
            && part.len_bytes == self.hashed_bytes
        {
            self.hashed_bytes = 0;
            if let Some(part) = self.parts.pop_front() {
                buffers.give_back(part.buffer);
            }
        }
    }

    /// Hashes until no more than `waiting_bytes` wait.
    fn hash_alone(&mut self, waiting_bytes: usize, buffers: &Buffers) {
        while let Some(excess) = self.waiting_bytes.checked_sub(waiting_bytes)
            && excess > 0
        {
            let front = front(&self.parts, self.hashed_bytes);
            let len = front.len().min(excess);
            self.hasher.update(&front[..len]);
            self.advance(len, buffers);
        }
    }
}

/// The bytes of the first part that are not hashed yet.
fn front(parts: &VecDeque<Part>, hashed_bytes: usize) -> &[u8] {
    let part = parts.front();
    part.map_or(&[], |part| &part.buffer[hashed_bytes..part.len_bytes])
}

fn hash<const N: usize>(messages: &Receiver<Message>, buffers: &Buffers, waiting_bytes: usize) {
    let mut sides: [Side; N] = std::array::from_fn(|_| Side::default());
    let mut ended = 0;
    for message in messages {
        match message {
            Message::Part(side, part) => {
                sides[side].push(part);
                if let [one, other] = sides.as_mut_slice() {
                    hash_together(one, other, buffers);
                }
                // There is nobody to wait for once the other has ended.
                let waiting_bytes = if ended + 1 < N { waiting_bytes } else { 0 };
                sides[side].hash_alone(waiting_bytes, buffers);
            }
            Message::End(side, digest) => {
                ended += 1;
                sides[side].hash_alone(0, buffers);
                let hasher = std::mem::take(&mut sides[side].hasher);
                // Somebody who has gone away does not want it.
                let _ = digest.send(hasher.finish());
            }
        }
    }
}

/// Hashes as much as there is of both.
fn hash_together(one: &mut Side, other: &mut Side, buffers: &Buffers) {
    loop {
        let bytes = [
            front(&one.parts, one.hashed_bytes),
            front(&other.parts, other.hashed_bytes),
        ];
        let len = bytes[0].len().min(bytes[1].len());
        if len == 0 {
            return;
        }
        let hashers = [&mut one.hasher, &mut other.hasher];
        Hasher::update_two(hashers, bytes.map(|bytes| &bytes[..len]));
        one.advance(len, buffers);
        other.advance(len, buffers);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn part(bytes: &[u8]) -> Part {
        let mut buffer = bytes.to_vec();
        buffer.extend_from_slice(b"not of it");
        Part {
            buffer,
            len_bytes: bytes.len(),
        }
    }

    /// Whatever comes when, in parts of any length, each blob has its own digest.
    #[test]
    fn each_blob_has_its_digest() {
        let bytes: Vec<u8> = (0..100_000_u32)
            .map(|n| (n.wrapping_mul(n) / 5) as u8)
            .collect();
        let buffers = Buffers::default();
        for (waiting_bytes, lens, turns) in [
            (0, [100, 100], [1, 1]),
            (5000, [1000, 777], [3, 1]),
            (1, [64, 4096], [9, 1]),
            (1_000_000, [9999, 1], [1, 50]),
        ] {
            thread::scope(|scope| {
                let hashers = BlobHasher::start_two(scope, &buffers, waiting_bytes);
                let blobs = [bytes.as_slice(), &bytes[..70_003]];
                let mut parts = [0, 1].map(|side| blobs[side].chunks(lens[side]));
                loop {
                    let mut sent = 0;
                    for side in [0, 1] {
                        for bytes in parts[side].by_ref().take(turns[side]) {
                            hashers[side].take(part(bytes));
                            sent += 1;
                        }
                    }
                    if sent == 0 {
                        break;
                    }
                }
                let found = hashers.map(BlobHasher::finish);
                assert_eq!(found, blobs.map(Digest::of), "{lens:?}");
            });
        }
    }

    #[test]
    fn one_blob_does_not_wait_for_another_that_ended_or_went_away() {
        let buffers = Buffers::default();
        thread::scope(|scope| {
            let [one, other] = BlobHasher::start_two(scope, &buffers, 1 << 20);
            one.take(part(b"ab"));
            assert_eq!(one.finish(), Digest::of(b"ab"));
            other.take(part(b""));
            other.take(part(b"c"));
            assert_eq!(other.finish(), Digest::of(b"c"));
            let [one, other] = BlobHasher::start_two(scope, &buffers, 1 << 20);
            other.take(part(b"never asked for"));
            drop(other);
            assert_eq!(one.finish(), Digest::of(b""));
            let alone = BlobHasher::start(scope, &buffers);
            alone.take(part(b"d"));
            assert_eq!(alone.finish(), Digest::of(b"d"));
        });
    }
}
