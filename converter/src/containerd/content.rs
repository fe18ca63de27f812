//! Blobs that containerd has: what they are, and their bytes.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{Info, InfoRequest, ReadContentRequest, UpdateRequest};
use prost_types::FieldMask;
use tonic::Code;
use tonic::transport::Channel;

use crate::blob::{Arrival, Arriving, Blob};
use crate::containerd::call::Failures;
use crate::containerd::{Containerd, ContainerdError, Inner, MESSAGE_BYTES, interrupted};
use crate::image::{BlobId, Digest, Hasher};

/// After this the connection counts as one that works.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What containerd knows of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its length.
    pub size_bytes: u64,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

impl Containerd {
    /// What is known of a blob, which stays from now on until the client ends. `None` if the namespace
    /// does not have it.
    ///
    /// # Errors
    /// When containerd does not say.
    pub fn blob_info(&self, digest: Digest) -> Result<Option<BlobInfo>, ContainerdError> {
        self.wait(self.inner.info(digest))
    }

    /// Opens a blob of the namespace. One that cannot be read from containerd's files begins to arrive in
    /// the scratch directory; its digest is checked at the end. `None` if the namespace does not have it.
    ///
    /// # Errors
    /// When containerd does not say, or there can be no file in the scratch directory.
    pub fn open_blob(&self, digest: Digest) -> Result<Option<Blob>, ContainerdError> {
        let Some(info) = self.blob_info(digest)? else {
            return Ok(None);
        };
        if let Some(blob) = self.inner.open_file(digest, &info) {
            return Ok(Some(blob));
        }
        let inner = Arc::clone(&self.inner);
        let file = tempfile::tempfile_in(&inner.scratch);
        let file = file.map_err(|source| inner.scratch_error(source))?;
        let id = BlobId {
            digest,
            size_bytes: info.size_bytes,
        };
        let (arriving, arrival) = Arriving::new(file, id.size_bytes);
        self.runtime().spawn(async move {
            let outcome = tokio::select! {
                outcome = inner.read(id, &arrival) => outcome,
                cancelled = interrupted(&inner.cancel) => Err(cancelled.into()),
            };
            arrival.finish(outcome);
        });
        Ok(Some(Blob::arriving(arriving)))
    }

    /// Sets labels of a blob; others stay.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn set_labels(
        &self,
        digest: Digest,
        labels: &HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let inner = &self.inner;
        let what = format!("blob {digest}");
        let info = Info {
            digest: digest.to_string(),
            labels: labels.clone(),
            ..Info::default()
        };
        let keys = labels.keys().map(|key| format!("labels.{key}"));
        let paths: Vec<String> = keys.collect();
        if paths.is_empty() {
            return Ok(());
        }
        self.wait(inner.call("labelling", &what, || async {
            let request = UpdateRequest {
                info: Some(info.clone()),
                update_mask: Some(FieldMask {
                    paths: paths.clone(),
                }),
            };
            inner.content().update(inner.request(request)).await
        }))
        .map(|_| ())
    }
}

impl Inner {
    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    pub(super) async fn info(&self, digest: Digest) -> Result<Option<BlobInfo>, ContainerdError> {
        // First held, then looked for: in between it may go.
        self.hold(digest).await?;
        let what = format!("blob {digest}");
        let info = self.call("looking up", &what, || async {
            let digest = digest.to_string();
            self.content()
                .info(self.request(InfoRequest { digest }))
                .await
        });
        let info = match info.await {
            Err(error) if error.code() == Some(Code::NotFound) => return Ok(None),
            info => info?.info,
        };
        let info = info.unwrap_or_default();
        Ok(Some(BlobInfo {
            size_bytes: u64::try_from(info.size).unwrap_or(0),
            labels: info.labels,
        }))
    }

    /// The file may be another's that has the same name here: whoever reads it checks its digest.
    fn open_file(&self, digest: Digest, info: &BlobInfo) -> Option<Blob> {
        let path = self.blobs.as_ref()?.join(digest.hex());
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let is_blob = metadata.is_file() && metadata.len() == info.size_bytes;
        is_blob.then(|| Blob::in_file(Arc::new(file), 0, info.size_bytes))
    }

    async fn read(&self, id: BlobId, arrival: &Arrival) -> Result<(), ContainerdError> {
        let _permit = self.permits.acquire().await;
        arrival.begin();
        let mut failures = Failures::new(&self.cancel);
        let mut hasher = Hasher::default();
        let mut read_bytes = 0;
        loop {
            let before = read_bytes;
            let went = self.go_on(id, arrival, &mut hasher, &mut read_bytes).await;
            let Err(failure) = went else {
                break;
            };
            if read_bytes - before >= PROGRESS_BYTES {
                failures.forget();
            }
            failures.wait(failure).await?;
        }
        let found = BlobId {
            digest: hasher.finish(),
            size_bytes: read_bytes,
        };
        if found == id {
            Ok(())
        } else {
            Err(ContainerdError::Damaged {
                expected: id,
                found,
            })
        }
    }

    /// Reads what is missing, in one call.
    async fn go_on(
        &self,
        id: BlobId,
        arrival: &Arrival,
        hasher: &mut Hasher,
        read_bytes: &mut u64,
    ) -> Result<(), ContainerdError> {
        const OPERATION: &str = "reading";
        let what = format!("blob {}", id.digest);
        if *read_bytes >= id.size_bytes {
            return Ok(());
        }
        let request = ReadContentRequest {
            digest: id.digest.to_string(),
            offset: i64::try_from(*read_bytes).unwrap_or(i64::MAX),
            size: 0,
        };
        let failed = |status| self.error(OPERATION, &what, status);
        let answer = self.content().read(self.request(request)).await;
        let mut parts = answer.map_err(failed)?.into_inner();
        while let Some(part) = parts.message().await.map_err(failed)? {
            let new_bytes = *read_bytes + part.data.len() as u64;
            if u64::try_from(part.offset) != Ok(*read_bytes) || new_bytes > id.size_bytes {
                return Err(ContainerdError::Answer {
                    operation: OPERATION,
                    what,
                    reason: format!(
                        "containerd sends {} bytes at {}, where {read_bytes} of {} are here",
                        part.data.len(),
                        part.offset,
                        id.size_bytes
                    ),
                });
            }
            arrival
                .write(&part.data, *read_bytes)
                .map_err(|source| self.scratch_error(source))?;
            hasher.update(&part.data);
            *read_bytes = new_bytes;
        }
        Ok(())
    }

    pub(super) fn scratch_error(&self, source: std::io::Error) -> ContainerdError {
        ContainerdError::Scratch {
            scratch: self.scratch.clone(),
            source,
        }
    }
}
