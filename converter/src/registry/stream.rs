//! A blob on its way through: from the registry to whoever reads, kept nowhere.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use reqwest::header::{HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, channel};

use crate::blob::{NotArrived, ReadAt, Supply};
use crate::image::BlobId;
use crate::registry::download::{Progress, Taker};
use crate::registry::endpoint::Endpoint;
use crate::registry::retry::{Failures, interrupted};
use crate::registry::transport::{read_small, shown};
use crate::registry::{Inner, Registry, RegistryError};

/// Answers of the network that wait for the reader; each has some hundred kilobytes at most.
const QUEUE: usize = 8;

/// A blob of a registry that is passed on. Good as long as the registry it is from.
pub struct RemoteBlob {
    inner: Arc<Inner>,
    runtime: Handle,
    id: BlobId,
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.id.digest, self.inner.name)
    }
}

impl Registry {
    /// A blob to be passed on. Nothing is asked of the registry yet.
    pub fn remote(&self, id: BlobId) -> RemoteBlob {
        RemoteBlob {
            inner: Arc::clone(&self.inner),
            runtime: self.runtime().handle().clone(),
            id,
        }
    }
}

impl ReadAt for RemoteBlob {
    fn len_bytes(&self) -> u64 {
        self.id.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let end = offset_bytes.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.id.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let range = self.inner.range(self.id, offset_bytes, buffer.len());
        let bytes = self.runtime.block_on(async {
            tokio::select! {
                bytes = range => bytes,
                cancelled = interrupted(&self.inner.cancel) => Err(cancelled.into()),
            }
        });
        buffer.copy_from_slice(&bytes.map_err(io::Error::other)?);
        Ok(())
    }
}

impl Supply for RemoteBlob {
    fn open_at(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        let (sender, receiver) = channel(QUEUE);
        let (inner, id) = (Arc::clone(&self.inner), self.id);
        self.runtime.spawn(async move {
            let (progress, taker) = (Progress::from(offset_bytes), Taker::Reader(&sender));
            let outcome = tokio::select! {
                outcome = inner.download(id, &taker, progress) => outcome,
                cancelled = interrupted(&inner.cancel) => Err(cancelled.into()),
            };
            if let Err(failure) = outcome {
                // A reader that has gone away does not want to know.
                let _ = sender.send(Err(failure)).await;
            }
        });
        Ok(Box::new(RemoteReader {
            receiver,
            current: Bytes::new(),
            left_bytes: self.id.size_bytes.saturating_sub(offset_bytes),
        }))
    }
}

/// The stream.
struct RemoteReader {
    receiver: Receiver<Result<Bytes, RegistryError>>,
    current: Bytes,
    left_bytes: u64,
}

impl Read for RemoteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && self.left_bytes > 0 {
            match self.receiver.blocking_recv() {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(failure)) => return Err(io::Error::other(NotArrived::new(failure))),
                None => return Err(io::Error::other("the transfer was stopped")),
            }
        }
        let len = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..len]);
        self.left_bytes -= len as u64;
        Ok(len)
    }
}

impl Inner {
    /// A stretch of a blob, in one answer; from a mirror if one has it.
    async fn range(
        &self,
        id: BlobId,
        offset_bytes: u64,
        len: usize,
    ) -> Result<Vec<u8>, RegistryError> {
        let mirrors = self.mirrors.iter().filter(|mirror| mirror.serves_digests());
        for mirror in mirrors {
            match self.range_of(mirror, id, offset_bytes, len).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => mirror.failed(failure).map_or(Ok(()), Err)?,
            }
        }
        let mut failures = Failures::new(self.retry, &self.cancel);
        loop {
            match self.range_of(&self.server, id, offset_bytes, len).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failures.wait(failure).await?,
            }
        }
    }

    async fn range_of(
        &self,
        endpoint: &Endpoint,
        id: BlobId,
        offset_bytes: u64,
        len: usize,
    ) -> Result<Vec<u8>, RegistryError> {
        const OPERATION: &str = "reading";
        let url = endpoint.url(self.name.repository(), &format!("blobs/{}", id.digest));
        let mut call = self.call(OPERATION, Method::GET, url.clone());
        let last = offset_bytes + (len as u64).saturating_sub(1);
        let range = HeaderValue::from_str(&format!("bytes={offset_bytes}-{last}"));
        call.headers.extend(range.ok().map(|range| (RANGE, range)));
        let response = endpoint.transport.send(&call).await?;
        let bad = |reason: &str| RegistryError::Answer {
            url: shown(&url),
            reason: reason.to_owned(),
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(bad("it does not send a part of a blob"));
        }
        let bytes = read_small(OPERATION, &url, response, len).await?;
        bytes
            .filter(|bytes| bytes.len() == len)
            .ok_or_else(|| bad("it sends another range than was asked for"))
    }
}
