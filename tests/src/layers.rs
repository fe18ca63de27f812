//! Scanned layers made without the scan stage: entries are stated, offsets recorded while the
//! spool is written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use esgz::image::Digest;
use esgz::layer::entry::{DataSegment, Entry, EntryKind, ScannedLayer, Timestamp};
use esgz::layer::spool::{Extent, Spool};

/// A regular file's metadata as `tar` would state it; change what a test needs.
pub fn file(name: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().into(),
        kind: EntryKind::Regular,
        link_name: Box::default(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        user_name: "".into(),
        group_name: "".into(),
        mtime: Timestamp {
            secs: 1_600_000_000,
            nanos: 0,
        },
        dev_major: 0,
        dev_minor: 0,
        xattrs: Vec::new(),
        size_bytes: 0,
        header: Extent::default(),
        payload: Extent::default(),
        sparse: None,
    }
}

/// A directory.
pub fn dir(name: impl AsRef<[u8]>) -> Entry {
    Entry {
        kind: EntryKind::Directory,
        mode: 0o755,
        ..file(name)
    }
}

/// A symlink or hardlink.
pub fn link(kind: EntryKind, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        kind,
        mode: 0o777,
        link_name: target.as_ref().into(),
        ..file(name)
    }
}

/// A device or fifo.
pub fn special(kind: EntryKind, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
    Entry {
        kind,
        mode: 0o600,
        dev_major: major,
        dev_minor: minor,
        ..file(name)
    }
}

/// Adds extended attributes.
pub fn with_xattrs(mut entry: Entry, xattrs: &[(&str, &[u8])]) -> Entry {
    for (name, value) in xattrs {
        entry.xattrs.push((name.as_bytes().into(), (*value).into()));
    }
    entry.xattrs.sort();
    entry
}

/// What stands where a header would: no stage behind scan may read it.
const HEADER: [u8; 512] = [0xee; 512];
/// What fills up a payload's last block: must never be seen.
const PADDING: u8 = 0xdd;

/// Builds a layer entry by entry.
#[derive(Debug, Default)]
pub struct LayerBuilder {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl LayerBuilder {
    /// Adds an entry with the contents `data`.
    #[must_use]
    pub fn add(mut self, entry: Entry, data: &[u8]) -> Self {
        let (header, payload) = self.store(data);
        self.entries.push(Entry {
            header,
            payload,
            size_bytes: data.len() as u64,
            ..entry
        });
        self
    }

    /// Adds a sparse file of `size_bytes`: stretches of (offset, bytes), stored one behind the
    /// other after `map_bytes` of sparse map.
    #[must_use]
    pub fn add_sparse(
        mut self,
        entry: Entry,
        size_bytes: u64,
        map_bytes: u64,
        stretches: &[(u64, Vec<u8>)],
    ) -> Self {
        let mut stored = vec![0xcc; map_bytes as usize];
        let start = self.bytes.len() as u64 + HEADER.len() as u64;
        let mut segments = Vec::new();
        for (file_offset_bytes, bytes) in stretches {
            let offset_bytes = start + stored.len() as u64;
            let len_bytes = bytes.len() as u64;
            let stored_at = Extent {
                offset_bytes,
                len_bytes,
            };
            segments.push(DataSegment {
                file_offset_bytes: *file_offset_bytes,
                stored: stored_at,
            });
            stored.extend_from_slice(bytes);
        }
        let (header, payload) = self.store(&stored);
        let sparse = Some(segments.into());
        self.entries.push(Entry {
            header,
            payload,
            size_bytes,
            sparse,
            ..entry
        });
        self
    }

    fn store(&mut self, payload: &[u8]) -> (Extent, Extent) {
        let header = Extent {
            offset_bytes: self.bytes.len() as u64,
            len_bytes: 512,
        };
        self.bytes.extend_from_slice(&HEADER);
        let len_bytes = payload.len() as u64;
        let stored = Extent {
            offset_bytes: self.bytes.len() as u64,
            len_bytes,
        };
        self.bytes.extend_from_slice(payload);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(512), PADDING);
        (header, stored)
    }

    /// Ends the archive; the spool is made in `scratch`.
    pub fn finish(mut self, scratch: &Path) -> io::Result<ScannedLayer> {
        let end_of_entries_bytes = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&[0; 1024]);
        let mut spool = Spool::create(scratch)?;
        spool.write_all(&self.bytes)?;
        let digest = Digest::of(&self.bytes);
        let len_bytes = self.bytes.len() as u64;
        Ok(ScannedLayer {
            digest,
            size_bytes: len_bytes,
            diff_id: digest,
            spool: Spool::new(spool, len_bytes),
            entries: self.entries,
            deflate: None,
            first_under_global: None,
            end_of_entries_bytes,
        })
    }
}

/// Reads the headers of a real, uncompressed tar without sparse files. Slow and simple; digests are
/// those of the file's name.
pub fn read_tar(path: &Path) -> io::Result<ScannedLayer> {
    let mut entries = Vec::new();
    let mut archive = tar::Archive::new(File::open(path)?);
    for entry in archive.entries_with_seek()? {
        entries.push(read_entry(&mut entry?)?);
    }
    let mut file = File::open(path)?;
    let len_bytes = file.seek(SeekFrom::End(0))?;
    let digest = Digest::of(path.as_os_str().as_bytes());
    Ok(ScannedLayer {
        digest,
        size_bytes: len_bytes,
        diff_id: digest,
        spool: Spool::new(file, len_bytes),
        entries,
        deflate: None,
        first_under_global: None,
        end_of_entries_bytes: len_bytes,
    })
}

fn read_entry<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Entry> {
    let kind = match entry.header().entry_type() {
        tar::EntryType::Link => EntryKind::Hardlink,
        tar::EntryType::Symlink => EntryKind::Symlink,
        tar::EntryType::Char => EntryKind::CharDevice,
        tar::EntryType::Block => EntryKind::BlockDevice,
        tar::EntryType::Directory => EntryKind::Directory,
        tar::EntryType::Fifo => EntryKind::Fifo,
        tar::EntryType::Regular | tar::EntryType::Continuous => EntryKind::Regular,
        other => return Err(io::Error::other(format!("unexpected entry type {other:?}"))),
    };
    let size_bytes = entry.size();
    let mut made = Entry {
        kind,
        link_name: entry.link_name_bytes().unwrap_or_default().into(),
        mode: entry.header().mode()?,
        uid: entry.header().uid()? as u32,
        gid: entry.header().gid()? as u32,
        mtime: Timestamp {
            secs: entry.header().mtime()? as i64,
            nanos: 0,
        },
        dev_major: entry.header().device_major()?.unwrap_or(0),
        dev_minor: entry.header().device_minor()?.unwrap_or(0),
        size_bytes,
        header: Extent {
            offset_bytes: entry.raw_header_position(),
            len_bytes: 512,
        },
        payload: Extent {
            offset_bytes: entry.raw_file_position(),
            len_bytes: size_bytes,
        },
        ..file(entry.path_bytes())
    };
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                made.xattrs
                    .push((name.into(), extension.value_bytes().into()));
            } else if extension.key_bytes() == b"mtime" {
                made.mtime = timestamp(extension.value().map_err(io::Error::other)?)?;
            }
        }
    }
    made.xattrs.sort();
    Ok(made)
}

/// A PAX time after 1970: seconds, perhaps with a fraction.
fn timestamp(text: &str) -> io::Result<Timestamp> {
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9.9}");
    Ok(Timestamp {
        secs: secs.parse().map_err(io::Error::other)?,
        nanos: nanos.parse().map_err(io::Error::other)?,
    })
}
