//! What a TOC says of packs (docs/hot-pack.md). Pure.

use std::collections::HashMap;
use std::ops::Range;

use crate::layer::entry::clean_path;
use crate::layer::plan::{LANDMARK_NAMES, PACK_LEAD_BYTES, Packed};
use crate::layer::toc::{Toc, TocEntry};

/// A chunk of a file of which some are in packs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiantRow {
    /// Bytes of the file.
    pub bytes: Range<u64>,
    /// Where its member starts in the blob.
    pub offset_bytes: u64,
    /// Whether that is in a pack.
    pub is_packed: bool,
}

/// The files of which chunks are in packs, by name, with all of their chunks in order.
pub fn giants<'t>(toc: &'t Toc<'_>) -> HashMap<&'t str, Vec<GiantRow>> {
    let mut giants = HashMap::new();
    let mut rows = toc.entries.iter().peekable();
    while let Some(first) = rows.next() {
        if first.kind != "reg" {
            continue;
        }
        let mut chunks = Vec::new();
        let mut add = |row: &TocEntry<'_>| {
            let left = first.size.saturating_sub(row.chunk_offset);
            let len = if row.chunk_size == 0 {
                left
            } else {
                row.chunk_size
            };
            chunks.push(GiantRow {
                bytes: row.chunk_offset..row.chunk_offset.saturating_add(len),
                offset_bytes: row.offset,
                // Chunks that share a member for another reason have a tar header between them, or are
                // longer.
                is_packed: row.inner_offset == u64::from(PACK_LEAD_BYTES),
            });
        };
        add(first);
        while let Some(row) = rows.next_if(|row| row.kind == "chunk") {
            add(row);
        }
        if chunks.iter().any(|chunk| chunk.is_packed) {
            giants.insert(&*first.name, chunks);
        }
    }
    giants
}

/// The figures of a layer's packs.
pub fn packed(toc: &Toc<'_>) -> Packed {
    let is_landmark = |row: &&TocEntry<'_>| {
        clean_path(row.name.as_bytes()).is_some_and(|path| path == LANDMARK_NAMES[0].as_bytes())
    };
    let landmark = toc.entries.iter().find(is_landmark);
    let prefetched_bytes = landmark.map_or(0, |row| row.offset);
    let giants = giants(toc);
    let mut packed = Packed {
        files: giants.len() as u64,
        ..Packed::default()
    };
    for chunk in giants.values().flatten().filter(|chunk| chunk.is_packed) {
        let len = chunk.bytes.end - chunk.bytes.start;
        if chunk.offset_bytes < prefetched_bytes {
            packed.chunks += 1;
            packed.bytes += len;
        } else {
            packed.first_bytes += len;
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &'static str, name: &'static str, size: u64, at: [u64; 4]) -> TocEntry<'static> {
        let [offset, inner_offset, chunk_offset, chunk_size] = at;
        TocEntry {
            name: name.into(),
            kind: kind.into(),
            size,
            offset,
            inner_offset,
            chunk_offset,
            chunk_size,
            ..TocEntry::default()
        }
    }

    #[test]
    fn chunks_in_packs_are_told_from_others() {
        let mut toc = Toc {
            version: 1,
            entries: vec![
                row("reg", "small", 10, [500, 0, 0, 0]),
                row("reg", ".prefetch.landmark", 1, [600, 0, 0, 0]),
                row("reg", "shares", 10, [650, 1536, 0, 0]),
                row("reg", "big", 300, [700, 1, 0, 50]),
                row("chunk", "big", 0, [900, 0, 50, 100]),
                row("chunk", "big", 0, [100, 1, 150, 150]),
                row("dir", "d/", 0, [0; 4]),
                row("reg", "other", 100, [800, 1, 0, 30]),
                row("chunk", "other", 0, [200, 1, 30, 0]),
                row("reg", "cut", 200, [1000, 0, 0, 100]),
                row("chunk", "cut", 0, [1100, 0, 100, 100]),
            ],
        };
        let giants = giants(&toc);
        let mut names: Vec<_> = giants.keys().collect();
        names.sort_unstable();
        assert_eq!(names, [&"big", &"other"]);
        let chunk = |start, end, offset_bytes, is_packed| GiantRow {
            bytes: start..end,
            offset_bytes,
            is_packed,
        };
        assert_eq!(
            giants["big"],
            [
                chunk(0, 50, 700, true),
                chunk(50, 150, 900, false),
                chunk(150, 300, 100, true)
            ]
        );
        let expected = Packed {
            files: 2,
            chunks: 2,
            bytes: 220,
            first_bytes: 80,
        };
        assert_eq!(packed(&toc), expected);
        // Nothing is prefetched without the landmark.
        toc.entries.remove(1);
        assert_eq!(packed(&toc).chunks, 0);
        assert_eq!(packed(&toc).first_bytes, 300);
    }
}
