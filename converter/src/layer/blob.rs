//! The blob on its way out: hashed and written on a thread of its own, behind the assembler.

use std::io::{self, Write};
use std::thread::{Scope, ScopedJoinHandle};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::image::{BlobId, Hasher};
use crate::layer::buffers::Buffers;

/// Parts that wait to be written.
const QUEUE: usize = 2;
/// Parts that are held at once: those, one that is being written, and one that waits for room.
pub(super) const HELD_PARTS: u64 = QUEUE as u64 + 2;

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

/// A run of the blob: the start of a buffer that may be longer.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) buffer: Vec<u8>,
    pub(super) len_bytes: usize,
}

/// Takes the parts of a blob in order.
pub(super) struct BlobWriter<'scope> {
    parts: Sender<Part>,
    thread: ScopedJoinHandle<'scope, Result<BlobId, WriteError>>,
}

impl<'scope> BlobWriter<'scope> {
    /// Starts the thread; buffers of written parts go to `buffers`.
    pub(super) fn start<'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        out: impl Write + Send + 'scope,
        buffers: &'scope Buffers,
    ) -> Self {
        let (parts, receiver) = bounded(QUEUE);
        let thread = scope.spawn(move || write(out, &receiver, buffers));
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
    buffers: &Buffers,
) -> Result<BlobId, WriteError> {
    let mut hasher = Hasher::default();
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
        hasher.update(bytes);
        size_bytes += bytes.len() as u64;
        buffers.give_back(part.buffer);
    }
    out.flush().map_err(failed(size_bytes))?;
    Ok(BlobId {
        digest: hasher.finish(),
        size_bytes,
    })
}
