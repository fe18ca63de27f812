//! Entries for unit tests.

use crate::layer::entry::{Entry, EntryKind, Timestamp};
use crate::layer::spool::Extent;

pub(super) fn entry(name: impl AsRef<[u8]>, kind: EntryKind, link: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().into(),
        kind,
        link_name: link.as_ref().into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        user_name: "".into(),
        group_name: "".into(),
        mtime: Timestamp::default(),
        dev_major: 0,
        dev_minor: 0,
        xattrs: Vec::new(),
        size_bytes: 0,
        header: Extent::default(),
        payload: Extent::default(),
        sparse: None,
    }
}

pub(super) fn file(name: impl AsRef<[u8]>) -> Entry {
    entry(name, EntryKind::Regular, "")
}

pub(super) fn dir(name: impl AsRef<[u8]>) -> Entry {
    Entry {
        mode: 0o755,
        ..entry(name, EntryKind::Directory, "")
    }
}

pub(super) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(name, EntryKind::Symlink, target)
}

pub(super) fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(name, EntryKind::Hardlink, target)
}
