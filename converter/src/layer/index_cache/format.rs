//! The index file as bytes: histories back to back, a table of points, a trailer.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::image::{BlobId, Hasher};
use crate::layer::deflate::{Border, BorderKind};

/// Changes with anything below.
pub(super) const VERSION: u32 = 1;
/// Last bytes of every index file.
const MAGIC: [u8; 8] = *b"esgz-idx";
/// The longest history.
pub(super) const HISTORY_BYTES: u32 = 32 << 10;

const MEMBER: u32 = 0;
const BLOCK: u32 = 1;

/// A border, and where its history lies in the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Point {
    position_bits: U64,
    /// Uncompressed bytes of the stream before it.
    pub(super) output_bytes: U64,
    /// Where its history lies, as one zstd frame.
    pub(super) offset_bytes: U64,
    pub(super) frame_bytes: U32,
    pub(super) history_bytes: U32,
    /// CRC-32 of the frame.
    pub(super) crc: U32,
    kind: U32,
}

impl Point {
    pub(super) fn new(border: Border, output_bytes: u64) -> Self {
        Self {
            position_bits: border.position_bits.into(),
            output_bytes: output_bytes.into(),
            offset_bytes: 0.into(),
            frame_bytes: 0.into(),
            history_bytes: 0.into(),
            crc: 0.into(),
            kind: match border.kind {
                BorderKind::Member => MEMBER,
                BorderKind::Block => BLOCK,
            }
            .into(),
        }
    }

    pub(super) fn border(&self) -> Option<Border> {
        let kind = match self.kind.get() {
            MEMBER => BorderKind::Member,
            BLOCK => BorderKind::Block,
            _ => return None,
        };
        Some(Border {
            position_bits: self.position_bits.get(),
            kind,
        })
    }
}

/// The end of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Trailer {
    pub(super) table_bytes: U64,
    /// Where the table begins; histories lie before it.
    pub(super) table_offset_bytes: U64,
    blob_bytes: U64,
    blob_digest: [u8; 32],
    /// SHA-256 of the table and of what stands above.
    checksum: [u8; 32],
    version: U32,
    magic: [u8; 8],
}

impl Trailer {
    pub(super) fn new(blob: BlobId, table_offset_bytes: u64, table: &[u8]) -> Self {
        let mut trailer = Self {
            table_bytes: (table.len() as u64).into(),
            table_offset_bytes: table_offset_bytes.into(),
            blob_bytes: blob.size_bytes.into(),
            blob_digest: blob.digest.bytes(),
            checksum: [0; 32],
            version: VERSION.into(),
            magic: MAGIC,
        };
        trailer.checksum = trailer.checksum_of(table);
        trailer
    }

    fn checksum_of(&self, table: &[u8]) -> [u8; 32] {
        let mut hasher = Hasher::default();
        hasher.update(table);
        for number in [self.table_bytes, self.table_offset_bytes, self.blob_bytes] {
            hasher.update(number.as_bytes());
        }
        hasher.update(&self.blob_digest);
        hasher.finish().bytes()
    }

    /// Whether it is the trailer of this version's index of `blob`; else what is wrong.
    pub(super) fn check(&self, blob: BlobId) -> Result<(), &'static str> {
        if self.magic != MAGIC {
            return Err("it does not end as an index does");
        }
        if self.version.get() != VERSION {
            return Err("another version");
        }
        if self.blob_digest != blob.digest.bytes() || self.blob_bytes.get() != blob.size_bytes {
            return Err("the index of another blob");
        }
        Ok(())
    }

    pub(super) fn check_table(&self, table: &[u8]) -> Result<(), &'static str> {
        if self.checksum != self.checksum_of(table) {
            return Err("wrong checksum of its table");
        }
        Ok(())
    }
}
