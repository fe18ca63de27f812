//! What the memory for a layer goes to, and how many threads it is enough for.

use crate::layer::blob::HELD_PARTS;
use crate::layer::encode::{Check, Encoder, Level};
use crate::layer::in_order::Parallel;

/// What a layer's conversion takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// Uncompressed bytes of the longest group.
    pub(super) longest_bytes: u64,
    /// Members of that group.
    pub(super) longest_members: usize,
    /// Of what is compressed.
    pub(super) level: Level,
    /// Whether compressed bits are copied.
    pub(super) copies: bool,
    /// Whether members are inflated again.
    pub(super) check: Check,
    /// Threads and memory that there are.
    pub(super) parallel: Parallel,
}

/// What the memory goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Threads, and memory for the groups that they have under way.
    pub(super) jobs: Parallel,
    /// Memory for buffers that nobody has.
    pub(super) idle_bytes: usize,
}

/// Buffers that nobody has take at most this part of the memory.
const IDLE_SHARE: u64 = 4;

impl Shares {
    /// As many of the threads as there is memory for, or one: what a thread holds, what waits to be written
    /// and what `read_bytes` gives for some threads, for what they read from, are counted, beside a group
    /// for each thread and half as many that wait for their turn.
    pub(super) fn of(want: &Want, read_bytes: impl Fn(u64) -> u64) -> Self {
        let Want {
            longest_bytes,
            longest_members,
            level,
            copies,
            check,
            parallel,
        } = *want;
        let cost_bytes = Encoder::cost_of(longest_bytes, longest_members);
        let gzip_bytes = Encoder::gzip_cost_of(longest_bytes, longest_members);
        let worker_bytes = Encoder::held_bytes(level, copies, check, longest_bytes);
        let memory_bytes = parallel.memory_bytes;
        let idle_bytes = memory_bytes / IDLE_SHARE;
        let beside_bytes = |threads: u64| {
            idle_bytes + HELD_PARTS * gzip_bytes + read_bytes(threads) + threads * worker_bytes
        };
        let fits =
            |threads: &u64| beside_bytes(*threads) + threads * cost_bytes * 3 / 2 <= memory_bytes;
        let threads = parallel.threads.max(1) as u64;
        let threads = (1..=threads).rev().find(fits).unwrap_or(1);
        Self {
            jobs: Parallel {
                threads: threads as usize,
                memory_bytes: memory_bytes.saturating_sub(beside_bytes(threads)),
            },
            idle_bytes: idle_bytes as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_memory_allows() {
        let threads_of = |memory_bytes| {
            let parallel = Parallel {
                threads: 16,
                memory_bytes,
            };
            let want = Want {
                longest_bytes: 4 << 20,
                longest_members: 1,
                level: Level::default(),
                copies: false,
                check: Check::Inflate,
                parallel,
            };
            let shares = Shares::of(&want, |_| 0);
            let Parallel {
                threads,
                memory_bytes: jobs_bytes,
            } = shares.jobs;
            // A thread's own buffer, and a chunk and a half with their compressed form.
            let least_bytes = threads as u64 * (4 << 20) + shares.idle_bytes as u64;
            assert!(jobs_bytes + least_bytes <= memory_bytes || threads == 1);
            assert!(jobs_bytes >= threads as u64 * (12 << 20) || threads == 1);
            threads
        };
        assert_eq!(threads_of(0), 1);
        let some = threads_of(128 << 20);
        assert!((2..8).contains(&some), "{some}");
        assert_eq!(threads_of(1 << 30), 16);
    }
}
