//! The spool: a layer's uncompressed tar as a seekable file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub use crate::blob::ReadAt;

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

/// A layer's uncompressed tar on disk. The file has no name: it is gone when the last clone of the
/// spool is dropped, or when the process ends in any way.
#[derive(Clone, Debug)]
pub struct Spool {
    file: Arc<File>,
    len_bytes: u64,
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
        Self {
            file: Arc::new(file),
            len_bytes,
        }
    }
}

impl ReadAt for Spool {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset_bytes)
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
