//! Cooperative cancellation: one flag, set by a signal handler or by the first failure, and polled
//! by every loop that can take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Tells every stage to stop. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// The work was cancelled before it finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

impl Cancel {
    /// Asks every holder of this flag to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True once [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Cancelled`] once [`Cancel::cancel`] was called.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

/// A wish that the run of a workload ends, and nothing else. Clones share one.
#[derive(Clone, Debug, Default)]
pub struct EndOfRun(Arc<AtomicU8>);

/// Nothing runs.
const IDLE: u8 = 0;
/// A run waits for the wish.
const AWAITED: u8 = 1;
/// It was uttered.
const ASKED: u8 = 2;

impl EndOfRun {
    /// A run begins.
    pub fn begin(&self) {
        self.0.store(AWAITED, Ordering::SeqCst);
    }

    /// The run is over.
    pub fn over(&self) {
        self.0.store(IDLE, Ordering::SeqCst);
    }

    /// Utters the wish. Returns whether a run has waited for it.
    pub fn ask(&self) -> bool {
        let order = Ordering::SeqCst;
        self.0
            .compare_exchange(AWAITED, ASKED, order, order)
            .is_ok()
    }

    /// Whether the run is to end.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst) == ASKED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_counts_once_and_only_during_a_run() {
        let end = EndOfRun::default();
        assert!(!end.ask() && !end.is_asked());
        end.begin();
        assert!(!end.is_asked() && end.ask() && end.is_asked());
        assert!(!end.ask());
        end.over();
        assert!(!end.is_asked() && !end.ask());
    }
}
