//! Blobs that come from elsewhere and stay as they are: read once, checked on the way, staged or sent.
//!
//! Whatever the source and the destination are, nothing is kept in between. One thread reads and hashes while
//! another writes; several blobs are under way at once where the destination can take them.

use std::collections::HashSet;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam::channel::bounded;

use crate::blob::Supply;
use crate::cancel::{Cancel, Cancelled};
use crate::image::{BlobId, Hasher};
use crate::sink::{Kind, Sink, SinkError, StagedBlob};

const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that are read and not written yet.
const QUEUE: usize = 3;
/// Blobs that are staged at once.
const PARALLEL_BLOBS: usize = 4;

/// A blob that is passed on, and what it must be.
#[derive(Clone, Debug)]
pub struct PassedOn {
    /// What it must be.
    pub id: BlobId,
    /// Where it is.
    pub supply: Arc<dyn Supply>,
}

/// Why a blob could not be passed on.
#[derive(Debug, thiserror::Error)]
pub enum PassOnError {
    /// It cannot be read.
    #[error("reading blob {}", id.digest)]
    Read {
        /// What it should be.
        id: BlobId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is another.
    #[error("blob {} is damaged: found {} bytes with digest {}, expected {} bytes", id.digest, found.size_bytes, found.digest, id.size_bytes)]
    Damaged {
        /// What it should be.
        id: BlobId,
        /// What it is.
        found: BlobId,
    },
    /// It cannot be written.
    #[error("copying blob {} to {}", id.digest, place.display())]
    Write {
        /// What it is.
        id: BlobId,
        /// The destination.
        place: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination does not take it.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Sink {
    /// Takes over blobs of the source, unless the destination has them. A registry may still be at it
    /// afterwards; what goes wrong then, a later call says.
    ///
    /// # Errors
    /// The first failure, in their order; the others have been stopped.
    pub fn pass_on(&mut self, blobs: &[PassedOn], cancel: &Cancel) -> Result<(), PassOnError> {
        let mut seen = HashSet::new();
        let blobs = blobs.iter().filter(|blob| seen.insert(blob.id.digest));
        let place = self.place().to_owned();
        match &mut self.0 {
            Kind::Registry(sink) => {
                for blob in blobs {
                    if sink.has(blob.id)? {
                        tracing::debug!("{} is at its destination already", blob.id.digest);
                        continue;
                    }
                    sink.pass_on(blob.id, Arc::clone(&blob.supply))?;
                }
            }
            Kind::Archive(sink) => {
                for blob in blobs {
                    let mut staged = sink.stage()?;
                    copy(blob, &mut staged, &[cancel]).map_err(|error| error.at(&place))?;
                    sink.add(blob.id, &staged)?;
                }
            }
            Kind::Layout(sink) => {
                let blobs: Vec<&PassedOn> = blobs.collect();
                let staged = blobs.iter().map(|_| sink.stage());
                let staged = staged.collect::<Result<Vec<_>, _>>()?;
                let staged = copy_all(&blobs, staged, cancel).map_err(|error| error.at(&place))?;
                for (blob, staged) in blobs.iter().zip(staged) {
                    sink.add(blob.id, staged)?;
                }
            }
        }
        Ok(())
    }
}

/// As [`PassOnError`], where the destination is not known.
#[derive(Debug)]
enum Failed {
    Read(BlobId, io::Error),
    Damaged(BlobId, BlobId),
    Write(BlobId, io::Error),
    Cancelled(Cancelled),
}

impl Failed {
    fn at(self, place: &std::path::Path) -> PassOnError {
        match self {
            Self::Read(id, source) => PassOnError::Read { id, source },
            Self::Damaged(id, found) => PassOnError::Damaged { id, found },
            Self::Write(id, source) => PassOnError::Write {
                id,
                place: place.to_owned(),
                source,
            },
            Self::Cancelled(cancelled) => PassOnError::Cancelled(cancelled),
        }
    }
}

/// Copies each blob to its own place.
fn copy_all(
    blobs: &[&PassedOn],
    staged: Vec<StagedBlob>,
    cancel: &Cancel,
) -> Result<Vec<StagedBlob>, Failed> {
    let next = AtomicUsize::new(0);
    let staged: Vec<Mutex<StagedBlob>> = staged.into_iter().map(Mutex::new).collect();
    let failures: Mutex<Vec<(usize, Failed)>> = Mutex::default();
    // Apart from the caller's: a failure here stops only the other blobs.
    let stop = Cancel::default();
    thread::scope(|scope| {
        for _ in 0..PARALLEL_BLOBS.min(blobs.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(blob) = blobs.get(at) else { return };
                    let copied = copy(blob, &mut lock(&staged[at]), &[cancel, &stop]);
                    if let Err(failure) = copied {
                        lock(&failures).push((at, failure));
                        stop.cancel();
                    }
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    cancel.check().map_err(Failed::Cancelled)?;
    // Those that were stopped do not matter.
    let is_own = |failure: &Failed| !matches!(failure, Failed::Cancelled(_));
    let first = failures
        .into_iter()
        .filter(|(_, failure)| is_own(failure))
        .min_by_key(|(at, _)| *at);
    match first {
        Some((_, failure)) => Err(failure),
        None => Ok(staged
            .into_iter()
            .map(|staged| staged.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies a blob and checks what it is.
fn copy(blob: &PassedOn, staged: &mut StagedBlob, cancels: &[&Cancel]) -> Result<(), Failed> {
    let id = blob.id;
    let read_failed = |error| {
        for cancel in cancels {
            if let Err(cancelled) = cancel.check() {
                return Failed::Cancelled(cancelled);
            }
        }
        Failed::Read(id, error)
    };
    let mut reader = blob.supply.open_at(0).map_err(read_failed)?;
    let (full, written) = bounded::<(Vec<u8>, usize)>(QUEUE);
    let (used, free) = bounded::<Vec<u8>>(QUEUE + 2);
    let read = move || -> Result<BlobId, Failed> {
        let mut hasher = Hasher::default();
        let mut size_bytes = 0;
        loop {
            for cancel in cancels {
                cancel.check().map_err(Failed::Cancelled)?;
            }
            let mut block = free.try_recv().unwrap_or_else(|_| vec![0; BLOCK_BYTES]);
            let len = fill(&mut reader, &mut block).map_err(read_failed)?;
            hasher.update(&block[..len]);
            size_bytes += len as u64;
            // Longer than it should be is enough to know.
            let is_over = len < BLOCK_BYTES || size_bytes > id.size_bytes;
            if full.send((block, len)).is_err() || is_over {
                let digest = hasher.finish();
                return Ok(BlobId { digest, size_bytes });
            }
        }
    };
    let (found, wrote) = thread::scope(|scope| {
        let reading = scope.spawn(read);
        let mut wrote = Ok(());
        for (block, len) in &written {
            wrote = staged.write_all(&block[..len]);
            if wrote.is_err() {
                break;
            }
            // Nobody reads any more at the end.
            let _ = used.try_send(block);
        }
        drop(written);
        let found = reading
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (found, wrote)
    });
    wrote.map_err(|error| Failed::Write(id, error))?;
    let found = found?;
    if found == id {
        Ok(())
    } else {
        Err(Failed::Damaged(id, found))
    }
}

/// Reads until the block is full, or the stream has ended.
fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;

    fn passed_on(bytes: &[u8], id: BlobId) -> PassedOn {
        PassedOn {
            id,
            supply: Arc::new(Blob::of_bytes(bytes.to_vec())),
        }
    }

    fn staged() -> StagedBlob {
        StagedBlob::in_cache(tempfile::tempfile().unwrap(), None)
    }

    #[test]
    fn a_blob_is_copied_whole_or_refused() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 7)
            .map(|at| (at % 251) as u8)
            .collect();
        let cancel = Cancel::default();
        for len in [0, 1, BLOCK_BYTES, bytes.len()] {
            let bytes = &bytes[..len];
            let mut copied = staged();
            let blob = passed_on(bytes, BlobId::of(bytes));
            copy(&blob, &mut copied, &[&cancel]).unwrap();
            let mut read = Vec::new();
            copied.blob().unwrap().read_to_end(&mut read).unwrap();
            assert!(read == bytes, "{len} bytes");
            let other = passed_on(bytes, BlobId::of(b"another"));
            let refused = copy(&other, &mut staged(), &[&cancel]);
            assert!(matches!(refused, Err(Failed::Damaged(..))));
        }
    }

    #[test]
    fn the_first_failure_is_told_and_stops_the_others() {
        let good = passed_on(b"good", BlobId::of(b"good"));
        let bad = passed_on(b"bad", BlobId::of(b"other"));
        let cancel = Cancel::default();
        let list = [&good, &bad, &good];
        let failed = copy_all(&list, vec![staged(), staged(), staged()], &cancel);
        assert!(matches!(failed, Err(Failed::Damaged(id, _)) if id == bad.id));
        cancel.cancel();
        let cancelled = copy_all(&[&good], vec![staged()], &cancel);
        assert!(matches!(cancelled, Err(Failed::Cancelled(_))));
    }
}
