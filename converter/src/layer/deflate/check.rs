//! What was made, read again while it is in the caches.

use libdeflater::{DecompressionError, Decompressor};

/// Inflates streams whose bytes are known; a worker has one and keeps it.
pub struct Reread {
    decompressor: Decompressor,
    /// As long as the longest so far.
    buffer: Vec<u8>,
}

impl Default for Reread {
    fn default() -> Self {
        Self {
            decompressor: Decompressor::new(),
            buffer: Vec::new(),
        }
    }
}

impl Reread {
    /// Whether `member`, a gzip member, is one of `bytes`.
    pub fn is_gzip_of(&mut self, member: &[u8], bytes: &[u8]) -> bool {
        self.makes(bytes, |decompressor, out| {
            decompressor.gzip_decompress(member, out)
        })
    }

    /// Whether `stream`, a bare deflate stream, is one of `bytes`.
    pub(super) fn is_deflate_of(&mut self, stream: &[u8], bytes: &[u8]) -> bool {
        self.makes(bytes, |decompressor, out| {
            decompressor.deflate_decompress(stream, out)
        })
    }

    fn makes(
        &mut self,
        bytes: &[u8],
        inflate: impl FnOnce(&mut Decompressor, &mut [u8]) -> Result<usize, DecompressionError>,
    ) -> bool {
        if self.buffer.len() < bytes.len() {
            self.buffer.resize(bytes.len(), 0);
        }
        let out = &mut self.buffer[..bytes.len()];
        inflate(&mut self.decompressor, out) == Ok(bytes.len()) && out == bytes
    }
}
