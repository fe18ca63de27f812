//! A reader of indexes, for tests alone: as strict as the kernel where the kernel is, and stricter.

use std::collections::BTreeMap;

use zerocopy::FromBytes;

use super::format::{
    self, BLOCK_BYTES, CHUNK_INDEX_BYTES, ChunkIndex, DIRECTORY_ENTRY_BYTES, DeviceSlot,
    DirectoryEntry, HOLE, INODE_BYTES, Inode, SLOT_BYTES, SUPER_OFFSET, SuperBlock, XATTR_PREFIXES,
    XattrEntry,
};

/// A file as the index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) nid: u64,
    pub(super) mode: u16,
    pub(super) owner: (u32, u32),
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) device: u32,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Contents of a file, target of a symlink.
    pub(super) data: Vec<u8>,
}

/// Every path of `image`, whose external device holds `spool`.
pub(super) fn read(image: &[u8], spool: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let reader = Reader { image, spool };
    let super_block = SuperBlock::read_from_prefix(&image[SUPER_OFFSET as usize..])
        .unwrap()
        .0;
    assert_eq!(super_block.magic.get(), format::MAGIC);
    assert_eq!(
        (super_block.block_bits, super_block.meta_block.get()),
        (9, 0)
    );
    assert_eq!(
        u64::from(super_block.blocks.get()) * BLOCK_BYTES,
        image.len() as u64
    );
    let slot = usize::from(super_block.device_table_slot.get()) * 128;
    let slot = DeviceSlot::read_from_prefix(&image[slot..]).unwrap().0;
    assert_eq!(
        u64::from(slot.blocks.get()),
        spool.len() as u64 / BLOCK_BYTES
    );
    let root = u64::from(super_block.root_nid.get());
    let mut all = BTreeMap::new();
    let mut pending = vec![(Vec::new(), root, root)];
    while let Some((path, nid, parent)) = pending.pop() {
        let found = reader.inode(nid);
        if found.mode & 0o170_000 == 0o040_000 {
            let mut directories = 0;
            for (name, child, file_type) in reader.directory(&found.data) {
                match name {
                    b"." => assert_eq!(child, nid),
                    b".." => assert_eq!(child, parent),
                    _ => {
                        let path = [&*path, b"/", name].concat();
                        let mode = reader.inode(child).mode;
                        assert_eq!(kind_of(file_type), mode & 0o170_000, "{path:?}");
                        directories += u32::from(file_type == format::TYPE_DIRECTORY);
                        pending.push((path, child, nid));
                        continue;
                    }
                }
                directories += 1;
            }
            assert_eq!(found.links, directories, "links of {path:?}");
        }
        all.insert(path, found);
    }
    assert_eq!(super_block.inodes.get(), distinct(&all));
    all
}

fn distinct(all: &BTreeMap<Vec<u8>, Found>) -> u64 {
    let nids: std::collections::BTreeSet<u64> = all.values().map(|found| found.nid).collect();
    nids.len() as u64
}

fn kind_of(file_type: u8) -> u16 {
    match file_type {
        format::TYPE_REGULAR => 0o100_000,
        format::TYPE_DIRECTORY => 0o040_000,
        format::TYPE_CHAR_DEVICE => 0o020_000,
        format::TYPE_BLOCK_DEVICE => 0o060_000,
        format::TYPE_FIFO => 0o010_000,
        format::TYPE_SYMLINK => 0o120_000,
        other => panic!("file type {other}"),
    }
}

struct Reader<'a> {
    image: &'a [u8],
    spool: &'a [u8],
}

impl Reader<'_> {
    fn inode(&self, nid: u64) -> Found {
        let start = nid * SLOT_BYTES;
        let inode = Inode::read_from_prefix(&self.image[start as usize..])
            .unwrap()
            .0;
        assert_eq!(inode.format.get() & 1, 1);
        let layout = inode.format.get() >> 1;
        let units = u64::from(inode.xattr_units.get());
        let xattr_bytes = if units == 0 { 0 } else { 12 + (units - 1) * 4 };
        let body = start + INODE_BYTES + xattr_bytes;
        let size = inode.size.get();
        let kind = inode.mode.get() & 0o170_000;
        let is_device = kind == 0o020_000 || kind == 0o060_000;
        let data = match layout {
            format::LAYOUT_CHUNKS => self.chunks(body, size, inode.union.get()),
            _ if is_device || size == 0 => Vec::new(),
            _ => {
                let tail = if layout == format::LAYOUT_INLINE {
                    size % BLOCK_BYTES
                } else {
                    0
                };
                let full_tail = tail == 0 && layout == format::LAYOUT_INLINE;
                let tail = if full_tail { BLOCK_BYTES } else { tail };
                let first = u64::from(inode.union.get()) * BLOCK_BYTES;
                let mut data = self.image[first as usize..][..(size - tail) as usize].to_vec();
                if tail > 0 {
                    let from = if kind == 0o120_000 { start } else { body };
                    assert_eq!(
                        from / BLOCK_BYTES,
                        (body + tail - 1) / BLOCK_BYTES,
                        "divided tail"
                    );
                    data.extend_from_slice(&self.image[body as usize..][..tail as usize]);
                }
                data
            }
        };
        Found {
            nid,
            mode: inode.mode.get(),
            owner: (inode.uid.get(), inode.gid.get()),
            mtime: (inode.mtime.get() as i64, inode.mtime_nanos.get()),
            links: inode.links.get(),
            device: if is_device { inode.union.get() } else { 0 },
            xattrs: self.xattrs(start + INODE_BYTES, body),
            data,
        }
    }

    fn chunks(&self, body: u64, size: u64, format: u32) -> Vec<u8> {
        assert_eq!(format & !0x1f, format::CHUNK_INDEXES);
        let chunk_bytes = BLOCK_BYTES << (format & 0x1f);
        let mut at = body.next_multiple_of(CHUNK_INDEX_BYTES);
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let index = ChunkIndex::read_from_prefix(&self.image[at as usize..])
                .unwrap()
                .0;
            let len = chunk_bytes.min(size - data.len() as u64) as usize;
            if index.block.get() == HOLE {
                data.resize(data.len() + len, 0);
            } else {
                assert_eq!(index.device.get(), format::SPOOL_DEVICE);
                let from = u64::from(index.block.get()) * BLOCK_BYTES;
                data.extend_from_slice(&self.spool[from as usize..][..len]);
            }
            at += CHUNK_INDEX_BYTES;
        }
        data
    }

    fn xattrs(&self, start: u64, end: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = BTreeMap::new();
        if start == end {
            return all;
        }
        let mut at = start as usize + 12;
        while at < end as usize {
            let entry = XattrEntry::read_from_prefix(&self.image[at..]).unwrap().0;
            let name_end = at + 4 + usize::from(entry.name_len);
            let value_end = name_end + usize::from(entry.value_size.get());
            let prefix = XATTR_PREFIXES
                .iter()
                .find(|p| p.1 == entry.name_index)
                .unwrap()
                .0;
            let name = [prefix, &self.image[at + 4..name_end]].concat();
            all.insert(name, self.image[name_end..value_end].to_vec());
            at = value_end.next_multiple_of(4);
        }
        assert_eq!(at.max(end as usize), end as usize);
        all
    }

    fn directory<'d>(&self, data: &'d [u8]) -> Vec<(&'d [u8], u64, u8)> {
        let mut all: Vec<(&[u8], u64, u8)> = Vec::new();
        for block in data.chunks(BLOCK_BYTES as usize) {
            let first = DirectoryEntry::read_from_prefix(block).unwrap().0;
            let count = usize::from(first.name_offset.get()) / DIRECTORY_ENTRY_BYTES;
            let entry = |nth: usize| {
                DirectoryEntry::read_from_prefix(&block[nth * DIRECTORY_ENTRY_BYTES..])
                    .unwrap()
                    .0
            };
            for nth in 0..count {
                let start = usize::from(entry(nth).name_offset.get());
                let end = if nth + 1 < count {
                    usize::from(entry(nth + 1).name_offset.get())
                } else {
                    let rest = &block[start..];
                    start + rest.iter().position(|&b| b == 0).unwrap_or(rest.len())
                };
                all.push((
                    &block[start..end],
                    entry(nth).nid.get(),
                    entry(nth).file_type,
                ));
            }
        }
        assert!(all.is_sorted_by(|a, b| a.0 < b.0), "names out of order");
        all
    }
}
