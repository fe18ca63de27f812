//! What is kept of the uncompressed tar while it passes by.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::blob::{Blob, ReadAt};
use crate::layer::deflate::Block;
use crate::layer::inflated::Points;
use crate::layer::spool::Spool;
use crate::sys::writeback;

/// How the uncompressed tar can be read again after the scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As a file, so that it can be mounted.
    Spool,
    /// In whatever way takes the least room: a gzip blob is decoded again where it is read.
    Readable,
}

/// So many spooled bytes are sent to the disk at once, while more are being made.
const WRITE_BACK_BYTES: u64 = 32 << 20;

/// Takes the tar block by block.
#[derive(Debug)]
pub(super) enum Kept {
    /// All of it goes to a file.
    Spool {
        /// The file.
        file: File,
        /// How much of it has been sent to the disk.
        started_bytes: u64,
    },
    /// Points in a gzip stream, which can be read again.
    Points(Points, Blob),
    /// The blob is the tar.
    Source(Blob),
}

impl Kept {
    /// Decides what is kept of a layer whose blob can be read `again`, if it can.
    pub(super) fn new(keep: Keep, again: Option<&Blob>, scratch: &Path) -> io::Result<Self> {
        let mut magic = [0; 4];
        if let (Keep::Readable, Some(blob)) = (keep, again)
            && blob.read_exact_at(&mut magic, 0).is_ok()
        {
            match magic {
                [0x1f, 0x8b, ..] => return Ok(Self::Points(Points::new(scratch)?, blob.clone())),
                [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {}
                _ => return Ok(Self::Source(blob.clone())),
            }
        }
        Ok(Self::Spool {
            file: Spool::create(scratch)?,
            started_bytes: 0,
        })
    }

    /// Takes the next block, behind which there are `end_bytes` bytes.
    pub(super) fn block(&mut self, block: &Block, end_bytes: u64) -> io::Result<()> {
        match self {
            Self::Spool {
                file,
                started_bytes,
            } => {
                file.write_all(block.bytes())?;
                if end_bytes - *started_bytes >= WRITE_BACK_BYTES {
                    // Left to itself the kernel starts late, and then makes the writer wait. Where
                    // this is not possible, that is what happens.
                    let len_bytes = end_bytes - *started_bytes;
                    let _ = writeback::start_range(&*file, *started_bytes, len_bytes);
                    *started_bytes = end_bytes;
                }
                Ok(())
            }
            Self::Points(points, _) => points.block(block),
            Self::Source(_) => Ok(()),
        }
    }

    /// The whole tar of `len_bytes`.
    pub(super) fn finish(self, len_bytes: u64) -> Spool {
        match self {
            Self::Spool { file, .. } => Spool::new(file, len_bytes),
            Self::Points(points, blob) => Spool::of_inflated(points.finish(blob)),
            Self::Source(blob) => Spool::of_blob(blob),
        }
    }
}
