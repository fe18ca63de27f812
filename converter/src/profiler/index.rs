//! The files to watch as the kernel's tables need them.
//!
//! Enters: rows of (device, inode) and file, in any order, with repetitions. Leaves: one number a
//! file, one chunk of page bitmap for every 2 MiB of each file, one table key a distinct pair. Pure.

use std::collections::HashMap;

use esgz_ebpf_abi::{DEVICE_WORDS, FileKey, PAGES_PER_CHUNK, WatchedFile, device_bit};

use super::ProfilerError;
use crate::layer::entry::FileId;
use crate::rootfs::MountedFile;

/// Entries that a BPF map of ours may have.
const MAX_ENTRIES: u64 = 1 << 28;

/// One file to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexedFile {
    pub(super) file: FileId,
    pub(super) size_bytes: u64,
    pub(super) first_chunk: u32,
    pub(super) chunks: u32,
}

/// All files to watch.
#[derive(Debug)]
pub(super) struct FileIndex {
    /// Position is the file's number.
    pub(super) files: Vec<IndexedFile>,
    /// Distinct keys with their values.
    pub(super) keys: Vec<(FileKey, WatchedFile)>,
    /// Sum of `chunks`.
    pub(super) chunks: u32,
    /// Rows left out because an earlier row gives their (device, inode) to another file.
    pub(super) conflicting_rows: u64,
}

impl FileIndex {
    /// `files` are looked up by touches and opens, `opened_as` by opens only.
    pub(super) fn new(
        files: &[MountedFile],
        opened_as: &[MountedFile],
        page_bytes: u64,
    ) -> Result<Self, ProfilerError> {
        let mut rows: Vec<IndexedFile> = Vec::with_capacity(files.len());
        let mut numbers: HashMap<FileId, u32> = HashMap::with_capacity(files.len());
        for row in files.iter().chain(opened_as) {
            let number = *numbers.entry(row.file).or_insert_with(|| {
                let file = IndexedFile {
                    file: row.file,
                    size_bytes: 0,
                    first_chunk: 0,
                    chunks: 0,
                };
                rows.push(file);
                rows.len() as u32 - 1
            });
            let known = &mut rows[number as usize];
            known.size_bytes = known.size_bytes.max(row.size_bytes);
        }

        let pages = |size_bytes: u64| size_bytes.div_ceil(page_bytes);
        let chunks = |size_bytes: u64| pages(size_bytes).div_ceil(PAGES_PER_CHUNK);
        let mut all_chunks = 0;
        for row in &files
            .iter()
            .map(|row| numbers[&row.file])
            .collect::<std::collections::BTreeSet<_>>()
        {
            let file = &mut rows[*row as usize];
            let needed = chunks(file.size_bytes);
            file.first_chunk = u32::try_from(all_chunks).unwrap_or(u32::MAX);
            file.chunks = u32::try_from(needed).unwrap_or(u32::MAX);
            all_chunks += needed;
        }
        let keys = (files.len() + opened_as.len()) as u64;
        if all_chunks > MAX_ENTRIES || keys > MAX_ENTRIES {
            return Err(ProfilerError::TooLarge {
                files: keys,
                chunks: all_chunks,
                max: MAX_ENTRIES,
            });
        }

        let mut index = Self {
            keys: Vec::with_capacity(files.len() + opened_as.len()),
            chunks: all_chunks as u32,
            conflicting_rows: 0,
            files: rows,
        };
        let mut seen: HashMap<(u32, u64), u32> = HashMap::with_capacity(keys as usize);
        for (position, row) in files.iter().chain(opened_as).enumerate() {
            let number = numbers[&row.file];
            if let Some(other) = seen.insert((row.device, row.inode), number) {
                if other != number {
                    seen.insert((row.device, row.inode), other);
                    index.conflicting_rows += 1;
                }
                continue;
            }
            let file = &index.files[number as usize];
            let touched = position < files.len();
            let key = FileKey {
                inode: row.inode,
                device: row.device,
                padding: 0,
            };
            let size_pages = if touched {
                pages(file.size_bytes) as u32
            } else {
                0
            };
            let (file, first_chunk) = (number, file.first_chunk);
            index.keys.push((
                key,
                WatchedFile {
                    marked: 0,
                    file,
                    first_chunk,
                    size_pages,
                    flags: 0,
                },
            ));
        }
        Ok(index)
    }
}

/// File numbers by device and inode.
#[derive(Debug)]
pub(super) struct FilesByInode(HashMap<(u32, u64), u32>);

impl FilesByInode {
    /// The number of the file that has this `stat`.
    pub(super) fn number(&self, stat: &rustix::fs::Stat) -> Option<u32> {
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        self.0.get(&(major << 20 | minor, stat.st_ino)).copied()
    }
}

impl FileIndex {
    /// The table of devices whose files are looked up by touches; see [`device_bit`].
    pub(super) fn devices(&self) -> [u64; DEVICE_WORDS] {
        let mut table = [0; DEVICE_WORDS];
        for (key, file) in &self.keys {
            if file.size_pages > 0 {
                let bit = device_bit(key.device);
                table[(bit / 64) as usize] |= 1 << (bit % 64);
            }
        }
        table
    }

    /// For look-ups in user space.
    pub(super) fn by_inode(&self) -> FilesByInode {
        let keys = self.keys.iter();
        FilesByInode(
            keys.map(|(key, value)| ((key.device, key.inode), value.file))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: u32, inode: u64, entry: u32, size_bytes: u64) -> MountedFile {
        MountedFile {
            device,
            inode,
            file: FileId { layer: 0, entry },
            size_bytes,
        }
    }

    #[test]
    fn files_get_numbers_and_chunks() {
        let chunk = 4096 * PAGES_PER_CHUNK;
        let files = [
            row(1, 10, 0, 1),
            row(1, 11, 1, 0),
            row(1, 12, 2, chunk + 1),
            row(1, 10, 0, 1),
        ];
        let opened = [row(9, 10, 0, 1), row(9, 12, 2, chunk + 1), row(9, 13, 3, 5)];
        let index = FileIndex::new(&files, &opened, 4096).unwrap();
        let chunks = |f: &IndexedFile| (f.first_chunk, f.chunks);
        assert_eq!(
            index.files.iter().map(chunks).collect::<Vec<_>>(),
            [(0, 1), (1, 0), (1, 2), (0, 0)]
        );
        assert_eq!(index.chunks, 3);
        let keys = index
            .keys
            .iter()
            .map(|(k, v)| (k.device, k.inode, v.file, v.size_pages));
        let expected = [
            (1, 10, 0, 1),
            (1, 11, 1, 0),
            (1, 12, 2, 513),
            (9, 10, 0, 0),
            (9, 12, 2, 0),
            (9, 13, 3, 0),
        ];
        assert_eq!(keys.collect::<Vec<_>>(), expected);
        assert_eq!(index.conflicting_rows, 0);
    }

    #[test]
    fn the_first_of_two_files_keeps_a_shared_inode() {
        let files = [row(1, 10, 0, 1), row(1, 10, 1, 1), row(1, 10, 1, 1)];
        let index = FileIndex::new(&files, &[], 4096).unwrap();
        assert_eq!(index.keys.len(), 1);
        assert_eq!(index.keys[0].1.file, 0);
        assert_eq!(index.conflicting_rows, 2);
    }

    #[test]
    fn more_than_the_tables_hold_is_an_error() {
        let error = FileIndex::new(&[row(1, 10, 0, 1 << 60)], &[], 4096).unwrap_err();
        assert!(matches!(error, ProfilerError::TooLarge { .. }));
    }
}
