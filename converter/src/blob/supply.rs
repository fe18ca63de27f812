//! Blobs that are passed on as they are: read as a stream, from any offset, as often as it takes, and kept
//! nowhere on the way.

use std::fmt;
use std::io::{self, Read, Seek as _, SeekFrom};

use crate::blob::{Blob, ReadAt};

/// A blob to be passed on, wherever it is. [`ReadAt`] is for short stretches. Nothing of it is checked.
pub trait Supply: ReadAt + fmt::Debug + Send + Sync {
    /// The bytes from `offset_bytes` to the end.
    ///
    /// # Errors
    /// When the blob cannot be opened; a far one may say so only when it is read.
    fn open_at(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>>;
}

impl Supply for Blob {
    fn open_at(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut blob = self.clone();
        blob.seek(SeekFrom::Start(offset_bytes))?;
        Ok(Box::new(blob))
    }
}
