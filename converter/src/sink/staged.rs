//! Blobs that nobody can see yet.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::blob::Blob;

/// A blob that is being written: a file without a name, or a stretch of an archive that has none.
#[derive(Debug)]
pub struct StagedBlob {
    pub(super) file: Arc<File>,
    pub(super) start_bytes: u64,
    pub(super) len_bytes: u64,
    /// Where `O_TMPFILE` is missing: the file's name, removed when dropped.
    pub(super) named: Option<tempfile::TempPath>,
}

impl StagedBlob {
    /// What was written so far, for reading back.
    pub fn blob(&self) -> Blob {
        Blob::in_file(Arc::clone(&self.file), self.start_bytes, self.len_bytes)
    }
}

impl Write for StagedBlob {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self
            .file
            .write_at(buffer, self.start_bytes + self.len_bytes)?;
        self.len_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A new file in `dir` that has no name, or a hidden one where the file system cannot do without.
pub(super) fn unnamed_file(dir: &Path) -> io::Result<(File, Option<tempfile::TempPath>)> {
    let mode = Mode::from_raw_mode(0o644);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, mode) {
        Ok(fd) => Ok((fd.into(), None)),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let named = crate::unfinished::hidden_file(dir, "blob")?;
            let (file, path) = named.into_parts();
            Ok((file, Some(path)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Gives a file its name.
///
/// # Errors
/// `AlreadyExists` if there is such a file, unless the new one had a hidden name; other errors as
/// `linkat(2)` and `rename(2)`.
pub(super) fn give_name(
    file: &File,
    named: Option<tempfile::TempPath>,
    path: &Path,
) -> io::Result<()> {
    if let Some(named) = named {
        return named.persist(path).map_err(|error| error.error);
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    let from = format!("/proc/self/fd/{fd}");
    Ok(rustix::fs::linkat(
        CWD,
        from,
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}
