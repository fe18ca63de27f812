//! The spool: a layer's uncompressed tar as a seekable file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

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

/// Bytes that can be read at any offset: a spool, or a buffer in tests.
pub trait ReadAt {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;

    /// Reads exactly `buffer.len()` bytes at `offset_bytes`.
    ///
    /// # Errors
    /// As `pread(2)`; `UnexpectedEof` past the end.
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let source = usize::try_from(offset_bytes)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }
}

/// A layer's uncompressed tar on disk. The file has no name: it is gone when the spool is dropped,
/// or when the process ends in any way.
#[derive(Debug)]
pub struct Spool {
    file: File,
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
        Self { file, len_bytes }
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
