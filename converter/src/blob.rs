//! Bytes that lie somewhere: a whole file, a stretch of one, memory, or a file that is still arriving.
//!
//! Stands beside the stages' folders: sources give blobs, sinks read theirs back, and layers are
//! read from them.

mod arriving;
mod supply;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

pub use arriving::{Arrival, Arriving, NotArrived};
pub use supply::Supply;

/// Bytes that can be read at any offset: a blob, a spool, or a buffer in tests.
pub trait ReadAt {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;

    /// How many bytes there are, but at most `upto_bytes`. A source that still grows waits until it has
    /// so many, or has ended.
    fn available(&self, upto_bytes: u64) -> u64 {
        self.len_bytes().min(upto_bytes)
    }

    /// Reads exactly `buffer.len()` bytes at `offset_bytes`.
    ///
    /// # Errors
    /// As `pread(2)`; `UnexpectedEof` past the end.
    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()>;
}

impl<B: ReadAt + ?Sized> ReadAt for &B {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset_bytes)
    }
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

/// An opened blob. It reads as a stream from its own position, and at any offset through
/// [`ReadAt`]; neither moves the position of another, as none uses the file's own.
#[derive(Clone, Debug)]
pub struct Blob {
    bytes: Bytes,
    start_bytes: u64,
    len_bytes: u64,
    position_bytes: u64,
}

#[derive(Clone, Debug)]
enum Bytes {
    File(Arc<File>),
    Memory(Arc<[u8]>),
    Arriving(Arc<Arriving>),
}

impl Blob {
    /// The whole of `file`.
    ///
    /// # Errors
    /// When its length cannot be told.
    pub fn of_file(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self::in_file(Arc::new(file), 0, len_bytes))
    }

    /// A stretch of `file`.
    pub fn in_file(file: Arc<File>, start_bytes: u64, len_bytes: u64) -> Self {
        Self {
            bytes: Bytes::File(file),
            start_bytes,
            len_bytes,
            position_bytes: 0,
        }
    }

    /// Bytes in memory.
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self {
            start_bytes: 0,
            len_bytes: bytes.len() as u64,
            position_bytes: 0,
            bytes: Bytes::Memory(bytes.into()),
        }
    }

    /// A blob that is on its way. Reading it waits.
    pub fn arriving(arriving: Arc<Arriving>) -> Self {
        Self {
            start_bytes: 0,
            len_bytes: arriving.len_bytes(),
            position_bytes: 0,
            bytes: Bytes::Arriving(arriving),
        }
    }

    /// A stretch of this blob, cut off at its end.
    #[must_use]
    pub fn part(&self, offset_bytes: u64, len_bytes: u64) -> Self {
        let offset_bytes = offset_bytes.min(self.len_bytes);
        Self {
            bytes: self.bytes.clone(),
            start_bytes: self.start_bytes + offset_bytes,
            len_bytes: len_bytes.min(self.len_bytes - offset_bytes),
            position_bytes: 0,
        }
    }
}

impl ReadAt for Blob {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let end = offset_bytes.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let offset_bytes = self.start_bytes + offset_bytes;
        match &self.bytes {
            Bytes::File(file) => file.read_exact_at(buffer, offset_bytes),
            Bytes::Memory(bytes) => bytes.read_exact_at(buffer, offset_bytes),
            Bytes::Arriving(arriving) => arriving.read_exact_at(buffer, offset_bytes),
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len_bytes.saturating_sub(self.position_bytes);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let offset_bytes = self.start_bytes + self.position_bytes;
        let read = match &self.bytes {
            Bytes::File(file) => file.read_at(&mut buffer[..len], offset_bytes)?,
            Bytes::Memory(bytes) => {
                bytes.read_exact_at(&mut buffer[..len], offset_bytes)?;
                len
            }
            Bytes::Arriving(arriving) => arriving.read_at(&mut buffer[..len], offset_bytes)?,
        };
        self.position_bytes += read as u64;
        Ok(read)
    }
}

impl Seek for Blob {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.len_bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position_bytes.checked_add_signed(offset),
        };
        self.position_bytes = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn check(blob: &Blob) {
        assert_eq!(blob.len_bytes(), 6);
        let mut all = Vec::new();
        blob.clone().read_to_end(&mut all).unwrap();
        assert_eq!(all, b"234567");
        let mut two = [0; 2];
        blob.read_exact_at(&mut two, 4).unwrap();
        assert_eq!(&two, b"67");
        assert!(blob.read_exact_at(&mut two, 5).is_err());
        assert!(blob.read_exact_at(&mut two, u64::MAX).is_err());
        let mut part = blob.part(1, 3);
        part.seek(SeekFrom::End(-1)).unwrap();
        assert_eq!(part.read(&mut two).unwrap(), 1);
        assert_eq!(two[0], b'5');
        assert_eq!(part.read(&mut two).unwrap(), 0);
        assert_eq!(blob.part(9, 3).len_bytes(), 0);
    }

    #[test]
    fn a_stretch_reads_the_same_in_a_file_and_in_memory() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        check(&Blob::in_file(Arc::new(file), 2, 6));
        check(&Blob::of_bytes(b"0123456789".to_vec()).part(2, 6));
    }
}
