//! Generated archives: every kind of entry, every dialect, in any order.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::archive::{Dialect, Entry, Kind, Sparse, SparseFormat};
use crate::sets::noise;

/// One entry to be; links and duplicates are resolved when the archive is made.
#[derive(Clone, Debug)]
pub struct Draft {
    kind: u8,
    path: Vec<u8>,
    size: usize,
    dialect: Dialect,
    mtime: (i64, u32),
    owner: (u64, u64),
    xattr: bool,
    target: Index,
}

/// Any entry.
pub fn draft() -> impl Strategy<Value = Draft> {
    let dialect = prop_oneof![Just(Dialect::Pax), Just(Dialect::Gnu), Just(Dialect::Ustar)];
    let id = || prop_oneof![Just(0), 0..3_000_000_000_u64];
    (
        (0..11_u8, vec(0..5_u8, 1..4), 0..3000_usize, dialect),
        (-100_000..9_000_000_000_i64, 0..1_000_000_000_u32),
        (id(), id()),
        (any::<bool>(), any::<Index>()),
    )
        .prop_map(
            |((kind, path, size, dialect), mtime, owner, (xattr, target))| Draft {
                kind,
                path,
                size,
                dialect,
                mtime,
                owner,
                xattr,
                target,
            },
        )
}

/// Whether names may occur twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// They do not.
    Unique,
    /// They may; and there are sparse files.
    Repeated,
}

/// The entries of the drafts.
pub fn entries(drafts: &[Draft], names: Names) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (number, draft) in drafts.iter().enumerate() {
        let components = [
            "a",
            "b",
            "dir",
            "\u{fc}",
            "a-name-that-is-longer-than-others-by-far",
        ];
        let parts: Vec<&str> = draft
            .path
            .iter()
            .map(|&part| components[part as usize])
            .collect();
        let mut name = parts.join("/");
        if names == Names::Unique {
            name = format!("{name}/{number}");
            if draft.path.len() == 3 {
                name = format!("{}{name}", "long/".repeat(60));
            }
        }
        let files: Vec<&Entry> = entries.iter().filter(|e| e.kind == Kind::File).collect();
        let contents = noise(number as u64, draft.size);
        let mut entry = match draft.kind {
            0..=3 => Entry::file(&name, contents),
            4 => Entry::dir(format!("{name}/")),
            5 => Entry::symlink(&name, "../somewhere"),
            6 if !files.is_empty() => Entry::hardlink(&name, &draft.target.get(&files).name),
            7 => Entry::device(Kind::Char, &name, 5, 1),
            8 => Entry::new(Kind::Fifo, &name),
            9 if names == Names::Repeated => Entry::sparse(
                &name,
                Sparse {
                    format: SparseFormat::Pax10,
                    segments: vec![(1024, noise(1, 512)), (4096, contents)],
                    size_bytes: 4096 + draft.size as u64,
                },
            ),
            _ => Entry::file(format!("./{name}"), ""),
        };
        // Of a long name ustar has no room for every form.
        if entry.sparse.is_none() && (draft.dialect != Dialect::Ustar || entry.name.len() <= 100) {
            entry = entry.dialect(draft.dialect);
        }
        if entry.dialect == Dialect::Pax && draft.xattr {
            entry = entry.xattr("user.name", "value\n=\0");
        }
        let (secs, nanos) = draft.mtime;
        let nanos = if entry.dialect == Dialect::Pax {
            nanos
        } else {
            0
        };
        let secs = if entry.dialect == Dialect::Ustar {
            secs.max(0)
        } else {
            secs
        };
        entries.push(entry.mtime(secs, nanos).owner(draft.owner.0, draft.owner.1));
    }
    entries
}
