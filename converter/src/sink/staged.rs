//! Blobs that nobody can see yet.
//!
//! A file is written around the page cache (`O_DIRECT`, open(2)) where its file system can do that:
//! gigabytes that are synced in the end anyway need not push everything else out of memory, nor be
//! copied into pages that the machine has to find first. They reach the disk while the next are made.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::blob::Blob;
use crate::registry::EarlyUpload;

/// A blob that is being written: a file without a name, or a stretch of an archive that has none.
#[derive(Debug)]
pub struct StagedBlob {
    pub(super) file: Arc<File>,
    pub(super) start_bytes: u64,
    /// Bytes that were taken.
    pub(super) len_bytes: u64,
    /// Where `O_TMPFILE` is missing: the file's name, removed when dropped.
    pub(super) named: Option<tempfile::TempPath>,
    /// The last of them, if the file is written in runs.
    run: Option<Run>,
    /// Sends them while more come.
    pub(super) early: Option<EarlyUpload>,
}

/// Memory, offsets and lengths of direct writes are multiples of this; no disk has larger blocks.
const ALIGNMENT_BYTES: usize = 4096;
/// Bytes in one direct write: enough to keep a disk busy.
const RUN_BYTES: usize = 2 << 20;

/// The next bytes of a file that is written in runs.
#[derive(Debug)]
struct Run {
    /// Longer than a run, so that an aligned one fits in.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    is_direct: bool,
}

impl Run {
    fn new() -> Self {
        let buffer = vec![0; RUN_BYTES + ALIGNMENT_BYTES];
        Self {
            start: buffer.as_ptr().align_offset(ALIGNMENT_BYTES),
            buffer,
            filled: 0,
            is_direct: false,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..][..self.filled]
    }

    /// Takes as many of `bytes` as there is room for.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.buffer[self.start..][self.filled..RUN_BYTES];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.filled += len;
        len
    }

    /// Whether writes to `file` are to go around the page cache; whether they do then.
    fn go_direct(&mut self, file: &File, is_wanted: bool) -> bool {
        if self.is_direct != is_wanted {
            let changed = rustix::fs::fcntl_getfl(file).and_then(|mut flags| {
                flags.set(OFlags::DIRECT, is_wanted);
                rustix::fs::fcntl_setfl(file, flags)
            });
            if changed.is_ok() {
                self.is_direct = is_wanted;
            }
        }
        self.is_direct
    }
}

impl StagedBlob {
    /// An empty blob in a file of its own.
    pub(super) fn in_file(file: File, named: Option<tempfile::TempPath>) -> Self {
        Self {
            file: Arc::new(file),
            start_bytes: 0,
            len_bytes: 0,
            named,
            run: Some(Run::new()),
            early: None,
        }
    }

    /// The same, read back soon: it is written to the page cache.
    pub(super) fn in_cache(file: File, named: Option<tempfile::TempPath>) -> Self {
        Self {
            run: None,
            ..Self::in_file(file, named)
        }
    }

    /// An empty blob that starts at `start_bytes` of `file`.
    pub(super) fn in_archive(file: Arc<File>, start_bytes: u64) -> Self {
        Self {
            file,
            start_bytes,
            len_bytes: 0,
            named: None,
            run: None,
            early: None,
        }
    }

    /// What was written so far, for reading back.
    ///
    /// # Errors
    /// When the last of it cannot be written.
    pub fn blob(&mut self) -> io::Result<Blob> {
        self.flush()?;
        let file = Arc::clone(&self.file);
        Ok(Blob::in_file(file, self.start_bytes, self.len_bytes))
    }

    /// Writes a run that is full.
    fn write_run(&mut self) -> io::Result<()> {
        let Some(run) = &mut self.run else {
            return Ok(());
        };
        let offset_bytes = self.start_bytes + self.len_bytes - run.filled as u64;
        let is_direct = run.go_direct(&self.file, true);
        match self.file.write_all_at(run.bytes(), offset_bytes) {
            // File systems that want still larger blocks, and some that cannot do it at all, say so here.
            Err(error) if is_direct && error.kind() == io::ErrorKind::InvalidInput => self.flush(),
            written => {
                run.filled = 0;
                written
            }
        }
    }
}

impl Write for StagedBlob {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(run) = &mut self.run else {
            let offset_bytes = self.start_bytes + self.len_bytes;
            let written = self.file.write_at(buffer, offset_bytes)?;
            self.len_bytes += written as u64;
            if let Some(early) = &self.early {
                early.grown_to(self.len_bytes);
            }
            return Ok(written);
        };
        let taken = run.take(buffer);
        self.len_bytes += taken as u64;
        if run.filled == RUN_BYTES {
            self.write_run()?;
        }
        Ok(taken)
    }

    /// Writes what is left of the last run. What follows goes through the page cache.
    fn flush(&mut self) -> io::Result<()> {
        if let Some(mut run) = self.run.take() {
            run.go_direct(&self.file, false);
            let offset_bytes = self.start_bytes + self.len_bytes - run.filled as u64;
            self.file.write_all_at(run.bytes(), offset_bytes)?;
        }
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
