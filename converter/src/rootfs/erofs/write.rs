//! The second pass: bytes, in ascending order of position.

use std::io::{self, Seek, SeekFrom, Write};

use zerocopy::IntoBytes;

use super::format::{
    self, BLOCK_BITS, BLOCK_BYTES, CHUNK_INDEX_BYTES, DEVICE_SLOT_OFFSET, DeviceSlot, Inode,
    SLOT_BYTES, SUPER_OFFSET, SuperBlock, XATTR_HEADER, XattrEntry,
};
use super::layout::{Body, Layout, Placed, split_xattr_name, stored_xattrs};
use super::{IndexError, Source, directory, file};
use crate::layer::entry::Entry;
use crate::layer::spool::ReadAt as _;
use crate::rootfs::tree::{NodeKind, ROOT};

const COPY_BYTES: u64 = 1 << 20;

/// Counts what is written; gaps are filled with zeros.
struct Image<'a, W> {
    out: &'a mut W,
    position: u64,
    hole_bytes: u64,
}

impl<W: Write + Seek> Image<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let len = (position - self.position).min(ZEROS.len() as u64);
            self.put(&ZEROS[..len as usize])?;
        }
        Ok(())
    }

    /// As [`Image::pad_to`], but a long gap becomes a hole in a file.
    fn skip_to(&mut self, position: u64) -> io::Result<()> {
        if position.saturating_sub(self.position) < 65536 {
            return self.pad_to(position);
        }
        self.out.seek(SeekFrom::Start(position))?;
        self.hole_bytes += position - self.position;
        self.position = position;
        Ok(())
    }
}

/// Writes the index; gives its size without holes.
pub(super) fn write<W: Write + Seek>(
    out: &mut W,
    source: Source<'_>,
    layout: &Layout,
    uuid: [u8; 16],
) -> Result<u64, IndexError> {
    let mut image = Image {
        out,
        position: 0,
        hole_bytes: 0,
    };
    write_super(&mut image, layout, uuid).map_err(IndexError::Write)?;
    let mut bytes = Vec::new();
    for (serial, placed) in layout.inodes.iter().enumerate() {
        bytes.clear();
        encode_inode(source, layout, placed, serial as u32 + 1, &mut bytes);
        image.pad_to(placed.position).map_err(IndexError::Write)?;
        image.put(&bytes).map_err(IndexError::Write)?;
    }
    for placed in &layout.inodes {
        if let Body::Flat { .. } = placed.body {
            write_blocks(&mut image, source, layout, placed)?;
        }
    }
    let end = layout.blocks * BLOCK_BYTES;
    // A hole at the very end would leave the file too short.
    image.skip_to(end - 1).map_err(IndexError::Write)?;
    image.pad_to(end).map_err(IndexError::Write)?;
    image.out.flush().map_err(IndexError::Write)?;
    Ok(image.position - image.hole_bytes)
}

fn write_super<W: Write + Seek>(
    image: &mut Image<'_, W>,
    layout: &Layout,
    uuid: [u8; 16],
) -> io::Result<()> {
    let root_nid = u16::try_from(layout.nids[ROOT as usize]).expect("the root is placed first");
    let super_block = SuperBlock {
        magic: format::MAGIC.into(),
        checksum: 0.into(),
        feature_compat: format::COMPAT_MTIME.into(),
        block_bits: BLOCK_BITS,
        extension_slots: 0,
        root_nid: root_nid.into(),
        inodes: (layout.inodes.len() as u64).into(),
        build_time: 0.into(),
        build_time_nanos: 0.into(),
        blocks: (layout.blocks as u32).into(),
        meta_block: 0.into(),
        shared_xattr_block: 0.into(),
        uuid,
        volume_name: *b"esgz\0\0\0\0\0\0\0\0\0\0\0\0",
        feature_incompat: (format::INCOMPAT_CHUNKED_FILE | format::INCOMPAT_DEVICE_TABLE).into(),
        compression: 0.into(),
        extra_devices: 1.into(),
        device_table_slot: ((DEVICE_SLOT_OFFSET / 128) as u16).into(),
        directory_block_bits: 0,
        xattr_prefixes: 0,
        xattr_prefix_start: 0.into(),
        packed_nid: 0.into(),
        reserved: [0; 24],
    };
    let device = DeviceSlot {
        tag: [0; 64],
        blocks: (layout.spool_blocks as u32).into(),
        mapped_block: 0.into(),
        reserved: [0; 56],
    };
    image.pad_to(SUPER_OFFSET)?;
    image.put(super_block.as_bytes())?;
    image.put(device.as_bytes())
}

/// Appends an inode, its attributes and what follows them.
fn encode_inode(
    source: Source<'_>,
    layout: &Layout,
    placed: &Placed,
    serial: u32,
    out: &mut Vec<u8>,
) {
    let node = source.tree.node(placed.node);
    let attributes = source.tree.attributes(placed.node, source.entries);
    let entry = node.entry.map(|entry| &source.entries[entry as usize]);
    let (kind_bits, links, opaque) = match &node.kind {
        NodeKind::Directory(directory) => {
            let is_directory = |&&child: &&u32| source.tree.directory(child).is_some();
            let below = directory.children.values().filter(is_directory).count();
            (0o040_000, 2 + below as u32, directory.opaque)
        }
        NodeKind::Regular => (0o100_000, node.links, false),
        NodeKind::Symlink => (0o120_000, node.links, false),
        NodeKind::CharDevice | NodeKind::Whiteout => (0o020_000, node.links, false),
        NodeKind::BlockDevice => (0o060_000, node.links, false),
        NodeKind::Fifo => (0o010_000, node.links, false),
    };
    let (data_layout, size_bytes, union) = match placed.body {
        Body::Chunks { bits } => {
            let size_bytes = entry.map_or(0, |entry| entry.size_bytes);
            (
                format::LAYOUT_CHUNKS,
                size_bytes,
                format::CHUNK_INDEXES | bits,
            )
        }
        Body::Flat {
            size_bytes,
            block,
            inline: true,
        } => (format::LAYOUT_INLINE, size_bytes, block as u32),
        Body::Flat {
            size_bytes,
            block,
            inline: false,
        } => (format::LAYOUT_PLAIN, size_bytes, block as u32),
        Body::None => (format::LAYOUT_PLAIN, 0, device_number(&node.kind, entry)),
    };
    let xattr_units = match placed.xattr_bytes {
        0 => 0,
        bytes => 1 + (bytes - XATTR_HEADER.len() as u64) / 4,
    };
    let inode = Inode {
        format: (1 | data_layout << 1).into(),
        xattr_units: (xattr_units as u16).into(),
        mode: (kind_bits | attributes.mode).into(),
        reserved: 0.into(),
        size: size_bytes.into(),
        union: union.into(),
        serial: serial.into(),
        uid: attributes.uid.into(),
        gid: attributes.gid.into(),
        mtime: (attributes.mtime.secs as u64).into(),
        mtime_nanos: attributes.mtime.nanos.into(),
        links: links.into(),
        reserved_end: [0; 16],
    };
    out.extend_from_slice(inode.as_bytes());
    if placed.xattr_bytes > 0 {
        out.extend_from_slice(&XATTR_HEADER);
        for (name, value) in stored_xattrs(&attributes.xattrs, opaque) {
            encode_xattr(name, value, out);
        }
    }
    match (placed.body, &node.kind, entry) {
        (Body::Chunks { bits }, _, Some(entry)) => {
            out.resize(out.len().next_multiple_of(CHUNK_INDEX_BYTES as usize), 0);
            let Ok(()) = file::for_each_chunk(entry, bits, |chunk| {
                out.extend_from_slice(chunk.as_bytes());
                Ok::<(), std::convert::Infallible>(())
            });
        }
        (Body::Flat { inline: true, .. }, NodeKind::Directory(directory), _) => {
            let dirents = directory::dirents(source.tree, placed.node, placed.parent, directory);
            if let Some(last) = directory::blocks(&dirents).last() {
                directory::encode_block(last, &layout.nids, out);
            }
        }
        (Body::Flat { inline: true, .. }, NodeKind::Symlink, Some(entry)) => {
            out.extend_from_slice(&entry.link_name);
        }
        _ => {}
    }
}

fn device_number(kind: &NodeKind, entry: Option<&Entry>) -> u32 {
    match (kind, entry) {
        (NodeKind::CharDevice | NodeKind::BlockDevice, Some(entry)) => {
            format::encode_device(entry.dev_major, entry.dev_minor)
        }
        _ => 0,
    }
}

fn encode_xattr(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let (name_index, rest) = split_xattr_name(name);
    let start = out.len();
    let entry = XattrEntry {
        name_len: rest.len() as u8,
        name_index,
        value_size: (value.len() as u16).into(),
    };
    out.extend_from_slice(entry.as_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    let len = (out.len() - start).next_multiple_of(4);
    out.resize(start + len, 0);
}

/// Writes what an inode has in blocks of its own.
fn write_blocks<W: Write + Seek>(
    image: &mut Image<'_, W>,
    source: Source<'_>,
    layout: &Layout,
    placed: &Placed,
) -> Result<(), IndexError> {
    let Body::Flat { block, inline, .. } = placed.body else {
        return Ok(());
    };
    let start = block * BLOCK_BYTES;
    let node = source.tree.node(placed.node);
    let entry = node.entry.map(|entry| &source.entries[entry as usize]);
    match (&node.kind, entry) {
        (NodeKind::Directory(directory), _) => {
            let dirents = directory::dirents(source.tree, placed.node, placed.parent, directory);
            let mut blocks = directory::blocks(&dirents).peekable();
            let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
            let mut position = start;
            while let Some(dirents) = blocks.next() {
                if inline && blocks.peek().is_none() {
                    break;
                }
                bytes.clear();
                directory::encode_block(dirents, &layout.nids, &mut bytes);
                image.pad_to(position).map_err(IndexError::Write)?;
                image.put(&bytes).map_err(IndexError::Write)?;
                position += BLOCK_BYTES;
            }
            Ok(())
        }
        (NodeKind::Symlink, Some(entry)) if !inline => {
            image.pad_to(start).map_err(IndexError::Write)?;
            image.put(&entry.link_name).map_err(IndexError::Write)
        }
        (NodeKind::Regular, Some(entry)) => copy_file(image, source, start, entry),
        _ => Ok(()),
    }
}

fn copy_file<W: Write + Seek>(
    image: &mut Image<'_, W>,
    source: Source<'_>,
    start: u64,
    entry: &Entry,
) -> Result<(), IndexError> {
    let mut buffer = Vec::new();
    for (offset, stored) in file::copied(entry) {
        image.skip_to(start + offset).map_err(IndexError::Write)?;
        let mut from = stored.offset_bytes;
        while from < stored.end_bytes() {
            buffer.resize((stored.end_bytes() - from).min(COPY_BYTES) as usize, 0);
            source
                .spool
                .read_exact_at(&mut buffer, from)
                .map_err(IndexError::Spool)?;
            image.put(&buffer).map_err(IndexError::Write)?;
            from += buffer.len() as u64;
        }
    }
    Ok(())
}

const _: () = assert!(SLOT_BYTES == 32 && SUPER_OFFSET.is_multiple_of(BLOCK_BYTES));
