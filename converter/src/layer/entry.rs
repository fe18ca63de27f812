//! A layer's tar archive as values: entries, where their bytes lie, what they say of themselves.

use std::sync::Arc;

use crate::image::Digest;
use crate::layer::deflate::Index;
use crate::layer::spool::{Extent, Spool};

/// What kind of file an entry makes (POSIX `ustar` typeflag).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Typeflag `0`, `\0`, `7` or GNU `S`.
    Regular,
    /// Typeflag `1`: another name of an earlier entry.
    Hardlink,
    /// Typeflag `2`.
    Symlink,
    /// Typeflag `3`.
    CharDevice,
    /// Typeflag `4`.
    BlockDevice,
    /// Typeflag `5`.
    Directory,
    /// Typeflag `6`.
    Fifo,
}

/// A modification time; negative before 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Whole seconds since 1970, rounded down.
    pub secs: i64,
    /// Nanoseconds past `secs`, below 1 000 000 000.
    pub nanos: u32,
}

/// A stretch of a file's contents that is stored in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSegment {
    /// Offset in the file, in bytes.
    pub file_offset_bytes: u64,
    /// Where the bytes lie; as long in the file as in the spool.
    pub stored: Extent,
}

/// An extended attribute: name and value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// One tar entry with every extension header resolved (PAX, GNU long names, base-256 numbers).
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name as the archive gives it: `./x` and a trailing `/` are kept. Raw bytes.
    pub name: Box<[u8]>,
    /// The kind of file.
    pub kind: EntryKind,
    /// Target of a symlink (as is) or of a hardlink (a name in the archive); else empty.
    pub link_name: Box<[u8]>,
    /// The header's mode field: permissions and set-id bits, sometimes file type bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, may be empty.
    pub user_name: Arc<str>,
    /// Group's name, may be empty.
    pub group_name: Arc<str>,
    /// Modification time.
    pub mtime: Timestamp,
    /// Device numbers of a device entry; else 0.
    pub dev_major: u32,
    /// See `dev_major`.
    pub dev_minor: u32,
    /// Extended attributes (`SCHILY.xattr.*`), sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Size in bytes of the file that an extractor writes; 0 for all but regular files.
    pub size_bytes: u64,
    /// All header blocks, extension headers first, as they stand in the spool.
    pub header: Extent,
    /// The stored payload without padding. Equals the contents unless the entry is sparse.
    pub payload: Extent,
    /// Set for GNU and PAX sparse files: the stored stretches in ascending order, disjoint, within
    /// `size_bytes`; everything between them reads as zeros.
    pub sparse: Option<Box<[DataSegment]>>,
}

impl Entry {
    /// The stored stretches of the contents, ascending; what they leave out reads as zeros.
    pub fn data(&self) -> Vec<DataSegment> {
        match &self.sparse {
            Some(segments) => segments.to_vec(),
            None if self.size_bytes == 0 => Vec::new(),
            None => vec![DataSegment {
                file_offset_bytes: 0,
                stored: self.payload,
            }],
        }
    }

    /// The name as a path below the root: no leading `/` or `./`, no trailing `/`, `.` and empty
    /// components removed. Empty for the root itself. `None` if a component is `..`.
    pub fn path(&self) -> Option<Vec<u8>> {
        clean_path(&self.name)
    }

    /// As [`Entry::path`], for a hardlink's target.
    pub fn link_path(&self) -> Option<Vec<u8>> {
        clean_path(&self.link_name)
    }
}

/// Cleans a name in an archive to a path below the root; see [`Entry::path`].
pub fn clean_path(name: &[u8]) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(name.len());
    for component in name.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return None,
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    Some(path)
}

/// A layer after its one read: entries in archive order, contents in the spool, which clones share.
#[derive(Clone, Debug)]
pub struct ScannedLayer {
    /// Digest of the compressed blob.
    pub digest: Digest,
    /// Size in bytes of the compressed blob.
    pub size_bytes: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The uncompressed tar.
    pub spool: Spool,
    /// Where the blocks of a gzip blob lie; none for other blobs. Clones share it.
    pub deflate: Option<Arc<Index>>,
    /// Entries in archive order. Duplicates of a name are kept; the last one wins.
    pub entries: Vec<Entry>,
    /// Index of the first entry to which a PAX global header applies; its header blocks, and those of
    /// later entries, mean something else when they are moved.
    pub first_under_global: Option<u32>,
    /// Where the entries end: the end-of-archive blocks, or the end of the spool if there are none.
    pub end_of_entries_bytes: u64,
}

/// Names one entry of one layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// 0-based index of the layer, the base layer first.
    pub layer: u32,
    /// Index into [`ScannedLayer::entries`].
    pub entry: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_below_the_root() {
        let check = |name: &str, path: Option<&str>| {
            assert_eq!(
                clean_path(name.as_bytes()),
                path.map(|p| p.as_bytes().to_vec()),
                "{name}"
            );
        };
        check("./a//b/", Some("a/b"));
        check("/a/./b", Some("a/b"));
        check("./", Some(""));
        check("a/../b", None);
        check("..a/b..", Some("..a/b.."));
    }
}
