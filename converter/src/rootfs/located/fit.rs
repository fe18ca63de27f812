//! A layer's tree beside a directory that should hold it.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::super::error::RootfsError;
use super::super::tree::{NodeId, NodeKind, ROOT, Tree};
use super::{LocateError, open_directory};
use crate::cancel::Cancel;
use crate::layer::entry::Entry;
use crate::layer::plan::is_reserved;

/// A directory holds the layer.
#[derive(Debug, Default)]
pub(super) struct Fit {
    /// Every regular file: node and inode.
    pub(super) files: Vec<(NodeId, u64)>,
}

/// It does not.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) path: Vec<u8>,
    pub(super) problem: Problem,
}

/// How a file differs from the layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The layer has it, the directory not.
    Missing,
    /// The directory has it, the layer not.
    Foreign,
    /// It is of another kind.
    Kind,
    /// It has another size: in the directory, in the layer.
    Size(u64, u64),
    /// It was changed at another time.
    Time,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing there"),
            Self::Foreign => f.write_str("is there, and not in the layer"),
            Self::Kind => f.write_str("is of another kind there"),
            Self::Size(there, here) => {
                write!(f, "has {there} bytes there, and {here} in the layer")
            }
            Self::Time => f.write_str("has another modification time there"),
        }
    }
}

/// What Stargz Snapshotter shows in the root of a layer.
const SNAPSHOTTERS_OWN: &[u8] = b".stargz-snapshotter";

/// Compares `tree`, built of `entries`, with what is below `directory`.
pub(super) fn compare(
    tree: &Tree,
    entries: &[Entry],
    directory: &Path,
    cancel: &Cancel,
) -> Result<Result<Fit, Misfit>, LocateError> {
    let root = open_directory(directory)?;
    let mut fit = Fit::default();
    let mut pending = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        cancel.check()?;
        let fd = open_below(&root, &path).map_err(RootfsError::io("open", directory))?;
        let children = &tree
            .directory(id)
            .expect("only directories are pending")
            .children;
        let mut names: HashSet<Vec<u8>> = HashSet::new();
        for found in Dir::read_from(&fd).map_err(RootfsError::io("read", directory))? {
            let found = found.map_err(RootfsError::io("read", directory))?;
            let name = found.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.insert(name.to_vec());
            }
        }
        let at = |name: &[u8]| {
            if path.is_empty() {
                name.to_vec()
            } else {
                [&*path, b"/", name].concat()
            }
        };
        let misfit = |name: &[u8], problem| {
            let path = at(name);
            Ok(Err(Misfit { path, problem }))
        };
        for (name, &child) in children {
            let is_there = names.remove(&**name);
            let kind = &tree.node(child).kind;
            // Each tool has its own way to write a whiteout down; those that hide nothing may be left out.
            if matches!(kind, NodeKind::Whiteout) {
                continue;
            }
            if !is_there {
                // Lazy-pulling runtimes do not show what eStargz adds.
                if path.is_empty() && is_reserved(name) {
                    continue;
                }
                return misfit(name, Problem::Missing);
            }
            let stat = rustix::fs::statat(fd.as_fd(), &**name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(RootfsError::io("look at a file in", directory))?;
            if !is_of_kind(&stat, kind) {
                return misfit(name, Problem::Kind);
            }
            match kind {
                NodeKind::Directory(_) => pending.push((at(name), child)),
                NodeKind::Regular => {
                    let entry = tree.node(child).entry.map(|entry| &entries[entry as usize]);
                    if let Some(problem) = entry.and_then(|entry| differs(&stat, entry)) {
                        return misfit(name, problem);
                    }
                    fit.files.push((child, stat.st_ino));
                }
                _ => {}
            }
        }
        for name in names {
            let stat = rustix::fs::statat(fd.as_fd(), &*name, AtFlags::SYMLINK_NOFOLLOW);
            let is_whiteout = name.starts_with(b".wh.")
                || stat.is_ok_and(|stat| {
                    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
                });
            let is_snapshotters = path.is_empty() && name == SNAPSHOTTERS_OWN;
            if !is_whiteout && !is_snapshotters {
                return misfit(&name, Problem::Foreign);
            }
        }
    }
    fit.files.sort_unstable();
    fit.files.dedup();
    Ok(Ok(fit))
}

fn open_below(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let name: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, name, flags, Mode::empty(), resolve)
}

fn is_of_kind(stat: &Stat, kind: &NodeKind) -> bool {
    let found = FileType::from_raw_mode(stat.st_mode);
    match kind {
        NodeKind::Directory(_) => found.is_dir(),
        NodeKind::Regular => found.is_file(),
        NodeKind::Symlink => found.is_symlink(),
        NodeKind::Fifo => found.is_fifo(),
        // Without privilege tools make something else of devices.
        NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Whiteout => true,
    }
}

fn differs(stat: &Stat, entry: &Entry) -> Option<Problem> {
    let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
    if size_bytes != entry.size_bytes {
        return Some(Problem::Size(size_bytes, entry.size_bytes));
    }
    // Writers of archives round to whole seconds, down or to the nearest; some clamp what is before 1970.
    let is_near = stat.st_mtime.abs_diff(entry.mtime.secs) <= 1 || entry.mtime.secs <= 0;
    (!is_near).then_some(Problem::Time)
}
