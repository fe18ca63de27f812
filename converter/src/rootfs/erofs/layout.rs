//! Where everything lies in the index: the first pass. Inodes, in breadth-first order, so that a
//! directory's files are neighbours; behind them the blocks of directories, long symlinks and
//! copied files, in the same order.

use super::format::{
    BLOCK_BYTES, CHUNK_INDEX_BYTES, DEVICE_SLOT_OFFSET, HOLE, INODE_BYTES, SLOT_BYTES,
    XATTR_HEADER, XATTR_PREFIXES,
};
use super::{IndexError, directory, file};
use crate::layer::entry::Entry;
use crate::rootfs::attributes::Xattr;
use crate::rootfs::tree::{NodeId, NodeKind, ROOT, Tree};

/// What follows an inode and its xattrs, and what it has in blocks elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// Devices, fifos and empty files.
    None,
    /// Chunk indexes.
    Chunks { bits: u32 },
    /// `size_bytes`, the first blocks of which lie at `block`, and the rest behind the inode if
    /// `inline`.
    Flat {
        size_bytes: u64,
        block: u64,
        inline: bool,
    },
}

/// One inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) node: NodeId,
    pub(super) parent: NodeId,
    /// Bytes from the start of the image.
    pub(super) position: u64,
    pub(super) xattr_bytes: u64,
    pub(super) body: Body,
}

/// The positions of a whole index.
#[derive(Debug)]
pub(super) struct Layout {
    /// In ascending order of position.
    pub(super) inodes: Vec<Placed>,
    /// Node numbers by [`NodeId`]; 0 for nodes without a name.
    pub(super) nids: Vec<u64>,
    /// Blocks of the index.
    pub(super) blocks: u64,
    /// Blocks of the spool.
    pub(super) spool_blocks: u64,
}

impl Layout {
    pub(super) fn new(
        tree: &Tree,
        entries: &[Entry],
        spool_bytes: u64,
    ) -> Result<Self, IndexError> {
        let mut placing = Placing {
            tree,
            entries,
            spool_bytes,
            position: 0,
            blocks: 0,
        };
        placing.position = DEVICE_SLOT_OFFSET + 128;
        let mut nids = vec![0; tree.len()];
        let mut inodes = vec![placing.place(ROOT, ROOT)];
        nids[ROOT as usize] = inodes[0].position / SLOT_BYTES;
        let mut next = 0;
        while next < inodes.len() {
            let id = inodes[next].node;
            next += 1;
            let Some(directory) = tree.directory(id) else {
                continue;
            };
            for &child in directory.children.values() {
                if nids[child as usize] == 0 {
                    let placed = placing.place(child, id);
                    nids[child as usize] = placed.position / SLOT_BYTES;
                    inodes.push(placed);
                }
            }
        }
        // Blocks were counted from the end of the inodes, which is known only now.
        let first_block = placing.position.div_ceil(BLOCK_BYTES);
        for placed in &mut inodes {
            if let Body::Flat { block, .. } = &mut placed.body {
                *block += first_block;
            }
        }
        let blocks = first_block + placing.blocks;
        let spool_blocks = spool_bytes / BLOCK_BYTES;
        let most = blocks.max(spool_blocks);
        if most >= u64::from(HOLE) {
            return Err(IndexError::TooLarge {
                size_bytes: most.saturating_mul(BLOCK_BYTES),
            });
        }
        Ok(Self {
            inodes,
            nids,
            blocks,
            spool_blocks,
        })
    }
}

struct Placing<'a> {
    tree: &'a Tree,
    entries: &'a [Entry],
    spool_bytes: u64,
    /// The end of the inodes placed so far.
    position: u64,
    /// How many blocks behind the inodes are taken.
    blocks: u64,
}

impl Placing<'_> {
    fn place(&mut self, node: NodeId, parent: NodeId) -> Placed {
        let attributes = self.tree.attributes(node, self.entries);
        let opaque = self
            .tree
            .directory(node)
            .is_some_and(|directory| directory.opaque);
        let xattr_bytes = xattr_bytes(&attributes.xattrs, opaque);
        let head = INODE_BYTES + xattr_bytes;
        let start = self.position.next_multiple_of(SLOT_BYTES);
        let (position, body, body_end) = match &self.tree.node(node).kind {
            NodeKind::Regular => self.place_regular(node, start, head),
            NodeKind::Directory(directory) => {
                let dirents = directory::dirents(self.tree, node, parent, directory);
                let (mut count, mut last) = (0, 0);
                for block in directory::blocks(&dirents) {
                    count += 1;
                    last = directory::used_bytes(block) as u64;
                }
                self.place_flat((count - 1) * BLOCK_BYTES + last, start, head, start + head)
            }
            NodeKind::Symlink => {
                let size_bytes = self.entry(node).link_name.len() as u64;
                // Kernels read an inlined target from the block of its inode alone.
                self.place_flat(size_bytes, start, head, start)
            }
            NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo | NodeKind::Whiteout => {
                (start, Body::None, start + head)
            }
        };
        self.position = body_end;
        Placed {
            node,
            parent,
            position,
            xattr_bytes,
            body,
        }
    }

    fn entry(&self, node: NodeId) -> &Entry {
        let entry = self
            .tree
            .node(node)
            .entry
            .expect("files and symlinks have an entry");
        &self.entries[entry as usize]
    }

    fn place_regular(&mut self, node: NodeId, start: u64, head: u64) -> (u64, Body, u64) {
        let entry = self.entry(node);
        let size_bytes = entry.size_bytes;
        match file::contents(entry, self.spool_bytes) {
            file::Contents::Empty => (start, Body::None, start + head),
            file::Contents::Chunks { bits } => {
                let indexes = (start + head).next_multiple_of(CHUNK_INDEX_BYTES);
                let len = file::chunk_count(size_bytes, bits) * CHUNK_INDEX_BYTES;
                (start, Body::Chunks { bits }, indexes + len)
            }
            file::Contents::Copied => {
                let body = Body::Flat {
                    size_bytes,
                    block: self.blocks,
                    inline: false,
                };
                self.blocks = self.blocks.saturating_add(size_bytes.div_ceil(BLOCK_BYTES));
                (start, body, start + head)
            }
        }
    }

    /// Puts the bytes of the last block behind the inode if what begins at `undivided` (for an
    /// inode at `start`) then lies within one block; moves the inode up to a block for that.
    fn place_flat(
        &mut self,
        size_bytes: u64,
        start: u64,
        head: u64,
        undivided: u64,
    ) -> (u64, Body, u64) {
        let all = size_bytes.div_ceil(BLOCK_BYTES);
        let tail = size_bytes - (all - 1) * BLOCK_BYTES;
        let offset = undivided - start;
        let position = (start..start + BLOCK_BYTES)
            .step_by(SLOT_BYTES as usize)
            .find(|position| {
                let (first, last) = (position + offset, position + head + tail - 1);
                first / BLOCK_BYTES == last / BLOCK_BYTES
            });
        let inline = position.is_some() && (all == 1 || offset > 0);
        let block = self.blocks;
        self.blocks += if inline { all - 1 } else { all };
        let body = Body::Flat {
            size_bytes,
            block,
            inline,
        };
        match position {
            Some(position) if inline => (position, body, position + head + tail),
            _ => (start, body, start + head),
        }
    }
}

/// The attribute that makes a directory hide those of lower layers.
pub(super) const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// The attributes to store: `xattrs`, and [`OPAQUE`] for an opaque directory.
pub(super) fn stored_xattrs(
    xattrs: &[Xattr],
    opaque: bool,
) -> impl Iterator<Item = (&[u8], &[u8])> {
    xattrs
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .chain(opaque.then_some(OPAQUE))
}

/// The index of a name's prefix, and the rest of the name.
pub(super) fn split_xattr_name(name: &[u8]) -> (u8, &[u8]) {
    XATTR_PREFIXES
        .iter()
        .find_map(|&(prefix, index)| name.strip_prefix(prefix).map(|rest| (index, rest)))
        .expect("attributes of other prefixes were dropped")
}

/// The size of all attributes with their header; 0 if there are none.
pub(super) fn xattr_bytes(xattrs: &[Xattr], opaque: bool) -> u64 {
    let entries: usize = stored_xattrs(xattrs, opaque)
        .map(|(name, value)| (4 + split_xattr_name(name).1.len() + value.len()).next_multiple_of(4))
        .sum();
    if entries == 0 {
        0
    } else {
        (XATTR_HEADER.len() + entries) as u64
    }
}
