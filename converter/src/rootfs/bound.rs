//! Files from outside the image that a container sees through bind mounts.
//!
//! Enters: the mounts. Leaves: rows for those files as for the image's, so that their opens are seen; with which
//! path each has in the container. They are listed beforehand: what is made later is not known.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::MountedFile;
use super::unpack::kernel_device;
use crate::layer::entry::FileId;

/// So many files of bind mounts are known by name; a volume may have millions.
const MAX_FILES: usize = 100_000;

/// A file or directory that is mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// Where, absolute in the container.
    pub destination: PathBuf,
    /// A directory for us, such as `/`, or a container's root.
    pub root: PathBuf,
    /// What is mounted, below it.
    pub path: PathBuf,
    /// The kernel's `s_dev` of its file system, where that is known.
    pub device: Option<u32>,
}

/// A file below a bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundFile {
    /// Its path in the container, no leading `/`.
    pub path: PathBuf,
    /// Where the mount is, absolute in the container.
    pub mount: PathBuf,
    /// Its size in bytes when it was listed.
    pub size_bytes: u64,
}

/// The files of all bind mounts.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// The files, by the number that [`FileId::entry`] has in `rows`.
    pub files: Vec<BoundFile>,
    /// Device and inode of each.
    pub rows: Vec<MountedFile>,
    /// Where each is for us.
    pub places: Vec<PathBuf>,
    /// Whether there are more, or some that cannot be listed.
    pub is_partial: bool,
}

impl Bound {
    /// Lists the regular files of `mounts`. In the result, [`FileId::layer`] is `layer`: one that the image does
    /// not have.
    pub fn list(mounts: &[BindMount], layer: u32) -> Self {
        let mut bound = Self::default();
        for mount in mounts {
            if let Err(error) = bound.add(mount, layer) {
                tracing::debug!(
                    "files of the mount {} are not known: {error}",
                    mount.destination.display()
                );
                bound.is_partial = true;
            }
        }
        bound
    }

    fn add(&mut self, mount: &BindMount, layer: u32) -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &mount.root, flags | OFlags::DIRECTORY, Mode::empty())?;
        let relative = mount.path.strip_prefix("/").unwrap_or(&mount.path);
        // The container may put links there meanwhile.
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let open = |path: &Path, flags| {
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)
        };
        let top = open(relative, flags)?;
        let stat = rustix::fs::fstat(&top)?;
        let device = |stat: &Stat| mount.device.unwrap_or_else(|| kernel_device(stat.st_dev));
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            self.push(mount, Path::new(""), &stat, device(&stat), layer);
            return Ok(());
        }
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory: OwnedFd = match open(&relative.join(&below), flags) {
                Ok(directory) => directory,
                Err(_) if !below.as_os_str().is_empty() => continue,
                Err(error) => return Err(error),
            };
            for found in Dir::read_from(&directory)? {
                let found = found?;
                let name = found.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let at = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                let Ok(child) = rustix::fs::statat(directory.as_fd(), name, at) else {
                    continue;
                };
                // What is mounted below is a mount of its own.
                if child.st_dev != stat.st_dev {
                    continue;
                }
                let path = below.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
                if FileType::from_raw_mode(child.st_mode).is_dir() {
                    pending.push(path);
                    continue;
                }
                if self.files.len() >= MAX_FILES {
                    self.is_partial = true;
                    return Ok(());
                }
                self.push(mount, &path, &child, device(&child), layer);
            }
        }
        Ok(())
    }

    fn push(&mut self, mount: &BindMount, below: &Path, stat: &Stat, device: u32, layer: u32) {
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return;
        }
        let destination = mount
            .destination
            .strip_prefix("/")
            .unwrap_or(&mount.destination);
        let path = if below.as_os_str().is_empty() {
            destination.to_owned()
        } else {
            destination.join(below)
        };
        let place = mount.path.strip_prefix("/").unwrap_or(&mount.path);
        self.places.push(match below.as_os_str().is_empty() {
            true => mount.root.join(place),
            false => mount.root.join(place).join(below),
        });
        let entry = self.files.len() as u32;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
        self.rows.push(MountedFile {
            device,
            inode: stat.st_ino,
            file: FileId { layer, entry },
            size_bytes,
        });
        self.files.push(BoundFile {
            path,
            mount: mount.destination.clone(),
            size_bytes,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn files_below_mounts_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("data/sub")).unwrap();
        fs::write(root.join("data/sub/a"), "12345").unwrap();
        fs::write(root.join("single"), "1").unwrap();
        std::os::unix::fs::symlink("sub/a", root.join("data/link")).unwrap();
        let mount = |destination: &str, path: &str| BindMount {
            destination: destination.into(),
            root: root.clone(),
            path: path.into(),
            device: Some(7),
        };
        let mounts = [mount("/srv/data", "data"), mount("/etc/one", "single")];
        let bound = Bound::list(&mounts, 3);
        assert!(!bound.is_partial);
        let names: Vec<_> = bound
            .files
            .iter()
            .map(|f| (f.path.to_str().unwrap(), f.size_bytes))
            .collect();
        assert_eq!(names, [("srv/data/sub/a", 5), ("etc/one", 1)]);
        let places = ["data/sub/a", "single"].map(|place| root.join(place));
        assert_eq!(bound.places, places);
        let inode = fs::metadata(root.join("single")).unwrap().ino();
        let row = &bound.rows[1];
        assert_eq!((row.device, row.inode), (7, inode));
        assert_eq!((row.file.layer, row.file.entry), (3, 1));
        let outside = Bound::list(&[mount("/x", "nothing"), mount("/y", "data/link")], 3);
        assert!(outside.is_partial && outside.files.is_empty());
    }
}
