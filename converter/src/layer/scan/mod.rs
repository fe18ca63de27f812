//! Scan: reads a layer's blob exactly once.
//!
//! Enters: the compressed blob as a stream, with the digests it must have. Leaves: a
//! [`ScannedLayer`]: the uncompressed tar, readable at any offset, its entries, its digests checked.
//! Four threads a layer: one reads the blob, one inflates, one hashes the blob, and one hashes the tar,
//! keeps what is needed to read it again, and finds its entries.

mod borders;
mod decode_options;
mod inflate;
mod kept;
mod memory;
mod passing;
mod pax;
mod sections;
mod sparse;
pub mod tar;

use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::blob::Blob;
use crate::cancel::{Cancel, Cancelled};
use crate::image::{BlobId, Digest};
use crate::layer::blob_hash::{BlobHasher, HASHED_PARTS, Part};
use crate::layer::buffers::{Buffers, REUSED_BUFFER_BYTES};
use crate::layer::deflate::Index;
use crate::layer::entry::{Entry, ScannedLayer};
use crate::layer::scan::decode_options::Prepared;
use crate::layer::scan::kept::Kept;
use crate::layer::scan::passing::Passing;
use crate::layer::scan::sections::{Onward, Proposer, inflate_sections};

pub use decode_options::DecodeOptions;
pub use inflate::InflateError;
pub use kept::Keep;
pub use memory::EntryMemory;
pub use tar::TarError;

/// Bytes that travel between the threads at once; eight such blocks are in flight a layer.
const BLOCK_BYTES: usize = REUSED_BUFFER_BYTES;
const QUEUE: usize = 4;
/// Memory that a scan takes for its bytes: two queues, what either end of them holds, and what stays readable.
pub(super) const SCAN_BYTES: u64 = (2 * QUEUE as u64 + 10 + HASHED_PARTS) * BLOCK_BYTES as u64;

/// What a layer's blob must be.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Digest of the blob, as its descriptor gives it.
    pub digest: Digest,
    /// Size of the blob in bytes, as its descriptor gives it.
    pub size_bytes: u64,
    /// Digest of the uncompressed tar, as the image's configuration gives it.
    pub diff_id: Digest,
}

/// Where and how far a layer may be unpacked.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Directory for spool files; not on tmpfs.
    pub scratch: PathBuf,
    /// A layer whose tar is longer is refused.
    pub max_layer_bytes: u64,
    /// Memory for the entries of all layers; more are refused.
    pub entry_memory: EntryMemory,
    /// How the tar can be read afterwards.
    pub keep: Keep,
    /// How a gzip blob that can be read again is decoded.
    pub decode: DecodeOptions,
}

/// Why a layer cannot be used. Every variant but the last names the layer's digest.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The blob could not be read to its end.
    #[error("reading layer {digest}")]
    Read {
        /// Which layer.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob is not what its descriptor says.
    #[error("layer {expected} has the digest {found}")]
    DigestMismatch {
        /// From the descriptor.
        expected: Digest,
        /// Of the bytes that were read.
        found: Digest,
    },
    /// The blob is shorter or longer than its descriptor says.
    #[error("layer {digest} is {found_bytes} bytes long, expected {expected_bytes}")]
    SizeMismatch {
        /// Which layer.
        digest: Digest,
        /// From the descriptor.
        expected_bytes: u64,
        /// Of the bytes that were read.
        found_bytes: u64,
    },
    /// The uncompressed tar is not what the image's configuration says.
    #[error("layer {digest} has the DiffID {found}, expected {expected} by the configuration")]
    DiffIdMismatch {
        /// Which layer.
        digest: Digest,
        /// From the configuration.
        expected: Digest,
        /// Of the inflated bytes.
        found: Digest,
    },
    /// The compressed data is corrupt, or in no format that esgz reads.
    #[error("layer {digest} cannot be decompressed")]
    Inflate {
        /// Which layer.
        digest: Digest,
        /// What and where.
        #[source]
        source: InflateError,
    },
    /// The uncompressed tar is longer than allowed.
    #[error("layer {digest} is longer than {limit_bytes} bytes when decompressed")]
    TooLarge {
        /// Which layer.
        digest: Digest,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// The tar inside is damaged.
    #[error("layer {digest} holds no valid tar")]
    Tar {
        /// Which layer.
        digest: Digest,
        /// What and where.
        #[source]
        source: TarError,
    },
    /// The entries take more memory than allowed.
    #[error(
        "layer {digest} has too many entries: after {entries} of them those of all layers need more \
         than {limit_bytes} bytes of memory"
    )]
    EntryMemory {
        /// Which layer.
        digest: Digest,
        /// Entries of this layer that did fit.
        entries: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// The uncompressed tar could not be written.
    #[error(
        "spooling layer {digest} to {} after {written_bytes} of its uncompressed bytes",
        scratch.display()
    )]
    Spool {
        /// Which layer.
        digest: Digest,
        /// The scratch directory.
        scratch: PathBuf,
        /// How much of the layer was written until then.
        written_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another layer failed, or the user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Sees a layer's tar while it is scanned, on a thread of the scan, which waits as long as this takes.
pub(super) trait Follow: Send {
    /// The next bytes of the tar. `index` is what is settled of a gzip stream's index since the last ones.
    /// Who follows hashes them: at once for all that they count for.
    fn bytes(&mut self, bytes: &[u8], index: Index);
    /// The next entry, the headers of which have passed.
    fn entry(&mut self, entry: &Entry);
    /// No more entries follow. What is behind the last one may be yet to come.
    fn end(&mut self);
    /// The digest of all bytes that have passed.
    fn diff_id(&mut self) -> Digest;
}

/// Somebody who follows, and writes a blob meanwhile.
pub(super) struct Follower<'a> {
    pub(super) follow: &'a mut dyn Follow,
    /// Hashes the blob that is read together with the other.
    pub(super) hasher: BlobHasher,
    /// To which that gives blocks back.
    pub(super) buffers: &'a Buffers,
}

/// Reads one layer from `blob` to its end, or until one of `cancels` is set. The same blob may be read
/// `again` later, where that spares a spool.
///
/// # Errors
/// [`ScanError`]; nothing of the layer is left in the scratch directory then.
pub fn scan_layer(
    blob: impl Read + Send,
    again: Option<&Blob>,
    expected: &Expected,
    options: &ScanOptions,
    cancels: &[&Cancel],
) -> Result<ScannedLayer, ScanError> {
    scan_followed(blob, again, expected, options, cancels, None)
}

/// As [`scan_layer`], with somebody who follows.
///
/// # Errors
/// As [`scan_layer`].
pub(super) fn scan_followed(
    blob: impl Read + Send,
    again: Option<&Blob>,
    expected: &Expected,
    options: &ScanOptions,
    cancels: &[&Cancel],
    follower: Option<Follower<'_>>,
) -> Result<ScannedLayer, ScanError> {
    let digest = expected.digest;
    let spool_error = |(written_bytes, source)| ScanError::Spool {
        digest,
        scratch: options.scratch.clone(),
        written_bytes,
        source,
    };
    let kept = Kept::new(options.keep, again, &options.scratch)
        .map_err(|error| spool_error((0, error)))?;

    // Of the two kinds of blocks each has its own: they differ in length.
    let (own_buffers, tar_buffers) = (&Buffers::default(), &Buffers::default());
    let (follow, hasher, buffers) = match follower {
        Some(Follower {
            follow,
            hasher,
            buffers,
        }) => (Some(follow), Some(hasher), buffers),
        None => (None, None, own_buffers),
    };
    let (blob_sender, blob_receiver) = bounded(QUEUE);
    let (tar_sender, tar_receiver) = bounded(QUEUE);
    let memory = &options.entry_memory;
    let is_followed = follow.is_some();
    let id = BlobId {
        digest,
        size_bytes: expected.size_bytes,
    };
    let mut prepared =
        again.map_or_else(Prepared::default, |blob| options.decode.prepare(blob, id));
    let sections = again.zip(prepared.proposer.take());
    let mut misses = 0;
    let (read, inflated, (passed, archive)) = thread::scope(|scope| {
        // Each thread owns its ends: a channel is closed when either side is done.
        let hasher = hasher.unwrap_or_else(|| BlobHasher::start(scope, buffers));
        let (input, onto) = match sections {
            // These are read by those who decode them.
            Some((blob, proposer)) => (Input::Sections(blob, proposer), Onto::Hasher(hasher)),
            None => (
                Input::Stream(BlockReader::new(blob_receiver, hasher)),
                Onto::Decoder(blob_sender),
            ),
        };
        let reader = scope.spawn(move || read_blob(blob, onto, buffers, cancels));
        let tar = scope.spawn(move || {
            let passing = Passing::new(&tar_receiver, tar_buffers, kept, follow);
            let archive = tar::follow_entries(&passing, memory, |entry| passing.entry(entry));
            if archive.is_ok() {
                passing.end();
            }
            (passing.finish(), archive)
        });
        // A panic in a scoped thread is passed on by `join` below.
        let onward = Onward {
            sender: &tar_sender,
            buffers: tar_buffers,
            limit_bytes: options.max_layer_bytes,
            is_index_wanted: is_followed,
        };
        let (inflated, hashed) = match input {
            Input::Sections(blob, proposer) => {
                let parallel = options.decode.parallel;
                let joined = inflate_sections(blob, proposer, onward, parallel, cancels);
                let inflated = joined.map(|joined| {
                    misses = joined.misses;
                    tracing::debug!(layer = %digest, joined.sections, misses, "decoded in sections");
                    Some(joined.index)
                });
                (inflated, None)
            }
            Input::Stream(mut stream) => {
                let inflated = inflate::inflate(&mut stream, onward, prepared.recorder.as_mut());
                if !matches!(inflated, Ok(_) | Err(InflateError::SinkClosed)) {
                    // The digest of the whole blob tells damage from a strange format.
                    let _ = io::copy(&mut stream, &mut io::sink());
                }
                (inflated, Some(stream.finish()))
            }
        };
        drop(tar_sender);
        let read = join(reader).map(|(hashed_there, bytes)| (hashed_there.or(hashed), bytes));
        (read, inflated, join(tar))
    });
    for cancel in cancels {
        cancel.check()?;
    }
    let read = read.map_err(|source| ScanError::Read { digest, source })?;
    let (found, found_bytes) = read;
    let found = found.expect("one of the threads has the hasher");
    if let Some(failure) = passed.failure {
        return Err(spool_error(failure));
    }
    if found_bytes != expected.size_bytes {
        let expected_bytes = expected.size_bytes;
        return Err(ScanError::SizeMismatch {
            digest,
            expected_bytes,
            found_bytes,
        });
    }
    if found != digest {
        return Err(ScanError::DigestMismatch {
            expected: digest,
            found,
        });
    }
    let deflate = match inflated {
        Ok(index) => index.map(Arc::new),
        Err(InflateError::TooLarge { limit_bytes }) => {
            return Err(ScanError::TooLarge {
                digest,
                limit_bytes,
            });
        }
        Err(source) => return Err(ScanError::Inflate { digest, source }),
    };
    let diff_id = passed.diff_id;
    if diff_id != expected.diff_id {
        let expected = expected.diff_id;
        return Err(ScanError::DiffIdMismatch {
            digest,
            expected,
            found: diff_id,
        });
    }
    let archive = archive.map_err(|source| match source {
        TarError::EntryMemory {
            entries,
            limit_bytes,
        } => ScanError::EntryMemory {
            digest,
            entries,
            limit_bytes,
        },
        source => ScanError::Tar { digest, source },
    })?;
    options.decode.keep(id, prepared.recorder, misses);
    Ok(ScannedLayer {
        digest,
        size_bytes: found_bytes,
        diff_id,
        spool: passed.kept.finish(passed.len_bytes),
        deflate,
        entries: archive.entries,
        first_under_global: archive.first_under_global,
        end_of_entries_bytes: archive.end_of_entries_bytes,
    })
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What is inflated.
enum Input<'a> {
    Sections(&'a Blob, Proposer<'a>),
    Stream(BlockReader),
}

/// Where blocks go that were read.
enum Onto {
    /// They are hashed.
    Hasher(BlobHasher),
    /// They are inflated first.
    Decoder(Sender<Part>),
}

/// Reads the blob and sends it on. Gives its digest, if it goes to the hasher, and length.
fn read_blob(
    mut blob: impl Read,
    onto: Onto,
    buffers: &Buffers,
    cancels: &[&Cancel],
) -> io::Result<(Option<Digest>, u64)> {
    let mut size_bytes = 0;
    while !cancels.iter().any(|cancel| cancel.is_cancelled()) {
        let mut buffer = buffers.take(BLOCK_BYTES);
        let len_bytes = read_full(&mut blob, &mut buffer)?;
        if len_bytes == 0 {
            break;
        }
        size_bytes += len_bytes as u64;
        let part = Part { buffer, len_bytes };
        match &onto {
            Onto::Hasher(hasher) => hasher.take(part),
            // A closed channel means that inflating failed; the error is reported there.
            Onto::Decoder(sender) if sender.send(part).is_err() => break,
            Onto::Decoder(_) => {}
        }
    }
    let digest = match onto {
        Onto::Hasher(hasher) => Some(hasher.finish()),
        Onto::Decoder(_) => None,
    };
    Ok((digest, size_bytes))
}

/// Reads until `buffer` is full, or there is no more; how much that is.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The blob's blocks as one stream; each is hashed once it was read.
struct BlockReader {
    receiver: Receiver<Part>,
    hasher: BlobHasher,
    block: Part,
    at: usize,
}

impl BlockReader {
    fn new(receiver: Receiver<Part>, hasher: BlobHasher) -> Self {
        Self {
            receiver,
            hasher,
            block: Part::default(),
            at: 0,
        }
    }

    /// The digest of what was read, to the end of its last block.
    fn finish(self) -> Digest {
        self.hasher.take(self.block);
        self.hasher.finish()
    }
}

impl BufRead for BlockReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.block.len_bytes {
            let next = self.receiver.recv().unwrap_or_default();
            self.hasher.take(std::mem::replace(&mut self.block, next));
            self.at = 0;
        }
        Ok(&self.block.buffer[self.at..self.block.len_bytes])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for BlockReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let block = self.fill_buf()?;
        let len = block.len().min(buffer.len());
        buffer[..len].copy_from_slice(&block[..len]);
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
pub(crate) mod tests;
