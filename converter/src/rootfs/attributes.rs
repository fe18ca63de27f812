//! Mode, owner, time and extended attributes of a file, reduced to what both ways of making a root
//! file system can hold.
//!
//! Dropped, and counted: attributes outside `user.`, `trusted.`, `security.` and the POSIX ACLs;
//! `trusted.overlay.*`, with which a layer could redirect overlayfs; those the kernel would refuse
//! to set on that kind of file; malformed ACLs; values above 65535 bytes (EROFS stores 16 bits).

use crate::layer::entry::{Entry, EntryKind, Timestamp};

/// Name and value of an extended attribute.
pub(super) type Xattr = (Box<[u8]>, Box<[u8]>);

/// What `stat` and `listxattr` say of a file besides its kind, size and links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Permission and set-id bits alone.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    /// Sorted by name.
    pub(super) xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Of a directory that no layer describes.
    pub(super) fn implied() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }

    /// Of the file that `entry` makes.
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            // Linux keeps no mode for symlinks.
            mode: match entry.kind {
                EntryKind::Symlink => 0o777,
                _ => (entry.mode & 0o7777) as u16,
            },
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: kept_xattrs(entry).cloned().collect(),
        }
    }
}

/// How many extended attributes of `entry` are dropped.
pub(super) fn dropped_xattrs(entry: &Entry) -> usize {
    if entry.xattrs.is_empty() {
        0
    } else {
        entry.xattrs.len() - kept_xattrs(entry).count()
    }
}

/// The most that an inode's attributes may take in an EROFS index, entry headers included
/// (a 16-bit count of 4-byte units), less room for the header.
const MAX_XATTR_BYTES: usize = 4 * 65_000;

fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = &Xattr> {
    let mut room = MAX_XATTR_BYTES;
    let mut last: Option<&[u8]> = None;
    entry.xattrs.iter().filter(move |(name, value)| {
        let size = (4 + name.len() + value.len()).next_multiple_of(4);
        // A name given twice: the list is sorted, so equal names are neighbours.
        if !is_kept(entry.kind, name, value) || size > room || last == Some(&**name) {
            return false;
        }
        room -= size;
        last = Some(name);
        true
    })
}

fn is_kept(kind: EntryKind, name: &[u8], value: &[u8]) -> bool {
    if name.len() > 255 || name.contains(&0) || value.len() > usize::from(u16::MAX) {
        return false;
    }
    let is_symlink = kind == EntryKind::Symlink;
    match name {
        b"system.posix_acl_access" => !is_symlink && is_acl(value),
        b"system.posix_acl_default" => kind == EntryKind::Directory && is_acl(value),
        _ => {
            let below = |prefix: &[u8]| name.strip_prefix(prefix).is_some_and(|s| !s.is_empty());
            match kind {
                EntryKind::Regular | EntryKind::Directory if below(b"user.") => true,
                _ if below(b"trusted.overlay.") => false,
                _ => below(b"trusted.") || below(b"security."),
            }
        }
    }
}

/// Whether the kernel takes `value` as a POSIX ACL (`posix_acl_from_xattr` and `posix_acl_valid`):
/// version 2, then tag, permissions and id of each entry in the canonical order.
fn is_acl(value: &[u8]) -> bool {
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let Some(entries) = value.strip_prefix(&2u32.to_le_bytes()) else {
        return false;
    };
    if !entries.len().is_multiple_of(8) {
        return false;
    }
    let mut previous = 0;
    let mut seen = 0;
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let named = tag == USER || tag == GROUP;
        let known = named || [USER_OBJ, GROUP_OBJ, MASK, OTHER].contains(&tag);
        let in_order = tag > previous || (named && tag == previous);
        if !known || !in_order || permissions > 7 || (named && entry[4..] == [0xff; 4]) {
            return false;
        }
        previous = tag;
        seen |= tag;
    }
    let required = USER_OBJ | GROUP_OBJ | OTHER;
    seen & required == required && (seen & (USER | GROUP) == 0 || seen & MASK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn only_attributes_that_the_kernel_takes_are_kept() {
        let check = |kind, name: &str, value: &[u8], kept| {
            assert_eq!(
                is_kept(kind, name.as_bytes(), value),
                kept,
                "{kind:?} {name}"
            );
        };
        let none = u32::MAX;
        let good = acl(&[
            (1, 6, none),
            (2, 4, 7),
            (4, 4, none),
            (0x10, 4, none),
            (0x20, 4, none),
        ]);
        let no_mask = acl(&[(1, 6, none), (2, 4, 7), (4, 4, none), (0x20, 4, none)]);
        check(EntryKind::Regular, "user.a", b"", true);
        check(EntryKind::Directory, "user.a", b"x", true);
        check(EntryKind::Symlink, "user.a", b"x", false);
        check(EntryKind::Fifo, "user.a", b"x", false);
        check(EntryKind::Regular, "user.", b"x", false);
        check(EntryKind::Symlink, "trusted.a", b"x", true);
        check(
            EntryKind::Directory,
            "trusted.overlay.redirect",
            b"/",
            false,
        );
        check(EntryKind::CharDevice, "security.selinux", b"x", true);
        check(EntryKind::Regular, "com.apple.quarantine", b"x", false);
        check(EntryKind::Regular, "system.posix_acl_access", &good, true);
        check(
            EntryKind::Regular,
            "system.posix_acl_access",
            &good[..9],
            false,
        );
        check(
            EntryKind::Regular,
            "system.posix_acl_access",
            &no_mask,
            false,
        );
        check(EntryKind::Symlink, "system.posix_acl_access", &good, false);
        check(EntryKind::Regular, "system.posix_acl_default", &good, false);
        check(
            EntryKind::Directory,
            "system.posix_acl_default",
            &good,
            true,
        );
        check(EntryKind::Regular, "user.big", &vec![0; 65536], false);
        check(
            EntryKind::Regular,
            &format!("user.{}", "n".repeat(251)),
            b"",
            false,
        );
    }
}
