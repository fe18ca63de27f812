//! An EROFS image without file contents: an index whose inodes point into the layer's spooled tar
//! as an external device.
//!
//! Enters: a layer's tree and entries. Leaves: the image's bytes, and the number of every node,
//! which is the inode number that the kernel will report. Pure: the same layer gives the same
//! bytes. The kernel must be Linux 6.4 or later (blocks of 512 bytes).
//!
//! The layout is described in `docs/erofs-index.md`.
//!
//! A time before 1970 is stored in two's complement, as the kernel reads it back.

mod directory;
mod file;
mod format;
mod layout;
#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;
mod write;

use std::io::{self, Seek, Write};

use super::tree::{NodeId, Tree};
use crate::layer::entry::Entry;
use crate::layer::spool::ReadAt as _;
use crate::layer::spool::Spool;

/// An index could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// Block numbers have 32 bits.
    #[error("{size_bytes} bytes are more than an index can address")]
    TooLarge {
        /// What would have to be addressed.
        size_bytes: u64,
    },
    #[error("cannot write the index")]
    Write(#[source] io::Error),
    #[error("cannot read the spool")]
    Spool(#[source] io::Error),
}

/// A layer as the index needs it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) tree: &'a Tree,
    pub(super) entries: &'a [Entry],
    pub(super) spool: &'a Spool,
}

/// A written index.
#[derive(Debug)]
pub(super) struct Index {
    nids: Vec<u64>,
    stored_bytes: u64,
}

impl Index {
    /// The inode number of a node that has a name.
    pub(super) fn inode(&self, node: NodeId) -> u64 {
        self.nids[node as usize]
    }

    /// Size of the image, holes left out.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }
}

/// Writes the index of a layer to `out`, which must be empty. Holes of copied sparse files are
/// skipped by seeking.
pub(super) fn write_index<W: Write + Seek>(
    out: &mut W,
    source: Source<'_>,
    uuid: [u8; 16],
) -> Result<Index, IndexError> {
    let layout = layout::Layout::new(source.tree, source.entries, source.spool.len_bytes())?;
    let stored_bytes = write::write(out, source, &layout, uuid)?;
    Ok(Index {
        nids: layout.nids,
        stored_bytes,
    })
}
