//! Where cgroup hierarchies are mounted, from /proc/self/mountinfo (proc(5)). Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Mount points of cgroup hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CgroupMounts {
    /// The v2 hierarchy: alone, or beside v1 ones.
    pub(super) unified: Option<PathBuf>,
    /// The v1 hierarchies.
    pub(super) legacy: Vec<PathBuf>,
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
            b"cgroup2" if mounts.unified.is_none() => mounts.unified = Some(unescape(point)),
            b"cgroup" => mounts.legacy.push(unescape(point)),
            _ => {}
        }
    }
    mounts
}

/// Space, tab, newline and backslash stand as octal.
fn unescape(field: &[u8]) -> PathBuf {
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
    OsString::from_vec(bytes).into()
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
}
