//! The directory in scratch under which everything of one root file system lives: mount points,
//! index files, unpacked layers, the writable layer. All of it is gone when the workspace is, in
//! the order that the kernel wants.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
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
            let removed = remove_tree(&self.root);
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

/// Removes a directory with all that is in it, of any depth: `fs::remove_dir_all` holds a
/// descriptor a level, and a workload may have made more levels than descriptors are allowed. Here
/// every directory is first moved to the top.
fn remove_tree(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    let mut moved = 0u64;
    let mut pending = vec![c".".to_owned()];
    while let Some(name) = pending.pop() {
        let directory = rustix::fs::openat(&root, &*name, flags, Mode::empty())?;
        for entry in rustix::fs::Dir::read_from(&directory)?.collect::<Result<Vec<_>, _>>()? {
            let child = entry.file_name();
            if child == c"." || child == c".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&directory, child, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode).is_dir()
                }
                kind => kind.is_dir(),
            };
            if is_directory {
                let top = CString::new(format!("removed-{moved}")).expect("digits");
                moved += 1;
                rustix::fs::renameat(&directory, child, &root, &*top)?;
                pending.push(top);
            } else {
                rustix::fs::unlinkat(&directory, child, AtFlags::empty())?;
            }
        }
        if &*name != c"." {
            rustix::fs::unlinkat(&root, &*name, AtFlags::REMOVEDIR)?;
        }
    }
    rustix::fs::rmdir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_descriptors_are_allowed_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("top");
        fs::create_dir_all(top.join("sub/removed-0")).unwrap();
        std::os::unix::fs::symlink(scratch.path(), top.join("sub/link")).unwrap();
        // Made from the bottom up: a path may not be that long.
        let (inner, outer) = (scratch.path().join("inner"), scratch.path().join("outer"));
        fs::create_dir(&inner).unwrap();
        for _ in 0..5000 {
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("d")).unwrap();
            fs::rename(&outer, &inner).unwrap();
        }
        fs::rename(&inner, top.join("deep")).unwrap();
        fs::write(top.join("file"), "x").unwrap();
        remove_tree(&top).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
