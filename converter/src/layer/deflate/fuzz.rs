//! The property that any input keeps, for fuzzing and for the tests of damaged streams.

use std::io::Read as _;

use flate2::bufread::{DeflateDecoder, GzDecoder};
use libdeflater::{CompressionLvl, Compressor, Decompressor};

use super::emit::Thresholds;
use super::{
    Begin, Block, Border, Container, Decoded, Reread, Run, Scratch, Sink, Source, Transcoder,
    decode, decode_section,
};

/// Streams that grow longer are not compared: zlib-rs would be slow to reach their end.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;

/// Keeps all bytes.
#[derive(Default)]
pub(super) struct Collected(pub(super) Vec<u8>);

impl Sink for Collected {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        self.0.extend_from_slice(block.bytes());
        Some(block.into_buffer())
    }
}

/// Decodes `data` as a bare deflate stream: the same bytes as zlib-rs, or both fail. A stream that is
/// valid is then cut at places that `data` decides, and every member must decode to its part with
/// libdeflate, zlib-rs and the decoder here. The same bytes as gzip only must not panic.
///
/// # Panics
/// When any of this does not hold.
pub fn fuzz_one(data: &[u8]) {
    let mut bytes = Collected::default();
    let ours = decode(data, Container::Raw, MAX_OUTPUT_BYTES, &mut bytes);
    let mut theirs = Vec::new();
    let read = DeflateDecoder::new(data)
        .take(MAX_OUTPUT_BYTES + 1)
        .read_to_end(&mut theirs);
    let too_large = theirs.len() as u64 > MAX_OUTPUT_BYTES;
    match (&ours, &read) {
        (Ok(decoded), Ok(_)) => {
            assert!(bytes.0 == theirs, "other bytes than zlib-rs");
            let seed = data.iter().fold(1, |seed: u64, &byte| {
                (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let mut borders = Borders(seed | 1);
            let mut ends = Vec::new();
            let mut at = 0;
            while at < bytes.0.len() {
                at = bytes.0.len().min(at + borders.next());
                ends.push(at);
            }
            check_members(data, decoded, &bytes.0, &ends);
        }
        (Err(_), Err(_)) => {}
        (Err(_), Ok(_)) if too_large => {}
        (ours, theirs) => panic!("we say {ours:?}, zlib-rs says {theirs:?}"),
    }
    let _ = decode(
        data,
        Container::Gzip,
        MAX_OUTPUT_BYTES,
        &mut Collected::default(),
    );
}

/// Lengths of chunks from one byte to the whole stream, small and large ones alike.
struct Borders(u64);

impl Borders {
    fn next(&mut self) -> usize {
        // Xorshift: any sequence will do, if it is the same each time.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let magnitude = 10 + self.0 % 11;
        (self.0 >> 8) as usize % (1 << magnitude) + 1
    }
}

/// Makes a member of each part of `bytes` and decodes it; how many bytes were copied as tokens.
pub(super) fn check_members(
    compressed: &[u8],
    decoded: &Decoded,
    bytes: &[u8],
    ends: &[usize],
) -> u64 {
    let thresholds = Thresholds {
        run_bytes: 1,
        cut_bytes: 1,
        growth_bytes: u64::MAX,
    };
    let source = Source {
        compressed,
        index: &decoded.index,
    };
    let mut transcoder =
        Transcoder::with_thresholds(Compressor::new(CompressionLvl::fastest()), thresholds);
    let (mut scratch, mut reread) = (Scratch::default(), Reread::default());
    let (mut start, mut copied_bytes) = (0, 0);
    for &end in ends {
        let part = &bytes[start..end];
        let run = Run {
            start: 0,
            len_bytes: part.len(),
            source_bytes: start as u64,
        };
        let mut member = Vec::new();
        let emitted = transcoder
            .member(part, &[run], &source, &mut member, Some(&mut reread))
            .expect("the source is the one that was indexed");
        check_member(&member, part, &mut scratch);
        copied_bytes += emitted.copied_bytes;
        start = end;
    }
    copied_bytes
}

/// Decodes one member with libdeflate, with zlib-rs, and with the decoder here.
pub(super) fn check_member(member: &[u8], bytes: &[u8], scratch: &mut Scratch) {
    let mut output = vec![0; bytes.len()];
    let len = Decompressor::new()
        .gzip_decompress(member, &mut output)
        .expect("libdeflate reads the member");
    assert!(output[..len] == *bytes, "other bytes with libdeflate");
    output.clear();
    let mut decoder = GzDecoder::new(member);
    decoder
        .read_to_end(&mut output)
        .expect("zlib-rs reads the member");
    assert!(output == *bytes, "other bytes with zlib-rs");
    assert!(decoder.into_inner().is_empty(), "bytes behind the member");
    let mut ours = Collected::default();
    let begin = Begin {
        border: Border::START,
        history: &[],
    };
    let section = decode_section(member, begin, u64::MAX, scratch, &mut ours);
    let section = section.expect("the decoder here reads the member");
    assert!(ours.0 == bytes, "other bytes with the decoder here");
    assert!(section.is_to_the_end(), "more behind the member");
}
