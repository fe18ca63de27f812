//! A layer for the micro-benchmarks, the same on every machine.

use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use esgz::image::Digest;
use esgz::layer::encode::Level;
use esgz::layer::entry::ScannedLayer;
use esgz::layer::scan::{DecodeOptions, EntryMemory, Expected, Keep, ScanOptions, scan_layer};

/// A layer in both forms.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Uncompressed.
    pub tar: Vec<u8>,
    /// One gzip member, level 6 of libdeflate.
    pub gzip: Vec<u8>,
}

impl Layer {
    /// `files` files of `file_bytes` bytes each, in directories of 100. Gzip makes about a third of
    /// them, as of programs and libraries.
    ///
    /// # Errors
    /// When no tar can be made of them.
    pub fn of_files(files: usize, file_bytes: usize) -> Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut words = Words::default();
        for file in 0..files {
            let contents = words.take(file_bytes);
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            let name = format!("usr/lib/part{}/file{file}", file / 100);
            tar.append_data(&mut header, name, contents.as_slice())?;
        }
        let tar = tar.into_inner()?;
        let mut compressor = Level::default().compressor();
        let mut gzip = vec![0; compressor.gzip_compress_bound(tar.len())];
        let len = compressor.gzip_compress(&tar, &mut gzip)?;
        gzip.truncate(len);
        Ok(Self { tar, gzip })
    }

    /// What a scan of the blob must find.
    pub fn expected(&self) -> Expected {
        Expected {
            digest: Digest::of(&self.gzip),
            size_bytes: self.gzip.len() as u64,
            diff_id: Digest::of(&self.tar),
        }
    }

    /// The layer after its scan.
    ///
    /// # Errors
    /// When it cannot be spooled.
    pub fn scan(&self) -> Result<ScannedLayer> {
        let scanned = scan_layer(&*self.gzip, None, &self.expected(), &scan_options(), &[]);
        scanned.context("scanning a made layer")
    }
}

/// Scans spool to the directory of temporary files.
pub fn scan_options() -> ScanOptions {
    ScanOptions {
        scratch: std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), Into::into),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Spool,
        decode: DecodeOptions::ONE_THREAD,
    }
}

const WORDS: usize = 1024;

/// Pseudo-random words from a vocabulary, with noise between them.
struct Words {
    state: u64,
    vocabulary: Vec<Vec<u8>>,
}

impl Default for Words {
    fn default() -> Self {
        let mut words = Self {
            state: 1,
            vocabulary: Vec::new(),
        };
        words.vocabulary = (0..WORDS)
            .map(|_| {
                let len = 4 + words.next() as usize % 24;
                (0..len).map(|_| words.next() as u8).collect()
            })
            .collect();
        words
    }
}

impl Words {
    /// Knuth's MMIX generator; the high bits are the better ones.
    fn next(&mut self) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 32) as u32
    }

    fn take(&mut self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len_bytes + 32);
        while bytes.len() < len_bytes {
            // The smaller of two: some words are far more frequent.
            let mut word = || self.next() as usize % WORDS;
            let word = word().min(word());
            bytes.extend_from_slice(&self.vocabulary[word]);
            if self.next().is_multiple_of(4) {
                bytes.push(self.next() as u8);
            }
        }
        bytes.truncate(len_bytes);
        bytes
    }
}

/// The whole of a gzip blob through the streaming decoder of zlib-rs.
///
/// # Errors
/// When it is damaged.
pub fn inflate_zlib(gzip: &[u8], block: &mut [u8]) -> io::Result<u64> {
    let mut decoder = flate2::bufread::MultiGzDecoder::new(gzip);
    let mut bytes = 0;
    loop {
        match io::Read::read(&mut decoder, block)? {
            0 => return Ok(bytes),
            len => bytes += len as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_the_same_and_compress_like_programs() {
        let layer = Layer::of_files(30, 100_000).unwrap();
        assert_eq!(layer.tar, Layer::of_files(30, 100_000).unwrap().tar);
        let ratio = layer.gzip.len() as f64 / layer.tar.len() as f64;
        assert!((0.25..0.42).contains(&ratio), "{ratio}");
        assert_eq!(layer.scan().unwrap().entries.len(), 30);
        let mut block = vec![0; 1 << 16];
        let inflated = inflate_zlib(&layer.gzip, &mut block).unwrap();
        assert_eq!(inflated, layer.tar.len() as u64);
    }
}
