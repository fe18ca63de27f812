//! The cgroup to watch.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::ProfilerError;

/// A cgroup v2 by which the kernel side filters: its tasks and those of cgroups below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFilter {
    /// The cgroup's id: the inode number of its directory.
    pub id: u64,
    /// Its depth: 0 for the root of the hierarchy.
    pub level: u32,
    /// Its path as /proc/PID/cgroup has it; None where /proc tells of another view of the hierarchy than the one that
    /// is mounted.
    pub path_in_proc: Option<Box<[u8]>>,
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
        let (mut level, mut root) = (0, &*full);
        for parent in full.ancestors().skip(1) {
            if parent.metadata().map_err(failed)?.dev() != directory.dev() {
                break;
            }
            (level, root) = (level + 1, parent);
        }
        let below = full.strip_prefix(root).unwrap_or(&full);
        let path = [b"/", below.as_os_str().as_bytes()].concat();
        Ok(Self {
            id: directory.ino(),
            level,
            path_in_proc: is_as_proc_has_it(root).then(|| path.into()),
        })
    }
}

/// The path of a process's cgroup v2; None if the process is gone.
pub(super) fn of_process(process: i32) -> Option<Vec<u8>> {
    v2_path(&fs::read(format!("/proc/{process}/cgroup")).ok()?)
}

/// The line of the v2 hierarchy, `0::PATH` (cgroups(7)).
fn v2_path(text: &[u8]) -> Option<Vec<u8>> {
    let mut lines = text.split(|&byte| byte == b'\n');
    lines
        .find_map(|line| line.strip_prefix(b"0::"))
        .map(<[u8]>::to_vec)
}

/// Whether we are in the cgroup below `root`, the hierarchy's mount, in which /proc says that we are.
fn is_as_proc_has_it(root: &Path) -> bool {
    let process = std::process::id();
    let Some(path) = of_process(process.cast_signed()) else {
        return false;
    };
    let path = std::ffi::OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path));
    let processes = fs::read_to_string(root.join(path).join("cgroup.procs")).unwrap_or_default();
    processes.lines().any(|line| line == process.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_line_is_found() {
        let check = |text: &[u8], expected: Option<&[u8]>| {
            assert_eq!(v2_path(text).as_deref(), expected);
        };
        check(b"4:memory:/x\n0::/a/b\n", Some(b"/a/b"));
        check(b"0::/\n", Some(b"/"));
        check(b"4:memory:/x\n", None);
        check(b"", None);
    }
}
