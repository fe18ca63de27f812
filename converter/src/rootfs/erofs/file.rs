//! How a regular file's contents are found: in the spool, through chunk indexes, or, where tar does
//! not hold them at block borders, in a copy inside the index.

use super::format::{
    BLOCK_BITS, BLOCK_BYTES, CHUNK_INDEX_BYTES, ChunkIndex, HOLE, MAX_CHUNK_BITS, SPOOL_DEVICE,
};
use crate::layer::entry::{DataSegment, Entry};
use crate::layer::spool::Extent;

/// Where a regular file's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// There are none.
    Empty,
    /// In the spool, in chunks of `512 << bits` bytes, each wholly stored or wholly a hole.
    Chunks { bits: u32 },
    /// Copied into the index.
    Copied,
}

/// Stored stretches with empty ones removed and neighbours joined.
fn segments(entry: &Entry) -> Vec<DataSegment> {
    let mut joined: Vec<DataSegment> = Vec::new();
    for segment in entry.data() {
        if segment.stored.len_bytes == 0 {
            continue;
        }
        match joined.last_mut() {
            Some(last)
                if last.file_offset_bytes + last.stored.len_bytes == segment.file_offset_bytes
                    && last.stored.end_bytes() == segment.stored.offset_bytes =>
            {
                last.stored.len_bytes += segment.stored.len_bytes;
            }
            _ => joined.push(segment),
        }
    }
    joined
}

/// The number of chunks of a file of `size_bytes`.
pub(super) fn chunk_count(size_bytes: u64, bits: u32) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES << bits)
}

/// Decides where the contents of `entry` are found, in a spool of `spool_bytes`.
pub(super) fn contents(entry: &Entry, spool_bytes: u64) -> Contents {
    let size = entry.size_bytes;
    if size == 0 {
        return Contents::Empty;
    }
    let blocks = size.div_ceil(BLOCK_BYTES);
    let mut bits = blocks
        .next_power_of_two()
        .trailing_zeros()
        .min(MAX_CHUNK_BITS);
    let mut stored_bytes = 0;
    // Blocks behind the spool's last whole one are not part of its loop device.
    let readable = spool_bytes / BLOCK_BYTES * BLOCK_BYTES;
    for DataSegment {
        file_offset_bytes: start,
        stored,
    } in segments(entry)
    {
        let end = start + stored.len_bytes;
        let aligned = start.is_multiple_of(BLOCK_BYTES)
            && stored.offset_bytes.is_multiple_of(BLOCK_BYTES)
            && (end.is_multiple_of(BLOCK_BYTES) || end == size)
            && stored.end_bytes().next_multiple_of(BLOCK_BYTES) <= readable;
        if !aligned {
            return Contents::Copied;
        }
        if start > 0 {
            bits = bits.min(start.trailing_zeros() - u32::from(BLOCK_BITS));
        }
        if end != size {
            bits = bits.min(end.trailing_zeros() - u32::from(BLOCK_BITS));
        }
        stored_bytes += stored.len_bytes;
    }
    // A huge file with a few small stretches: a copy with holes is smaller than its indexes.
    if chunk_count(size, bits) * CHUNK_INDEX_BYTES > stored_bytes.max(BLOCK_BYTES) {
        return Contents::Copied;
    }
    Contents::Chunks { bits }
}

/// Calls `emit` with the chunk indexes of `entry`, in order.
pub(super) fn for_each_chunk<E>(
    entry: &Entry,
    bits: u32,
    mut emit: impl FnMut(ChunkIndex) -> Result<(), E>,
) -> Result<(), E> {
    let segments = segments(entry);
    let mut rest = segments.as_slice();
    for chunk in 0..chunk_count(entry.size_bytes, bits) {
        let start = chunk << (bits + u32::from(BLOCK_BITS));
        while let Some(first) = rest.first()
            && first.file_offset_bytes + first.stored.len_bytes <= start
        {
            rest = &rest[1..];
        }
        let block = match rest.first() {
            Some(s) if s.file_offset_bytes <= start => {
                let offset = s.stored.offset_bytes + (start - s.file_offset_bytes);
                // The layout stage has checked that the spool has fewer blocks than `HOLE`.
                (offset / BLOCK_BYTES) as u32
            }
            _ => HOLE,
        };
        let device = if block == HOLE { 0 } else { SPOOL_DEVICE };
        emit(ChunkIndex {
            block_high: 0.into(),
            device: device.into(),
            block: block.into(),
        })?;
    }
    Ok(())
}

/// The stored stretches of a copied file as (offset in the file, where in the spool).
pub(super) fn copied(entry: &Entry) -> impl Iterator<Item = (u64, Extent)> {
    segments(entry)
        .into_iter()
        .map(|s| (s.file_offset_bytes, s.stored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::test_entries::file;

    const SPOOL: u64 = 1 << 30;

    fn dense(offset: u64, len: u64) -> Entry {
        let payload = Extent {
            offset_bytes: offset,
            len_bytes: len,
        };
        Entry {
            size_bytes: len,
            payload,
            ..file("f")
        }
    }

    fn sparse(size: u64, segments: &[(u64, u64, u64)]) -> Entry {
        let segments = segments
            .iter()
            .map(
                |&(file_offset_bytes, offset_bytes, len_bytes)| DataSegment {
                    file_offset_bytes,
                    stored: Extent {
                        offset_bytes,
                        len_bytes,
                    },
                },
            )
            .collect();
        Entry {
            size_bytes: size,
            sparse: Some(segments),
            ..file("f")
        }
    }

    fn chunks(entry: &Entry) -> Option<(u32, Vec<u32>)> {
        let Contents::Chunks { bits } = contents(entry, SPOOL) else {
            return None;
        };
        let mut blocks = Vec::new();
        for_each_chunk(entry, bits, |chunk| {
            let hole = chunk.block.get() == HOLE;
            assert_eq!(chunk.device.get(), if hole { 0 } else { SPOOL_DEVICE });
            blocks.push(chunk.block.get());
            Ok::<(), ()>(())
        })
        .unwrap();
        Some((bits, blocks))
    }

    #[test]
    fn a_dense_file_is_one_chunk() {
        for len in [1, 511, 512, 513, 4096, 4097, 1 << 20, (1 << 20) + 1] {
            let (bits, blocks) = chunks(&dense(1024, len)).unwrap();
            assert_eq!(blocks, [2], "{len}");
            assert!(
                512 << bits >= len && (bits == 0 || 256 << bits < len),
                "{len} {bits}"
            );
        }
        assert_eq!(contents(&dense(512, 0), SPOOL), Contents::Empty);
    }

    #[test]
    fn holes_are_chunks_without_a_block() {
        let h = HOLE;
        let check = |size, segments: &[_], expected| {
            assert_eq!(chunks(&sparse(size, segments)), expected, "{segments:?}");
        };
        check(1 << 20, &[], Some((11, vec![h])));
        check(8192, &[(0, 512, 4096)], Some((3, vec![1, h])));
        check(8192, &[(4096, 512, 4096)], Some((3, vec![h, 1])));
        check(5000, &[(4096, 512, 904)], Some((3, vec![h, 1])));
        check(
            4096,
            &[(0, 512, 1024), (2048, 1536, 1024)],
            Some((1, vec![1, h, 3, h])),
        );
        // Neighbours in the spool but not in the file, and the other way round.
        check(
            2048,
            &[(0, 512, 512), (512, 2048, 512)],
            Some((0, vec![1, 4, h, h])),
        );
        check(
            2048,
            &[(0, 512, 1024), (1024, 1536, 1024)],
            Some((2, vec![1])),
        );
    }

    #[test]
    fn contents_that_blocks_cannot_show_are_copied() {
        let check = |entry: &Entry| assert_eq!(contents(entry, SPOOL), Contents::Copied);
        check(&sparse(8192, &[(100, 512, 512)]));
        check(&sparse(8192, &[(0, 700, 512)]));
        check(&sparse(8192, &[(0, 512, 100)]));
        check(&dense(1000, 10));
        check(&dense(SPOOL - 100, 100 + 512));
        check(&sparse(1 << 40, &[(512, 512, 512)]));
    }
}
