//! What is mounted where, from /proc/self/mountinfo (proc(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::runtime::RuntimeError;

/// Mount points of cgroup hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CgroupMounts {
    /// The v2 hierarchy: alone, or beside v1 ones.
    pub(super) unified: Option<PathBuf>,
    /// The v1 hierarchies.
    pub(super) legacy: Vec<PathBuf>,
}

/// The hierarchies that this process sees.
pub(super) fn cgroup_mounts() -> Result<CgroupMounts, RuntimeError> {
    read().map(|mountinfo| parse(&mountinfo))
}

/// What is mounted on or below `directories`, the last mount first.
pub(super) fn below(directories: &[&Path]) -> Result<Vec<PathBuf>, RuntimeError> {
    read().map(|mountinfo| points_below(&mountinfo, directories))
}

fn read() -> Result<Vec<u8>, RuntimeError> {
    const MOUNTINFO: &str = "/proc/self/mountinfo";
    fs::read(MOUNTINFO).map_err(|source| RuntimeError::io("reading", MOUNTINFO, source))
}

fn points_below(mountinfo: &[u8], directories: &[&Path]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|&b| b == b'\n').rev();
    let points = lines.filter_map(|line| line.split(|&b| b == b' ').nth(4).map(path));
    points
        .filter(|point| {
            directories
                .iter()
                .any(|directory| point.starts_with(directory))
        })
        .collect()
}

pub(super) fn parse(mountinfo: &[u8]) -> CgroupMounts {
    let mut mounts = CgroupMounts::default();
    for line in mountinfo.split(|&b| b == b'\n') {
        let mut fields = line.split(|&b| b == b' ');
        // Mount point is the fifth field; the file system's type follows a lone dash.
        let (Some(root), Some(point)) = (fields.nth(3), fields.next()) else {
            continue;
        };
        let Some(kind) = fields.skip_while(|&field| field != b"-").nth(1) else {
            continue;
        };
        // A hierarchy of which only a part is mounted is some container's.
        if root != b"/" {
            continue;
        }
        match kind {
            b"cgroup2" if mounts.unified.is_none() => mounts.unified = Some(path(point)),
            b"cgroup" => mounts.legacy.push(path(point)),
            _ => {}
        }
    }
    mounts
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape_mount_field(field)).into()
}

/// The kernel writes what would be taken for something else as a backslash and three octal digits
/// (`seq_escape`).
pub(crate) fn unescape_mount_field(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.get(..3).and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            _ => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let hybrid = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            30 1 0:26 / /sys/fs/cgroup rw shared:1 - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/cpu rw shared:2 shared:3 - cgroup cgroup rw,cpu\n\
            32 30 0:28 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,x\n\
            33 30 0:29 /part /elsewhere rw - cgroup2 cgroup2 rw\n\
            34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\nbroken\n";
        assert_eq!(
            parse(hybrid),
            CgroupMounts {
                unified: Some("/sys/fs/cgroup/unified".into()),
                legacy: vec![
                    "/sys/fs/cgroup/cpu".into(),
                    "/sys/fs/cgroup/with space".into()
                ],
            }
        );
        assert_eq!(parse(b""), CgroupMounts::default());
    }

    #[test]
    fn mounts_below_a_directory_are_found() {
        let mountinfo = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 8:1 /x /s/a\\040b rw - ext4 /dev/vda rw\n\
            3 2 0:5 / /s/a\\040b/in rw - tmpfs t rw\n\
            4 2 0:5 / /s/a\\040bc rw - tmpfs t rw\n\
            5 1 0:6 / /r/n rw - nsfs nsfs rw\n";
        assert_eq!(
            points_below(mountinfo, &[Path::new("/s/a b"), Path::new("/r")]),
            [PathBuf::from("/r/n"), "/s/a b/in".into(), "/s/a b".into()]
        );
    }
}
