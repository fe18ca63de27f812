//! Signals to this process: they interrupt it, or with `--wait-on-signal` end the run.

use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator;

use crate::cancel::{Cancel, EndOfRun};

/// What signals set. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals {
    cancel: Cancel,
    end_of_run: EndOfRun,
}

impl Signals {
    /// Begins to listen, for the rest of the process's life.
    pub(super) fn listen() -> Self {
        let signals = Self::default();
        let set = signals.clone();
        let listening = iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).and_then(|mut caught| {
            thread::Builder::new()
                .name("signals".to_owned())
                .spawn(move || caught.forever().for_each(|signal| set.take(signal)))
        });
        if let Err(error) = listening {
            tracing::warn!("signals cannot be handled: {error}");
        }
        signals
    }

    /// Set by all signals that do not end a run.
    pub(super) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Set by the first SIGINT during a run that waits for it.
    pub(super) fn end_of_run(&self) -> EndOfRun {
        self.end_of_run.clone()
    }

    fn take(&self, signal: i32) {
        if signal != SIGINT || !self.end_of_run.ask() {
            self.cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_awaited_interrupt_ends_a_run() {
        let signals = Signals::default();
        signals.end_of_run().begin();
        signals.take(SIGINT);
        assert!(signals.end_of_run().is_asked() && !signals.cancel().is_cancelled());
        signals.take(SIGINT);
        assert!(signals.cancel().is_cancelled());
        let signals = Signals::default();
        signals.end_of_run().begin();
        signals.take(SIGTERM);
        assert!(!signals.end_of_run().is_asked() && signals.cancel().is_cancelled());
    }
}
