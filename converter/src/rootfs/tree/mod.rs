//! The file tree of one layer. Enters: a layer's entries. Leaves: directories, files and whiteouts
//! as overlayfs wants them. No path leaves the root: a tree is built of values, and the ways that
//! make files of it create every directory themselves.
//!
//! The rules are those of containerd's `archive.Apply` with its overlay whiteout conversion:
//! - The last entry of a name wins. A directory over a directory takes the new metadata and keeps
//!   its children; any other pair replaces, children included.
//! - Symlinks among the *parent* components of a name are followed inside the root, within the
//!   layer: an absolute target starts at the root, and `..` at the root stays there. So the pair
//!   `x -> /`, `x/etc/evil` makes `etc/evil` in the image. The last component is never followed: a
//!   directory entry over a symlink replaces the symlink.
//! - A parent that the layer lacks is made, as 0755 root; [`super::merge`] gives it the metadata of
//!   the lower layers' directory. A parent that is any other kind of file is an error.
//! - A hardlink binds to the file that its target names at that point of the archive; its own
//!   metadata is ignored.
//! - `.wh.NAME` hides NAME of the lower layers and `.wh..wh..opq` all of its directory, wherever in
//!   the archive they stand; what this layer itself holds there stays visible (OCI image-spec,
//!   layer.md, "Whiteouts"). Other `.wh..wh.*` names are AUFS's own and are skipped.
//!
//! Stricter than containerd: a `..` component in a name or in a hardlink's target is an error.

mod build;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::attributes::Attributes;
use super::error::{RootfsError, TreeError};
use crate::cancel::Cancel;
use crate::layer::entry::Entry;

/// Index into [`Tree::nodes`].
pub(super) type NodeId = u32;

/// The root directory of every tree.
pub(super) const ROOT: NodeId = 0;

/// A directory: names in byte order.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub(super) children: BTreeMap<Box<[u8]>, NodeId>,
    /// Hides the directories of that name in lower layers.
    pub(super) opaque: bool,
    /// Metadata from a lower layer, for a directory without an entry of its own.
    pub(super) inherited: Option<Attributes>,
    whiteouts: BTreeSet<Box<[u8]>>,
    path_len: usize,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum NodeKind {
    Directory(Box<Directory>),
    Regular,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    /// Hides a name of the lower layers. Overlayfs takes a character device 0:0 for one, so an
    /// entry that is such a device becomes one too.
    Whiteout,
}

/// A file of the layer: an inode, not a name.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    /// The entry that describes it; none for implied directories and whiteouts.
    pub(super) entry: Option<u32>,
    /// Names it has in the tree; 0 once all were replaced.
    pub(super) links: u32,
}

/// The file tree of one layer.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// Extended attributes that were left out, see [`super::attributes`].
    pub(super) dropped_xattrs: usize,
}

impl Tree {
    /// Builds the trees of layers, base first.
    pub(super) fn build_all(
        layers: &[&[Entry]],
        cancel: &Cancel,
    ) -> Result<Vec<Self>, RootfsError> {
        let build = |(layer, entries): (usize, &&[Entry])| {
            cancel.check()?;
            Self::build(entries).map_err(|source| RootfsError::Layer { layer, source })
        };
        layers.iter().enumerate().map(build).collect()
    }

    /// Builds the tree of `entries`.
    pub(super) fn build(entries: &[Entry]) -> Result<Self, TreeError> {
        build::build(entries)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// How many nodes there are, those without a name included.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The directory `id`; none if it is another kind of file.
    pub(super) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// True if `id` is a regular file that has a name.
    pub(super) fn is_file(&self, id: NodeId) -> bool {
        let node = self.node(id);
        matches!(node.kind, NodeKind::Regular) && node.links > 0
    }

    /// The root directory.
    pub(super) fn root(&self) -> &Directory {
        self.directory(ROOT)
            .expect("the root is made as a directory and never replaced")
    }

    pub(super) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes[id as usize].kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Takes the whiteouts out of directory `id`.
    pub(super) fn remove_whiteouts(&mut self, id: NodeId) {
        let children = self.directory(id).map(|directory| &directory.children);
        let whiteouts: Vec<(Box<[u8]>, NodeId)> = children
            .into_iter()
            .flatten()
            .filter(|&(_, &child)| matches!(self.node(child).kind, NodeKind::Whiteout))
            .map(|(name, &child)| (name.clone(), child))
            .collect();
        for (name, child) in whiteouts {
            self.nodes[child as usize].links -= 1;
            if let Some(directory) = self.directory_mut(id) {
                directory.children.remove(&name);
            }
        }
    }

    /// Mode, owner, time and extended attributes of `id`; `entries` are those it was built from.
    pub(super) fn attributes(&self, id: NodeId, entries: &[Entry]) -> Attributes {
        let node = self.node(id);
        match (&node.kind, node.entry) {
            (NodeKind::Whiteout, _) => Attributes {
                mode: 0,
                ..Attributes::implied()
            },
            (_, Some(entry)) => Attributes::of(&entries[entry as usize]),
            (NodeKind::Directory(directory), None) => directory
                .inherited
                .clone()
                .unwrap_or_else(Attributes::implied),
            (_, None) => Attributes::implied(),
        }
    }
}
