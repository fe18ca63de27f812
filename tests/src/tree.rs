//! Directory trees as values, to compare two of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::layout::digest;

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `st_mode`: kind and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Digest of a file's contents, or a link's target.
    pub contents: String,
    /// The first path in the tree with the same inode.
    pub first_name: PathBuf,
    /// Device number of a device.
    pub device: u64,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A directory and everything below it, by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Node>);

impl Tree {
    /// Reads the tree below `root`.
    ///
    /// # Panics
    /// When something of it cannot be read.
    pub fn read(root: &Path) -> Self {
        let mut nodes = BTreeMap::new();
        read_dir(root, Path::new(""), &mut nodes);
        let mut first: HashMap<(u64, u64), PathBuf> = HashMap::new();
        let nodes = nodes.into_iter().map(|(path, (inode, mut node))| {
            node.first_name = first.entry(inode).or_insert_with(|| path.clone()).clone();
            (path, node)
        });
        Self(nodes.collect())
    }

    /// Without times, which a failed and undone write may change.
    #[must_use]
    pub fn without_times(mut self) -> Self {
        for node in self.0.values_mut() {
            node.mtime = (0, 0);
        }
        self
    }

    /// Without the times of directories: one that no entry makes gets the time of the extraction.
    #[must_use]
    pub fn without_directory_times(mut self) -> Self {
        let is_dir = |node: &&mut Node| node.mode & 0o170_000 == 0o040_000;
        for node in self.0.values_mut().filter(is_dir) {
            node.mtime = (0, 0);
        }
        self
    }

    /// What differs, a line a path; empty when the trees are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, node) in &self.0 {
            match other.0.get(path) {
                None => found.push(format!("{}: only in the first", path.display())),
                Some(same) if same == node => {}
                Some(different) => {
                    found.push(format!("{}: {node:?} and {different:?}", path.display()));
                }
            }
        }
        let extra = other.0.keys().filter(|path| !self.0.contains_key(*path));
        found.extend(extra.map(|path| format!("{}: only in the second", path.display())));
        found
    }
}

type Inode = (u64, u64);

fn read_dir(root: &Path, below: &Path, nodes: &mut BTreeMap<PathBuf, (Inode, Node)>) {
    let dir = root.join(below);
    for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let entry = entry.unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let (path, below) = (entry.path(), below.join(entry.file_name()));
        let metadata = entry
            .metadata()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let kind = metadata.file_type();
        let contents = if kind.is_symlink() {
            fs::read_link(&path).map(|target| target.display().to_string())
        } else if kind.is_file() {
            fs::read(&path).map(|bytes| digest(&bytes))
        } else {
            Ok(String::new())
        };
        let node = Node {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            contents: contents.unwrap_or_else(|e| panic!("{}: {e}", path.display())),
            first_name: PathBuf::new(),
            device: metadata.rdev(),
            xattrs: read_xattrs(&path),
        };
        nodes.insert(below.clone(), ((metadata.dev(), metadata.ino()), node));
        if kind.is_dir() {
            read_dir(root, &below, nodes);
        }
    }
}

fn read_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    // The kernel's limits on a list of names and on a value.
    let mut buffer = vec![0; 64 << 10];
    // A file system without extended attributes has none.
    let len = rustix::fs::llistxattr(path, &mut buffer).unwrap_or(0);
    let names = buffer[..len]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec);
    let mut value = vec![0; 64 << 10];
    let read = |name: Vec<u8>| {
        let len = rustix::fs::lgetxattr(path, &name[..], &mut value).ok()?;
        Some((name, value[..len].to_vec()))
    };
    names.filter_map(read).collect()
}
