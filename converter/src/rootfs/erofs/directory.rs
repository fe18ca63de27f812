//! Directory blocks: entries of 12 bytes, then the names, in byte order through all blocks.

use zerocopy::IntoBytes;

use super::format::{self, BLOCK_BYTES, DIRECTORY_ENTRY_BYTES, DirectoryEntry};
use crate::rootfs::tree::{Directory, NodeId, NodeKind, Tree};

/// One name in a directory.
#[derive(Clone, Copy)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) node: NodeId,
    pub(super) file_type: u8,
}

/// All names of directory `id`, `.` and `..` among them, in byte order.
pub(super) fn dirents<'a>(
    tree: &'a Tree,
    id: NodeId,
    parent: NodeId,
    directory: &'a Directory,
) -> Vec<Dirent<'a>> {
    let mut all = Vec::with_capacity(directory.children.len() + 2);
    for (name, node) in [(&b"."[..], id), (b"..", parent)] {
        all.push(Dirent {
            name,
            node,
            file_type: format::TYPE_DIRECTORY,
        });
    }
    all.extend(directory.children.iter().map(|(name, &node)| Dirent {
        name,
        node,
        file_type: file_type(&tree.node(node).kind),
    }));
    all.sort_by_key(|dirent| dirent.name);
    all
}

fn file_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::Regular => format::TYPE_REGULAR,
        NodeKind::Directory(_) => format::TYPE_DIRECTORY,
        NodeKind::Symlink => format::TYPE_SYMLINK,
        NodeKind::CharDevice | NodeKind::Whiteout => format::TYPE_CHAR_DEVICE,
        NodeKind::BlockDevice => format::TYPE_BLOCK_DEVICE,
        NodeKind::Fifo => format::TYPE_FIFO,
    }
}

/// Splits `dirents` into blocks, each as full as its names allow.
pub(super) fn blocks<'d, 'a>(dirents: &'d [Dirent<'a>]) -> impl Iterator<Item = &'d [Dirent<'a>]> {
    let mut rest = dirents;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fits = |dirent: &&Dirent| {
            used += DIRECTORY_ENTRY_BYTES + dirent.name.len();
            used <= BLOCK_BYTES as usize
        };
        let count = rest.iter().take_while(fits).count();
        let (block, behind) = rest.split_at(count);
        rest = behind;
        (!block.is_empty()).then_some(block)
    })
}

/// The bytes that a block of `dirents` uses.
pub(super) fn used_bytes(dirents: &[Dirent]) -> usize {
    dirents
        .iter()
        .map(|dirent| DIRECTORY_ENTRY_BYTES + dirent.name.len())
        .sum()
}

/// Appends one block without its unused end.
pub(super) fn encode_block(dirents: &[Dirent], nids: &[u64], out: &mut Vec<u8>) {
    let mut name_offset = dirents.len() * DIRECTORY_ENTRY_BYTES;
    for dirent in dirents {
        let entry = DirectoryEntry {
            nid: nids[dirent.node as usize].into(),
            name_offset: (name_offset as u16).into(),
            file_type: dirent.file_type,
            reserved: 0,
        };
        out.extend_from_slice(entry.as_bytes());
        name_offset += dirent.name.len();
    }
    for dirent in dirents {
        out.extend_from_slice(dirent.name);
    }
}
