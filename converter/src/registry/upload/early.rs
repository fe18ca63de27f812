//! A blob that is sent while it is being made.
//!
//! Its parts go as soon as they are complete, the rest when its digest is known. Should the repository turn
//! out to have it then, or the blob come to nothing, the registry is told to forget what it got. Whatever
//! goes wrong before the end costs no more than that: the blob is sent, or goes on, when it is whole.

use std::fs::File;
use std::sync::Arc;

use reqwest::Method;
use tokio::sync::watch;

use crate::blob::Blob;
use crate::image::BlobId;
use crate::registry::retry::Failures;
use crate::registry::transport::{read_small, shown};
use crate::registry::upload::{Job, Session, Uploads};
use crate::registry::upload_body::{Outgoing, UploadBody};
use crate::registry::{Early, Inner, RegistryError};

/// A list of tags that is longer has one.
const MAX_TAGS_BYTES: usize = 64 << 10;

/// Says how far a blob is made. Dropped, it will not be.
#[derive(Debug)]
pub struct EarlyUpload {
    made: watch::Sender<Made>,
}

/// What there is of a blob.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made {
    len_bytes: u64,
    /// When it is whole.
    id: Option<BlobId>,
}

impl EarlyUpload {
    /// So many bytes, from the first on, stay as they are in the file.
    pub fn grown_to(&self, len_bytes: u64) {
        self.made.send_modify(|made| made.len_bytes = len_bytes);
    }

    /// The blob is whole.
    pub fn finish(self, id: BlobId) {
        self.made.send_modify(|made| made.id = Some(id));
    }
}

impl Uploads {
    /// Whether blobs are to be sent while they are made. Asks the registry, if it has to.
    pub fn are_early(&self, when: Early) -> bool {
        match when {
            Early::Always => true,
            Early::Never => false,
            Early::NewRepository => {
                let has_tags = self.registry.wait(self.registry.inner.has_tags());
                has_tags.is_ok_and(|has_tags| !has_tags)
            }
        }
    }

    /// Begins to send the blob that is being written to `file`.
    ///
    /// # Errors
    /// When an earlier one could not be sent.
    pub fn begin_early(&mut self, file: Arc<File>) -> Result<EarlyUpload, RegistryError> {
        let (sender, made) = watch::channel(Made::default());
        self.spawn(Job::Growing(file, made))?;
        Ok(EarlyUpload { made: sender })
    }
}

impl Inner {
    /// Whether the repository has a tag (OCI distribution specification, "Listing Tags"). It is asked once:
    /// whatever is wrong shows when something is sent.
    async fn has_tags(&self) -> Result<bool, RegistryError> {
        let mut url = self.url("tags/list");
        url.query_pairs_mut().append_pair("n", "1");
        let call = self.call("listing the tags of", Method::GET, url);
        let response = match self.server.transport.send(&call).await {
            Ok(response) => response,
            Err(RegistryError::Missing { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let text = read_small(call.operation, &call.url, response, MAX_TAGS_BYTES).await?;
        let Some(text) = text else {
            return Ok(true);
        };
        let list: serde_json::Value =
            serde_json::from_slice(&text).map_err(|_| RegistryError::Answer {
                url: shown(&call.url),
                reason: "it is no list of tags".to_owned(),
            })?;
        // Some say null for none.
        Ok(list["tags"].as_array().is_some_and(|tags| !tags.is_empty()))
    }

    /// Sends the parts of the blob in `file` as they are `made`, and ends the upload when it is whole.
    pub(super) async fn send_growing(
        &self,
        file: &Arc<File>,
        mut made: watch::Receiver<Made>,
        session: &mut Session,
    ) -> Result<(), RegistryError> {
        let has_part = |made: &Made, at_bytes: u64| made.len_bytes >= at_bytes + self.part_bytes;
        if made
            .wait_for(|made| made.id.is_some() || has_part(made, 0))
            .await
            .is_err()
        {
            return Ok(());
        }
        let _permit = self.permits.acquire().await;
        let mut failures = Failures::new(self.retry, &self.cancel);
        let mut sent_bytes = 0;
        let mut goes_on = true;
        let id = loop {
            let is_due = |made: &Made| made.id.is_some() || (goes_on && has_part(made, sent_bytes));
            let Ok(now) = made.wait_for(is_due).await.map(|made| *made) else {
                return Ok(());
            };
            if let Some(id) = now.id {
                break id;
            }
            let outgoing = Outgoing::ours(Blob::in_file(Arc::clone(file), 0, now.len_bytes));
            match self.send_next(&outgoing, session).await {
                Ok(at_bytes) => {
                    sent_bytes = at_bytes;
                    failures.forget();
                }
                Err(error) if self.refuses_parts(&error) => {
                    self.give_up(session).await;
                    goes_on = false;
                }
                // It is read again in the end, and then that is reported.
                Err(_) if outgoing.take_failure().is_some() => goes_on = false,
                Err(error) => match failures.wait(error).await {
                    Ok(()) => {}
                    Err(error @ RegistryError::Cancelled(_)) => return Err(error),
                    Err(error) => {
                        tracing::debug!("a blob is not sent before it is whole: {error}");
                        goes_on = false;
                    }
                },
            }
        };
        let outgoing = Outgoing::ours(Blob::in_file(Arc::clone(file), 0, id.size_bytes));
        self.send_blob(id, &outgoing, session).await
    }

    /// Sends the next part of what there is. Gives how far the upload has come then, in bytes.
    async fn send_next(
        &self,
        outgoing: &Outgoing,
        session: &mut Session,
    ) -> Result<u64, RegistryError> {
        let (mut url, mut at_bytes) = self.resume(session).await?;
        if at_bytes > outgoing.len_bytes() {
            // That cannot be ours.
            self.give_up(session).await;
            (url, at_bytes) = self.resume(session).await?;
        }
        let part = UploadBody::new(outgoing, at_bytes, self.part_bytes);
        if part.len_bytes() > 0 {
            url = self.send_part(&url, &part, at_bytes).await?;
            at_bytes += part.len_bytes();
        }
        session.url = Some(url);
        session.at_bytes = Some(at_bytes);
        session.goes_on = true;
        Ok(at_bytes)
    }
}
