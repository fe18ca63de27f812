//! Ingests: blobs on their way into containerd's store.
//!
//! An ingest has a name that follows from the blob's digest. One that was cut, by whatever, goes on where it
//! was, even by another process; what it made is only taken if it has the digest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{
    AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::blob::{Blob, ReadAt as _};
use crate::cancel::Cancel;
use crate::containerd::call::Failures;
use crate::containerd::{Containerd, ContainerdError, Inner, interrupted};
use crate::image::{BlobId, Digest};

/// Bytes of a blob in one message.
const PART_BYTES: u64 = 4 << 20;
/// For cleaning up after a failure.
const LAST_WORDS: Duration = Duration::from_secs(5);
const OPERATION: &str = "writing";

/// Ingests that go on beside other work. Dropped, it stops them, and removes what they had written.
#[derive(Debug)]
pub struct Ingests {
    /// Always there until [`Ingests::release`].
    containerd: Option<Containerd>,
    stop: Cancel,
    tasks: Vec<JoinHandle<Result<(), ContainerdError>>>,
}

impl Ingests {
    /// To this namespace.
    pub fn new(containerd: Containerd) -> Self {
        Self {
            containerd: Some(containerd),
            stop: Cancel::default(),
            tasks: Vec::new(),
        }
    }

    /// The namespace.
    pub fn containerd(&self) -> &Containerd {
        self.containerd
            .as_ref()
            .expect("it is taken by the release alone")
    }

    /// Begins to write a blob.
    ///
    /// # Errors
    /// When an earlier one could not be written.
    pub fn write(&mut self, id: BlobId, blob: Blob) -> Result<(), ContainerdError> {
        self.settle(JoinHandle::is_finished)?;
        let inner = Arc::clone(&self.containerd().inner);
        let stop = self.stop.clone();
        let task = async move { inner.ingest(id, &blob, &HashMap::new(), &stop).await };
        let task = self.containerd().runtime().spawn(task);
        self.tasks.push(task);
        Ok(())
    }

    /// Writes a small blob that has labels from the beginning.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_labelled(
        &self,
        bytes: &[u8],
        labels: &HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let containerd = self.containerd();
        let (inner, stop) = (&containerd.inner, &self.stop);
        let blob = Blob::of_bytes(bytes.to_vec());
        let digest = Digest::of(bytes);
        containerd
            .runtime()
            .block_on(inner.ingest(BlobId::of(bytes), &blob, labels, stop))?;
        // One that was there already has other labels.
        containerd.set_labels(digest, labels)
    }

    /// Waits until all blobs are there.
    ///
    /// # Errors
    /// The first failure, in the order in which they were begun.
    pub fn finish(&mut self) -> Result<(), ContainerdError> {
        self.settle(|_| true)
    }

    /// Ends the lease, when an image names everything.
    pub fn release(mut self) {
        if let Some(containerd) = self.containerd.take() {
            containerd.release();
        }
    }

    fn settle(
        &mut self,
        is_due: impl Fn(&JoinHandle<Result<(), ContainerdError>>) -> bool,
    ) -> Result<(), ContainerdError> {
        let (due, others) = std::mem::take(&mut self.tasks)
            .into_iter()
            .partition(is_due);
        self.tasks = others;
        let mut due: Vec<_> = due;
        due.reverse();
        while let Some(task) = due.pop() {
            let ended = self.containerd().runtime().block_on(task);
            let ended = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            if ended.is_err() {
                self.tasks.extend(due);
                return ended;
            }
        }
        Ok(())
    }
}

impl Drop for Ingests {
    fn drop(&mut self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut self.tasks);
        let Some(containerd) = &self.containerd else {
            return;
        };
        containerd.runtime().block_on(async {
            for task in tasks {
                // Whatever became of it, a failure is being reported already.
                let _ = tokio::time::timeout(LAST_WORDS, task).await;
            }
        });
    }
}

impl Inner {
    /// Writes a blob unless it is there, and cleans up if that fails.
    async fn ingest(
        &self,
        id: BlobId,
        blob: &Blob,
        labels: &HashMap<String, String>,
        stop: &Cancel,
    ) -> Result<(), ContainerdError> {
        let written = tokio::select! {
            written = self.write_blob(id, blob, labels) => written,
            cancelled = interrupted(&self.cancel) => Err(cancelled.into()),
            cancelled = interrupted(stop) => Err(cancelled.into()),
        };
        if written.is_err() {
            self.abandon(id).await;
        }
        written
    }

    async fn write_blob(
        &self,
        id: BlobId,
        blob: &Blob,
        labels: &HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let _permit = self.permits.acquire().await;
        let mut failures = Failures::new(&self.cancel);
        let mut reached_bytes = 0;
        let mut resumed = false;
        loop {
            if self.info(id.digest).await?.is_some() {
                return Ok(());
            }
            let before = reached_bytes;
            let attempt = Attempt { id, blob, labels };
            let failure = match self
                .go_through(attempt, &mut reached_bytes, &mut resumed)
                .await
            {
                Ok(()) => return Ok(()),
                // Somebody else was faster.
                Err(error) if error.code() == Some(Code::AlreadyExists) => {
                    match self.info(id.digest).await? {
                        Some(_) => return Ok(()),
                        None => error,
                    }
                }
                // What was there from before is something else.
                Err(error) if resumed && error.code() == Some(Code::FailedPrecondition) => {
                    tracing::debug!("{}: begun anew: {error}", id.digest);
                    self.abandon(id).await;
                    resumed = false;
                    continue;
                }
                Err(failure) => failure,
            };
            if reached_bytes > before {
                failures.forget();
            }
            failures.wait(failure).await?;
        }
    }

    /// Writes what is missing, and asks for the whole to be taken.
    async fn go_through(
        &self,
        Attempt { id, blob, labels }: Attempt<'_>,
        reached_bytes: &mut u64,
        resumed: &mut bool,
    ) -> Result<(), ContainerdError> {
        let what = format!("blob {}", id.digest);
        let total = i64::try_from(id.size_bytes).unwrap_or(i64::MAX);
        let message = |action: WriteAction, offset_bytes: u64, data: Vec<u8>| WriteContentRequest {
            action: action.into(),
            r#ref: name(id.digest),
            total,
            expected: id.digest.to_string(),
            offset: i64::try_from(offset_bytes).unwrap_or(i64::MAX),
            data,
            labels: HashMap::new(),
        };
        let (messages, stream) = mpsc::channel(1);
        let stat = message(WriteAction::Stat, 0, Vec::new());
        let opened = messages.send(stat).await;
        debug_assert!(opened.is_ok(), "there is room for one");
        let request = self.request(ReceiverStream::new(stream));
        let answers = self.content().write(request).await;
        let mut answers = Answers {
            inner: self,
            what: &what,
            stream: answers
                .map_err(|status| self.error(OPERATION, &what, status))?
                .into_inner(),
        };
        let mut offset_bytes = answers.offset().await?;
        if offset_bytes > id.size_bytes {
            *resumed = true;
            return Err(ContainerdError::Refused {
                operation: OPERATION,
                what,
                code: Code::FailedPrecondition,
                message: format!("{offset_bytes} of {} bytes are there", id.size_bytes),
            });
        }
        if offset_bytes > 0 {
            *resumed = true;
            tracing::debug!("{} goes on at byte {offset_bytes}", id.digest);
        }
        while offset_bytes < id.size_bytes {
            *reached_bytes = (*reached_bytes).max(offset_bytes);
            let part = read_part(blob, offset_bytes);
            let part = part.map_err(|source| ContainerdError::ReadBack {
                digest: id.digest,
                source,
            })?;
            let next_bytes = offset_bytes + part.len() as u64;
            // If nobody takes it, the answer says why.
            let _ = messages
                .send(message(WriteAction::Write, offset_bytes, part))
                .await;
            let reached = answers.offset().await?;
            if reached != next_bytes {
                let reason = format!("containerd is at {reached}, after {next_bytes} bytes");
                return Err(answers.senseless(reason));
            }
            offset_bytes = next_bytes;
        }
        let commit = WriteContentRequest {
            labels: labels.clone(),
            ..message(WriteAction::Commit, offset_bytes, Vec::new())
        };
        let _ = messages.send(commit).await;
        let taken = answers.next().await?;
        if taken.digest != id.digest.to_string() {
            let reason = format!("containerd has taken it as \"{}\"", taken.digest);
            return Err(answers.senseless(reason));
        }
        Ok(())
    }

    /// Removes an ingest, if there is one.
    async fn abandon(&self, id: BlobId) {
        let request = AbortRequest {
            r#ref: name(id.digest),
        };
        let mut client = self.content();
        let _ = tokio::time::timeout(LAST_WORDS, client.abort(self.request(request))).await;
    }
}

/// A blob that is to be written.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    id: BlobId,
    blob: &'a Blob,
    labels: &'a HashMap<String, String>,
}

/// What containerd says to the messages, one for each.
struct Answers<'a> {
    inner: &'a Inner,
    what: &'a str,
    stream: Streaming<WriteContentResponse>,
}

impl Answers<'_> {
    async fn next(&mut self) -> Result<WriteContentResponse, ContainerdError> {
        let answer = self.stream.message().await;
        let answer = answer.map_err(|status| self.inner.error(OPERATION, self.what, status))?;
        answer.ok_or_else(|| {
            let ended = Status::unavailable("the answers ended early");
            self.inner.error(OPERATION, self.what, ended)
        })
    }

    /// How many bytes there are.
    async fn offset(&mut self) -> Result<u64, ContainerdError> {
        let offset = self.next().await?.offset;
        u64::try_from(offset).map_err(|_| self.senseless(format!("containerd is at {offset}")))
    }

    fn senseless(&self, reason: String) -> ContainerdError {
        ContainerdError::Answer {
            operation: OPERATION,
            what: self.what.to_owned(),
            reason,
        }
    }
}

fn name(digest: Digest) -> String {
    format!("esgz-{digest}")
}

/// What was written just now is in the page cache: nobody waits here.
fn read_part(blob: &Blob, offset_bytes: u64) -> std::io::Result<Vec<u8>> {
    let part = blob.part(offset_bytes, PART_BYTES);
    let mut bytes = vec![0; usize::try_from(part.len_bytes()).unwrap_or(0)];
    part.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
