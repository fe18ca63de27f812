//! eStargz (its specification, "TOC" and "Footer"): the rows of the TOC say where members begin.

use std::io::{self, BufReader, Read};

use serde::Deserialize;

use crate::blob::{Blob, ReadAt as _};
use crate::layer::footer::{self, FOOTER_BYTES};
use crate::layer::scan::borders::{Proposed, SECTION_BYTES};

/// A TOC that is longer is left alone.
const MAX_TOC_BYTES: u64 = 256 << 20;
/// Before the TOC's JSON stands its tar header.
const TAR_HEADER_BYTES: u64 = 512;

/// The members that chunks begin, some megabytes of them together.
pub(super) struct Members {
    /// Offsets, ascending, and the uncompressed bytes of their chunks.
    chunks: std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>,
    is_started: bool,
}

/// What matters of the TOC here.
#[derive(Deserialize)]
struct Toc {
    entries: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Row {
    offset: u64,
    size: u64,
    chunk_size: u64,
}

impl Members {
    /// `None` if the blob has no TOC that can be read.
    pub(super) fn find(blob: &Blob) -> Option<Self> {
        let footer_at = blob.len_bytes().checked_sub(FOOTER_BYTES as u64)?;
        let mut end = [0; FOOTER_BYTES];
        blob.read_exact_at(&mut end, footer_at).ok()?;
        let toc_at = footer::parse(&end)?;
        let toc = blob.part(toc_at, footer_at.checked_sub(toc_at)?);
        let mut json = flate2::read::MultiGzDecoder::new(toc).take(MAX_TOC_BYTES);
        io::copy(&mut (&mut json).take(TAR_HEADER_BYTES), &mut io::sink()).ok()?;
        // Zeros follow the JSON: it is read to its end and no further.
        let mut values = serde_json::Deserializer::from_reader(BufReader::new(json));
        let toc = Toc::deserialize(&mut values).ok()?;
        let chunk = |row: &Row| {
            let is_chunk = row.offset > 0 && row.offset < toc_at;
            let len_bytes = if row.chunk_size > 0 {
                row.chunk_size
            } else {
                row.size
            };
            is_chunk.then_some((row.offset, len_bytes))
        };
        let mut chunks: Vec<(u64, u64)> = toc.entries.iter().filter_map(chunk).collect();
        chunks.sort_unstable();
        chunks.dedup_by(|next, first| {
            let same = next.0 == first.0;
            if same {
                // Chunks that share a member.
                first.1 = first.1.saturating_add(next.1);
            }
            same
        });
        chunks.push((toc_at, 0));
        Some(Self {
            chunks: chunks.into_iter().peekable(),
            is_started: false,
        })
    }
}

impl Iterator for Members {
    type Item = Proposed;

    fn next(&mut self) -> Option<Proposed> {
        let (start_bytes, mut len_bytes) = if self.is_started {
            self.chunks.next()?
        } else {
            self.is_started = true;
            (0, 0)
        };
        while let Some(&(_, next_bytes)) = self.chunks.peek()
            && len_bytes.saturating_add(next_bytes) <= SECTION_BYTES
        {
            len_bytes = len_bytes.saturating_add(next_bytes);
            self.chunks.next();
        }
        Some(Proposed::member(start_bytes, len_bytes))
    }
}
