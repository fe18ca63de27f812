//! The index cache: where a layer's gzip stream can be decoded from, kept from one run to the next.
//!
//! A file for each blob, in a directory that the user names: borders of blocks, some megabytes apart, and
//! the history that stands before each. `docs/transcode.md` has the format. What is read is only ever a
//! proposal: [`Joiner`](crate::layer::deflate::Joiner) takes what was decoded from it where it equals what
//! decoding from the start gives, so that no file, damaged or forged, changes what comes out.

mod format;
mod read;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use crate::image::BlobId;

pub use read::CachedIndex;
pub use write::Recorder;

/// The part of the compressed size that a file takes at most, besides 256 bytes and its first point.
pub const MAX_SHARE: f64 = 0.01;

/// A directory of index files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexCache {
    directory: PathBuf,
}

/// Why an index file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is none.
    #[error("there is no index of this layer")]
    Missing,
    /// It cannot be read or written.
    #[error("reading or writing it")]
    Io(#[from] io::Error),
    /// It is not what this version wrote for this blob.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

impl IndexCache {
    /// The directory need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The index of `blob`.
    ///
    /// # Errors
    /// [`CacheError`]; the layer can be read without it.
    pub fn open(&self, blob: BlobId) -> Result<CachedIndex, CacheError> {
        CachedIndex::open(&self.path(blob), blob)
    }

    /// Begins the index of `blob`. It replaces another one at its end, as a whole.
    ///
    /// # Errors
    /// When no file can be made in the directory.
    pub fn record(&self, blob: BlobId) -> io::Result<Recorder> {
        std::fs::create_dir_all(&self.directory)?;
        Recorder::new(&self.directory, self.path(blob), blob)
    }

    /// The index file of `blob`. Other versions have other names.
    pub fn path(&self, blob: BlobId) -> PathBuf {
        let name = format!("sha256-{}.index-{}", blob.digest.hex(), format::VERSION);
        self.directory.join(name)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests;
