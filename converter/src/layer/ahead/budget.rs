//! The memory of members that are made ahead.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::layer::scan::EntryMemory;

/// Bounds what is between the scan and the written blob. The scan's thread waits here.
#[derive(Debug)]
pub(super) struct Budget {
    limit_bytes: u64,
    /// Entries come while the layer is read, and take of the same memory.
    entries: EntryMemory,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: u64,
    /// Groups that were handed on and are not written.
    under_way: u64,
    is_closed: bool,
}

impl Budget {
    pub(super) fn new(limit_bytes: u64, entries: EntryMemory) -> Self {
        Self {
            limit_bytes,
            entries,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Waits until there is room for `bytes`, or nothing under way that could make room. False if
    /// nobody takes groups any more.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let limit_bytes = self.limit_bytes.saturating_sub(self.entries.used_bytes());
        let state = self.lock();
        let mut state = self
            .changed
            .wait_while(state, |state| {
                !state.is_closed
                    && state.under_way > 0
                    && state.used_bytes.saturating_add(bytes) > limit_bytes
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.used_bytes += bytes;
        !state.is_closed
    }

    /// A group is handed on.
    pub(super) fn hand_on(&self) {
        self.lock().under_way += 1;
    }

    /// A group that had taken `bytes` is written.
    pub(super) fn give_back(&self, bytes: u64) {
        let mut state = self.lock();
        state.used_bytes -= bytes;
        state.under_way -= 1;
        self.changed.notify_all();
    }

    /// Nobody takes groups any more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_group_always_fits_and_others_wait() {
        let budget = Budget::new(100, EntryMemory::unlimited());
        assert!(budget.take(500));
        budget.hand_on();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(1));
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiting.is_finished());
            budget.give_back(500);
            assert!(waiting.join().unwrap());
        });
        budget.hand_on();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(100));
            budget.close();
            assert!(!waiting.join().unwrap());
        });
    }
}
