//! Writing one file's dirty pages to disk without waiting for the rest of its file system
//! (`sync_file_range(2)`, Linux 2.6.17). Gives no durability: metadata may stay behind.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

/// Starts writing all dirty pages of `file`.
///
/// # Errors
/// As `sync_file_range(2)`.
pub fn start(file: impl AsFd) -> io::Result<()> {
    sync_file_range(file, 0, 0, libc::SYNC_FILE_RANGE_WRITE)
}

/// Starts writing the dirty pages of `len_bytes` bytes at `offset_bytes`; `len_bytes` is not 0.
///
/// # Errors
/// As `sync_file_range(2)`.
pub fn start_range(file: impl AsFd, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let number = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
    sync_file_range(
        file,
        number(offset_bytes)?,
        number(len_bytes)?,
        libc::SYNC_FILE_RANGE_WRITE,
    )
}

/// Writes all dirty pages of `file` and waits until they are clean, and so can be dropped.
///
/// # Errors
/// As `sync_file_range(2)`, write errors included.
pub fn finish(file: impl AsFd) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, 0, 0, flags)
}

/// Offset and length 0 mean the whole file.
fn sync_file_range(
    file: impl AsFd,
    offset_bytes: i64,
    len_bytes: i64,
    flags: libc::c_uint,
) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the call takes numbers alone; the descriptor is open.
    Errno::result(unsafe { libc::sync_file_range(fd, offset_bytes, len_bytes, flags) })?;
    Ok(())
}
