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
    sync_file_range(file, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes all dirty pages of `file` and waits until they are clean, and so can be dropped.
///
/// # Errors
/// As `sync_file_range(2)`, write errors included.
pub fn finish(file: impl AsFd) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, flags)
}

fn sync_file_range(file: impl AsFd, flags: libc::c_uint) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the call takes numbers alone (0, 0 is the whole file); the descriptor is open.
    Errno::result(unsafe { libc::sync_file_range(fd, 0, 0, flags) })?;
    Ok(())
}
