//! Blobs and manifests on their way to the registry.
//!
//! A blob that is there is not sent. Any other goes in one request; if that is cut, the registry is asked
//! how much it has, and the rest goes in parts, unless the registry takes none. A blob that is still being
//! made can be sent in parts as they come ([`EarlyUpload`]).

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

use crate::blob::{Blob, Supply};
use crate::cancel::Cancel;
use crate::image::{BlobId, Digest};
use crate::registry::retry::{Failures, interrupted};
use crate::registry::transport::{Call, shown};
use crate::registry::upload_body::{Outgoing, UploadBody};
use crate::registry::{Inner, Registry, RegistryError, scope};

mod early;
mod manifests;

pub use early::EarlyUpload;
use early::Made;

/// For cleaning up after a failure.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Uploads that go on beside other work. Dropped, it stops them, and lets the registry forget them.
#[derive(Debug)]
pub struct Uploads {
    registry: Registry,
    stop: Cancel,
    tasks: Vec<JoinHandle<Result<(), RegistryError>>>,
}

impl Uploads {
    /// To this repository.
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            stop: Cancel::default(),
            tasks: Vec::new(),
        }
    }

    /// Whether the repository has the blob, or gets it from another one of the same registry.
    ///
    /// # Errors
    /// When the registry does not say.
    pub fn has(&self, id: BlobId, from: Option<&str>) -> Result<bool, RegistryError> {
        let inner = &self.registry.inner;
        self.registry.wait(async {
            if inner.exists(id).await? {
                return Ok(true);
            }
            match from {
                Some(from) if from != inner.name.repository() => inner.mount(id, from).await,
                _ => Ok(false),
            }
        })
    }

    /// Begins to send a blob that has this id.
    ///
    /// # Errors
    /// When an earlier one could not be sent.
    pub fn push(&mut self, id: BlobId, blob: Blob) -> Result<(), RegistryError> {
        self.spawn(Job::Whole(id, Outgoing::ours(blob)))
    }

    /// Begins to send a blob from elsewhere, which is checked on its way.
    ///
    /// # Errors
    /// When an earlier one could not be sent.
    pub fn pass_on(&mut self, id: BlobId, supply: Arc<dyn Supply>) -> Result<(), RegistryError> {
        self.spawn(Job::Whole(id, Outgoing::passed_on(id, supply)))
    }

    fn spawn(&mut self, job: Job) -> Result<(), RegistryError> {
        self.settle(JoinHandle::is_finished)?;
        let inner = Arc::clone(&self.registry.inner);
        let stop = self.stop.clone();
        let task = async move { inner.upload(job, &stop).await };
        self.tasks.push(self.registry.runtime().spawn(task));
        Ok(())
    }

    /// Waits until all blobs are there.
    ///
    /// # Errors
    /// The first failure, in the order in which they were begun.
    pub fn finish(&mut self) -> Result<(), RegistryError> {
        self.settle(|_| true)
    }

    fn settle(
        &mut self,
        is_due: impl Fn(&JoinHandle<Result<(), RegistryError>>) -> bool,
    ) -> Result<(), RegistryError> {
        let (due, others) = std::mem::take(&mut self.tasks)
            .into_iter()
            .partition(is_due);
        self.tasks = others;
        let mut due: Vec<_> = due;
        due.reverse();
        while let Some(task) = due.pop() {
            let ended = self.registry.runtime().block_on(task);
            let ended = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            if ended.is_err() {
                self.tasks.extend(due);
                return ended;
            }
        }
        Ok(())
    }

    /// Puts a manifest or index under its digest, or under `tag`. All that it names must be there.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn put_manifest(
        &self,
        bytes: &[u8],
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<(), RegistryError> {
        let inner = &self.registry.inner;
        let put = inner.put_manifest(bytes, media_type, tag);
        self.registry.wait(put).map(|_| ())
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut self.tasks);
        self.registry.runtime().block_on(async {
            for task in tasks {
                // Whatever became of it, a failure is being reported already.
                let _ = tokio::time::timeout(LAST_WORDS, task).await;
            }
        });
    }
}

/// What a task sends.
enum Job {
    Whole(BlobId, Outgoing),
    Growing(Arc<File>, Receiver<Made>),
}

/// An upload that the registry knows of.
#[derive(Default)]
struct Session {
    url: Option<Url>,
    /// How far it has come, where the registry need not be asked.
    at_bytes: Option<u64>,
    /// Whether what is there may be continued.
    goes_on: bool,
}

impl Inner {
    async fn exists(&self, id: BlobId) -> Result<bool, RegistryError> {
        let url = self.url(&format!("blobs/{}", id.digest));
        match self.send(&self.call("asking for", Method::HEAD, url)).await {
            Ok(_) => Ok(true),
            Err(RegistryError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn mount(&self, id: BlobId, from: &str) -> Result<bool, RegistryError> {
        let mut url = self.url("blobs/uploads/");
        url.query_pairs_mut()
            .append_pair("mount", &id.digest.to_string())
            .append_pair("from", from);
        let mut scopes = self.scopes.clone();
        scopes.push(scope(from, "pull"));
        let call = Call {
            scopes: &scopes,
            ..self.call("mounting a blob in", Method::POST, url.clone())
        };
        match self.send(&call).await {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(true),
            Ok(response) => {
                // It has begun an upload instead.
                if let Some(url) = self.server.transport.location(&url, &response)? {
                    self.abandon(url).await;
                }
                Ok(false)
            }
            Err(error @ RegistryError::Cancelled(_)) => Err(error),
            // Mounting spares work; what cannot be mounted is sent.
            Err(error) => {
                tracing::debug!("{} is not mounted from {from}: {error}", id.digest);
                Ok(false)
            }
        }
    }

    /// Does the job, and lets the registry forget what is left of its session then.
    async fn upload(&self, job: Job, stop: &Cancel) -> Result<(), RegistryError> {
        let mut session = Session::default();
        let send = async {
            match job {
                Job::Whole(id, outgoing) => {
                    let _permit = self.permits.acquire().await;
                    self.send_blob(id, &outgoing, &mut session).await
                }
                Job::Growing(file, made) => self.send_growing(&file, made, &mut session).await,
            }
        };
        let sent = tokio::select! {
            sent = send => sent,
            cancelled = interrupted(&self.cancel) => Err(cancelled.into()),
            cancelled = interrupted(stop) => Err(cancelled.into()),
        };
        self.give_up(&mut session).await;
        sent
    }

    /// Sends a blob unless it is there. A session that is left was of no use.
    async fn send_blob(
        &self,
        id: BlobId,
        outgoing: &Outgoing,
        session: &mut Session,
    ) -> Result<(), RegistryError> {
        let mut failures = Failures::new(self.retry, &self.cancel);
        let mut reached_bytes = 0;
        loop {
            if self.exists(id).await? {
                return Ok(());
            }
            let before = reached_bytes;
            let sent = self.try_send(id.digest, outgoing, session, &mut reached_bytes);
            let Err(failure) = sent.await else {
                session.url = None;
                return Ok(());
            };
            if let Some(source) = outgoing.take_failure() {
                return Err(RegistryError::Unreadable {
                    digest: id.digest,
                    source,
                });
            }
            if reached_bytes > before {
                failures.forget();
            }
            session.goes_on = true;
            failures.wait(failure).await?;
        }
    }

    async fn try_send(
        &self,
        digest: Digest,
        outgoing: &Outgoing,
        session: &mut Session,
        reached_bytes: &mut u64,
    ) -> Result<(), RegistryError> {
        let len_bytes = outgoing.len_bytes();
        let (mut url, mut offset_bytes) = self.resume(session).await?;
        let goes_on = session.goes_on && offset_bytes <= outgoing.seen_bytes();
        if goes_on && !self.refuses_chunks.load(Ordering::Relaxed) && len_bytes > 0 {
            while offset_bytes < len_bytes {
                *reached_bytes = (*reached_bytes).max(offset_bytes);
                let part = UploadBody::new(outgoing, offset_bytes, self.part_bytes);
                match self.send_part(&url, &part, offset_bytes).await {
                    Ok(next) => url = next,
                    Err(error) if self.refuses_parts(&error) => {
                        self.give_up(session).await;
                        let (url, _) = self.resume(session).await?;
                        let whole = UploadBody::whole(outgoing);
                        return self.send_whole(&url, digest, &whole).await;
                    }
                    Err(error) => return Err(error),
                }
                session.url = Some(url.clone());
                offset_bytes += part.len_bytes();
            }
            let nothing = UploadBody::new(outgoing, len_bytes, 0);
            return self.send_whole(&url, digest, &nothing).await;
        }
        if offset_bytes > 0 {
            // What is there cannot be continued.
            self.give_up(session).await;
            (url, _) = self.resume(session).await?;
        }
        let whole = UploadBody::whole(outgoing);
        self.send_whole(&url, digest, &whole).await
    }

    /// The session's upload, begun if there is none, and how far it has come in bytes.
    async fn resume(&self, session: &mut Session) -> Result<(Url, u64), RegistryError> {
        let (url, at_bytes) = match (session.url.clone(), session.at_bytes.take()) {
            (Some(url), Some(at_bytes)) => (url, at_bytes),
            (Some(url), None) => self.stand(url).await?,
            (None, _) => (self.begin().await?, 0),
        };
        session.url = Some(url.clone());
        Ok((url, at_bytes))
    }

    /// Lets the registry forget the session's upload, if there is one.
    async fn give_up(&self, session: &mut Session) {
        session.at_bytes = None;
        if let Some(url) = session.url.take() {
            self.abandon(url).await;
        }
    }

    /// Whether it is parts as such that the registry does not want; then it gets no more of them.
    fn refuses_parts(&self, error: &RegistryError) -> bool {
        let RegistryError::Status { status, .. } = *error else {
            return false;
        };
        let is_refusal = (400..500).contains(&status)
            && !matches!(status, 401 | 403 | 408 | 425 | 429)
            || status == 501;
        if is_refusal {
            tracing::debug!("the registry refuses parts of a blob: {status}");
            self.refuses_chunks.store(true, Ordering::Relaxed);
        }
        is_refusal
    }

    /// A new upload.
    async fn begin(&self) -> Result<Url, RegistryError> {
        let url = self.url("blobs/uploads/");
        let mut call = self.call("uploading to", Method::POST, url.clone());
        let nothing = HeaderValue::from_static("0");
        call.headers.insert(CONTENT_LENGTH, nothing);
        let response = self.server.transport.send(&call).await?;
        let location = self.server.transport.location(&url, &response)?;
        location.ok_or_else(|| RegistryError::Answer {
            url: shown(&url),
            reason: "it does not say where to upload to".to_owned(),
        })
    }

    /// How far an upload has come, in bytes; a new one if the registry has forgotten it.
    async fn stand(&self, url: Url) -> Result<(Url, u64), RegistryError> {
        let call = self.call("asking for", Method::GET, url.clone());
        match self.server.transport.send(&call).await {
            Ok(response) => {
                let range = response.headers().get(RANGE);
                let range = range.and_then(|range| range.to_str().ok());
                let offset_bytes = range.and_then(end_of_range).unwrap_or(0);
                let next = self.server.transport.location(&url, &response)?;
                Ok((next.unwrap_or(url), offset_bytes))
            }
            Err(error) if error.is_passing() => Err(error),
            Err(_) => Ok((self.begin().await?, 0)),
        }
    }

    async fn send_part(
        &self,
        url: &Url,
        part: &UploadBody,
        at_bytes: u64,
    ) -> Result<Url, RegistryError> {
        let last = at_bytes + part.len_bytes() - 1;
        let mut call = self.call("uploading to", Method::PATCH, url.clone());
        call.body = Some(part);
        let octets = HeaderValue::from_static("application/octet-stream");
        call.headers.insert(CONTENT_TYPE, octets);
        // The specification's own form, without a unit.
        let range = HeaderValue::from_str(&format!("{at_bytes}-{last}"));
        call.headers
            .extend(range.ok().map(|range| (CONTENT_RANGE, range)));
        let response = self.server.transport.send(&call).await?;
        let next = self.server.transport.location(url, &response)?;
        Ok(next.unwrap_or_else(|| url.clone()))
    }

    /// Sends the whole, or nothing if all parts are there, and ends the upload.
    async fn send_whole(
        &self,
        url: &Url,
        digest: Digest,
        body: &UploadBody,
    ) -> Result<(), RegistryError> {
        let mut url = url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let mut call = self.call("uploading to", Method::PUT, url);
        call.body = Some(body);
        let octets = HeaderValue::from_static("application/octet-stream");
        call.headers.insert(CONTENT_TYPE, octets);
        match self.server.transport.send(&call).await {
            Ok(_) => Ok(()),
            // The upload is unknown there: a new one may do.
            Err(RegistryError::Missing { url }) => Err(RegistryError::Status {
                operation: "uploading to",
                url,
                status: 503,
                message: "the upload is forgotten".to_owned(),
                retry_after: None,
            }),
            Err(error) => Err(error),
        }
    }

    /// Lets the registry forget an upload, if it will.
    async fn abandon(&self, url: Url) {
        let call = self.call("giving up", Method::DELETE, url);
        let _ = tokio::time::timeout(LAST_WORDS, self.server.transport.send(&call)).await;
    }
}

/// Bytes that are there, of the range that an upload's status gives. Of one byte, and of none, the same is
/// said; none is safe.
fn end_of_range(range: &str) -> Option<u64> {
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (_, last) = range.split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

#[cfg(test)]
mod tests {
    use super::end_of_range;

    #[test]
    fn the_stand_of_an_upload_is_read() {
        assert_eq!(end_of_range("0-0"), Some(0));
        assert_eq!(end_of_range("0-1023"), Some(1024));
        assert_eq!(end_of_range("bytes=0-9"), Some(10));
        assert_eq!(end_of_range("x"), None);
        assert_eq!(end_of_range("0-"), None);
    }
}
