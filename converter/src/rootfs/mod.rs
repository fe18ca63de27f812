//! From scanned layers to a mounted root file system.
//!
//! Enters: the layers of one image, base first. Leaves: a mount point that shows their merged
//! view, and for every regular file the (device, inode) pair under which the kernel will report
//! accesses to it. An EROFS mount is fresh, and no contents are read through it here: no page of it is
//! cached.

mod attributes;
mod bound;
mod erofs;
mod error;
mod located;
mod merge;
mod mount;
mod opened;
mod stack;
#[cfg(test)]
mod test_entries;
mod tree;
mod unpack;
mod workspace;

use std::path::{Path, PathBuf};

pub use bound::{BindMount, Bound, BoundFile};
pub use error::{EntryProblem, RootfsError, TreeError};
pub use located::{LocateError, Located, Lower, Problem, Stack, locate};

use crate::cancel::Cancel;
use crate::layer::entry::{FileId, ScannedLayer};
use stack::Image;
use workspace::Workspace;

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

/// How a root file system was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// EROFS indexes over the spools, on loop devices: every page is read cold.
    Erofs,
    /// Unpacked directories on the scratch file system, whose read-ahead is not ours.
    Unpack,
}

/// The most layers that overlayfs stacks (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// A root file system at its mount point. Dropping it unmounts and removes everything, as
/// [`MountedRootfs::unmount`] does, but can only log a failure.
#[derive(Debug)]
pub struct MountedRootfs {
    workspace: Workspace,
    path: PathBuf,
    files: Vec<MountedFile>,
    opened_as: Vec<MountedFile>,
    backend: Backend,
    fallback_reason: Option<String>,
    dropped_xattrs: usize,
    index_bytes: u64,
}

impl MountedRootfs {
    /// The merged view; writable, what is written is thrown away with it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every regular file of every layer in use, under the device and inode of its lower file
    /// system, which page-cache events carry. Sorted by device and inode.
    pub fn files(&self) -> &[MountedFile] {
        &self.files
    }

    /// Every regular file of the merged view, under the device and inode that an open file there
    /// has, until it is written to. Sorted by device and inode.
    pub fn opened_as(&self) -> &[MountedFile] {
        &self.opened_as
    }

    /// How it was made.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Why [`RootfsMode::Auto`] did not use EROFS.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// How many extended attributes are left out: those the kernel does not take on such a file,
    /// `trusted.overlay.*`, and namespaces it does not know.
    pub fn dropped_xattrs(&self) -> usize {
        self.dropped_xattrs
    }

    /// Size in bytes of all EROFS indexes, holes left out; 0 when unpacked.
    pub fn index_bytes(&self) -> u64 {
        self.index_bytes
    }

    /// Unmounts, detaches the loop devices and removes everything. A mount in use disappears from
    /// the file tree at once and ends with its last user.
    ///
    /// # Errors
    /// The first failure; the rest is still tried.
    pub fn unmount(mut self) -> Result<(), RootfsError> {
        self.workspace.release()
    }
}

/// Checks that every layer makes a file tree, as [`mount`] does first. Needs no privilege and reads
/// no contents.
///
/// # Errors
/// [`RootfsError::Layer`] for the first layer that does not.
pub fn check(layers: &[&ScannedLayer]) -> Result<(), RootfsError> {
    Image::new(layers, &Cancel::default()).map(drop)
}

/// Mounts the merged view of `layers`, the base layer first. Needs `CAP_SYS_ADMIN`, Linux 6.4 for
/// EROFS, and `/proc`. A [`FileId::layer`] in the result is an index into `layers`.
///
/// # Errors
/// See [`RootfsError`]; nothing is left mounted.
pub fn mount(
    layers: &[&ScannedLayer],
    options: &RootfsOptions,
    cancel: &Cancel,
) -> Result<MountedRootfs, RootfsError> {
    if layers.len() > MAX_LAYERS {
        return Err(RootfsError::TooManyLayers {
            layers: layers.len(),
            limit: MAX_LAYERS,
        });
    }
    let image = Image::new(layers, cancel)?;
    match options.mode {
        RootfsMode::Erofs => image.mount(Backend::Erofs, options, cancel),
        RootfsMode::Unpack => image.mount(Backend::Unpack, options, cancel),
        RootfsMode::Auto => match image.mount(Backend::Erofs, options, cancel) {
            Err(error) if error.is_unsupported() => {
                let reason = describe(&error);
                let mut mounted = image.mount(Backend::Unpack, options, cancel)?;
                mounted.fallback_reason = Some(reason);
                Ok(mounted)
            }
            other => other,
        },
    }
}

/// An error and its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
