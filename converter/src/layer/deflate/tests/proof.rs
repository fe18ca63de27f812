//! Members that are proven, not inflated: ordinary streams are, and nothing wrong ever is.

use libdeflater::Decompressor;

use super::decoded;
use super::streams::{Numbers, Zlib, libdeflate};
use crate::layer::deflate::{
    Container, Emitted, Index, Reread, Run, Source, TranscodeError, Transcoder,
};
use crate::layer::encode::Level;

const CHUNK_BYTES: usize = 4 << 20;

fn transcoder() -> Transcoder {
    Transcoder::new(Level::FOR_THE_REST.compressor())
}

/// A member of `bytes`, which stand at `source_bytes` of the source as it is said.
fn member(
    transcoder: &mut Transcoder,
    (compressed, index): (&[u8], &Index),
    bytes: &[u8],
    source_bytes: u64,
) -> Result<(Emitted, Vec<u8>), TranscodeError> {
    let source = Source { compressed, index };
    let run = Run {
        start: 0,
        len_bytes: bytes.len(),
        source_bytes,
    };
    let mut member = Vec::new();
    let mut reread = Reread::default();
    let emitted = transcoder.member(bytes, &[run], &source, &mut member, Some(&mut reread))?;
    Ok((emitted, member))
}

fn is_right(member: &[u8], bytes: &[u8]) -> bool {
    let mut out = vec![0; bytes.len()];
    let made = Decompressor::new().gzip_decompress(member, &mut out);
    made == Ok(bytes.len()) && out == bytes
}

/// Words in no order, as programs and texts are made of: blocks of ordinary lengths.
fn words(len: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(3);
    let letters = b"etaoinshrdlucmfw_.()0";
    let mut word = || -> Vec<u8> {
        let len = 2 + numbers.below(9);
        (0..len)
            .map(|_| letters[numbers.below(letters.len())])
            .collect()
    };
    let words: Vec<Vec<u8>> = (0..5000).map(|_| word()).collect();
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        bytes.extend_from_slice(&words[numbers.below(words.len())]);
        bytes.push(b" \n\t,"[numbers.below(4)]);
    }
    bytes.truncate(len);
    bytes
}

fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = words(16 << 20);
    vec![
        ("zlib 3", Zlib::level(3).compress(&bytes)),
        ("zlib 6", Zlib::level(6).compress(&bytes)),
        ("zlib 9", Zlib::level(9).compress(&bytes)),
        ("libdeflate 6", libdeflate(&bytes, 6)),
    ]
}

#[test]
fn members_of_ordinary_streams_are_proven() {
    let bytes = words(16 << 20);
    for (name, compressed) in streams() {
        let decoded = decoded(&compressed, Container::Raw, &bytes);
        let source = (&compressed[..], &decoded.index);
        let mut transcoder = transcoder();
        let mut proven = 0;
        for (number, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
            let at = (number * CHUNK_BYTES) as u64;
            let (emitted, member) = member(&mut transcoder, source, chunk, at).unwrap();
            assert!(is_right(&member, chunk), "{name}, chunk {number}");
            proven += usize::from(emitted.is_proven && emitted.copied_bytes > 0);
        }
        assert!(proven == 4, "{name}: {proven} of 4");
    }
}

/// A bit of the source that is another when it is read again.
#[test]
fn a_source_that_changed_is_never_proven() {
    let bytes = words(16 << 20);
    for (name, mut compressed) in streams() {
        let index = decoded(&compressed, Container::Raw, &bytes).index;
        let mut transcoder = transcoder();
        let mut numbers = Numbers::new(7);
        let (mut wrong, mut told) = (0, 0);
        for turn in 0..40 {
            // Anywhere, or the last one of a block.
            let bit = match turn % 2 {
                0 => numbers.below(compressed.len() * 8),
                _ => {
                    let number = numbers.below(index.spans_of(0, index.output_bytes()).unwrap().1);
                    index.span(number).unwrap().0.end_bits as usize - 1
                }
            };
            compressed[bit / 8] ^= 1 << (bit % 8);
            for (number, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
                let at = (number * CHUNK_BYTES) as u64;
                match member(&mut transcoder, (&compressed, &index), chunk, at) {
                    Err(_) => told += 1,
                    Ok((emitted, member)) if !is_right(&member, chunk) => {
                        assert!(!emitted.is_proven, "{name}, turn {turn}, chunk {number}");
                        wrong += 1;
                    }
                    Ok(_) => {}
                }
            }
            compressed[bit / 8] ^= 1 << (bit % 8);
        }
        // Nearly every bit is in some chunk, and most are in blocks with a checksum.
        assert!(told >= 20, "{name}: {told} told, {wrong} made wrong");
    }
}

/// Bytes that stand elsewhere than it is said; where they do, they are proven.
#[test]
fn bytes_from_elsewhere_are_never_proven() {
    let bytes = words(16 << 20);
    for (name, compressed) in streams() {
        let index = decoded(&compressed, Container::Raw, &bytes).index;
        let mut transcoder = transcoder();
        for start in [1 << 20, 5_500_001, 9_000_000_usize] {
            let chunk = &bytes[start..start + CHUNK_BYTES];
            for shift in [-40_000, -1, 0, 1, 3, 40_000_i64] {
                let at = (start as i64 + shift) as u64;
                let made = member(&mut transcoder, (&compressed, &index), chunk, at);
                let is_proven = made.is_ok_and(|(emitted, _)| emitted.is_proven);
                assert_eq!(
                    is_proven,
                    shift == 0,
                    "{name} at {start} shifted by {shift}"
                );
            }
        }
    }
}

/// Streams whose blocks are too long, or too short to be known one by one, are left to be inflated.
#[test]
fn what_would_have_to_be_walked_is_not_proven() {
    let bytes = words(16 << 20);
    let flushed = Zlib {
        flush: zlib_rs::DeflateFlush::SyncFlush,
        flush_every: 1000,
        ..Zlib::level(6)
    };
    // Level 1 of zlib-rs makes one block of fixed codes.
    for settings in [flushed, Zlib::level(1)] {
        let compressed = settings.compress(&bytes);
        let index = decoded(&compressed, Container::Raw, &bytes).index;
        let chunk = &bytes[100_000..][..CHUNK_BYTES];
        let made = member(&mut transcoder(), (&compressed, &index), chunk, 100_000);
        let (emitted, member) = made.unwrap();
        assert!(is_right(&member, chunk));
        let is_as_expected = emitted.copied_bytes > 0 && !emitted.is_proven;
        assert!(is_as_expected, "{settings:?}: {emitted:?}");
    }
}
