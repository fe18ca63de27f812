//! A stretch of a blob as the body of a request.
//!
//! It is read, and checked where that is wanted, by a thread of its own, while what was read before is sent.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::blob::{Blob, ReadAt as _, Supply};
use crate::image::{BlobId, Digest, Hasher};

const FRAME_BYTES: u64 = 1 << 20;
/// Frames that are read and not sent yet.
const QUEUE: usize = 2;

/// A blob that is to be sent, or what there is of it, and what became of reading it.
#[derive(Clone, Debug)]
pub(super) struct Outgoing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    len_bytes: u64,
    supply: Arc<dyn Supply>,
    /// None for a blob that we have made ourselves.
    checked: Option<(Digest, Mutex<Checked>)>,
    failure: Mutex<Option<io::Error>>,
    /// Buffers that were sent.
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// What has been read so far, from the first byte on.
#[derive(Debug, Default)]
struct Checked {
    bytes: u64,
    hasher: Hasher,
}

impl Outgoing {
    /// A blob of ours.
    pub(super) fn ours(blob: Blob) -> Self {
        Self::new(blob.len_bytes(), Arc::new(blob), None)
    }

    /// A blob of somebody else, which is only passed on whole if it has its digest.
    pub(super) fn passed_on(id: BlobId, supply: Arc<dyn Supply>) -> Self {
        let checked = (id.digest, Mutex::default());
        Self::new(id.size_bytes, supply, Some(checked))
    }

    /// Bytes in memory.
    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        Self::ours(Blob::of_bytes(bytes))
    }

    fn new(
        len_bytes: u64,
        supply: Arc<dyn Supply>,
        checked: Option<(Digest, Mutex<Checked>)>,
    ) -> Self {
        Self(Arc::new(Shared {
            len_bytes,
            supply,
            checked,
            failure: Mutex::default(),
            buffers: Mutex::default(),
        }))
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    /// Why it could not be read, if that is so. Then it is no use to send it again.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        lock(&self.0.failure).take()
    }

    /// How far a transfer may go on: what was not seen cannot be checked.
    pub(super) fn seen_bytes(&self) -> u64 {
        match &self.0.checked {
            Some((_, checked)) => lock(checked).bytes,
            None => self.0.len_bytes,
        }
    }

    /// Reads a stretch, frame by frame, until nobody wants more of it.
    fn read(&self, start_bytes: u64, end_bytes: u64, frames: &Sender<io::Result<Bytes>>) {
        let read = || -> io::Result<()> {
            let mut reader = self.0.supply.open_at(start_bytes)?;
            let mut at_bytes = start_bytes;
            while at_bytes < end_bytes {
                let mut buffer = self.buffer();
                let wanted = (end_bytes - at_bytes).min(FRAME_BYTES);
                let wanted = usize::try_from(wanted).unwrap_or(buffer.len());
                reader.read_exact(&mut buffer[..wanted])?;
                self.check(&buffer[..wanted], at_bytes)?;
                at_bytes += wanted as u64;
                let frame = Recycled {
                    outgoing: self.clone(),
                    buffer,
                    len: wanted,
                };
                if frames.blocking_send(Ok(Bytes::from_owner(frame))).is_err() {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            let kind = error.kind();
            lock(&self.0.failure).get_or_insert(error);
            // The request ends early, and the registry keeps nothing.
            let _ = frames.blocking_send(Err(kind.into()));
        }
    }

    /// Takes note of what was read. What is wrong is not given out whole.
    fn check(&self, bytes: &[u8], at_bytes: u64) -> io::Result<()> {
        let Some((digest, checked)) = &self.0.checked else {
            return Ok(());
        };
        let mut checked = lock(checked);
        let known = checked
            .bytes
            .saturating_sub(at_bytes)
            .min(bytes.len() as u64);
        let new = &bytes[usize::try_from(known).unwrap_or(bytes.len())..];
        checked.hasher.update(new);
        checked.bytes += new.len() as u64;
        if new.is_empty() || checked.bytes < self.0.len_bytes {
            return Ok(());
        }
        let found = checked.hasher.clone().finish();
        if found == *digest {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is damaged: it has the digest {found}"),
        ))
    }

    fn buffer(&self) -> Vec<u8> {
        let used = lock(&self.0.buffers).pop();
        let len = FRAME_BYTES.min(self.0.len_bytes);
        used.unwrap_or_else(|| vec![0; usize::try_from(len).unwrap_or(0)])
    }
}

/// A frame, whose buffer is used again: a new one costs its pages.
struct Recycled {
    outgoing: Outgoing,
    buffer: Vec<u8>,
    len: usize,
}

impl AsRef<[u8]> for Recycled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        lock(&self.outgoing.0.buffers).push(buffer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes to send.
#[derive(Debug)]
pub(super) struct UploadBody {
    outgoing: Outgoing,
    start_bytes: u64,
    end_bytes: u64,
    /// Of all that [`Self::again`] made, the last.
    sent_bytes: Arc<AtomicU64>,
    frames: Option<Receiver<io::Result<Bytes>>>,
}

impl UploadBody {
    /// At most `len_bytes` from `start_bytes` on.
    pub(super) fn new(outgoing: &Outgoing, start_bytes: u64, len_bytes: u64) -> Self {
        let end_bytes = start_bytes.saturating_add(len_bytes);
        Self {
            outgoing: outgoing.clone(),
            start_bytes,
            end_bytes: end_bytes.min(outgoing.len_bytes()),
            sent_bytes: Arc::default(),
            frames: None,
        }
    }

    /// The whole.
    pub(super) fn whole(outgoing: &Outgoing) -> Self {
        Self::new(outgoing, 0, u64::MAX)
    }

    /// The same bytes from the start.
    pub(super) fn again(&self) -> Self {
        self.sent_bytes.store(0, Ordering::Relaxed);
        Self {
            outgoing: self.outgoing.clone(),
            start_bytes: self.start_bytes,
            end_bytes: self.end_bytes,
            sent_bytes: Arc::clone(&self.sent_bytes),
            frames: None,
        }
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.end_bytes - self.start_bytes
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent_bytes() == self.len_bytes()
    }

    fn frames(&mut self) -> &mut Receiver<io::Result<Bytes>> {
        self.frames.get_or_insert_with(|| {
            let (sender, receiver) = channel(QUEUE);
            let (outgoing, start, end) = (self.outgoing.clone(), self.start_bytes, self.end_bytes);
            tokio::task::spawn_blocking(move || outgoing.read(start, end, &sender));
            receiver
        })
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let frame = ready!(self.frames().poll_recv(context));
        Poll::Ready(match frame {
            Some(Ok(bytes)) => {
                let len_bytes = bytes.len() as u64;
                self.sent_bytes.fetch_add(len_bytes, Ordering::Relaxed);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => Some(Err(error)),
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_sent()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len_bytes().saturating_sub(self.sent_bytes()))
    }
}
