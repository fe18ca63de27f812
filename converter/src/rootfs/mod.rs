//! From scanned layers to a mounted root file system.
//!
//! Enters: the layers of one image, base first. Leaves: a mount point that shows their merged
//! view, and for every regular file the (device, inode) pair under which the kernel will report
//! accesses to it. The mount is fresh: no page of it is cached.

mod attributes;
mod erofs;
mod error;
mod merge;
mod mount;
mod opened;
#[cfg(test)]
mod test_entries;
mod tree;
mod unpack;
mod workspace;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

pub use error::{EntryProblem, RootfsError, TreeError};

use crate::cancel::Cancel;
use crate::image::Digest;
use crate::layer::entry::{Entry, FileId, ScannedLayer};
use tree::{NodeId, Tree};
use workspace::Workspace;

/// How the root file system is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RootfsMode {
    /// EROFS where the kernel has it, else unpacked directories.
    #[default]
    Auto,
    /// An EROFS index over each spooled tar; needs Linux 6.4.
    Erofs,
    /// Every layer unpacked into a plain directory.
    Unpack,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct RootfsOptions {
    /// Which way.
    pub mode: RootfsMode,
    /// Directory for index files, upper directories and unpacked layers; not on tmpfs.
    pub scratch: PathBuf,
    /// Read-ahead of the loop devices in KiB. Above 64 the kernel hides touches.
    pub read_ahead_kib: u32,
}

/// A regular file of the image as the kernel reports it in `filemap` events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountedFile {
    /// The kernel's `s_dev` of the lower file system: `major << 20 | minor`.
    pub device: u32,
    /// Inode number there.
    pub inode: u64,
    /// The entry that holds the contents.
    pub file: FileId,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// How a root file system was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// EROFS indexes over the spools, on loop devices: every page is read cold.
    Erofs,
    /// Unpacked directories on the scratch file system, whose read-ahead is not ours.
    Unpack,
}

/// The most layers that overlayfs stacks (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// A root file system at its mount point. Dropping it unmounts and removes everything, as
/// [`MountedRootfs::unmount`] does, but can only log a failure.
#[derive(Debug)]
pub struct MountedRootfs {
    workspace: Workspace,
    path: PathBuf,
    files: Vec<MountedFile>,
    opened_as: Vec<MountedFile>,
    backend: Backend,
    fallback_reason: Option<String>,
    dropped_xattrs: usize,
    index_bytes: u64,
}

impl MountedRootfs {
    /// The merged view; writable, what is written is thrown away with it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every regular file of every layer in use, under the device and inode of its lower file
    /// system, which page-cache events carry. Sorted by device and inode.
    pub fn files(&self) -> &[MountedFile] {
        &self.files
    }

    /// Every regular file of the merged view, under the device and inode that an open file there
    /// has, until it is written to. Sorted by device and inode.
    pub fn opened_as(&self) -> &[MountedFile] {
        &self.opened_as
    }

    /// How it was made.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Why [`RootfsMode::Auto`] did not use EROFS.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// How many extended attributes are left out: those the kernel does not take on such a file,
    /// `trusted.overlay.*`, and namespaces it does not know.
    pub fn dropped_xattrs(&self) -> usize {
        self.dropped_xattrs
    }

    /// Size in bytes of all EROFS indexes; 0 when unpacked.
    pub fn index_bytes(&self) -> u64 {
        self.index_bytes
    }

    /// Unmounts, detaches the loop devices and removes everything. A mount in use disappears from
    /// the file tree at once and ends with its last user.
    ///
    /// # Errors
    /// The first failure; the rest is still tried.
    pub fn unmount(mut self) -> Result<(), RootfsError> {
        self.workspace.release()
    }
}

/// Mounts the merged view of `layers`, the base layer first. Needs `CAP_SYS_ADMIN`, Linux 6.4 for
/// EROFS, and `/proc`. A [`FileId::layer`] in the result is an index into `layers`.
///
/// # Errors
/// See [`RootfsError`]; nothing is left mounted.
pub fn mount(
    layers: &[&ScannedLayer],
    options: &RootfsOptions,
    cancel: &Cancel,
) -> Result<MountedRootfs, RootfsError> {
    if layers.len() > MAX_LAYERS {
        return Err(RootfsError::TooManyLayers {
            layers: layers.len(),
            limit: MAX_LAYERS,
        });
    }
    let image = Image::new(layers, cancel)?;
    match options.mode {
        RootfsMode::Erofs => image.mount(Backend::Erofs, options, cancel),
        RootfsMode::Unpack => image.mount(Backend::Unpack, options, cancel),
        RootfsMode::Auto => match image.mount(Backend::Erofs, options, cancel) {
            Err(error) if error.is_unsupported() => {
                let reason = describe(&error);
                let mut mounted = image.mount(Backend::Unpack, options, cancel)?;
                mounted.fallback_reason = Some(reason);
                Ok(mounted)
            }
            other => other,
        },
    }
}

/// An error and its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The layers and their trees.
struct Image<'a> {
    layers: &'a [&'a ScannedLayer],
    entries: Vec<&'a [Entry]>,
    trees: Vec<Tree>,
}

/// The files of one mounted layer.
struct MountedLayer {
    layer: usize,
    /// In ascending order of node.
    files: Vec<(NodeId, MountedFile)>,
}

impl<'a> Image<'a> {
    fn new(layers: &'a [&'a ScannedLayer], cancel: &Cancel) -> Result<Self, RootfsError> {
        let entries: Vec<&[Entry]> = layers.iter().map(|layer| &*layer.entries).collect();
        let mut trees = Vec::with_capacity(layers.len());
        for (layer, entries) in entries.iter().enumerate() {
            cancel.check()?;
            let tree = Tree::build(entries);
            trees.push(tree.map_err(|source| RootfsError::Layer { layer, source })?);
        }
        merge::inherit_directories(&mut trees, &entries);
        Ok(Self {
            layers,
            entries,
            trees,
        })
    }

    fn mount(
        &self,
        backend: Backend,
        options: &RootfsOptions,
        cancel: &Cancel,
    ) -> Result<MountedRootfs, RootfsError> {
        if backend == Backend::Unpack && unpack::is_tmpfs(&options.scratch)? {
            return Err(RootfsError::Tmpfs {
                path: options.scratch.clone(),
            });
        }
        let mut mounting = Mounting {
            image: self,
            options,
            cancel,
            workspace: Workspace::new(&options.scratch)?,
            dropped_xattrs: self.trees.iter().map(|tree| tree.dropped_xattrs).sum(),
            index_bytes: 0,
        };
        let mut mounted = Vec::new();
        let mut lowers = Vec::new();
        for (layer, _) in merge::root_parts(&self.trees) {
            cancel.check()?;
            // What an empty layer says of the root is inherited by the writable layer.
            if self.trees[layer].root().children.is_empty() {
                continue;
            }
            let name = format!("l{layer}");
            mounted.push(match backend {
                Backend::Erofs => mounting.mount_layer(layer, &name)?,
                Backend::Unpack => mounting.unpack_layer(layer, &name)?,
            });
            lowers.push(name);
        }
        mounting.mount_overlay(lowers)?;
        let path = mounting.workspace.path(MERGED);
        let opened_as = opened::opened_as(&path, &self.trees, &mounted)?;
        let mut files: Vec<MountedFile> = mounted
            .into_iter()
            .flat_map(|layer| layer.files)
            .map(|(_, file)| file)
            .collect();
        files.sort_unstable_by_key(|file| (file.device, file.inode));
        let Mounting {
            workspace,
            dropped_xattrs,
            index_bytes,
            ..
        } = mounting;
        Ok(MountedRootfs {
            workspace,
            path,
            files,
            opened_as,
            backend,
            fallback_reason: None,
            dropped_xattrs,
            index_bytes,
        })
    }

    fn file(&self, layer: usize, node: NodeId, device: u32, inode: u64) -> MountedFile {
        let entry = self.trees[layer]
            .node(node)
            .entry
            .expect("a regular file has an entry");
        let size_bytes = self.entries[layer][entry as usize].size_bytes;
        MountedFile {
            device,
            inode,
            file: FileId {
                layer: layer as u32,
                entry,
            },
            size_bytes,
        }
    }
}

const MERGED: &str = "merged";

/// A root file system in the making.
struct Mounting<'a> {
    image: &'a Image<'a>,
    options: &'a RootfsOptions,
    cancel: &'a Cancel,
    workspace: Workspace,
    dropped_xattrs: usize,
    index_bytes: u64,
}

impl Mounting<'_> {
    fn mount_layer(&mut self, layer: usize, name: &str) -> Result<MountedLayer, RootfsError> {
        let (tree, scanned) = (&self.image.trees[layer], self.image.layers[layer]);
        let file = self.workspace.make_file()?;
        let source = erofs::Source {
            tree,
            entries: &scanned.entries,
            spool: &scanned.spool,
        };
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        let index = erofs::write_index(&mut out, source, uuid(scanned, layer));
        let index = index.map_err(|error| self.index_error(layer, error))?;
        let file = out.into_inner().map_err(|error| {
            self.index_error(layer, erofs::IndexError::Write(error.into_error()))
        })?;
        self.index_bytes += index.len_bytes();
        let read_ahead_kib = self.options.read_ahead_kib;
        mount::mount_erofs(
            &mut self.workspace,
            name,
            file.as_fd(),
            &scanned.spool,
            read_ahead_kib,
        )?;
        let device = unpack::device_of(&self.workspace.path(name))?;
        let files = (0..tree.len() as NodeId)
            .filter(|&id| tree.is_file(id))
            .map(|id| (id, self.image.file(layer, id, device, index.inode(id))))
            .collect();
        Ok(MountedLayer { layer, files })
    }

    fn index_error(&self, layer: usize, error: erofs::IndexError) -> RootfsError {
        let path = self.workspace.path("");
        match error {
            erofs::IndexError::TooLarge { size_bytes } => {
                RootfsError::LayerTooLarge { layer, size_bytes }
            }
            erofs::IndexError::Write(source) => RootfsError::Io {
                operation: "write an index in",
                path,
                source,
            },
            erofs::IndexError::Spool(source) => RootfsError::Io {
                operation: "read a spool for an index in",
                path,
                source,
            },
        }
    }

    fn unpack_layer(&mut self, layer: usize, name: &str) -> Result<MountedLayer, RootfsError> {
        let path = self.workspace.make_directory(name)?;
        let (tree, scanned) = (&self.image.trees[layer], self.image.layers[layer]);
        let source = unpack::Source {
            tree,
            entries: &scanned.entries,
            spool: &scanned.spool,
        };
        let unpacked = unpack::unpack(&path, source, self.cancel)?;
        self.dropped_xattrs += unpacked.dropped_xattrs;
        let mut files: Vec<(NodeId, MountedFile)> = unpacked
            .files
            .into_iter()
            .map(|(id, device, inode)| (id, self.image.file(layer, id, device, inode)))
            .collect();
        files.sort_unstable_by_key(|&(id, _)| id);
        Ok(MountedLayer { layer, files })
    }

    fn mount_overlay(&mut self, mut lowers: Vec<String>) -> Result<(), RootfsError> {
        if lowers.is_empty() {
            // Overlayfs wants one.
            lowers.push("empty".into());
            self.workspace.make_directory("empty")?;
        }
        let upper = self.workspace.make_directory("upper")?;
        self.workspace.make_directory("work")?;
        let attributes = merge::root_attributes(&self.image.trees, &self.image.entries);
        self.dropped_xattrs += unpack::set_attributes_at(&upper, &attributes)?;
        let overlay = mount::Overlay {
            lowers: &lowers,
            upper: "upper",
            work: "work",
            target: MERGED,
        };
        mount::mount_overlay(&mut self.workspace, &overlay)
    }
}

/// Differs between the layers of an image, even equal ones, and is the same in every run.
fn uuid(layer: &ScannedLayer, index: usize) -> [u8; 16] {
    let hex = Digest::of(format!("{} {index}", layer.diff_id).as_bytes()).hex();
    let mut uuid = [0; 16];
    hex::decode_to_slice(&hex[..32], &mut uuid).expect("a digest is hexadecimal");
    uuid
}
