//! The layers of a root file system that something else stacked: which directory holds which layer, and under
//! which device and inode the kernel knows each file.
//!
//! Enters: an image's layers, and the directories over which overlayfs is mounted. Leaves: the same rows as of a
//! root file system of our own; or why the directories are not those layers, unpacked. Nothing is written, and no
//! contents are read: names, kinds, sizes and times are compared.

mod fit;
mod hidden;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::error::RootfsError;
use super::tree::{NodeId, Tree};
use super::{MountedFile, merge, opened, unpack};
use crate::cancel::{Cancel, Cancelled};
use crate::layer::entry::{Entry, FileId, ScannedLayer};
pub use fit::Problem;
use fit::{Fit, Misfit};
use hidden::Hidden;

/// What overlayfs stacks, as it is mounted.
#[derive(Debug)]
pub struct Stack<'a> {
    /// The lower directories, base first.
    pub lowers: &'a [Lower],
    /// The writable directory on top, if there is one.
    pub upper: Option<&'a Path>,
    /// The merged view.
    pub merged: BorrowedFd<'a>,
    /// The kernel's `s_dev` of the merged view.
    pub device: u32,
}

/// One lower directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Where it is.
    pub directory: PathBuf,
    /// The kernel's `s_dev` of its file system, which may differ from what stat(2) says (btrfs).
    pub device: u32,
}

/// Where the files of a stack are.
#[derive(Clone, Debug)]
pub struct Located {
    /// Every regular file of every layer, as [`super::MountedRootfs::files`].
    pub files: Vec<MountedFile>,
    /// Those of the merged view, as [`super::MountedRootfs::opened_as`]; without those that the container has
    /// replaced or removed.
    pub opened_as: Vec<MountedFile>,
}

/// The directories are not the layers.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The image's own layers cannot be understood.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// There are more directories than layers, or less.
    #[error("it is made of {directories} layers, and the image has {layers}")]
    Count {
        /// How many there are.
        directories: usize,
        /// How many there should be.
        layers: usize,
    },
    /// A directory holds something else than the layer.
    #[error("layer {layer} is not what is in {}: \"{path}\" {problem}", directory.display())]
    Differs {
        /// 0-based, the base layer first.
        layer: usize,
        /// Where it should be.
        directory: PathBuf,
        /// The first difference, below the directory.
        path: String,
        /// What is wrong there.
        problem: Problem,
    },
    /// Somebody asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Finds the files of `layers`, base first, in the directories of `stack`.
///
/// Directories and layers are matched from the base on. A layer without any entry needs no directory, as some
/// tools make none; above the last layer, Docker's own one may lie.
///
/// # Errors
/// [`LocateError`] says why the directories are not the image's.
pub fn locate(
    layers: &[ScannedLayer],
    stack: &Stack<'_>,
    cancel: &Cancel,
) -> Result<Located, LocateError> {
    let entries: Vec<&[Entry]> = layers.iter().map(|layer| &*layer.entries).collect();
    let trees = Tree::build_all(&entries, cancel)?;
    let found = match_layers(&trees, &entries, stack.lowers, cancel)?;
    let mut files: Vec<MountedFile> = Vec::new();
    let mut by_layer: HashMap<usize, HashMap<NodeId, MountedFile>> = HashMap::new();
    for (layer, lower, fit) in found {
        let device = stack.lowers[lower].device;
        let rows: HashMap<NodeId, MountedFile> = fit
            .files
            .into_iter()
            .filter_map(|(node, inode)| {
                let entry = trees[layer].node(node).entry?;
                let file = FileId {
                    layer: layer as u32,
                    entry,
                };
                let size_bytes = entries[layer][entry as usize].size_bytes;
                let row = MountedFile {
                    device,
                    inode,
                    file,
                    size_bytes,
                };
                Some((node, row))
            })
            .collect();
        files.extend(rows.values());
        by_layer.insert(layer, rows);
    }
    files.sort_unstable_by_key(|file| (file.device, file.inode));
    let opened_as = opened_as(&trees, &by_layer, stack)?;
    Ok(Located { files, opened_as })
}

/// Layer, lower directory, and its files.
type Found = Vec<(usize, usize, Fit)>;

fn match_layers(
    trees: &[Tree],
    entries: &[&[Entry]],
    lowers: &[Lower],
    cancel: &Cancel,
) -> Result<Found, LocateError> {
    let (directories, layers) = (lowers.len(), trees.len());
    let mut found = Found::new();
    let mut next = 0;
    for (layer, tree) in trees.iter().enumerate() {
        cancel.check()?;
        let is_empty = tree.root().children.is_empty();
        let Some(lower) = lowers.get(next) else {
            if is_empty {
                continue;
            }
            return Err(LocateError::Count {
                directories,
                layers,
            });
        };
        match fit::compare(tree, entries[layer], &lower.directory, cancel)? {
            Ok(fit) => {
                found.push((layer, next, fit));
                next += 1;
            }
            Err(_) if is_empty => {}
            Err(Misfit { path, problem }) => {
                return Err(LocateError::Differs {
                    layer,
                    directory: lower.directory.clone(),
                    path: String::from_utf8_lossy(&path).into_owned(),
                    problem,
                });
            }
        }
    }
    match lowers[next..] {
        [] => Ok(found),
        [ref only] if is_dockers_own(&only.directory) => Ok(found),
        _ => Err(LocateError::Count {
            directories,
            layers,
        }),
    }
}

/// Docker puts a layer with the mount points that it needs on top of the image's: `…/overlay2/ID-init/diff`.
fn is_dockers_own(directory: &Path) -> bool {
    let parent = directory.parent().and_then(Path::file_name);
    directory.ends_with("diff")
        && parent.is_some_and(|name| name.to_string_lossy().ends_with("-init"))
}

/// As [`opened::opened_as`], for a view that somebody has written to.
fn opened_as(
    trees: &[Tree],
    files: &HashMap<usize, HashMap<NodeId, MountedFile>>,
    stack: &Stack<'_>,
) -> Result<Vec<MountedFile>, LocateError> {
    let hidden = match stack.upper {
        Some(upper) => Hidden::by(upper)?,
        None => Hidden::default(),
    };
    // On one file system, overlayfs shows the numbers of the lower files.
    let mut devices: Vec<u32> = stack.lowers.iter().map(|lower| lower.device).collect();
    if let Some(upper) = stack.upper {
        devices.push(unpack::device_of(upper)?);
    }
    devices.dedup();
    let is_one = devices.len() <= 1;
    let mut prefixes: HashMap<usize, u64> = HashMap::new();
    let mut opened_as = Vec::new();
    merge::for_each_visible_file(trees, |path, layer, node| {
        let lower = files.get(&layer).and_then(|files| files.get(&node));
        let Some(lower) = lower.filter(|_| !hidden.covers(path)) else {
            return Ok::<(), LocateError>(());
        };
        let prefix = if is_one {
            Some(0)
        } else {
            prefixes.get(&layer).copied().or_else(|| {
                let found = prefix(stack, path, lower.inode)?;
                prefixes.insert(layer, found);
                Some(found)
            })
        };
        if let Some(prefix) = prefix {
            opened_as.push(MountedFile {
                device: stack.device,
                inode: prefix | lower.inode,
                ..*lower
            });
        }
        Ok(())
    })?;
    opened_as.sort_unstable_by_key(|file| (file.device, file.inode));
    opened::drop_ambiguous(&mut opened_as);
    Ok(opened_as)
}

/// What overlayfs's `xino` puts above the inode numbers of the layer of `path`. None where the file is not the
/// lower one (a mount covers it), or nothing is put.
fn prefix(stack: &Stack<'_>, path: &[u8], lower: u64) -> Option<u64> {
    let (device, inode) = unpack::stat_below(stack.merged, path).ok()?;
    let prefix = inode ^ lower;
    let holds = device == stack.device && inode >= lower && prefix & u64::from(u32::MAX) == 0;
    holds.then_some(prefix)
}

fn open_directory(path: &Path) -> Result<OwnedFd, RootfsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(RootfsError::io("open", path))
}

#[cfg(test)]
mod tests;
