//! The bandwidth that all connections of a link share.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// So far ahead the wire may be booked. It hides that threads are woken late; were it longer, a small answer would
/// wait behind a large one.
pub(super) const MAX_BOOKED: Duration = Duration::from_millis(4);

/// A token bucket, kept as the moment until which the wire is taken. An idle wire saves nothing up.
pub(super) struct Wire {
    bytes_per_second: f64,
    taken_until: Mutex<Instant>,
}

impl Wire {
    pub(super) fn new(bytes_per_second: f64) -> Self {
        Self {
            bytes_per_second,
            taken_until: Mutex::new(Instant::now()),
        }
    }

    /// Takes the wire for so many bytes, when it is not booked too far ahead, and says when the last has left.
    pub(super) fn book(&self, len_bytes: usize) -> Instant {
        let takes = Duration::from_secs_f64(len_bytes as f64 / self.bytes_per_second);
        loop {
            let wait_until = {
                let mut taken_until = self
                    .taken_until
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                if *taken_until <= now + MAX_BOOKED {
                    *taken_until = (*taken_until).max(now) + takes;
                    return *taken_until;
                }
                *taken_until - MAX_BOOKED
            };
            sleep_until(wait_until);
        }
    }
}

/// Sleeps, to some 0.1 ms.
pub(super) fn sleep_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}
