//! Streams as the compressors of the field make them, and data for them.

use libdeflater::{CompressionLvl, Compressor, Crc};
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status, Strategy};

/// A generator of numbers that is the same everywhere (xorshift).
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 3
    }

    /// Less than `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[2]
    }
}

/// Data of sections of different kinds: noise, runs, text, repetitions from near and far.
pub(super) fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut bytes: Vec<u8> = Vec::with_capacity(len + 70_000);
    while bytes.len() < len {
        let magnitude = 6 + numbers.below(11);
        let section = numbers.below(1 << magnitude);
        match numbers.below(6) {
            0 => bytes.extend((0..section).map(|_| numbers.byte())),
            1 => bytes.resize(bytes.len() + section, numbers.byte()),
            2 => bytes.extend((0..section).map(|_| b"etaoin shrdlu\n"[numbers.below(14)])),
            3 => bytes.extend((0..section).map(|_| 1_u8 << numbers.below(8))),
            _ if bytes.is_empty() => {}
            _ => {
                let reach = bytes.len().min([300, 32_768, 40_000][numbers.below(3)]);
                let back = numbers.below(reach) + 1;
                for _ in 0..section {
                    bytes.push(bytes[bytes.len() - back]);
                }
            }
        }
    }
    bytes.truncate(len);
    bytes
}

/// How zlib-rs compresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zlib {
    pub(super) level: i32,
    pub(super) strategy: Strategy,
    pub(super) window_bits: i32,
    pub(super) mem_level: i32,
    /// What happens after every so many bytes.
    pub(super) flush: DeflateFlush,
    pub(super) flush_every: usize,
}

impl Zlib {
    pub(super) fn level(level: i32) -> Self {
        Self {
            level,
            strategy: Strategy::Default,
            window_bits: 15,
            mem_level: 8,
            flush: DeflateFlush::NoFlush,
            flush_every: usize::MAX,
        }
    }

    pub(super) fn compress(&self, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = Deflate::new_with_config(DeflateConfig {
            level: self.level,
            window_bits: -self.window_bits,
            mem_level: self.mem_level,
            strategy: self.strategy,
            ..DeflateConfig::default()
        });
        let mut output = Vec::new();
        let mut chunks = bytes.chunks(self.flush_every.max(1)).peekable();
        let mut buffer = vec![0; 1 << 16];
        while let Some(mut chunk) = chunks.next() {
            let flush = match chunks.peek() {
                Some(_) => self.flush,
                None => DeflateFlush::NoFlush,
            };
            loop {
                let (read, written) = (encoder.total_in(), encoder.total_out());
                encoder
                    .compress(chunk, &mut buffer, flush)
                    .expect("zlib-rs compresses");
                chunk = &chunk[(encoder.total_in() - read) as usize..];
                let written = (encoder.total_out() - written) as usize;
                output.extend(&buffer[..written]);
                if chunk.is_empty() && written < buffer.len() {
                    break;
                }
            }
        }
        loop {
            let written = encoder.total_out();
            let status = encoder
                .compress(&[], &mut buffer, DeflateFlush::Finish)
                .expect("zlib-rs finishes");
            output.extend(&buffer[..(encoder.total_out() - written) as usize]);
            if status == Status::StreamEnd {
                return output;
            }
        }
    }
}

pub(super) fn libdeflate(bytes: &[u8], level: i32) -> Vec<u8> {
    let level = CompressionLvl::new(level).expect("a level of libdeflate");
    let mut compressor = Compressor::new(level);
    let mut output = vec![0; compressor.deflate_compress_bound(bytes.len())];
    let len = compressor
        .deflate_compress(bytes, &mut output)
        .expect("the bound is enough");
    output.truncate(len);
    output
}

pub(super) fn zopfli(bytes: &[u8]) -> Vec<u8> {
    let options = zopfli::Options {
        iteration_count: std::num::NonZeroU64::MIN,
        ..zopfli::Options::default()
    };
    let mut output = Vec::new();
    zopfli::compress(options, zopfli::Format::Deflate, bytes, &mut output).expect("memory");
    output
}

/// A member of a raw stream, with as many optional fields as `flags` says.
pub(super) fn gzip(raw: &[u8], bytes: &[u8], flags: u8) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 3];
    if flags & 4 != 0 {
        member.extend([6, 0, b'B', b'C', 2, 0, 0x1f, 0x8b]);
    }
    if flags & 8 != 0 {
        member.extend(b"layer.tar\0");
    }
    if flags & 16 != 0 {
        member.extend(b"a comment\0");
    }
    if flags & 2 != 0 {
        let sum = crc(&member).to_le_bytes();
        member.extend(&sum[..2]);
    }
    member.extend(raw);
    member.extend(crc(bytes).to_le_bytes());
    member.extend(&(bytes.len() as u64).to_le_bytes()[..4]);
    member
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}
