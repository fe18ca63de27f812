//! Contents: digests of a scanned layer's files, read from its spool on worker threads.

use std::io;
use std::ops::Range;

use crate::cancel::{Cancel, Cancelled};
use crate::image::{Digest, Hasher};
use crate::layer::entry::{Entry, EntryKind, ScannedLayer};
use crate::layer::in_order::{Costed, Parallel, in_order};
use crate::layer::spool::ReadAt as _;

/// Files are given to a worker together up to this many bytes.
const BATCH_BYTES: u64 = 4 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// A file's contents could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The spool could not be read.
    #[error("reading \"{name}\" from the spool at offset {offset_bytes}")]
    Read {
        /// The entry.
        name: String,
        /// Uncompressed offset.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// The digest of each regular file of `layer` with its holes, by entry; `None` for all else.
///
/// # Errors
/// When the spool cannot be read.
pub fn content_digests(
    layer: &ScannedLayer,
    parallel: Parallel,
    cancel: &Cancel,
) -> Result<Vec<Option<Digest>>, ContentsError> {
    let mut digests = Vec::with_capacity(layer.entries.len());
    in_order(
        parallel,
        cancel,
        batches(&layer.entries),
        || vec![0; BUFFER_BYTES],
        |buffer, batch: Range<usize>| {
            layer.entries[batch]
                .iter()
                .map(|entry| {
                    let is_file = entry.kind == EntryKind::Regular;
                    is_file
                        .then(|| digest(layer, entry, buffer, cancel))
                        .transpose()
                })
                .collect::<Result<Vec<_>, ContentsError>>()
        },
        |found| {
            digests.extend(found);
            Ok(())
        },
    )?;
    Ok(digests)
}

fn batches(entries: &[Entry]) -> impl Iterator<Item = Costed<Range<usize>>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut bytes = 0_u64;
        let mut end = start;
        while end < entries.len() && (end == start || bytes < BATCH_BYTES) {
            bytes = bytes.saturating_add(entries[end].size_bytes + 512);
            end += 1;
        }
        let job = std::mem::replace(&mut start, end)..end;
        (!job.is_empty()).then_some(Costed {
            cost_bytes: BUFFER_BYTES as u64 + 40 * job.len() as u64,
            job,
        })
    })
}

fn digest(
    layer: &ScannedLayer,
    entry: &Entry,
    buffer: &mut [u8],
    cancel: &Cancel,
) -> Result<Digest, ContentsError> {
    let mut hasher = Hasher::default();
    let mut reached_bytes = 0;
    for segment in entry.data() {
        let hole_bytes = segment.file_offset_bytes - reached_bytes;
        hash_zeros(&mut hasher, hole_bytes, buffer, cancel)?;
        let mut at = segment.stored.offset_bytes;
        while at < segment.stored.end_bytes() {
            cancel.check()?;
            let len = buffer.len().min(to_index(segment.stored.end_bytes() - at));
            layer
                .spool
                .read_exact_at(&mut buffer[..len], at)
                .map_err(|source| ContentsError::Read {
                    name: String::from_utf8_lossy(&entry.name).into_owned(),
                    offset_bytes: at,
                    source,
                })?;
            hasher.update(&buffer[..len]);
            at += len as u64;
        }
        reached_bytes = segment.file_offset_bytes + segment.stored.len_bytes;
    }
    hash_zeros(
        &mut hasher,
        entry.size_bytes - reached_bytes,
        buffer,
        cancel,
    )?;
    Ok(hasher.finish())
}

fn hash_zeros(
    hasher: &mut Hasher,
    mut len_bytes: u64,
    buffer: &mut [u8],
    cancel: &Cancel,
) -> Result<(), Cancelled> {
    if len_bytes > 0 {
        buffer.fill(0);
    }
    while len_bytes > 0 {
        cancel.check()?;
        let len = buffer.len().min(to_index(len_bytes));
        hasher.update(&buffer[..len]);
        len_bytes -= len as u64;
    }
    Ok(())
}

fn to_index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
