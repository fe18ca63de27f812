//! Several threads for one gzip blob: whether that can be, and what is kept for the next time.

use crate::blob::{Blob, ReadAt as _};
use crate::image::BlobId;
use crate::layer::in_order::Parallel;
use crate::layer::index_cache::{CacheError, IndexCache, Recorder};
use crate::layer::scan::borders;
use crate::layer::scan::sections::Proposer;

/// How gzip blobs are decoded. What comes out does not depend on it.
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Threads that decode a layer, where its format or an index allows more than one; and memory for
    /// what they have decoded, all layers that are scanned at once together.
    pub parallel: Parallel,
    /// Where indexes are kept from one run to the next.
    pub index_cache: Option<IndexCache>,
}

impl DecodeOptions {
    /// One thread, and nothing is kept.
    pub const ONE_THREAD: Self = Self {
        parallel: Parallel {
            threads: 1,
            memory_bytes: 0,
        },
        index_cache: None,
    };

    /// The options of each of `layers` that are scanned at once.
    #[must_use]
    pub fn shared_by(&self, layers: usize) -> Self {
        let Parallel {
            threads,
            memory_bytes,
        } = self.parallel;
        Self {
            parallel: Parallel {
                threads,
                memory_bytes: memory_bytes / layers.clamp(1, threads.max(1)) as u64,
            },
            ..self.clone()
        }
    }

    /// What is known of `blob`, or will be.
    pub(super) fn prepare<'a>(&self, blob: &'a Blob, id: BlobId) -> Prepared<'a> {
        let mut prepared = Prepared::default();
        let mut magic = [0; 2];
        if blob.read_exact_at(&mut magic, 0).is_err() || magic != [0x1f, 0x8b] {
            return prepared;
        }
        if let Some(cache) = &self.index_cache {
            match cache.open(id) {
                Ok(index) => prepared.proposer = Some(Proposer::Index(index)),
                Err(CacheError::Missing) => {}
                Err(error) => warn(cache, id, &error),
            }
        }
        // Members are found from the blob's end. One that is on its way is decoded as it comes instead.
        if prepared.proposer.is_none() && blob.has_arrived() {
            prepared.proposer = borders::of_members(blob).map(Proposer::Members);
        }
        if let (None, Some(cache)) = (&prepared.proposer, &self.index_cache) {
            match cache.record(id) {
                Ok(recorder) => prepared.recorder = Some(recorder),
                Err(error) => warn(cache, id, &error.into()),
            }
        }
        if self.parallel.threads <= 1 {
            prepared.proposer = None;
        }
        prepared
    }

    /// Keeps what was recorded of a blob that is the right one; `misses` of its proposals were wrong.
    pub(super) fn keep(&self, id: BlobId, recorder: Option<Recorder>, misses: u64) {
        let Some(cache) = &self.index_cache else {
            return;
        };
        if misses > 0 {
            warn(cache, id, &CacheError::Damaged("it does not fit the layer"));
            // The next run makes another one.
            let _ = std::fs::remove_file(cache.path(id));
        }
        match recorder.map(Recorder::finish) {
            Some(Ok(bytes)) => tracing::debug!(layer = %id.digest, bytes, "index kept"),
            Some(Err(error)) => warn(cache, id, &error.into()),
            None => {}
        }
    }
}

fn warn(cache: &IndexCache, id: BlobId, error: &CacheError) {
    let path = cache.path(id);
    match error {
        CacheError::Io(cause) => {
            tracing::warn!("the index {} is not used: {error}: {cause}", path.display());
        }
        _ => tracing::warn!("the index {} is not used: {error}", path.display()),
    }
}

/// What is known of a blob before it is decoded.
#[derive(Default)]
pub(super) struct Prepared<'a> {
    /// It can be decoded in sections.
    pub(super) proposer: Option<Proposer<'a>>,
    /// An index is made of it.
    pub(super) recorder: Option<Recorder>,
}
