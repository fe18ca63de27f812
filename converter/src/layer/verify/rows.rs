//! What must hold among a TOC's rows; which chunks and runs of members they name. Pure.
//!
//! A row is kept as a slice of the JSON and parsed again where it is compared, so that the TOC of a
//! large layer is in memory once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::image::Digest;
use crate::layer::plan::{LANDMARK_NAMES, PACK_LEAD_BYTES, is_pack};
use crate::layer::toc::TocEntry;
use crate::layer::verify::{RowFault, VerifyError};

/// Memory for a row besides its JSON: slices, chunk, file, name.
const ROW_BYTES: u64 = 250;

/// A chunk: where it lies, what it must be.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// Where its member starts in the blob.
    pub(super) offset_bytes: u64,
    /// Uncompressed bytes between the member's start and the chunk.
    pub(super) inner_bytes: u64,
    pub(super) len_bytes: u64,
    /// Offset in the file.
    pub(super) file_offset_bytes: u64,
    /// Bytes that are likely to stand between it and the next chunk: those of chunks that are in packs.
    hidden_bytes: u64,
    pub(super) digest: Digest,
    /// Index into [`Rows::files`].
    pub(super) file: u32,
    pub(super) row: u32,
}

impl Chunk {
    fn end_bytes(&self) -> u64 {
        self.inner_bytes.saturating_add(self.len_bytes)
    }
}

/// A regular file with contents.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) row: u32,
    /// Where its first chunk's member starts in the blob.
    offset_bytes: u64,
    pub(super) chunks: u32,
    /// Digest of the whole contents.
    pub(super) digest: Option<Digest>,
}

/// A TOC that is consistent in itself.
pub(super) struct Rows<'a> {
    json: Vec<&'a RawValue>,
    /// In the order of the blob.
    pub(super) chunks: Vec<Chunk>,
    /// In the order of the rows.
    pub(super) files: Vec<File>,
    /// Rows that are no chunks.
    pub(super) entries: u64,
    pub(super) toc_offset_bytes: u64,
}

#[derive(Deserialize)]
struct RawToc<'a> {
    version: u32,
    #[serde(borrow)]
    entries: Vec<&'a RawValue>,
}

impl<'a> Rows<'a> {
    /// Parses the TOC and checks its rows among themselves.
    pub(super) fn parse(
        json: &'a [u8],
        toc_offset_bytes: u64,
        memory_bytes: u64,
    ) -> Result<Self, VerifyError> {
        let damaged = |reason: String| VerifyError::Toc {
            toc_offset_bytes,
            reason,
        };
        let toc: RawToc<'a> =
            serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        if toc.version != 1 {
            return Err(damaged(format!("unknown version {}", toc.version)));
        }
        if u32::try_from(toc.entries.len()).is_err() {
            return Err(damaged("more than 4294967295 rows".to_owned()));
        }
        let needed_bytes = json.len() as u64 + toc.entries.len() as u64 * ROW_BYTES;
        if needed_bytes > memory_bytes {
            return Err(VerifyError::TocMemory {
                rows: toc.entries.len() as u64,
                needed_bytes,
                limit_bytes: memory_bytes,
            });
        }
        let mut rows = Self {
            json: toc.entries,
            chunks: Vec::new(),
            files: Vec::new(),
            entries: 0,
            toc_offset_bytes,
        };
        rows.collect()?;
        rows.check_landmarks()?;
        rows.sort_chunks()?;
        Ok(rows)
    }

    pub(super) fn len(&self) -> usize {
        self.json.len()
    }

    /// Parses a row.
    pub(super) fn row(&self, row: usize) -> Result<TocEntry<'a>, VerifyError> {
        serde_json::from_str(self.json[row].get()).map_err(|error| VerifyError::Row {
            row,
            name: String::new(),
            fault: RowFault::Malformed(error.to_string()).into(),
        })
    }

    pub(super) fn fault(&self, row: u32, fault: RowFault) -> VerifyError {
        let row = row as usize;
        let name = self
            .row(row)
            .map_or_else(|_| String::new(), |entry| entry.name.into_owned());
        VerifyError::Row {
            row,
            name,
            fault: fault.into(),
        }
    }

    fn collect(&mut self) -> Result<(), VerifyError> {
        let mut names: HashSet<Cow<'a, str>> = HashSet::with_capacity(self.json.len());
        // The file whose chunks are being collected: (size, reached).
        let mut open: Option<(u64, u64)> = None;
        // The last chunk that is in no pack.
        let mut last_natural = None;
        for row in 0..self.json.len() {
            let entry = self.row(row)?;
            let index = u32::try_from(row).unwrap_or(u32::MAX);
            let fault = |fault: RowFault| VerifyError::Row {
                row,
                name: entry.name.to_string(),
                fault: fault.into(),
            };
            if entry.kind != "chunk" && open.take().is_some_and(|(size, reached)| size != reached) {
                return Err(self.incomplete());
            }
            match &*entry.kind {
                "reg" if entry.size > 0 => {
                    self.files.push(File {
                        row: index,
                        offset_bytes: entry.offset,
                        chunks: 0,
                        digest: entry.digest,
                    });
                    open = Some((entry.size, 0));
                }
                "reg" if entry.digest.is_some_and(|digest| digest != Digest::of(b"")) => {
                    return Err(fault(RowFault::FileDigest));
                }
                "chunk" if open.is_none() => return Err(fault(RowFault::ChunkOrder)),
                "hardlink" if !names.contains(clean(&entry.link_name)) => {
                    return Err(fault(RowFault::LinkTarget(entry.link_name.to_string())));
                }
                "reg" | "chunk" | "dir" | "symlink" | "hardlink" | "char" | "block" | "fifo" => {}
                kind => return Err(fault(RowFault::UnknownType(kind.to_owned()))),
            }
            if let (Some((size, reached)), "reg" | "chunk") = (&mut open, &*entry.kind) {
                let chunk = chunk(&entry, index, *size, *reached, self.toc_offset_bytes);
                let chunk = chunk.map_err(fault)?;
                *reached += chunk.len_bytes;
                let file = self.files.len() - 1;
                self.files[file].chunks += 1;
                let file = u32::try_from(file).unwrap_or(u32::MAX);
                match last_natural {
                    Some(natural) if chunk.inner_bytes == u64::from(PACK_LEAD_BYTES) => {
                        let natural: &mut Chunk = &mut self.chunks[natural];
                        natural.hidden_bytes = natural.hidden_bytes.saturating_add(chunk.len_bytes);
                    }
                    _ => last_natural = Some(self.chunks.len()),
                }
                self.chunks.push(Chunk { file, ..chunk });
            }
            if entry.kind != "chunk" && is_pack(clean(&entry.name).as_bytes()) {
                return Err(fault(RowFault::PackInToc));
            }
            if entry.kind != "chunk" {
                names.insert(match entry.name {
                    Cow::Borrowed(name) => Cow::Borrowed(clean(name)),
                    Cow::Owned(name) => Cow::Owned(clean(&name).to_owned()),
                });
                self.entries += 1;
            }
        }
        if open.is_some_and(|(size, reached)| size != reached) {
            return Err(self.incomplete());
        }
        Ok(())
    }

    fn incomplete(&self) -> VerifyError {
        let last = self.files.last().map_or(0, |file| file.row);
        self.fault(last, RowFault::ChunkSizes)
    }

    fn sort_chunks(&mut self) -> Result<(), VerifyError> {
        let place = |chunk: &Chunk| (chunk.offset_bytes, chunk.inner_bytes);
        self.chunks.sort_by_key(place);
        for pair in self.chunks.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            if place(first) == place(second) {
                let fault = RowFault::OffsetTwice(second.offset_bytes);
                return Err(self.fault(second.row, fault));
            }
            if first.offset_bytes == second.offset_bytes && first.end_bytes() > second.inner_bytes {
                return Err(self.fault(second.row, RowFault::Overlap(second.offset_bytes)));
            }
        }
        Ok(())
    }

    /// Exactly one of the two, of the right contents. Where `.no.prefetch.landmark` is says nothing.
    fn check_landmarks(&self) -> Result<(), VerifyError> {
        let contents = Digest::of(&[0x0f]);
        let mut found = false;
        for row in 0..self.json.len() {
            // Most rows need not be parsed for this.
            if !self.json[row].get().contains(".landmark") {
                continue;
            }
            let entry = self.row(row)?;
            let name = clean(&entry.name);
            if !LANDMARK_NAMES.contains(&name) {
                continue;
            }
            let fault = |fault: RowFault| {
                Err(VerifyError::Row {
                    row,
                    name: entry.name.to_string(),
                    fault: fault.into(),
                })
            };
            if found {
                return fault(RowFault::LandmarkTwice);
            }
            found = true;
            if entry.kind != "reg"
                || entry.size != 1
                || entry.chunk_digest != Some(contents)
                || entry.inner_offset != 0
            {
                return fault(RowFault::LandmarkContents);
            }
            if name != LANDMARK_NAMES[0] {
                continue;
            }
            let behind = self.files.partition_point(|file| file.row as usize <= row);
            let mut behind = self.files[behind..].iter();
            if let Some(file) = behind.find(|file| file.offset_bytes < entry.offset) {
                return Err(self.fault(file.row, RowFault::FirstChunkPrefetched));
            }
        }
        if found {
            Ok(())
        } else {
            Err(VerifyError::NoLandmark)
        }
    }

    /// Cuts a blob of `size_bytes` at every offset of the TOC, at the TOC itself and at the footer.
    pub(super) fn runs(&self, size_bytes: u64) -> impl Iterator<Item = Run> {
        let starts_with_chunk = self.chunks.first().is_some_and(|c| c.offset_bytes == 0);
        let mut next = if starts_with_chunk || self.toc_offset_bytes == 0 {
            None
        } else {
            Some(Run {
                blob: 0..self.run_end(0),
                chunks: 0..0,
                expected_bytes: 0,
            })
        };
        let mut first = 0;
        let mut done = false;
        std::iter::from_fn(move || {
            if let Some(run) = next.take() {
                return Some(run);
            }
            let Some(chunk) = self.chunks.get(first) else {
                return (!std::mem::replace(&mut done, true)).then_some(Run {
                    blob: self.toc_offset_bytes..size_bytes,
                    chunks: first..first,
                    expected_bytes: 0,
                });
            };
            let same = |other: &&Chunk| other.offset_bytes == chunk.offset_bytes;
            let end = first + self.chunks[first..].iter().take_while(same).count();
            let chunks = std::mem::replace(&mut first, end)..end;
            let last = &self.chunks[end - 1];
            Some(Run {
                blob: chunk.offset_bytes..self.run_end(end),
                expected_bytes: last.end_bytes().saturating_add(last.hidden_bytes),
                chunks,
            })
        })
    }

    fn run_end(&self, next_chunk: usize) -> u64 {
        let next = self.chunks.get(next_chunk);
        next.map_or(self.toc_offset_bytes, |chunk| chunk.offset_bytes)
    }
}

fn chunk(
    entry: &TocEntry<'_>,
    row: u32,
    size: u64,
    reached: u64,
    toc_offset_bytes: u64,
) -> Result<Chunk, RowFault> {
    if entry.chunk_offset != reached || reached >= size {
        return Err(RowFault::ChunkOrder);
    }
    let left = size - reached;
    let len_bytes = if entry.chunk_size == 0 {
        left
    } else {
        entry.chunk_size
    };
    if len_bytes > left {
        return Err(RowFault::ChunkSizes);
    }
    if entry.offset >= toc_offset_bytes {
        return Err(RowFault::Offset(entry.offset));
    }
    Ok(Chunk {
        offset_bytes: entry.offset,
        inner_bytes: entry.inner_offset,
        len_bytes,
        file_offset_bytes: reached,
        hidden_bytes: 0,
        digest: entry.chunk_digest.ok_or(RowFault::NoChunkDigest)?,
        file: 0,
        row,
    })
}

/// The name as readers compare it.
pub(super) fn clean(name: &str) -> &str {
    name.trim_start_matches("./")
        .trim_start_matches('/')
        .trim_end_matches('/')
}

/// A stretch of the blob that starts with a gzip member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Compressed bytes.
    pub(super) blob: Range<u64>,
    /// Chunks that lie in it, as indices into [`Rows::chunks`].
    pub(super) chunks: Range<usize>,
    /// Uncompressed bytes that the chunks need at least.
    pub(super) expected_bytes: u64,
}

impl Run {
    pub(super) fn blob_bytes(&self) -> u64 {
        self.blob.end - self.blob.start
    }
}
