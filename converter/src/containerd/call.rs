//! Calls, and when one that failed is made again.

use std::error::Error as _;
use std::time::Duration;

use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Request, Response, Status};

use crate::cancel::Cancel;
use crate::containerd::{ContainerdError, Inner, interrupted};

/// Attempts in all. With the pauses between them, half a minute: a restart takes a few seconds.
const ATTEMPTS: u32 = 8;
/// The first pause, doubled with every failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Of what containerd says, as much is shown.
const MESSAGE_CHARS: usize = 400;

/// The failures of one call so far.
pub(super) struct Failures<'a> {
    cancel: &'a Cancel,
    count: u32,
}

impl<'a> Failures<'a> {
    pub(super) fn new(cancel: &'a Cancel) -> Self {
        Self { cancel, count: 0 }
    }

    /// There was progress: the next failure is the first again.
    pub(super) fn forget(&mut self) {
        self.count = 0;
    }

    /// Waits until the call may be made again.
    ///
    /// # Errors
    /// The failure itself, if that is of no use.
    pub(super) async fn wait(&mut self, failure: ContainerdError) -> Result<(), ContainerdError> {
        self.count += 1;
        if !failure.is_passing() || self.count >= ATTEMPTS {
            return Err(failure);
        }
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.count - 1);
        let pause = pause.min(LONGEST_PAUSE);
        tracing::debug!("in {pause:?} again: {failure}");
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            cancelled = interrupted(self.cancel) => Err(cancelled.into()),
        }
    }
}

impl Inner {
    /// A request in the namespace, and under the lease.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        for (key, value) in [
            ("containerd-namespace", &self.namespace),
            ("containerd-lease", &self.lease),
        ] {
            if let Ok(value) = AsciiMetadataValue::try_from(value.as_str()) {
                metadata.insert(key, value);
            }
        }
        request
    }

    /// Makes a call that does the same when it is made twice.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        what: &str,
        call: impl Fn() -> F,
    ) -> Result<T, ContainerdError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut failures = Failures::new(&self.cancel);
        loop {
            match call().await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => failures.wait(self.error(operation, what, status)).await?,
            }
        }
    }

    /// What a status says.
    pub(super) fn error(
        &self,
        operation: &'static str,
        what: &str,
        status: Status,
    ) -> ContainerdError {
        let what = what.to_owned();
        // Our own side of the connection gives a reason. A server that stops says that it cancels.
        let is_lost = status.source().is_some() || status.code() == Code::Cancelled;
        if is_lost {
            return ContainerdError::Lost {
                operation,
                what,
                address: self.address.clone(),
                source: Box::new(status),
            };
        }
        ContainerdError::Refused {
            operation,
            what,
            code: status.code(),
            message: status.message().chars().take(MESSAGE_CHARS).collect(),
        }
    }
}
