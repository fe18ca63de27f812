//! Copies: the chunks of a file that stand in packs, against the bytes of the file's own tar entry.

use crate::image::Hasher;
use crate::layer::verify::rows::{Chunk, Rows};
use crate::layer::verify::{RowFault, VerifyError};

/// Compares a payload, whose bytes come piece by piece, with the digests of the chunks that are elsewhere.
#[derive(Default)]
pub(super) struct Copies {
    /// Indices into [`Rows::chunks`], the next one last.
    chunks: Vec<usize>,
    hasher: Hasher,
    /// Bytes of the payload so far.
    position: u64,
}

impl Copies {
    /// For a file with these chunks in packs, as indices into [`Rows::chunks`].
    pub(super) fn of(mut chunks: Vec<usize>, rows: &Rows<'_>) -> Self {
        chunks
            .sort_unstable_by_key(|&chunk| std::cmp::Reverse(rows.chunks[chunk].file_offset_bytes));
        Self {
            chunks,
            ..Self::default()
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes the next bytes of the payload.
    ///
    /// # Errors
    /// [`RowFault::PackedDiffers`], at the end of a chunk.
    pub(super) fn piece(&mut self, mut bytes: &[u8], rows: &Rows<'_>) -> Result<(), VerifyError> {
        // The chunks of a file are in order and do not overlap.
        while let Some(&index) = self.chunks.last()
            && !bytes.is_empty()
        {
            let chunk: &Chunk = &rows.chunks[index];
            let before = chunk.file_offset_bytes.saturating_sub(self.position);
            if before > 0 {
                bytes = self.skip(bytes, before);
                continue;
            }
            let left = chunk.file_offset_bytes + chunk.len_bytes - self.position;
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            self.hasher.update(&bytes[..taken]);
            bytes = self.skip(bytes, left);
            if taken as u64 == left {
                self.chunks.pop();
                if std::mem::take(&mut self.hasher).finish() != chunk.digest {
                    return Err(rows.fault(chunk.row, RowFault::PackedDiffers));
                }
            }
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Passes over `len_bytes` of the payload, as far as `bytes` go.
    fn skip<'a>(&mut self, bytes: &'a [u8], len_bytes: u64) -> &'a [u8] {
        let len = usize::try_from(len_bytes)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.position += len as u64;
        &bytes[len..]
    }
}
