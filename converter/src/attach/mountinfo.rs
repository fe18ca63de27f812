//! The tables of mounts in /proc (proc(5), "mountinfo").

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::AttachError;
use crate::runtime::unescape_mount_field;

/// A mount, as a process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    /// The kernel's `s_dev`.
    pub(super) device: u32,
    /// Which part of the file system is mounted.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
    /// Type of the file system.
    pub(super) kind: String,
    /// Its options, still escaped.
    pub(super) options: Vec<u8>,
}

/// Reads a table; lines that cannot be understood are left out.
pub(super) fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let (major, minor) = device.split_once(':')?;
    let device = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    // Optional fields end with a dash.
    let mut fields = fields.skip_while(|field| *field != b"-");
    let kind = text(fields.nth(1)?)?;
    Some(Mount {
        id,
        device,
        root,
        point,
        kind,
        options: fields.nth(1)?.to_vec(),
    })
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape_mount_field(field)).into()
}

/// Our own mounts.
pub(super) fn own() -> Result<Vec<Mount>, AttachError> {
    const TABLE: &str = "/proc/self/mountinfo";
    let table = std::fs::read(TABLE).map_err(AttachError::io("read", TABLE))?;
    Ok(parse(&table))
}

/// The kernel's `s_dev` of the file system that `path` lies on. On btrfs stat(2) tells another.
pub(super) fn device_of(path: &Path, own: &[Mount]) -> Result<u32, AttachError> {
    let wanted = StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), wanted)
        .map_err(AttachError::io("look at", path))?;
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    let mount = own
        .iter()
        .find(|mount| known && mount.id == stat.stx_mnt_id);
    let of_stat = stat.stx_dev_major << 20 | stat.stx_dev_minor;
    Ok(mount.map_or(of_stat, |mount| mount.device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let table = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
            37 36 0:40 / / rw - overlay overlay rw,lowerdir=/a\\054b:/c\nbroken\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        let first = &mounts[0];
        assert_eq!((first.id, first.device), (36, 98 << 20));
        assert_eq!(
            (first.root.to_str(), first.point.to_str()),
            (Some("/mnt1"), Some("/mnt 2"))
        );
        assert_eq!(
            (&*first.kind, &*first.options),
            ("ext3", &b"rw,errors=continue"[..])
        );
        assert_eq!(mounts[1].options, b"rw,lowerdir=/a\\054b:/c");
    }

    #[test]
    fn the_device_of_a_file_is_its_mounts() {
        let own = own().unwrap();
        let found = device_of(Path::new("/proc/self/status"), &own).unwrap();
        let proc = own
            .iter()
            .rev()
            .find(|m| m.point == Path::new("/proc"))
            .unwrap();
        assert_eq!(found, proc.device);
    }
}
