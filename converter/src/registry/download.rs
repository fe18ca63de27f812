//! Manifests and blobs on their way here.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc::Sender;

use crate::blob::{Arrival, Arriving};
use crate::cancel::Cancelled;
use crate::image::manifest::{ARTIFACT_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST};
use crate::image::{BlobId, Digest, Hasher};
use crate::registry::endpoint::Endpoint;
use crate::registry::retry::{Failures, Retry, interrupted};
use crate::registry::transport::{next_bytes, read_small, shown};
use crate::registry::{Inner, Registry, RegistryError};

/// Registries refuse larger ones.
const MAX_MANIFEST_BYTES: usize = 8 << 20;
/// After so much the connection counts as one that works.
const PROGRESS_BYTES: u64 = 256 << 10;
pub(super) const CONTENT_DIGEST: &str = "docker-content-digest";

/// A manifest or an index, whose digest has been checked.
#[derive(Clone, Debug)]
pub struct PulledManifest {
    /// The document.
    pub bytes: Vec<u8>,
    /// What it is.
    pub media_type: String,
    /// Its digest and size.
    pub id: BlobId,
}

/// Who compares the digest of a blob with what it should be. Its length is compared on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The download: readers get the last byte when it is right.
    Here,
    /// Whoever reads it, as it reads all of it and hashes that anyway.
    ByReader,
}

impl Registry {
    /// Reads the manifest or index with this tag or digest.
    ///
    /// # Errors
    /// [`RegistryError::Missing`] if there is none; when it is not what was asked for.
    pub fn manifest(&self, reference: &str) -> Result<PulledManifest, RegistryError> {
        self.wait(self.inner.manifest(reference))
    }

    /// Begins to fetch a blob into the scratch directory.
    ///
    /// # Errors
    /// When there can be no file in the scratch directory.
    pub fn blob(&self, id: BlobId, check: Check) -> Result<Arc<Arriving>, RegistryError> {
        let inner = Arc::clone(&self.inner);
        let file = tempfile::tempfile_in(&inner.scratch);
        let file = file.map_err(|source| inner.scratch_error(source))?;
        let (arriving, arrival) = Arriving::new(file, id.size_bytes);
        self.runtime().spawn(async move {
            let taker = Taker::Arrival(&arrival, check);
            let outcome = tokio::select! {
                outcome = inner.download(id, &taker, Progress::default()) => outcome,
                cancelled = interrupted(&inner.cancel) => Err(cancelled.into()),
            };
            arrival.finish(outcome);
        });
        Ok(arriving)
    }
}

/// How far a blob has come.
#[derive(Default)]
pub(super) struct Progress {
    bytes: u64,
    hasher: Hasher,
}

impl Progress {
    /// What is before `bytes` is not wanted.
    pub(super) fn from(bytes: u64) -> Self {
        Self {
            bytes,
            hasher: Hasher::default(),
        }
    }
}

/// Who takes the bytes of a blob.
pub(super) enum Taker<'a> {
    /// A file, and its readers.
    Arrival(&'a Arrival, Check),
    /// A reader, who checks them.
    Reader(&'a Sender<Result<Bytes, RegistryError>>),
}

impl Inner {
    async fn manifest(&self, reference: &str) -> Result<PulledManifest, RegistryError> {
        let is_digest = reference.parse::<Digest>().is_ok();
        for mirror in &self.mirrors {
            let is_of_use = mirror.serves_tags() || is_digest && mirror.serves_digests();
            if !is_of_use {
                continue;
            }
            match self.manifest_of(mirror, reference, Retry::NEVER).await {
                Ok((manifest, _)) => return Ok(manifest),
                Err(failure) => mirror.failed(failure).map_or(Ok(()), Err)?,
            }
        }
        let found = self.manifest_of(&self.server, reference, self.retry);
        Ok(found.await?.0)
    }

    /// The manifest, and the headers of the answer.
    pub(super) async fn manifest_of(
        &self,
        endpoint: &Endpoint,
        reference: &str,
        retry: Retry,
    ) -> Result<(PulledManifest, HeaderMap), RegistryError> {
        const OPERATION: &str = "reading";
        let path = format!("manifests/{reference}");
        let url = endpoint.url(self.name.repository(), &path);
        let mut call = self.call(OPERATION, Method::GET, url.clone());
        let kinds = [
            INDEX,
            MANIFEST,
            DOCKER_LIST,
            DOCKER_MANIFEST,
            ARTIFACT_MANIFEST,
            "*/*",
        ];
        let kinds = HeaderValue::from_str(&kinds.join(", "));
        call.headers.extend(kinds.ok().map(|kinds| (ACCEPT, kinds)));
        let bad = |reason: &str| RegistryError::Answer {
            url: shown(&url),
            reason: reason.to_owned(),
        };
        let mut failures = Failures::new(retry, &self.cancel);
        let (headers, bytes) = loop {
            let whole = async {
                let response = endpoint.transport.send(&call).await?;
                let headers = response.headers().clone();
                let bytes = read_small(OPERATION, &url, response, MAX_MANIFEST_BYTES).await?;
                let bytes = bytes.ok_or_else(|| bad("the manifest is longer than 8 MiB"))?;
                Ok((headers, bytes))
            };
            match whole.await {
                Ok(whole) => break whole,
                Err(failure) => failures.wait(failure).await?,
            }
        };
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let id = BlobId::of(&bytes);
        // A tag means what the registry says that it means; a digest means itself.
        let expected: Option<Digest> = match reference.parse() {
            Ok(digest) => Some(digest),
            Err(_) => header(CONTENT_DIGEST).and_then(|text| text.parse().ok()),
        };
        if let Some(expected) = expected.filter(|expected| *expected != id.digest) {
            return Err(RegistryError::Digest {
                url: shown(&url),
                expected,
                found: id.digest,
            });
        }
        let stated = header(CONTENT_TYPE.as_str());
        let stated = stated
            .and_then(|text| text.split(';').next())
            .map(str::trim);
        let own: Option<Value> = serde_json::from_slice(&bytes).ok();
        let own = own.and_then(|json| json.get("mediaType")?.as_str().map(str::to_owned));
        let media_type = own.or(stated.map(str::to_owned)).unwrap_or_default();
        let manifest = PulledManifest {
            bytes,
            media_type,
            id,
        };
        Ok((manifest, headers))
    }

    /// Fetches what is missing of a blob.
    pub(super) async fn download(
        &self,
        id: BlobId,
        taker: &Taker<'_>,
        mut progress: Progress,
    ) -> Result<(), RegistryError> {
        let _permit = self.permits.acquire().await;
        let mut failures = Failures::new(self.retry, &self.cancel);
        let mut mirrors = self.mirrors.iter().filter(|mirror| mirror.serves_digests());
        let mut mirror = mirrors.next();
        loop {
            let before = progress.bytes;
            let endpoint = mirror.unwrap_or(&self.server);
            let gone_on = self.go_on(endpoint, id, taker, &mut progress).await;
            match (gone_on, mirror) {
                (Ok(()), _) => break,
                // The next goes on where it ended.
                (Err(failure), Some(failed)) => {
                    failed.failed(failure).map_or(Ok(()), Err)?;
                    mirror = mirrors.next();
                }
                (Err(failure), None) => {
                    if progress.bytes - before >= PROGRESS_BYTES {
                        failures.forget();
                    }
                    failures.wait(failure).await?;
                }
            }
        }
        if let Taker::Reader(_) | Taker::Arrival(_, Check::ByReader) = taker {
            return Ok(());
        }
        let found = BlobId {
            digest: progress.hasher.finish(),
            size_bytes: progress.bytes,
        };
        if found == id {
            Ok(())
        } else {
            let endpoint = mirror.unwrap_or(&self.server);
            Err(self.damaged(endpoint, id, found))
        }
    }

    fn damaged(&self, endpoint: &Endpoint, expected: BlobId, found: BlobId) -> RegistryError {
        let path = format!("blobs/{}", expected.digest);
        RegistryError::Damaged {
            url: shown(&endpoint.url(self.name.repository(), &path)),
            expected,
            found,
        }
    }

    /// Fetches what is missing, in one request.
    async fn go_on(
        &self,
        endpoint: &Endpoint,
        id: BlobId,
        taker: &Taker<'_>,
        progress: &mut Progress,
    ) -> Result<(), RegistryError> {
        const OPERATION: &str = "reading";
        let path = format!("blobs/{}", id.digest);
        let url = endpoint.url(self.name.repository(), &path);
        let mut call = self.call(OPERATION, Method::GET, url.clone());
        if progress.bytes > 0 {
            if progress.bytes == id.size_bytes {
                return Ok(());
            }
            let range = HeaderValue::from_str(&format!("bytes={}-", progress.bytes));
            call.headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let mut response = endpoint.transport.send(&call).await?;
        if let Taker::Arrival(arrival, _) = taker {
            arrival.begin();
        }
        let mut skipped = 0;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE);
            let range = range.and_then(|range| range.to_str().ok());
            if range.and_then(first_byte) != Some(progress.bytes) {
                return Err(RegistryError::Answer {
                    url: shown(&url),
                    reason: "it sends another range than was asked for".to_owned(),
                });
            }
        } else {
            // It sends everything again.
            skipped = progress.bytes;
        }
        while let Some(bytes) = next_bytes(OPERATION, &url, &mut response).await? {
            let skip = skipped.min(bytes.len() as u64);
            skipped -= skip;
            let bytes = bytes.slice(usize::try_from(skip).unwrap_or(0)..);
            if progress.bytes + bytes.len() as u64 > id.size_bytes {
                let found = BlobId {
                    digest: std::mem::take(&mut progress.hasher).finish(),
                    size_bytes: progress.bytes + bytes.len() as u64,
                };
                return Err(self.damaged(endpoint, id, found));
            }
            let len_bytes = bytes.len() as u64;
            match taker {
                Taker::Arrival(arrival, check) => {
                    arrival
                        .write(&bytes, progress.bytes)
                        .map_err(|source| self.scratch_error(source))?;
                    if *check == Check::Here {
                        progress.hasher.update(&bytes);
                    }
                }
                // One that has gone away wants no more.
                Taker::Reader(reader) => {
                    if reader.send(Ok(bytes)).await.is_err() {
                        return Err(Cancelled.into());
                    }
                }
            }
            progress.bytes += len_bytes;
        }
        if progress.bytes < id.size_bytes {
            let cut = "the registry ended the blob early";
            return Err(crate::registry::transport::connection(OPERATION, &url, cut));
        }
        Ok(())
    }

    pub(super) fn scratch_error(&self, source: std::io::Error) -> RegistryError {
        RegistryError::Scratch {
            place: self.name.to_string(),
            scratch: self.scratch.clone(),
            source,
        }
    }
}

/// Of `Content-Range` (RFC 9110, 14.4).
fn first_byte(range: &str) -> Option<u64> {
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::first_byte;

    #[test]
    fn ranges_are_read() {
        assert_eq!(first_byte("bytes 7-9/10"), Some(7));
        assert_eq!(first_byte("bytes 0-0/*"), Some(0));
        for bad in ["", "7-9/10", "bytes */10", "bytes x-9"] {
            assert_eq!(first_byte(bad), None, "{bad}");
        }
    }
}
