//! The spool: a layer's uncompressed tar, readable at any offset.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::blob::Blob;
pub use crate::blob::ReadAt;
use crate::layer::inflated::Inflated;

/// A stretch of the spool, in uncompressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Extent {
    /// First byte.
    pub offset_bytes: u64,
    /// Length; may be 0.
    pub len_bytes: u64,
}

impl Extent {
    /// The offset behind the last byte.
    pub fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.len_bytes
    }
}

/// A layer's uncompressed tar, readable at any offset. Files have no name: they are gone when the last
/// clone of the spool is dropped, or when the process ends in any way.
#[derive(Clone, Debug)]
pub struct Spool(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// A file of so many bytes.
    File(Arc<File>, u64),
    /// The layer's blob, which is the tar.
    Blob(Blob),
    /// The layer's gzip blob, decoded where it is read.
    Inflated(Arc<Inflated>),
}

impl Spool {
    /// An empty spool file in `scratch`, which must not be on tmpfs (the profiler cannot see reads
    /// there).
    ///
    /// # Errors
    /// When no file can be made in `scratch`.
    pub fn create(scratch: &Path) -> io::Result<File> {
        tempfile::tempfile_in(scratch)
    }

    /// Takes over a completely written file of `len_bytes`.
    pub fn new(file: File, len_bytes: u64) -> Self {
        Self(Kind::File(Arc::new(file), len_bytes))
    }

    /// A blob that is a tar already.
    pub(super) fn of_blob(blob: Blob) -> Self {
        Self(Kind::Blob(blob))
    }

    /// A blob that is decoded where it is read.
    pub(super) fn of_inflated(inflated: Inflated) -> Self {
        Self(Kind::Inflated(Arc::new(inflated)))
    }

    /// Memory that reading takes while `readers` read at once.
    pub(super) fn held_bytes(&self, readers: u64) -> u64 {
        match &self.0 {
            Kind::File(..) | Kind::Blob(_) => 0,
            Kind::Inflated(inflated) => inflated.held_bytes(readers),
        }
    }

    /// Whether what is read is compared with what was scanned.
    pub(super) fn is_compared(&self) -> bool {
        matches!(self.0, Kind::Inflated(_))
    }

    /// Frees what [`Spool::held_bytes`] counts, until somebody reads again.
    pub(super) fn forget(&self) {
        if let Kind::Inflated(inflated) = &self.0 {
            inflated.forget();
        }
    }

    /// The file, to be mounted; none where the tar lies in no file of its own.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::File(file, _) => Some(file.as_fd()),
            Kind::Blob(_) | Kind::Inflated(_) => None,
        }
    }
}

impl ReadAt for Spool {
    fn len_bytes(&self) -> u64 {
        match &self.0 {
            Kind::File(_, len_bytes) => *len_bytes,
            Kind::Blob(blob) => blob.len_bytes(),
            Kind::Inflated(inflated) => inflated.len_bytes(),
        }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        match &self.0 {
            Kind::File(file, _) => file.read_exact_at(buffer, offset_bytes),
            Kind::Blob(blob) => blob.read_exact_at(buffer, offset_bytes),
            Kind::Inflated(inflated) => inflated.read_exact_at(buffer, offset_bytes),
        }
    }
}
