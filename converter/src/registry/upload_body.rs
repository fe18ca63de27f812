//! A stretch of a blob as the body of a request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::blob::{Blob, ReadAt as _};

const FRAME_BYTES: u64 = 256 << 10;

/// Bytes to send, from the start of a blob's part.
#[derive(Debug)]
pub(super) struct UploadBody {
    blob: Blob,
    position_bytes: u64,
    /// Of all that [`Self::again`] made, the last.
    sent_bytes: Arc<AtomicU64>,
}

impl UploadBody {
    pub(super) fn new(blob: Blob) -> Self {
        Self {
            blob,
            position_bytes: 0,
            sent_bytes: Arc::default(),
        }
    }

    /// The same bytes from the start.
    pub(super) fn again(&self) -> Self {
        self.sent_bytes.store(0, Ordering::Relaxed);
        Self {
            blob: self.blob.clone(),
            position_bytes: 0,
            sent_bytes: Arc::clone(&self.sent_bytes),
        }
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent_bytes() == self.blob.len_bytes()
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = std::io::Error;

    /// Reads the file where it stands: what a blob's writer wrote just now is in the page cache.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let left = self.blob.len_bytes() - self.position_bytes;
        if left == 0 {
            return Poll::Ready(None);
        }
        let mut bytes = vec![0; usize::try_from(left.min(FRAME_BYTES)).unwrap_or(0)];
        if let Err(error) = self.blob.read_exact_at(&mut bytes, self.position_bytes) {
            return Poll::Ready(Some(Err(error)));
        }
        self.position_bytes += bytes.len() as u64;
        self.sent_bytes
            .store(self.position_bytes, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.position_bytes == self.blob.len_bytes()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.blob.len_bytes() - self.position_bytes)
    }
}
