//! What a writable directory on top hides of the layers below.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::super::error::RootfsError;
use super::open_directory;

/// Paths of which nothing of a lower layer shows, they and what is below.
#[derive(Debug, Default)]
pub(super) struct Hidden(HashSet<Vec<u8>>);

impl Hidden {
    /// Files and whiteouts in `upper`, and what it has of opaque directories.
    pub(super) fn by(upper: &Path) -> Result<Self, RootfsError> {
        let root = open_directory(upper)?;
        let mut hidden = HashSet::new();
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let name: &[u8] = if path.is_empty() { b"." } else { &path };
            // The container goes on meanwhile: what is gone hides nothing.
            let Ok(fd) = rustix::fs::openat(root.as_fd(), name, flags, Mode::empty()) else {
                continue;
            };
            let is_opaque = ["trusted.overlay.opaque", "user.overlay.opaque"]
                .iter()
                .any(|name| {
                    let mut value = [0; 1];
                    matches!(rustix::fs::fgetxattr(&fd, *name, &mut value), Ok(1) if value == *b"y")
                });
            if is_opaque {
                hidden.insert(path.clone());
            }
            for found in Dir::read_from(&fd).map_err(RootfsError::io("read", upper))? {
                let found = found.map_err(RootfsError::io("read", upper))?;
                let name = found.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let child = if path.is_empty() {
                    name.to_bytes().to_vec()
                } else {
                    [&*path, b"/", name.to_bytes()].concat()
                };
                let kind = match found.file_type() {
                    FileType::Unknown => {
                        let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW);
                        stat.map_or(FileType::Unknown, |stat| {
                            FileType::from_raw_mode(stat.st_mode)
                        })
                    }
                    kind => kind,
                };
                if kind.is_dir() {
                    pending.push(child);
                } else {
                    hidden.insert(child);
                }
            }
        }
        Ok(Self(hidden))
    }

    /// Whether `path` is hidden, by itself or through a directory above it.
    pub(super) fn covers(&self, path: &[u8]) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        let mut ends = ends.map(|(at, _)| at).chain([path.len()]);
        self.0.contains(&b""[..]) || ends.any(|end| self.0.contains(&path[..end]))
    }
}
