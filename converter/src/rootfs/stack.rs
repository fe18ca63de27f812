//! The whole way of one image: trees, then one lower directory a layer, then overlayfs over them.

use std::io::BufWriter;
use std::os::fd::AsFd;

use super::error::RootfsError;
use super::tree::{NodeId, Tree};
use super::workspace::Workspace;
use super::{Backend, MountedFile, MountedRootfs, RootfsOptions};
use super::{erofs, merge, mount, opened, unpack};
use crate::cancel::Cancel;
use crate::image::Digest;
use crate::layer::entry::{Entry, FileId, ScannedLayer};

/// The layers and their trees.
pub(super) struct Image<'a> {
    layers: &'a [&'a ScannedLayer],
    entries: Vec<&'a [Entry]>,
    trees: Vec<Tree>,
}

/// The files of one mounted layer.
pub(super) struct MountedLayer {
    pub(super) layer: usize,
    /// In ascending order of node.
    pub(super) files: Vec<(NodeId, MountedFile)>,
}

impl<'a> Image<'a> {
    pub(super) fn new(
        layers: &'a [&'a ScannedLayer],
        cancel: &Cancel,
    ) -> Result<Self, RootfsError> {
        let entries: Vec<&[Entry]> = layers.iter().map(|layer| &*layer.entries).collect();
        let mut trees = Tree::build_all(&entries, cancel)?;
        merge::settle(&mut trees, &entries);
        Ok(Self {
            layers,
            entries,
            trees,
        })
    }

    pub(super) fn mount(
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
        let spool = scanned
            .spool
            .file()
            .ok_or(RootfsError::NotSpooled { layer })?;
        let file = self.workspace.make_file()?;
        let source = erofs::Source {
            tree,
            entries: &scanned.entries,
            spool: &scanned.spool,
        };
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let index = erofs::write_index(&mut out, source, uuid(scanned, layer));
        let index = index.map_err(|error| self.index_error(layer, error))?;
        let file = out.into_inner().map_err(|error| {
            self.index_error(layer, erofs::IndexError::Write(error.into_error()))
        })?;
        self.index_bytes += index.stored_bytes();
        let read_ahead_kib = self.options.read_ahead_kib;
        mount::mount_erofs(
            &mut self.workspace,
            name,
            file.as_fd(),
            spool,
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
