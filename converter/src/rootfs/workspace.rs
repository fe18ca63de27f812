//! The directory in scratch under which everything of one root file system lives: mount points,
//! index files, unpacked layers, the writable layer. All of it is gone when the workspace is, in
//! the order that the kernel wants.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::error::RootfsError;
use crate::sys::loopdev::LoopDevice;

/// See the module.
#[derive(Debug)]
pub(super) struct Workspace {
    root: PathBuf,
    /// In the order of mounting.
    mounts: Vec<PathBuf>,
    /// Held until all mounts are gone: their read-ahead is restored then.
    loops: Vec<LoopDevice>,
    is_released: bool,
}

impl Workspace {
    /// A fresh directory in `scratch`, for root alone, mounted onto itself as a private mount, so
    /// that nothing mounted below it appears in other mount namespaces.
    pub(super) fn new(scratch: &Path) -> Result<Self, RootfsError> {
        let scratch = fs::canonicalize(scratch).map_err(RootfsError::io("find", scratch))?;
        let root = tempfile::Builder::new()
            .prefix("esgz-rootfs-")
            .tempdir_in(&scratch)
            .map_err(RootfsError::io("make a directory in", &scratch))?
            .keep();
        let mut workspace = Self {
            root,
            mounts: Vec::new(),
            loops: Vec::new(),
            is_released: false,
        };
        let root = workspace.root.clone();
        rustix::mount::mount_bind(&root, &root)
            .map_err(RootfsError::io("make a mount point of", &root))?;
        workspace.mounts.push(root.clone());
        rustix::mount::mount_change(&root, MountPropagationFlags::PRIVATE)
            .map_err(RootfsError::io("make a private mount of", &root))?;
        Ok(workspace)
    }

    /// The path of `name` in the workspace.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A handle on the workspace; close it before the workspace goes, or it stays busy.
    pub(super) fn open(&self) -> Result<OwnedFd, RootfsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.root, flags, Mode::empty())
            .map_err(RootfsError::io("open", &self.root))
    }

    /// Makes a directory in the workspace.
    pub(super) fn make_directory(&self, name: &str) -> Result<PathBuf, RootfsError> {
        let path = self.path(name);
        fs::create_dir(&path).map_err(RootfsError::io("make directory", &path))?;
        Ok(path)
    }

    /// A file without a name beside the workspace: in it, it would keep the workspace's own mount
    /// busy until its loop device is gone.
    pub(super) fn make_file(&self) -> Result<File, RootfsError> {
        let scratch = self.root.parent().unwrap_or(&self.root);
        tempfile::tempfile_in(scratch).map_err(RootfsError::io("make a file in", scratch))
    }

    /// Keeps a loop device until all mounts are gone.
    pub(super) fn keep_loop(&mut self, device: LoopDevice) {
        self.loops.push(device);
    }

    /// Takes charge of what is mounted on `path`.
    pub(super) fn keep_mount(&mut self, path: PathBuf) {
        self.mounts.push(path);
    }

    /// Unmounts, detaches and removes everything.
    ///
    /// # Errors
    /// The first failure; the rest is still tried. No directory with a mount in it is emptied.
    pub(super) fn release(&mut self) -> Result<(), RootfsError> {
        if std::mem::replace(&mut self.is_released, true) {
            return Ok(());
        }
        let mut result = Ok(());
        while let Some(path) = self.mounts.pop() {
            let unmounted = unmount(&path).map_err(RootfsError::io("unmount", &path));
            result = result.and(unmounted);
        }
        self.loops.clear();
        if result.is_ok() {
            let removed = crate::sys::tree::remove(&self.root);
            result = removed.map_err(RootfsError::io("remove", &self.root));
        }
        result
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a root file system is left behind"
            );
        }
    }
}

/// Unmounts `path`; a mount that is in use disappears from the tree now and ends with its last user.
fn unmount(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) => {
            rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
        }
        other => other?,
    }
    Ok(())
}
