//! The tar reader: uncompressed bytes in, [`Entry`] values out. Pure, and total: any input gives
//! entries or an error.
//!
//! Reads ustar, PAX (POSIX.1-2001), GNU and star headers with the meaning that Go's `archive/tar`
//! gives them, since that is what the runtimes extract with. Payloads are never read, only located.

mod stream;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::layer::entry::{DataSegment, Entry, EntryKind, Timestamp, clean_path};
use crate::layer::scan::memory::EntryMemory;
use crate::layer::scan::pax::{self, Records};
use crate::layer::scan::sparse;
use crate::layer::spool::{Extent, ReadAt};

pub(in crate::layer) use stream::{HeaderStream, Parsed};

/// Size of a tar block; headers and payloads are padded to it.
pub const BLOCK_BYTES: u64 = 512;
/// An extension header (PAX records, GNU long name) larger than this is refused.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// What [`read_entries`] finds in an archive.
#[derive(Debug)]
pub struct Archive {
    /// Entries in archive order.
    pub entries: Vec<Entry>,
    /// Index of the first entry to which a PAX global header applies.
    pub first_under_global: Option<u32>,
    /// Offset of the end-of-archive blocks, or of the end of the data where they are missing.
    pub end_of_entries_bytes: u64,
}

/// Why an archive cannot be read. Offsets are in uncompressed bytes.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The data could not be read at all.
    #[error("reading the tar at offset {offset_bytes}")]
    Read {
        /// Where.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data ends inside a header or a payload.
    #[error("tar is truncated: {what} at offset {offset_bytes} needs {needed_bytes} bytes more")]
    Truncated {
        /// What is cut off.
        what: String,
        /// Where it starts.
        offset_bytes: u64,
        /// How many bytes are missing.
        needed_bytes: u64,
    },
    /// A header's checksum or a number in it is wrong.
    #[error("invalid tar header at offset {offset_bytes}: {reason}")]
    Header {
        /// Where the header starts.
        offset_bytes: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name, or a hardlink's target, leads out of the layer.
    #[error("tar entry \"{name}\" at offset {offset_bytes} leads out of the layer")]
    Escapes {
        /// The name or target with the `..`.
        name: String,
        /// Where its header starts.
        offset_bytes: u64,
    },
    /// The entries take more memory than allowed.
    #[error(
        "the entries of all layers need more than {limit_bytes} bytes of memory, \
         {entries} of this layer have been read"
    )]
    EntryMemory {
        /// Entries of this layer that did fit.
        entries: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// An entry is of a kind that no image layer holds.
    #[error("tar entry \"{name}\" at offset {offset_bytes} has the unsupported type '{typeflag}'")]
    UnsupportedType {
        /// The entry's name.
        name: String,
        /// Where its header starts.
        offset_bytes: u64,
        /// The typeflag.
        typeflag: char,
    },
}

/// Reads all headers of the archive in `source`.
///
/// # Errors
/// [`TarError`] names the offset of the first header that cannot be understood.
pub fn read_entries<R: ReadAt + ?Sized>(source: &R) -> Result<Archive, TarError> {
    read_entries_within(source, &EntryMemory::unlimited())
}

/// As [`read_entries`], as long as the entries fit into `memory`.
///
/// # Errors
/// Also [`TarError::EntryMemory`].
pub fn read_entries_within<R: ReadAt + ?Sized>(
    source: &R,
    memory: &EntryMemory,
) -> Result<Archive, TarError> {
    follow_entries(source, memory, |_| ())
}

/// As [`read_entries_within`]; each entry is shown as soon as its headers have been read.
///
/// # Errors
/// Also [`TarError::EntryMemory`].
pub(super) fn follow_entries<R: ReadAt + ?Sized>(
    source: &R,
    memory: &EntryMemory,
    mut show: impl FnMut(&Entry),
) -> Result<Archive, TarError> {
    let mut reader = Reader::new(source);
    let mut entries = Vec::new();
    let mut global = None;
    let mut first_under_global = None;
    let mut names = NameCache::default();
    loop {
        let start = reader.position;
        let Some(header) = next_header(&mut reader, &mut global)? else {
            return Ok(Archive {
                entries,
                first_under_global,
                end_of_entries_bytes: source.available(start),
            });
        };
        if global.is_some() && first_under_global.is_none() {
            first_under_global = u32::try_from(entries.len()).ok();
        }
        let entry = header.into_entry(&mut reader, start, &mut names)?;
        stays_inside(&entry, start)?;
        if !memory.admit(&entry) {
            return Err(TarError::EntryMemory {
                entries: entries.len() as u64,
                limit_bytes: memory.limit_bytes(),
            });
        }
        // Before its payload passes: whoever follows takes it then.
        show(&entry);
        reader.pass_payload(&entry)?;
        entries.push(entry);
    }
}

/// A `..` in a name has no honest use in a layer; a symlink's target is free.
fn stays_inside(entry: &Entry, offset_bytes: u64) -> Result<(), TarError> {
    let target = (entry.kind == EntryKind::Hardlink).then_some(&entry.link_name);
    for name in std::iter::once(&entry.name).chain(target) {
        if clean_path(name).is_none() {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(TarError::Escapes { name, offset_bytes });
        }
    }
    Ok(())
}

/// Reads one entry's headers, without its payload.
#[cfg(test)]
pub(in crate::layer) fn read_one_header(bytes: &[u8]) -> Result<Entry, TarError> {
    struct Endless<'a>(&'a [u8]);
    impl ReadAt for Endless<'_> {
        fn len_bytes(&self) -> u64 {
            u64::MAX >> 1
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
            for (at, byte) in (offset_bytes..).zip(buffer) {
                *byte = usize::try_from(at)
                    .ok()
                    .and_then(|at| self.0.get(at))
                    .copied()
                    .unwrap_or(0);
            }
            Ok(())
        }
    }
    let source = Endless(bytes);
    let mut reader = Reader::new(&source);
    let header = next_header(&mut reader, &mut None)?.expect("there is a header");
    header.into_entry(&mut reader, 0, &mut NameCache::default())
}

/// A main header with the extension headers that precede it.
struct FullHeader {
    block: [u8; 512],
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Reads extension headers up to and with the next main header; `None` at the archive's end.
fn next_header<R: ReadAt + ?Sized>(
    reader: &mut Reader<'_, R>,
    global: &mut Option<Records>,
) -> Result<Option<FullHeader>, TarError> {
    let mut local = Records::default();
    let mut long_name = None;
    let mut long_link = None;
    loop {
        let offset_bytes = reader.position;
        let Some(block) = reader.header_block()? else {
            return Ok(None);
        };
        let invalid = |reason| TarError::Header {
            offset_bytes,
            reason,
        };
        verify_checksum(&block).map_err(invalid)?;
        match block[156] {
            flag @ (b'x' | b'X' | b'g' | b'L' | b'K') => {
                let size = number(&block[124..136])
                    .and_then(|n| u64::try_from(n).ok())
                    .ok_or(invalid("bad size of an extension header"))?;
                if size > MAX_EXTENSION_BYTES {
                    return Err(invalid("an extension header is larger than 1 MiB"));
                }
                let body = reader.padded(size, "an extension header")?;
                match flag {
                    b'L' => long_name = Some(until_nul(&body).to_vec()),
                    b'K' => long_link = Some(until_nul(&body).to_vec()),
                    b'g' => {
                        let global = global.get_or_insert_default();
                        global.merge(pax::parse(&body).map_err(invalid)?);
                        if global.len_bytes() > MAX_EXTENSION_BYTES {
                            return Err(invalid("global headers are larger than 1 MiB together"));
                        }
                    }
                    _ => local = pax::parse(&body).map_err(invalid)?,
                }
            }
            _ => {
                let mut records = global.clone().unwrap_or_default();
                records.merge(local);
                return Ok(Some(FullHeader {
                    block,
                    records,
                    long_name,
                    long_link,
                }));
            }
        }
    }
}

impl FullHeader {
    fn into_entry<R: ReadAt + ?Sized>(
        self,
        reader: &mut Reader<'_, R>,
        start: u64,
        names: &mut NameCache,
    ) -> Result<Entry, TarError> {
        let invalid = |reason| TarError::Header {
            offset_bytes: start,
            reason,
        };
        let (block, records) = (&self.block, &self.records);
        let flavour = Flavour::of(block);
        let name = records
            .bytes("GNU.sparse.name")
            .or_else(|| records.bytes("path"))
            .map(<[u8]>::to_vec)
            .or(self.long_name)
            .unwrap_or_else(|| flavour.name(block));
        let link_name = records
            .bytes("linkpath")
            .map(<[u8]>::to_vec)
            .or(self.long_link)
            .unwrap_or_else(|| until_nul(&block[157..257]).to_vec());
        let kind = kind(block[156], &name).ok_or_else(|| TarError::UnsupportedType {
            name: String::from_utf8_lossy(&name).into_owned(),
            offset_bytes: start,
            typeflag: char::from(block[156]),
        })?;
        let field = |range: std::ops::Range<usize>, reason| {
            number(&block[range]).ok_or(TarError::Header {
                offset_bytes: start,
                reason,
            })
        };
        let id = |key, range, reason| -> Result<u32, TarError> {
            let id = match records.text(key) {
                Some(text) => text.parse().map_err(|_| invalid(reason))?,
                None => field(range, reason)?,
            };
            u32::try_from(id).map_err(|_| invalid(reason))
        };
        let stored_bytes = match (kind, records.text("size")) {
            (EntryKind::Regular, Some(text)) => text.parse().map_err(|_| invalid("bad size"))?,
            (EntryKind::Regular, None) => {
                u64::try_from(field(124..136, "bad size")?).map_err(|_| invalid("negative size"))?
            }
            // Only regular files carry a payload, whatever their header says.
            _ => 0,
        };
        let mtime = match records.text("mtime") {
            Some(text) => pax::timestamp(text).ok_or(invalid("bad mtime"))?,
            None => Timestamp {
                secs: field(136..148, "bad mtime")?,
                nanos: 0,
            },
        };
        let device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice)
            && flavour != Flavour::V7;
        let device_number = |range| -> Result<u32, TarError> {
            if device {
                let number = field(range, "bad device number")?;
                u32::try_from(number).map_err(|_| invalid("bad device number"))
            } else {
                Ok(0)
            }
        };
        let owner = |key, range: std::ops::Range<usize>| match records.bytes(key) {
            Some(name) => name.to_vec(),
            None if flavour == Flavour::V7 => Vec::new(),
            None => until_nul(&block[range]).to_vec(),
        };
        let (uid, gid) = (
            id("uid", 108..116, "bad uid")?,
            id("gid", 116..124, "bad gid")?,
        );
        let (dev_major, dev_minor) = (device_number(329..337)?, device_number(337..345)?);
        let mode = (field(100..108, "bad mode")? & 0xffff_ffff) as u32;
        let user_name = names.share(&owner("uname", 265..297));
        let group_name = names.share(&owner("gname", 297..329));

        let old_sparse = match (block[156], kind) {
            (b'S', EntryKind::Regular) => Some(sparse::gnu_header(block, reader)?),
            _ => None,
        };
        let header = Extent {
            offset_bytes: start,
            len_bytes: reader.position - start,
        };
        let payload = Extent {
            offset_bytes: reader.position,
            len_bytes: stored_bytes,
        };
        let map = match old_sparse {
            Some(map) => Some(map),
            None if kind == EntryKind::Regular => sparse::pax_map(records, payload, reader)?,
            None => None,
        };
        let (size_bytes, sparse) = match map {
            Some(map) => {
                let (size, segments) = map.resolve(payload).map_err(invalid)?;
                (size, Some(segments))
            }
            None => (stored_bytes, None),
        };
        Ok(Entry {
            name: name.into(),
            kind,
            link_name: match kind {
                EntryKind::Symlink | EntryKind::Hardlink => link_name.into(),
                _ => Box::default(),
            },
            mode,
            uid,
            gid,
            user_name,
            group_name,
            mtime,
            dev_major,
            dev_minor,
            xattrs: records.xattrs(),
            size_bytes,
            header,
            payload,
            sparse,
        })
    }
}

/// Which fields behind the link name a header has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flavour {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Flavour {
    fn of(block: &[u8; 512]) -> Self {
        match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Self::Star,
            (b"ustar\0", _) => Self::Ustar,
            (b"ustar ", b" \0") => Self::Gnu,
            _ => Self::V7,
        }
    }

    fn name(self, block: &[u8; 512]) -> Vec<u8> {
        let name = until_nul(&block[..100]);
        let prefix = match self {
            Self::Ustar => until_nul(&block[345..500]),
            Self::Star => until_nul(&block[345..476]),
            Self::V7 | Self::Gnu => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }
}

fn kind(typeflag: u8, name: &[u8]) -> Option<EntryKind> {
    Some(match typeflag {
        // Before ustar a directory was a regular file whose name ends in a slash.
        0 if name.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::Regular,
        b'1' => EntryKind::Hardlink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => return None,
    })
}

/// A header's number: octal text, or base-256 where the first bit is set (GNU, two's complement).
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; the bytes before the last eight may only repeat it.
        let negative = first & 0x40 != 0;
        let mut value = if negative { -1_i128 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for &byte in rest {
            value = value << 8 | i128::from(byte);
            if i64::try_from(value).is_err() {
                return None;
            }
        }
        return i64::try_from(value).ok();
    }
    let is_space = |b: &u8| *b == b' ' || *b == 0;
    let start = field
        .iter()
        .position(|b| !is_space(b))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(is_space).unwrap_or(digits.len())];
    digits.iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn verify_checksum(block: &[u8; 512]) -> Result<(), &'static str> {
    let stored = number(&block[148..156]).ok_or("bad checksum field")?;
    let outside = |&(at, _): &(usize, &u8)| !(148..156).contains(&at);
    let bytes = || block.iter().enumerate().filter(outside).map(|(_, &b)| b);
    let unsigned: i64 = bytes().map(i64::from).sum::<i64>() + 8 * 32;
    // Some old writers summed signed characters.
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum::<i64>() + 8 * 32;
    if stored == unsigned || stored == signed {
        Ok(())
    } else {
        Err("wrong checksum")
    }
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// Shares the owner names, which nearly all entries of a layer have in common.
#[derive(Default)]
struct NameCache(BTreeMap<Vec<u8>, Arc<str>>);

impl NameCache {
    fn share(&mut self, name: &[u8]) -> Arc<str> {
        if let Some(shared) = self.0.get(name) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = String::from_utf8_lossy(name).into();
        // Bounded, for an archive that gives every entry an owner of its own.
        if self.0.len() < 4096 {
            self.0.insert(name.to_vec(), Arc::clone(&shared));
        }
        shared
    }
}

/// Reads headers through a small window, so that an archive of small files costs few system calls.
pub(super) struct Reader<'a, R: ?Sized> {
    source: &'a R,
    position: u64,
    window: Vec<u8>,
    window_start: u64,
}

const WINDOW_BYTES: u64 = 64 << 10;

impl<'a, R: ReadAt + ?Sized> Reader<'a, R> {
    fn new(source: &'a R) -> Self {
        Self {
            source,
            position: 0,
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// The next header block, or `None` at the end: no data, or a block of zeros.
    fn header_block(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        if self.left(1) == 0 {
            return Ok(None);
        }
        let block = self.block()?;
        if block != [0; 512] {
            return Ok(Some(block));
        }
        // One block of zeros and then data again is damage, not an end.
        if self.left(BLOCK_BYTES) == BLOCK_BYTES && self.block()? != [0; 512] {
            let offset_bytes = self.position - BLOCK_BYTES;
            return Err(TarError::Header {
                offset_bytes,
                reason: "data after one zero block",
            });
        }
        Ok(None)
    }

    /// Where the block that was read last starts.
    pub(super) fn position_of_last_block(&self) -> u64 {
        self.position.saturating_sub(BLOCK_BYTES)
    }

    /// The next 512 bytes.
    pub(super) fn block(&mut self) -> Result<[u8; 512], TarError> {
        self.require(BLOCK_BYTES, || "a header".to_owned())?;
        let inside = self.position >= self.window_start
            && self.position + BLOCK_BYTES <= self.window_start + self.window.len() as u64;
        if !inside {
            let len = self.left(WINDOW_BYTES);
            self.window.resize(usize::try_from(len).unwrap_or(0), 0);
            self.window_start = self.position;
            self.source
                .read_exact_at(&mut self.window, self.position)
                .map_err(|source| TarError::Read {
                    offset_bytes: self.position,
                    source,
                })?;
        }
        let at = usize::try_from(self.position - self.window_start).unwrap_or(0);
        let mut block = [0; 512];
        block.copy_from_slice(&self.window[at..at + 512]);
        self.position += BLOCK_BYTES;
        Ok(block)
    }

    /// `size` bytes and their padding; gives the bytes.
    fn padded(&mut self, size: u64, what: &str) -> Result<Vec<u8>, TarError> {
        self.require(size, || what.to_owned())?;
        let body = self.peek(self.position, size)?;
        self.skip_payload(Extent {
            offset_bytes: self.position,
            len_bytes: size,
        });
        Ok(body)
    }

    /// Bytes at any offset; the caller has checked that they exist.
    pub(super) fn peek(&self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = vec![0; usize::try_from(len_bytes).unwrap_or(usize::MAX)];
        self.source
            .read_exact_at(&mut bytes, offset_bytes)
            .map_err(|source| TarError::Read {
                offset_bytes,
                source,
            })?;
        Ok(bytes)
    }

    /// Fails unless `needed` bytes follow.
    pub(super) fn require(
        &self,
        needed: u64,
        what: impl FnOnce() -> String,
    ) -> Result<(), TarError> {
        let left = self.left(needed);
        if needed > left {
            return Err(TarError::Truncated {
                what: what(),
                offset_bytes: self.position,
                needed_bytes: needed - left,
            });
        }
        Ok(())
    }

    /// Moves behind a payload and its padding; the last padding may be missing.
    fn skip_payload(&mut self, payload: Extent) {
        let end = payload.end_bytes().checked_next_multiple_of(BLOCK_BYTES);
        self.position = self.source.available(end.unwrap_or(u64::MAX));
    }

    /// Moves behind the payload of `entry` and its padding.
    fn pass_payload(&mut self, entry: &Entry) -> Result<(), TarError> {
        self.require(entry.payload.len_bytes, || {
            let name = String::from_utf8_lossy(&entry.name);
            format!("the payload of \"{name}\"")
        })?;
        self.skip_payload(entry.payload);
        Ok(())
    }

    /// How many bytes follow, but at most `upto_bytes`.
    fn left(&self, upto_bytes: u64) -> u64 {
        let end = self.position.saturating_add(upto_bytes);
        self.source.available(end).saturating_sub(self.position)
    }
}

/// A sparse file's map before its stored stretches are located.
pub(super) struct SparseMap {
    /// Size of the file with its holes.
    pub(super) size_bytes: u64,
    /// (offset in the file, length) of each stored stretch.
    pub(super) stretches: Vec<(u64, u64)>,
    /// How many bytes of the payload the map itself takes (PAX 1.0).
    pub(super) map_bytes: u64,
}

impl SparseMap {
    fn resolve(self, payload: Extent) -> Result<(u64, Box<[DataSegment]>), &'static str> {
        let mut stored = payload.offset_bytes + self.map_bytes;
        let mut reached = 0_u64;
        let mut segments = Vec::with_capacity(self.stretches.len());
        for (file_offset_bytes, len_bytes) in self.stretches {
            let end = file_offset_bytes
                .checked_add(len_bytes)
                .ok_or("bad sparse map")?;
            let stored_end = stored.checked_add(len_bytes).ok_or("bad sparse map")?;
            if file_offset_bytes < reached
                || end > self.size_bytes
                || stored_end > payload.end_bytes()
            {
                return Err("bad sparse map");
            }
            if len_bytes > 0 {
                let stored = Extent {
                    offset_bytes: stored,
                    len_bytes,
                };
                segments.push(DataSegment {
                    file_offset_bytes,
                    stored,
                });
            }
            reached = end;
            stored = stored_end;
        }
        if stored != payload.end_bytes() {
            return Err("sparse map and payload differ in size");
        }
        Ok((self.size_bytes, segments.into()))
    }
}
