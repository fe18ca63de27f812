//! From scanned layers to a mounted root file system.
//!
//! Enters: the layers of one image, base first. Leaves: a mount point that shows their merged
//! view, and for every regular file the (device, inode) pair under which the kernel will report
//! accesses to it. The mount is fresh: no page of it is cached.

use std::path::PathBuf;

use crate::layer::entry::FileId;

/// How the root file system is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RootfsMode {
    /// EROFS where the kernel has it, else unpacked directories.
    #[default]
    Auto,
    /// An EROFS index over each spooled tar; needs Linux 6.4.
    Erofs,
    /// Every layer unpacked into a plain directory.
    Unpack,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct RootfsOptions {
    /// Which way.
    pub mode: RootfsMode,
    /// Directory for index files, upper directories and unpacked layers; not on tmpfs.
    pub scratch: PathBuf,
    /// Read-ahead of the loop devices in KiB. Above 64 the kernel hides touches.
    pub read_ahead_kib: u32,
}

/// A regular file of the image as the kernel reports it in `filemap` events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountedFile {
    /// The kernel's `s_dev` of the lower file system: `major << 20 | minor`.
    pub device: u32,
    /// Inode number there.
    pub inode: u64,
    /// The entry that holds the contents.
    pub file: FileId,
    /// Size in bytes.
    pub size_bytes: u64,
}
