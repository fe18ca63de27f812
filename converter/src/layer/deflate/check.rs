//! What was made, read again while it is in the caches.

use libdeflater::Decompressor;

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
        let Self {
            decompressor,
            buffer,
        } = self;
        let out = room(buffer, bytes.len());
        decompressor.gzip_decompress(member, out) == Ok(bytes.len()) && out == bytes
    }

    /// Whether `stream`, a bare deflate stream, is one of `bytes`.
    pub(super) fn is_deflate_of(&mut self, stream: &[u8], bytes: &[u8]) -> bool {
        let Self {
            decompressor,
            buffer,
        } = self;
        let out = room(buffer, bytes.len());
        decompressor.deflate_decompress(stream, out) == Ok(bytes.len()) && out == bytes
    }
}

fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}
