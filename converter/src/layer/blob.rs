//! The blob on its way out: written on a thread of its own, behind the assembler, and then hashed.

use std::io::{self, Write};
use std::thread::{Scope, ScopedJoinHandle};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::image::BlobId;
use crate::layer::blob_hash::{BlobHasher, HASHED_PARTS, Part};

/// Parts that wait to be written.
const QUEUE: usize = 1;
/// Parts that are held at once: those, one that waits for room, and those that are being hashed, one of
/// which may still be waiting to be.
pub(super) const HELD_PARTS: u64 = QUEUE as u64 + 1 + HASHED_PARTS;

/// Writing failed.
#[derive(Debug, thiserror::Error)]
#[error("writing at offset {offset_bytes}")]
pub struct WriteError {
    /// Offset in the blob.
    pub offset_bytes: u64,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Takes the parts of a blob in order.
pub(super) struct BlobWriter<'scope> {
    parts: Sender<Part>,
    thread: ScopedJoinHandle<'scope, Result<BlobId, WriteError>>,
}

impl<'scope> BlobWriter<'scope> {
    /// Starts the thread; what is written goes to `hasher`.
    pub(super) fn start<'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        out: impl Write + Send + 'scope,
        hasher: BlobHasher,
    ) -> Self {
        let (parts, receiver) = bounded(QUEUE);
        let thread = scope.spawn(move || write(out, &receiver, hasher));
        Self { parts, thread }
    }

    /// Hands `part` over. `false` if writing has failed: [`BlobWriter::finish`] says how.
    pub(super) fn send(&self, part: Part) -> bool {
        self.parts.send(part).is_ok()
    }

    /// Waits until everything is written.
    pub(super) fn finish(self) -> Result<BlobId, WriteError> {
        drop(self.parts);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn write(
    mut out: impl Write,
    parts: &Receiver<Part>,
    hasher: BlobHasher,
) -> Result<BlobId, WriteError> {
    let mut size_bytes = 0;
    let failed = |offset_bytes| {
        move |source| WriteError {
            offset_bytes,
            source,
        }
    };
    for part in parts {
        let bytes = &part.buffer[..part.len_bytes];
        out.write_all(bytes).map_err(failed(size_bytes))?;
        size_bytes += bytes.len() as u64;
        hasher.take(part);
    }
    out.flush().map_err(failed(size_bytes))?;
    Ok(BlobId {
        digest: hasher.finish(),
        size_bytes,
    })
}
