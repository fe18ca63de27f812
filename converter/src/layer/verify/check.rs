//! What must hold among a TOC's rows, and between rows and data. Pure.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use crate::image::{Digest, Hasher};
use crate::layer::toc::{Toc, TocEntry};
use crate::layer::verify::VerifyError;

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFault {
    /// The type is none of the specification's.
    UnknownType(String),
    /// A chunk follows no file, or its offset is not where the last chunk ended.
    ChunkOrder,
    /// The chunks of a file do not add up to its size.
    ChunkSizes,
    /// A chunk has no digest.
    NoChunkDigest,
    /// The offset lies outside the blob's payload.
    Offset(u64),
    /// Another row has the same offset and inner offset.
    OffsetTwice(u64),
    /// A hardlink names no earlier row.
    LinkTarget(String),
    /// The data is shorter than the chunk.
    ShortMember,
    /// The chunk's data has another digest.
    ChunkDigest,
    /// The whole file's data has another digest.
    FileDigest,
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(kind) => write!(f, "unknown type \"{kind}\""),
            Self::ChunkOrder => f.write_str("a chunk out of order"),
            Self::ChunkSizes => f.write_str("the chunks do not add up to the file's size"),
            Self::NoChunkDigest => f.write_str("a chunk without digest"),
            Self::Offset(offset) => write!(f, "offset {offset} lies outside the payload"),
            Self::OffsetTwice(offset) => write!(f, "offset {offset} stands in two rows"),
            Self::LinkTarget(target) => write!(f, "no earlier row \"{target}\" to link to"),
            Self::ShortMember => f.write_str("the gzip member is shorter than the chunk"),
            Self::ChunkDigest => f.write_str("the chunk's digest does not match its data"),
            Self::FileDigest => f.write_str("the file's digest does not match its data"),
        }
    }
}

/// A chunk: where it lies, what it must be.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) offset_bytes: u64,
    pub(super) inner_bytes: u64,
    pub(super) len_bytes: u64,
    pub(super) digest: Digest,
    /// Index into [`Rows::digests`].
    pub(super) file: usize,
    pub(super) row: usize,
}

/// A TOC that is consistent in itself.
pub(super) struct Rows {
    /// In the order of the blob.
    pub(super) chunks: Vec<Chunk>,
    /// For each file with contents: row, name, chunks, whole digest.
    digests: Vec<WholeFile>,
    pub(super) files: u64,
    pub(super) toc_offset_bytes: u64,
}

struct WholeFile {
    row: usize,
    name: String,
    chunks: usize,
    digest: Option<Digest>,
}

impl Rows {
    pub(super) fn fault(&self, chunk: &Chunk, fault: RowFault) -> VerifyError {
        VerifyError::Row {
            row: chunk.row,
            name: self.digests[chunk.file].name.clone(),
            fault,
        }
    }
}

/// Checks the rows among themselves and collects the chunks.
pub(super) fn rows(toc: &Toc<'_>, toc_offset_bytes: u64) -> Result<Rows, VerifyError> {
    let mut found = Rows {
        chunks: Vec::new(),
        digests: Vec::new(),
        files: 0,
        toc_offset_bytes,
    };
    let mut names = HashSet::new();
    // The file whose chunks are being collected: (size, reached).
    let mut open: Option<(u64, u64)> = None;
    for (row, entry) in toc.entries.iter().enumerate() {
        let fault = |fault| VerifyError::Row {
            row,
            name: entry.name.to_string(),
            fault,
        };
        if entry.kind != "chunk" && open.take().is_some_and(|(size, reached)| size != reached) {
            return Err(incomplete(&found));
        }
        match &*entry.kind {
            "reg" if entry.size > 0 => {
                found.digests.push(WholeFile {
                    row,
                    name: entry.name.to_string(),
                    chunks: 0,
                    digest: entry.digest,
                });
                open = Some((entry.size, 0));
            }
            "chunk" if open.is_none() => return Err(fault(RowFault::ChunkOrder)),
            "hardlink" if !names.contains(clean(&entry.link_name)) => {
                return Err(fault(RowFault::LinkTarget(entry.link_name.to_string())));
            }
            "reg" | "chunk" | "dir" | "symlink" | "hardlink" | "char" | "block" | "fifo" => {}
            kind => return Err(fault(RowFault::UnknownType(kind.to_owned()))),
        }
        if let (Some((size, reached)), "reg" | "chunk") = (&mut open, &*entry.kind) {
            let chunk = chunk(entry, row, *size, *reached, toc_offset_bytes).map_err(fault)?;
            *reached += chunk.len_bytes;
            let file = found.digests.len() - 1;
            found.digests[file].chunks += 1;
            found.chunks.push(Chunk { file, ..chunk });
        }
        if entry.kind != "chunk" {
            names.insert(clean(&entry.name));
            found.files += 1;
        }
    }
    if open.is_some_and(|(size, reached)| size != reached) {
        return Err(incomplete(&found));
    }
    found
        .chunks
        .sort_by_key(|chunk| (chunk.offset_bytes, chunk.inner_bytes));
    for pair in found.chunks.windows(2) {
        let place = |chunk: &Chunk| (chunk.offset_bytes, chunk.inner_bytes);
        if place(&pair[0]) == place(&pair[1]) {
            return Err(found.fault(&pair[1], RowFault::OffsetTwice(pair[1].offset_bytes)));
        }
    }
    Ok(found)
}

fn incomplete(found: &Rows) -> VerifyError {
    let last = found.digests.last();
    VerifyError::Row {
        row: last.map_or(0, |file| file.row),
        name: last.map_or_else(String::new, |file| file.name.clone()),
        fault: RowFault::ChunkSizes,
    }
}

fn chunk(
    entry: &TocEntry<'_>,
    row: usize,
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
        digest: entry.chunk_digest.ok_or(RowFault::NoChunkDigest)?,
        file: 0,
        row,
    })
}

/// The name as readers compare it.
fn clean(name: &str) -> &str {
    name.trim_start_matches("./")
        .trim_start_matches('/')
        .trim_end_matches('/')
}

/// A stretch of the blob that starts with a gzip member.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Compressed bytes.
    pub(super) blob: Range<u64>,
    /// Chunks that lie in it, as indices into [`Rows::chunks`].
    pub(super) chunks: Range<usize>,
    /// Uncompressed bytes that the chunks need at least.
    pub(super) expected_bytes: u64,
}

impl Run {
    pub(super) fn cost_bytes(&self) -> u64 {
        (self.blob.end - self.blob.start) + 2 * self.expected_bytes + (64 << 10)
    }
}

/// Cuts the blob at every offset of the TOC, at the TOC itself and at the footer.
pub(super) fn runs(rows: &Rows, size_bytes: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut push = |start: u64, chunks: Range<usize>, expected_bytes| {
        if let Some(last) = runs.last_mut() {
            last.blob.end = start;
        }
        runs.push(Run {
            blob: start..size_bytes,
            chunks,
            expected_bytes,
        });
    };
    let chunks = &rows.chunks;
    if chunks.first().is_none_or(|chunk| chunk.offset_bytes > 0) {
        push(0, 0..0, 0);
    }
    let mut first = 0;
    while let Some(chunk) = chunks.get(first) {
        let same = |other: &&Chunk| other.offset_bytes == chunk.offset_bytes;
        let end = first + chunks[first..].iter().take_while(same).count();
        let expected = chunks[first..end]
            .iter()
            .map(|c| c.inner_bytes.saturating_add(c.len_bytes))
            .max();
        push(chunk.offset_bytes, first..end, expected.unwrap_or(0));
        first = end;
    }
    if rows.toc_offset_bytes > 0 {
        push(rows.toc_offset_bytes, chunks.len()..chunks.len(), 0);
    }
    runs
}

/// Whole-file digests of files with more than one chunk, computed where the chunks come in order.
pub(super) struct FileDigests<'a> {
    rows: &'a Rows,
    open: Option<(usize, usize, Hasher)>,
}

impl<'a> FileDigests<'a> {
    pub(super) fn new(rows: &'a Rows) -> Self {
        Self { rows, open: None }
    }

    /// Takes the uncompressed bytes of a run; workers have compared the chunks' digests.
    pub(super) fn chunks(&mut self, chunks: Range<usize>, raw: &[u8]) -> Result<(), VerifyError> {
        for chunk in &self.rows.chunks[chunks] {
            let file = &self.rows.digests[chunk.file];
            if file.chunks == 1 {
                if file.digest.is_some_and(|digest| digest != chunk.digest) {
                    return Err(self.rows.fault(chunk, RowFault::FileDigest));
                }
                continue;
            }
            if self
                .open
                .as_ref()
                .is_none_or(|(open, ..)| *open != chunk.file)
            {
                self.open = Some((chunk.file, 0, Hasher::default()));
            }
            let Some((_, seen, hasher)) = &mut self.open else {
                continue;
            };
            let (start, len) = (to_index(chunk.inner_bytes), to_index(chunk.len_bytes));
            hasher.update(&raw[start..start + len]);
            *seen += 1;
            if *seen == file.chunks {
                let found = std::mem::take(hasher).finish();
                if file.digest.is_some_and(|digest| digest != found) {
                    return Err(self.rows.fault(chunk, RowFault::FileDigest));
                }
            }
        }
        Ok(())
    }
}

pub(super) fn to_index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
