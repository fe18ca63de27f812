//! When a request that failed is made again.

use std::time::{Duration, SystemTime};

use crate::cancel::{Cancel, Cancelled};
use crate::registry::RegistryError;

/// How often, and after how long, a request is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all; a download that went on in between counts anew.
    pub attempts: u32,
    /// The first pause, doubled with every failure.
    pub first_pause: Duration,
    /// No pause is longer, and a registry that asks for a longer one is given up.
    pub longest_pause: Duration,
}

impl Retry {
    /// One attempt.
    pub(super) const NEVER: Self = Self {
        attempts: 1,
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
    };
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 7,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(120),
        }
    }
}

/// The failures of one request so far.
pub(super) struct Failures<'a> {
    retry: Retry,
    cancel: &'a Cancel,
    count: u32,
}

impl<'a> Failures<'a> {
    pub(super) fn new(retry: Retry, cancel: &'a Cancel) -> Self {
        Self {
            retry,
            cancel,
            count: 0,
        }
    }

    /// There was progress: the next failure is the first again.
    pub(super) fn forget(&mut self) {
        self.count = 0;
    }

    /// Waits until the request may be made again.
    ///
    /// # Errors
    /// The failure itself, if that is of no use.
    pub(super) async fn wait(&mut self, failure: RegistryError) -> Result<(), RegistryError> {
        self.count += 1;
        let Some(pause) = self.pause(&failure) else {
            return Err(failure);
        };
        tracing::debug!("in {pause:?} again: {failure}");
        sleep(pause, self.cancel).await?;
        Ok(())
    }

    fn pause(&self, failure: &RegistryError) -> Option<Duration> {
        if !failure.is_passing() || self.count >= self.retry.attempts {
            return None;
        }
        let doubled = self.retry.first_pause * 2_u32.saturating_pow(self.count - 1).min(1 << 16);
        match failure.retry_after() {
            Some(wanted) if wanted > self.retry.longest_pause => None,
            Some(wanted) => Some(wanted.max(self.retry.first_pause)),
            None => Some(doubled.min(self.retry.longest_pause)),
        }
    }
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// A pause that ends early if the user interrupts.
pub(super) async fn sleep(pause: Duration, cancel: &Cancel) -> Result<(), Cancelled> {
    tokio::select! {
        () = tokio::time::sleep(pause) => Ok(()),
        cancelled = interrupted(cancel) => Err(cancelled),
    }
}

/// Comes back when the user interrupts. The flag is set by a signal handler, which cannot wake a task.
pub(super) async fn interrupted(cancel: &Cancel) -> Cancelled {
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    while !cancel.is_cancelled() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Cancelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let cancel = Cancel::default();
        let retry = Retry {
            attempts: 4,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(3),
        };
        let status = |status, retry_after| RegistryError::Status {
            operation: "reading",
            url: String::new(),
            status,
            message: String::new(),
            retry_after,
        };
        let check = |count, failure: RegistryError, expected: Option<u64>| {
            let mut failures = Failures::new(retry, &cancel);
            failures.count = count;
            let pause = failures.pause(&failure);
            assert_eq!(pause, expected.map(Duration::from_secs), "{failure}");
        };
        for (count, pause) in [(1, Some(1)), (2, Some(2)), (3, Some(3)), (4, None)] {
            check(count, status(503, None), pause);
        }
        check(1, status(429, Some(Duration::from_secs(2))), Some(2));
        check(1, status(429, Some(Duration::ZERO)), Some(1));
        check(1, status(429, Some(Duration::from_secs(4))), None);
        for lasting in [400, 401, 403, 404, 416] {
            check(1, status(lasting, None), None);
        }
        check(1, Cancelled.into(), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |text: &str, seconds: Option<u64>| {
            let found = parse_retry_after(text, now);
            assert_eq!(found, seconds.map(Duration::from_secs), "{text}");
        };
        check("7", Some(7));
        check(" 0 ", Some(0));
        check("Sun, 06 Nov 1994 08:49:40 GMT", Some(3));
        check("Sun, 06 Nov 1994 08:49:30 GMT", Some(0));
        check("soon", None);
        check("-1", None);
    }
}
