//! The uncompressed stream of a blob as one tar: its entries against the TOC's rows, its payloads
//! against chunks and files. Takes the bytes in order, in pieces of any size.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::image::{Digest, Hasher};
use crate::layer::entry::{Entry, EntryKind};
use crate::layer::plan::{TOC_NAME, is_pack};
use crate::layer::scan::tar::{BLOCK_BYTES, HeaderStream, Parsed, TarError};
use crate::layer::toc::{OwnerNames, TocEntry, entry_row};
use crate::layer::verify::copies::Copies;
use crate::layer::verify::rows::{Rows, Run, clean};
use crate::layer::verify::{RowFault, VerifiedEntry, VerifyError};

/// Hashes and checks the stream.
pub(super) struct ReadBack<'a, V> {
    rows: &'a Rows<'a>,
    visit: V,
    limit_bytes: u64,
    digest: Hasher,
    /// Offset of the next byte.
    position: u64,
    state: State,
    headers: HeaderStream,
    block: Vec<u8>,
    /// The next row that an entry must equal.
    row: usize,
    /// Where the payloads of the files lie whose headers have been read.
    payloads: Vec<u64>,
    /// Where those of packs do.
    packs: Vec<Range<u64>>,
    /// Chunks in packs whose file has not come yet, by file; indices into [`Rows::chunks`].
    copies: HashMap<u32, Vec<usize>>,
    owners: Owners,
    /// Where the TOC's member starts, and where its tar entry does.
    toc_member: Option<u64>,
    toc_entry: Option<u64>,
}

enum State {
    Header,
    Payload {
        /// `None` for the TOC's.
        open: Option<OpenFile>,
        left_bytes: u64,
    },
    Padding {
        left_bytes: u64,
    },
    Ended,
}

struct OpenFile {
    entry: Box<Entry>,
    row: usize,
    digest: WholeDigest,
    /// Its chunks that are in packs.
    copies: Copies,
}

/// Where a file's digest comes from.
enum WholeDigest {
    /// A file of one chunk has the chunk's digest.
    Chunk(Digest),
    /// It is computed from the payload, and must be the row's if that has one.
    Payload(Hasher, Option<Digest>),
}

/// What the stream was.
pub(super) struct Totals {
    pub(super) diff_id: Digest,
    pub(super) uncompressed_bytes: u64,
}

impl<'a, V: FnMut(VerifiedEntry<'_>)> ReadBack<'a, V> {
    pub(super) fn new(rows: &'a Rows<'a>, limit_bytes: u64, visit: V) -> Self {
        Self {
            rows,
            visit,
            limit_bytes,
            digest: Hasher::default(),
            position: 0,
            state: State::Header,
            headers: HeaderStream::default(),
            block: Vec::with_capacity(BLOCK_BYTES as usize),
            row: 0,
            payloads: Vec::with_capacity(rows.files.len()),
            packs: Vec::new(),
            copies: HashMap::new(),
            owners: Owners::default(),
            toc_member: None,
            toc_entry: None,
        }
    }

    /// A run begins. Gives its place in the stream.
    pub(super) fn begin(&mut self, run: &Run) -> u64 {
        if run.blob.start == self.rows.toc_offset_bytes {
            self.toc_member = Some(self.position);
        }
        self.position
    }

    /// Takes bytes of a run.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), VerifyError> {
        self.digest.update(bytes);
        if self.position.saturating_add(bytes.len() as u64) > self.limit_bytes {
            return Err(VerifyError::TooLarge {
                limit_bytes: self.limit_bytes,
            });
        }
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Header => self.header(bytes)?,
                State::Payload { open, left_bytes } => {
                    let taken = prefix(bytes, *left_bytes);
                    if let Some(OpenFile {
                        digest: WholeDigest::Payload(hasher, _),
                        copies,
                        ..
                    }) = open
                    {
                        hasher.update(taken);
                        copies.piece(taken, self.rows)?;
                    }
                    *left_bytes -= taken.len() as u64;
                    let (len, is_whole, open) = (taken.len(), *left_bytes == 0, open);
                    if is_whole {
                        let open = open.take();
                        self.end_of_payload(open, self.position + len as u64)?;
                    }
                    len
                }
                State::Padding { left_bytes } => {
                    let taken = prefix(bytes, *left_bytes).len();
                    *left_bytes -= taken as u64;
                    if *left_bytes == 0 {
                        self.state = State::Header;
                    }
                    taken
                }
                State::Ended => {
                    if let Some(at) = bytes.iter().position(|&b| b != 0) {
                        return Err(VerifyError::AfterEnd {
                            offset_bytes: self.position + at as u64,
                        });
                    }
                    bytes.len()
                }
            };
            self.position += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// All bytes of a run that began at `start_bytes` of the stream have been taken: its chunks must
    /// lie where the tar has the files' data, or in a pack that stands before that.
    pub(super) fn end(&mut self, run: &Run, start_bytes: u64) -> Result<(), VerifyError> {
        let rows = self.rows;
        for index in run.chunks.clone() {
            let chunk = &rows.chunks[index];
            let found_bytes = start_bytes.saturating_add(chunk.inner_bytes);
            let expected_bytes = self
                .payloads
                .get(chunk.file as usize)
                .map(|payload| payload + chunk.file_offset_bytes);
            if expected_bytes.is_none() && self.is_in_pack(found_bytes, chunk.len_bytes) {
                if chunk.inner_bytes == 0 {
                    return Err(rows.fault(chunk.row, RowFault::PackedWithoutLead));
                }
                self.copies.entry(chunk.file).or_default().push(index);
            } else if expected_bytes != Some(found_bytes) {
                return Err(rows.fault(
                    chunk.row,
                    RowFault::Position {
                        found_bytes,
                        expected_bytes,
                    },
                ));
            }
            let file = &rows.files[chunk.file as usize];
            if file.chunks == 1 && file.digest.is_some_and(|digest| digest != chunk.digest) {
                return Err(rows.fault(chunk.row, RowFault::FileDigest));
            }
        }
        Ok(())
    }

    fn is_in_pack(&self, start_bytes: u64, len_bytes: u64) -> bool {
        let end_bytes = start_bytes.saturating_add(len_bytes);
        let holds = |pack: &Range<u64>| pack.start <= start_bytes && end_bytes <= pack.end;
        self.packs.iter().any(holds)
    }

    /// Nothing follows.
    pub(super) fn finish(mut self) -> Result<Totals, VerifyError> {
        let between = matches!(self.state, State::Header | State::Ended)
            && self.block.is_empty()
            && self.headers.is_between_entries();
        if !between {
            return Err(VerifyError::Tar {
                source: TarError::Truncated {
                    what: "an entry".to_owned(),
                    offset_bytes: self.position,
                    needed_bytes: 1,
                },
            });
        }
        self.skip_chunk_rows()?;
        if self.row < self.rows.len() {
            let row = u32::try_from(self.row).unwrap_or(u32::MAX);
            return Err(self.rows.fault(row, RowFault::NotInTar));
        }
        if self.toc_entry != self.toc_member {
            return Err(VerifyError::Toc {
                toc_offset_bytes: self.rows.toc_offset_bytes,
                reason: "its tar entry is not the archive's last".to_owned(),
            });
        }
        Ok(Totals {
            diff_id: self.digest.finish(),
            uncompressed_bytes: self.position,
        })
    }

    /// Takes bytes of a header block; gives how many.
    fn header(&mut self, bytes: &[u8]) -> Result<usize, VerifyError> {
        let wanted = BLOCK_BYTES as usize - self.block.len();
        let taken = &bytes[..wanted.min(bytes.len())];
        self.block.extend_from_slice(taken);
        let Ok(block) = self.block.as_slice().try_into() else {
            return Ok(taken.len());
        };
        let end_bytes = self.position + taken.len() as u64;
        let parsed = self.headers.block(block, end_bytes - BLOCK_BYTES);
        self.block.clear();
        match parsed.map_err(|source| VerifyError::Tar { source })? {
            Parsed::More => {}
            Parsed::End => self.state = State::Ended,
            Parsed::Entry(entry) => self.entry(entry)?,
        }
        Ok(taken.len())
    }

    fn entry(&mut self, entry: Box<Entry>) -> Result<(), VerifyError> {
        let left_bytes = entry.payload.len_bytes;
        if self.toc_entry.is_some() {
            return Err(VerifyError::AfterEnd {
                offset_bytes: entry.header.offset_bytes,
            });
        }
        if entry.path().as_deref() == Some(TOC_NAME.as_bytes()) {
            self.toc_entry = Some(entry.header.offset_bytes);
            self.state = State::Payload {
                open: None,
                left_bytes,
            };
            return Ok(());
        }
        if entry.path().is_some_and(|path| is_pack(&path)) {
            let start_bytes = entry.payload.offset_bytes;
            self.packs
                .push(start_bytes..start_bytes.saturating_add(left_bytes));
            if left_bytes > 0 {
                self.state = State::Payload {
                    open: None,
                    left_bytes,
                };
            }
            return Ok(());
        }
        self.skip_chunk_rows()?;
        let row = self.row;
        if row >= self.rows.len() {
            return Err(VerifyError::NotInToc {
                name: String::from_utf8_lossy(&entry.name).into_owned(),
                offset_bytes: entry.header.offset_bytes,
            });
        }
        let found = self.rows.row(row)?;
        if let Some(fault) = self.owners.compare(&entry, &found) {
            return Err(VerifyError::Row {
                row,
                name: found.name.into_owned(),
                fault: fault.into(),
            });
        }
        self.row += 1;
        if left_bytes == 0 {
            let digest = (entry.kind == EntryKind::Regular).then(|| Digest::of(b""));
            (self.visit)(VerifiedEntry {
                entry: &entry,
                digest,
            });
            return Ok(());
        }
        // Files are in the order of the rows, and this row is a file's, as its size is the tar's.
        let number = self.payloads.len();
        let file = &self.rows.files[number];
        self.payloads.push(entry.payload.offset_bytes);
        let copies = u32::try_from(number)
            .ok()
            .and_then(|n| self.copies.remove(&n));
        let copies = Copies::of(copies.unwrap_or_default(), self.rows);
        let digest = match file.digest {
            Some(digest) if file.chunks == 1 && copies.is_empty() => WholeDigest::Chunk(digest),
            digest => WholeDigest::Payload(Hasher::default(), digest),
        };
        let open = OpenFile {
            entry,
            row,
            digest,
            copies,
        };
        self.state = State::Payload {
            open: Some(open),
            left_bytes,
        };
        Ok(())
    }

    fn end_of_payload(&mut self, open: Option<OpenFile>, position: u64) -> Result<(), VerifyError> {
        let left_bytes = position.next_multiple_of(BLOCK_BYTES) - position;
        self.state = match left_bytes {
            0 => State::Header,
            left_bytes => State::Padding { left_bytes },
        };
        let Some(open) = open else {
            return Ok(());
        };
        let digest = match open.digest {
            WholeDigest::Chunk(digest) => digest,
            WholeDigest::Payload(hasher, expected) => {
                let found = hasher.finish();
                if expected.is_some_and(|digest| digest != found) {
                    let row = u32::try_from(open.row).unwrap_or(u32::MAX);
                    return Err(self.rows.fault(row, RowFault::FileDigest));
                }
                found
            }
        };
        (self.visit)(VerifiedEntry {
            entry: &open.entry,
            digest: Some(digest),
        });
        Ok(())
    }

    fn skip_chunk_rows(&mut self) -> Result<(), VerifyError> {
        while self.row < self.rows.len() && self.rows.row(self.row)?.kind == "chunk" {
            self.row += 1;
        }
        Ok(())
    }
}

fn prefix(bytes: &[u8], len_bytes: u64) -> &[u8] {
    let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
    &bytes[..len.min(bytes.len())]
}

/// Names of owners by id, as readers inherit them from row to row.
#[derive(Default)]
struct Owners {
    users: HashMap<u32, Arc<str>>,
    groups: HashMap<u32, Arc<str>>,
}

impl Owners {
    /// The first field in which a row differs from its tar header.
    fn compare(&mut self, entry: &Entry, row: &TocEntry<'_>) -> Option<RowFault> {
        let expected = entry_row(entry, &mut OwnerNames::default());
        // By names, a missing row or one too many is told from one that lies.
        if clean(&row.name) != clean(&expected.name) {
            return differ("name", &row.name, &expected.name);
        }
        let numbers = [
            ("size", row.size, expected.size),
            ("uid", row.uid, expected.uid),
            ("gid", row.gid, expected.gid),
            ("devMajor", row.dev_major, expected.dev_major),
            ("devMinor", row.dev_minor, expected.dev_minor),
        ];
        if row.kind != expected.kind {
            return differ("type", &row.kind, &expected.kind);
        }
        if let Some((field, toc, tar)) = numbers.into_iter().find(|(_, toc, tar)| toc != tar) {
            return differ(field, &toc, &tar);
        }
        if row.mode != expected.mode {
            let octal = |mode| format!("{mode:#o}");
            return differ("mode", &octal(row.mode), &octal(expected.mode));
        }
        if row.modtime != expected.modtime {
            return differ("modtime", &row.modtime, &expected.modtime);
        }
        if row.link_name != expected.link_name {
            return differ("linkName", &row.link_name, &expected.link_name);
        }
        if row.xattrs != expected.xattrs {
            let names = row.xattrs.keys().chain(expected.xattrs.keys());
            let name = names
                .into_iter()
                .find(|name| row.xattrs.get(*name) != expected.xattrs.get(*name))?;
            let value = |row: &TocEntry<'_>| {
                let value = row.xattrs.get(name).map_or("none", String::as_str);
                format!("{name}={}", value.chars().take(100).collect::<String>())
            };
            return differ("xattr", &value(row), &value(&expected));
        }
        inherit(
            "userName",
            &mut self.users,
            entry.uid,
            &row.user_name,
            &entry.user_name,
        )
        .or_else(|| {
            inherit(
                "groupName",
                &mut self.groups,
                entry.gid,
                &row.group_name,
                &entry.group_name,
            )
        })
    }
}

/// A name is left out where readers know it already; that an id has no name any more cannot be said.
fn inherit(
    field: &'static str,
    known: &mut HashMap<u32, Arc<str>>,
    id: u32,
    toc: &str,
    tar: &Arc<str>,
) -> Option<RowFault> {
    if toc == &**tar {
        if !toc.is_empty() {
            known.insert(id, Arc::clone(tar));
        }
        return None;
    }
    let inherited = toc.is_empty() && known.get(&id) == Some(tar);
    if inherited {
        None
    } else {
        differ(field, &toc, tar)
    }
}

fn differ(field: &'static str, toc: &impl ToString, tar: &impl ToString) -> Option<RowFault> {
    Some(RowFault::Header {
        field,
        toc: toc.to_string(),
        tar: tar.to_string(),
    })
}
