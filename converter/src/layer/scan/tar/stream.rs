//! Headers of an archive that comes by block by block, where nothing can be read twice. Pure.

use std::io;

use super::{
    BLOCK_BYTES, MAX_EXTENSION_BYTES, NameCache, Reader, TarError, next_header, number,
    stays_inside,
};
use crate::layer::entry::Entry;
use crate::layer::scan::pax::Records;
use crate::layer::spool::ReadAt;

/// One entry's headers together may have this many bytes.
const MAX_HEADERS_BYTES: usize = 8 << 20;

/// Reads headers; the caller passes over payloads and their padding.
#[derive(Default)]
pub(in crate::layer) struct HeaderStream {
    global: Option<Records>,
    names: NameCache,
    /// Blocks of the entry that is being read.
    blocks: Vec<u8>,
    start: u64,
    /// Blocks that are left of an extension header's body.
    body_blocks: u64,
    zero_block: bool,
}

/// What a block completed.
pub(in crate::layer) enum Parsed {
    /// Nothing yet.
    More,
    /// An entry; its payload follows.
    Entry(Box<Entry>),
    /// The archive.
    End,
}

impl HeaderStream {
    /// Takes the block at the uncompressed offset `offset_bytes`.
    ///
    /// # Errors
    /// As [`super::read_entries`]; a sparse file is one, as its map may be in its payload.
    pub(in crate::layer) fn block(
        &mut self,
        block: &[u8; BLOCK_BYTES as usize],
        offset_bytes: u64,
    ) -> Result<Parsed, TarError> {
        let invalid = |reason| TarError::Header {
            offset_bytes,
            reason,
        };
        if self.blocks.is_empty() {
            match (self.zero_block, *block == [0; 512]) {
                (true, true) => return Ok(Parsed::End),
                (true, false) => return Err(invalid("data after one zero block")),
                (false, true) => {
                    self.zero_block = true;
                    return Ok(Parsed::More);
                }
                (false, false) => self.start = offset_bytes,
            }
        }
        self.blocks.extend_from_slice(block);
        if self.body_blocks > 0 {
            self.body_blocks -= 1;
            return Ok(Parsed::More);
        }
        if matches!(block[156], b'x' | b'X' | b'g' | b'L' | b'K') {
            let size = number(&block[124..136])
                .and_then(|n| u64::try_from(n).ok())
                .filter(|&size| size <= MAX_EXTENSION_BYTES)
                .ok_or(invalid("bad size of an extension header"))?;
            self.body_blocks = size.div_ceil(BLOCK_BYTES);
            if self.blocks.len() > MAX_HEADERS_BYTES {
                return Err(invalid(
                    "more than 8 MiB of extension headers for one entry",
                ));
            }
            return Ok(Parsed::More);
        }
        let start = self.start;
        let entry = self.entry().map_err(|error| error.moved_by(start))?;
        self.blocks.clear();
        Ok(Parsed::Entry(Box::new(entry)))
    }

    /// True between entries, where an archive without end blocks may stop.
    pub(in crate::layer) fn is_between_entries(&self) -> bool {
        self.blocks.is_empty()
    }

    fn entry(&mut self) -> Result<Entry, TarError> {
        let invalid = |reason| TarError::Header {
            offset_bytes: 0,
            reason,
        };
        let source = ZerosBehind(&self.blocks);
        let mut reader = Reader {
            source: &source,
            len_bytes: source.len_bytes(),
            position: 0,
            window: self.blocks.clone(),
            window_start: 0,
        };
        let header = next_header(&mut reader, &mut self.global)?
            .ok_or(invalid("an extension header without an entry"))?;
        let mut entry = header.into_entry(&mut reader, 0, &mut self.names)?;
        stays_inside(&entry, 0)?;
        if entry.sparse.is_some() {
            return Err(invalid("a sparse file, of which readers see the map"));
        }
        entry.header.offset_bytes += self.start;
        entry.payload.offset_bytes += self.start;
        Ok(entry)
    }
}

impl TarError {
    /// The error with its offset counted from further ahead.
    fn moved_by(mut self, bytes: u64) -> Self {
        match &mut self {
            Self::Read { offset_bytes, .. }
            | Self::Truncated { offset_bytes, .. }
            | Self::Header { offset_bytes, .. }
            | Self::Escapes { offset_bytes, .. }
            | Self::UnsupportedType { offset_bytes, .. } => {
                *offset_bytes = offset_bytes.saturating_add(bytes);
            }
            Self::EntryMemory { .. } => {}
        }
        self
    }
}

/// Headers, and a payload of any size behind them that nobody may look at.
struct ZerosBehind<'a>(&'a [u8]);

impl ReadAt for ZerosBehind<'_> {
    fn len_bytes(&self) -> u64 {
        u64::MAX >> 1
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let known = usize::try_from(offset_bytes)
            .ok()
            .and_then(|at| self.0.get(at..))
            .unwrap_or(&[]);
        let len = known.len().min(buffer.len());
        buffer[..len].copy_from_slice(&known[..len]);
        buffer[len..].fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::header::plain_file;
    use crate::layer::scan::tar::read_entries;

    /// The same entries as the reader that may read twice.
    #[test]
    fn blocks_give_the_entries_of_the_whole() {
        let mut tar = plain_file("a", 700);
        tar.resize(512 + 1024, 7);
        let mut long = tar::Header::new_ustar();
        long.set_entry_type(tar::EntryType::GNULongName);
        long.set_size(600);
        long.set_cksum();
        tar.extend_from_slice(long.as_bytes());
        tar.extend_from_slice(&[b'n'; 600]);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar.extend(plain_file("short", 0));
        tar.resize(tar.len() + 1024, 0);
        let expected = read_entries(tar.as_slice()).unwrap().entries;
        let mut stream = HeaderStream::default();
        let (mut found, mut at, mut ended) = (Vec::new(), 0, false);
        while !ended {
            let block = tar[at..at + 512].try_into().unwrap();
            match stream.block(block, at as u64).unwrap() {
                Parsed::More => at += 512,
                Parsed::Entry(entry) => {
                    at = entry.payload.end_bytes().next_multiple_of(512) as usize;
                    found.push(*entry);
                }
                Parsed::End => ended = true,
            }
        }
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn half_an_end_and_half_an_entry_are_damage() {
        let zeros = [0; 512];
        let header: [u8; 512] = plain_file("a", 0).try_into().unwrap();
        let mut stream = HeaderStream::default();
        assert!(stream.block(&zeros, 0).is_ok());
        assert!(stream.block(&header, 512).is_err());
        let mut extension = tar::Header::new_ustar();
        extension.set_entry_type(tar::EntryType::GNULongName);
        extension.set_size(0);
        extension.set_cksum();
        let mut stream = HeaderStream::default();
        assert!(stream.block(extension.as_bytes(), 0).is_ok());
        assert!(!stream.is_between_entries());
        assert!(stream.block(&zeros, 512).is_err());
    }
}
