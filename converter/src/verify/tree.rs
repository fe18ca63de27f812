//! A layer, or several merged ones, as the file system that an extractor makes of it. Pure.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::image::Digest;
use crate::layer::entry::{Entry, EntryKind, Timestamp, Xattr};
use crate::layer::plan::is_reserved;

/// What all names of one file have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) kind: EntryKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) device: (u32, u32),
    pub(super) size_bytes: u64,
    pub(super) digest: Option<Digest>,
    /// Target of a symlink, or of a hardlink whose target the layer does not have.
    pub(super) link: Box<[u8]>,
    pub(super) xattrs: Box<[Xattr]>,
}

impl Inode {
    fn of(entry: &Entry, digest: Option<Digest>) -> Self {
        Self {
            kind: entry.kind,
            // File type bits in the field mean nothing.
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            device: (entry.dev_major, entry.dev_minor),
            size_bytes: entry.size_bytes,
            digest,
            link: match entry.kind {
                EntryKind::Hardlink => entry.link_path().unwrap_or_default().into(),
                _ => entry.link_name.clone(),
            },
            xattrs: entry.xattrs.as_slice().into(),
        }
    }
}

/// Paths and files.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    paths: BTreeMap<Box<[u8]>, usize>,
    inodes: Vec<Inode>,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Tree {
    /// Extracts the next entry of a layer's archive. Landmarks, packs and TOC are no part of a file system.
    pub(super) fn extract(&mut self, entry: &Entry, digest: Option<Digest>) {
        // A name that leads out of the layer was refused by the tar reader.
        let Some(path) = entry.path() else { return };
        if is_reserved(&path) {
            return;
        }
        let target = match entry.kind {
            EntryKind::Hardlink => entry.link_path(),
            _ => None,
        };
        let linked = target.and_then(|target| self.paths.get(target.as_slice()).copied());
        let inode = linked.unwrap_or_else(|| {
            self.inodes.push(Inode::of(entry, digest));
            self.inodes.len() - 1
        });
        self.put(path.into(), inode);
    }

    /// A directory on a directory keeps its children, anything else replaces what was there.
    fn put(&mut self, path: Box<[u8]>, inode: usize) {
        let is_dir = |inode: usize| self.inodes[inode].kind == EntryKind::Directory;
        let old = self.paths.get(&path).copied();
        if old.is_some_and(|old| is_dir(old) && !is_dir(inode)) {
            self.remove_below(&path);
        }
        self.paths.insert(path, inode);
    }

    fn remove_below(&mut self, path: &[u8]) {
        // Everything that begins with `path/`; '0' follows '/'.
        let (from, to) = if path.is_empty() {
            (Vec::new(), None)
        } else {
            ([path, b"/"].concat(), Some([path, b"0"].concat()))
        };
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let range = (Bound::Excluded(from.as_slice()), to);
        let below: Vec<Box<[u8]>> = self
            .paths
            .range::<[u8], _>(range)
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.paths.remove(&path);
        }
    }

    /// Lays `upper` over this tree as the OCI image specification says (layer.md, "Whiteouts"): what
    /// it takes away is taken from below alone, in whatever order its entries stand.
    pub(super) fn lay_over(&mut self, upper: Self) {
        for path in upper.paths.keys() {
            let (dir, name) = split(path);
            if name == OPAQUE {
                self.remove_below(dir);
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                let path = join(dir, hidden);
                self.remove_below(&path);
                self.paths.remove(path.as_slice());
            }
        }
        let base = self.inodes.len();
        let links: Vec<Option<usize>> = upper
            .inodes
            .iter()
            .map(|inode| match inode.kind {
                // Its target lies in a lower layer.
                EntryKind::Hardlink => self.paths.get(&inode.link).copied(),
                _ => None,
            })
            .collect();
        self.inodes.extend(upper.inodes);
        for (path, inode) in upper.paths {
            if !split(&path).1.starts_with(WHITEOUT) {
                self.put(path, links[inode].unwrap_or(base + inode));
            }
        }
    }

    /// Every path in order with its file, and the first path of that file.
    pub(super) fn files(&self) -> impl Iterator<Item = (&[u8], &Inode, &[u8])> {
        let mut first: Vec<Option<&[u8]>> = vec![None; self.inodes.len()];
        self.paths.iter().map(move |(path, &inode)| {
            let first = *first[inode].get_or_insert(path);
            (&**path, &self.inodes[inode], first)
        })
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::layer::spool::Extent;

    /// `d/` is a directory, `a=b` a hardlink a to b, all else a file whose mode is its place.
    pub(in crate::verify) fn tree(names: &[&str]) -> Tree {
        let mut tree = Tree::default();
        for (mode, name) in (1..).zip(names) {
            let (name, target) = name.split_once('=').unwrap_or((name, ""));
            let kind = match (name.ends_with('/'), target) {
                (true, _) => EntryKind::Directory,
                (false, "") => EntryKind::Regular,
                (false, _) => EntryKind::Hardlink,
            };
            let entry = Entry {
                name: name.as_bytes().into(),
                kind,
                link_name: target.as_bytes().into(),
                mode,
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
            };
            tree.extract(&entry, None);
        }
        tree
    }

    fn check(layers: &[&[&str]], expected: &str) {
        let mut merged = Tree::default();
        for layer in layers {
            merged.lay_over(tree(layer));
        }
        let found: Vec<String> = merged
            .files()
            .map(|(path, inode, first)| {
                let text = String::from_utf8_lossy;
                format!("{}:{}:{}", text(path), inode.mode, text(first))
            })
            .collect();
        assert_eq!(found.join(" "), expected, "{layers:?}");
    }

    #[test]
    fn entries_replace_each_other_as_extracted() {
        check(&[&["a", "a"]], "a:2:a");
        check(&[&["d/", "d/x", "d/"]], "d:3:d d/x:2:d/x");
        check(&[&["d/", "d/x", "d0", "d"]], "d:4:d d0:3:d0");
        check(&[&["a", "b=a", "a"]], "a:3:a b:1:b");
        check(&[&["a", "b=a", "c=b"]], "a:1:a b:1:a c:1:a");
        check(
            &[&[".prefetch.landmark", "./stargz.index.json", "x"]],
            "x:3:x",
        );
        check(
            &[&["a"], &[".wh..wh.esgz.hot", "./.wh..wh.esgz.hot0", "x"]],
            "a:1:a x:3:x",
        );
    }

    #[test]
    fn layers_take_away_from_lower_ones_alone() {
        check(&[&["a", "b"], &[".wh.a"]], "b:2:b");
        check(&[&["d/", "d/x", "e"], &[".wh.d"]], "e:3:e");
        check(
            &[&["d/", "d/x"], &["d/", "d/y", "d/.wh..wh..opq"]],
            "d:1:d d/y:2:d/y",
        );
        check(&[&["a", "b"], &[".wh..wh..opq", "c"]], "c:2:c");
        check(&[&["a"], &["x", ".wh.x", ".wh.a"]], "x:1:x");
        check(&[&["a"], &["b=a"]], "a:1:a b:1:a");
        check(&[&["d/", "d/x"], &["d"]], "d:1:d");
    }
}
