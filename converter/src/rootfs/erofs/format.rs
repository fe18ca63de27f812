//! EROFS on-disk structures (Linux, `fs/erofs/erofs_fs.h`), as far as the index uses them.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Blocks are 512 bytes, as tar's: a payload starts at a block. Linux takes them since 6.4.
pub(super) const BLOCK_BITS: u8 = 9;
pub(super) const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;

/// The super block's offset; what lies before it is free.
pub(super) const SUPER_OFFSET: u64 = 1024;
/// The device table directly follows the super block.
pub(super) const DEVICE_SLOT_OFFSET: u64 = SUPER_OFFSET + 128;
/// Inodes are addressed in units of 32 bytes, here from the start of the image.
pub(super) const SLOT_BYTES: u64 = 32;
pub(super) const INODE_BYTES: u64 = 64;
/// The device id of the spool in chunk indexes: 1 is the first slot of the device table.
pub(super) const SPOOL_DEVICE: u16 = 1;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
pub(super) const COMPAT_MTIME: u32 = 0x2;
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
pub(super) const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) block_bits: u8,
    pub(super) extension_slots: u8,
    pub(super) root_nid: U16,
    pub(super) inodes: U64,
    pub(super) build_time: U64,
    pub(super) build_time_nanos: U32,
    pub(super) blocks: U32,
    pub(super) meta_block: U32,
    pub(super) shared_xattr_block: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    pub(super) compression: U16,
    pub(super) extra_devices: U16,
    /// In units of 128 bytes from the start of the image.
    pub(super) device_table_slot: U16,
    pub(super) directory_block_bits: u8,
    pub(super) xattr_prefixes: u8,
    pub(super) xattr_prefix_start: U32,
    pub(super) packed_nid: U64,
    pub(super) reserved: [u8; 24],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DeviceSlot {
    pub(super) tag: [u8; 64],
    pub(super) blocks: U32,
    pub(super) mapped_block: U32,
    pub(super) reserved: [u8; 56],
}

/// The 64-byte form; the 32-byte one has no time of its own.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Inode {
    /// Bit 0 set: this form. From bit 1: a `LAYOUT_*`.
    pub(super) format: U16,
    /// 0, or 1 + a quarter of the bytes of all xattr entries.
    pub(super) xattr_units: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    /// First block, device number or chunk format.
    pub(super) union: U32,
    pub(super) serial: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: U64,
    pub(super) mtime_nanos: U32,
    pub(super) links: U32,
    pub(super) reserved_end: [u8; 16],
}

/// Contents in consecutive blocks.
pub(super) const LAYOUT_PLAIN: u16 = 0;
/// As plain, but the last block's bytes follow the inode and its xattrs.
pub(super) const LAYOUT_INLINE: u16 = 2;
/// Chunk indexes follow the inode and its xattrs, aligned to 8 bytes.
pub(super) const LAYOUT_CHUNKS: u16 = 4;

/// The chunk format's flag for 8-byte indexes, which carry a device id.
pub(super) const CHUNK_INDEXES: u32 = 0x20;
/// The largest chunk is 512 bytes << 31.
pub(super) const MAX_CHUNK_BITS: u32 = 31;
pub(super) const CHUNK_INDEX_BYTES: u64 = 8;
/// The block number of a hole.
pub(super) const HOLE: u32 = u32::MAX;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkIndex {
    pub(super) block_high: U16,
    pub(super) device: U16,
    pub(super) block: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DirectoryEntry {
    pub(super) nid: U64,
    pub(super) name_offset: U16,
    pub(super) file_type: u8,
    pub(super) reserved: u8,
}
pub(super) const DIRECTORY_ENTRY_BYTES: usize = 12;

pub(super) const TYPE_REGULAR: u8 = 1;
pub(super) const TYPE_DIRECTORY: u8 = 2;
pub(super) const TYPE_CHAR_DEVICE: u8 = 3;
pub(super) const TYPE_BLOCK_DEVICE: u8 = 4;
pub(super) const TYPE_FIFO: u8 = 5;
pub(super) const TYPE_SYMLINK: u8 = 7;

/// Name filter, count of shared attributes, reserved: all unused.
pub(super) const XATTR_HEADER: [u8; 12] = [0; 12];

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct XattrEntry {
    pub(super) name_len: u8,
    pub(super) name_index: u8,
    pub(super) value_size: U16,
}

/// Prefixes of attribute names and the index that stands for each; a name matches the first.
pub(super) const XATTR_PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

const _: () = assert!(size_of::<SuperBlock>() == 128);
const _: () = assert!(size_of::<DeviceSlot>() == 128);
const _: () = assert!(size_of::<Inode>() == INODE_BYTES as usize);
const _: () = assert!(size_of::<ChunkIndex>() == CHUNK_INDEX_BYTES as usize);
const _: () = assert!(size_of::<DirectoryEntry>() == DIRECTORY_ENTRY_BYTES);
const _: () = assert!(size_of::<XattrEntry>() == 4);

/// A device number as the kernel's `new_decode_dev` reads it.
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
