//! The cgroup to watch.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::ProfilerError;

/// A cgroup v2 by which the kernel side filters: its tasks and those of cgroups below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupFilter {
    /// The cgroup's id: the inode number of its directory.
    pub id: u64,
    /// Its depth: 0 for the root of the hierarchy.
    pub level: u32,
}

impl CgroupFilter {
    /// The cgroup whose directory is `path`. The hierarchy's root must be visible above it, as it
    /// is outside of containers.
    ///
    /// # Errors
    /// [`ProfilerError::Cgroup`] if `path` does not lie in a cgroup v2 file system.
    pub fn from_directory(path: &Path) -> Result<Self, ProfilerError> {
        let failed = |source| ProfilerError::Cgroup {
            path: path.into(),
            source,
        };
        let full = path.canonicalize().map_err(failed)?;
        let kind = statfs(&full)
            .map_err(|errno| failed(errno.into()))?
            .filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(failed(io::Error::other("not in a cgroup v2 file system")));
        }
        let directory = full.metadata().map_err(failed)?;
        let mut level = 0;
        for parent in full.ancestors().skip(1) {
            if parent.metadata().map_err(failed)?.dev() != directory.dev() {
                break;
            }
            level += 1;
        }
        Ok(Self {
            id: directory.ino(),
            level,
        })
    }
}
