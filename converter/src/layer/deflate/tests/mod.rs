//! The decoder against other compressors and decoders, and members cut anywhere.

mod proof;
mod sections;
mod streams;
mod tokens;

use std::io::Read;

use proptest::prelude::*;
use zlib_rs::{DeflateFlush, Strategy as Matching};

use self::streams::{Numbers, Zlib, data, gzip, libdeflate, zopfli};
use self::tokens::{Stream, Token, random_lengths, random_tokens};
use super::fuzz::{Collected, check_members, fuzz_one};
use super::{Container, DecodeError, Decoded, Fault, decode};

/// Decodes `compressed`, which must mean `bytes`.
fn decoded(compressed: &[u8], container: Container, bytes: &[u8]) -> Decoded {
    let mut collected = Collected::default();
    let decoded = decode(compressed, container, u64::MAX, &mut collected)
        .unwrap_or_else(|error| panic!("{error} in a valid stream"));
    assert!(collected.0 == bytes, "other bytes than were compressed");
    assert_eq!(decoded.compressed_bytes, compressed.len() as u64);
    assert_eq!(decoded.index.output_bytes(), bytes.len() as u64);
    // One percent, and a span at the least.
    assert!(decoded.index.memory_bytes() <= bytes.len() as u64 / 100 + 64);
    decoded
}

/// Cuts a stream at random places, and at every byte near the start; how many bytes were copied.
fn check_cuts(compressed: &[u8], container: Container, bytes: &[u8], seed: u64) -> u64 {
    let decoded = decoded(compressed, container, bytes);
    let mut numbers = Numbers::new(seed);
    let mut ends: Vec<usize> = (1..bytes.len().min(20)).collect();
    let mut at = ends.len();
    while at < bytes.len() {
        let magnitude = numbers.below(18);
        at = bytes.len().min(at + 1 + numbers.below(1 << magnitude));
        ends.push(at);
    }
    check_members(compressed, &decoded, bytes, &ends)
}

fn fault(compressed: &[u8], container: Container) -> Fault {
    match decode(compressed, container, u64::MAX, &mut Collected::default()) {
        Err(DecodeError::Corrupt { fault, .. }) => fault,
        other => panic!("{other:?} instead of a fault"),
    }
}

fn zlib() -> impl Strategy<Value = Zlib> {
    let strategies = [
        Matching::Default,
        Matching::Filtered,
        Matching::HuffmanOnly,
        Matching::Rle,
        Matching::Fixed,
    ];
    let flushes = [
        DeflateFlush::NoFlush,
        DeflateFlush::PartialFlush,
        DeflateFlush::SyncFlush,
        DeflateFlush::FullFlush,
        DeflateFlush::Block,
    ];
    (
        0..10_i32,
        prop::sample::select(strategies.to_vec()),
        9..16_i32,
        1..10_i32,
        prop::sample::select(flushes.to_vec()),
        prop::sample::select(vec![37, 1000, 20_000, usize::MAX]),
    )
        .prop_map(
            |(level, strategy, window_bits, mem_level, flush, flush_every)| Zlib {
                level,
                strategy,
                window_bits,
                mem_level,
                flush,
                flush_every,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn streams_of_zlib_are_cut_anywhere(settings in zlib(), seed: u64, len in 0..200_000_usize) {
        let bytes = data(seed, len);
        check_cuts(&settings.compress(&bytes), Container::Raw, &bytes, seed);
    }

    #[test]
    fn streams_of_libdeflate_are_cut_anywhere(level in 0..13_i32, seed: u64, len in 0..200_000_usize) {
        let bytes = data(seed, len);
        check_cuts(&libdeflate(&bytes, level), Container::Raw, &bytes, seed);
    }

    #[test]
    fn members_are_cut_as_one_stream(
        parts in prop::collection::vec((zlib(), 0..40_000_usize, 0..32_u8), 1..8),
        seed: u64,
        padding in 0..3_usize,
    ) {
        let (mut compressed, mut all) = (Vec::new(), Vec::new());
        for (number, (settings, len, flags)) in (0..).zip(&parts) {
            let bytes = data(seed ^ number, *len);
            compressed.extend(gzip(&settings.compress(&bytes), &bytes, flags & 0x1e));
            all.extend(bytes);
        }
        compressed.resize(compressed.len() + padding * 300, 0);
        prop_assert_eq!(
            decoded(&compressed, Container::Gzip, &all).members,
            parts.len() as u64
        );
        check_cuts(&compressed, Container::Gzip, &all, seed);
    }

    #[test]
    fn any_code_and_any_token(seed: u64, blocks in 1..8_usize) {
        let mut numbers = Numbers::new(seed);
        let mut stream = Stream::new();
        for block in (0..blocks).rev() {
            let is_last = u64::from(block == 0);
            let count = numbers.below(6000);
            let tokens = random_tokens(&mut numbers, stream.bytes.len(), count);
            match numbers.below(5) {
                0 => stream.fixed(&tokens, is_last),
                1 => {
                    let len = numbers.below(2) * numbers.below(65_536);
                    stream.stored(&data(seed, len), is_last);
                }
                _ => {
                    let lengths = random_lengths(&mut numbers);
                    stream.dynamic(&tokens, &lengths, is_last);
                }
            }
        }
        let (compressed, bytes) = stream.finish();
        check_cuts(&compressed, Container::Raw, &bytes, seed);
    }

    #[test]
    fn damaged_streams_are_as_for_zlib(
        settings in zlib(),
        seed: u64,
        len in 0..20_000_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1..255_u8), 0..4),
        cut: prop::sample::Index,
    ) {
        let bytes = data(seed, len);
        let mut compressed = settings.compress(&bytes);
        let whole = compressed.len();
        for (at, bits) in damage {
            compressed[at.index(whole)] ^= bits;
        }
        fuzz_one(&compressed);
        compressed.truncate(cut.index(whole));
        fuzz_one(&compressed);
    }

    #[test]
    fn noise_is_as_for_zlib(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..4_u8) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            // A block of this type, the last one or not.
            *first = *first & !6 | kind << 1;
        }
        fuzz_one(&bytes);
    }
}

#[test]
fn streams_of_zopfli_are_cut_anywhere() {
    for seed in 0..3 {
        let bytes = data(seed, 60_000);
        let copied = check_cuts(&zopfli(&bytes), Container::Raw, &bytes, seed);
        assert!(copied > 0, "nothing of {} bytes was copied", bytes.len());
    }
}

/// One block of 5 MB: borders are found from the checkpoints inside it.
#[test]
fn a_single_long_block_is_cut_from_checkpoints() {
    let mut numbers = Numbers::new(5);
    let mut stream = Stream::new();
    let tokens = random_tokens(&mut numbers, 0, 60_000);
    let lengths = random_lengths(&mut numbers);
    stream.dynamic(&tokens, &lengths, 0);
    let tokens = random_tokens(&mut numbers, stream.bytes.len(), 60_000);
    stream.fixed(&tokens, 1);
    let (compressed, bytes) = stream.finish();
    assert!(bytes.len() > 4 << 20, "{} bytes", bytes.len());
    for seed in 0..6 {
        let copied = check_cuts(&compressed, Container::Raw, &bytes, seed);
        assert!(
            copied > bytes.len() as u64 / 4,
            "only {copied} bytes were copied"
        );
    }
}

#[test]
fn borders_inside_matches_and_runs() {
    // A run of distance 1, matches of 258 bytes, and a match over the whole window.
    let mut tokens: Vec<Token> = (0..=255).map(Token::Literal).collect();
    tokens.extend([Token::Match { len: 258, back: 1 }; 30]);
    tokens.extend(
        [Token::Match {
            len: 258,
            back: 256,
        }; 200],
    );
    tokens.extend(
        [Token::Match {
            len: 258,
            back: 32_768,
        }; 140],
    );
    tokens.extend([Token::Literal(7); 3]);
    tokens.extend([Token::Match { len: 3, back: 2 }; 9]);
    let mut stream = Stream::new();
    stream.fixed(&tokens, 1);
    let (compressed, bytes) = stream.finish();
    let whole = decoded(&compressed, Container::Raw, &bytes);
    for step in [1, 257, 258, 259, 32_768, 32_769, bytes.len()] {
        let ends: Vec<usize> = (1..)
            .map(|n| (n * step).min(bytes.len()))
            .take_while(|&end| end < bytes.len())
            .take(3000)
            .chain([bytes.len()])
            .collect();
        check_members(&compressed, &whole, &bytes, &ends);
    }
}

#[test]
fn empty_blocks_and_a_hundred_stored_ones() {
    let mut stream = Stream::new();
    for number in 0..100 {
        stream.stored(&data(number, 500), 0);
    }
    for _ in 0..5000 {
        stream.fixed(&[], 0);
        stream.stored(&[], 0);
    }
    stream.fixed(
        &[Token::Match {
            len: 258,
            back: 32_768,
        }; 100],
        0,
    );
    stream.stored(&[], 1);
    let (compressed, bytes) = stream.finish();
    for seed in 0..4 {
        check_cuts(&compressed, Container::Raw, &bytes, seed);
    }
}

#[test]
fn an_empty_stream_makes_an_empty_member() {
    let compressed = Zlib::level(6).compress(&[]);
    let whole = decoded(&compressed, Container::Raw, &[]);
    check_members(&compressed, &whole, &[], &[0]);
}

/// A stored block that fills the output to its last byte before the slack.
#[test]
fn an_output_block_is_full_to_the_byte() {
    let bytes = data(4, 32 * 65_000);
    for first in [0, 1, 2] {
        let mut stream = Stream::new();
        stream.stored(&bytes[..first], 0);
        for part in bytes[first..].chunks(65_000) {
            stream.stored(part, 0);
        }
        stream.fixed(&[], 1);
        let (compressed, bytes) = stream.finish();
        decoded(&compressed, Container::Raw, &bytes);
    }
}

/// Input and output that come and go in pieces of any size.
#[test]
fn a_source_of_small_reads_is_the_same() {
    struct Trickle<'a>(&'a [u8], Numbers);
    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let len = (1 + self.1.below(5000)).min(buffer.len());
            self.0.read(&mut buffer[..len])
        }
    }
    let bytes = data(9, 3_000_000);
    let compressed = Zlib::level(6).compress(&bytes);
    let mut collected = Collected::default();
    let source = Trickle(&compressed, Numbers::new(1));
    let trickled =
        decode(source, Container::Raw, u64::MAX, &mut collected).expect("a valid stream");
    assert!(collected.0 == bytes, "other bytes than were compressed");
    let whole = decoded(&compressed, Container::Raw, &bytes);
    assert_eq!(trickled.index, whole.index);
}

#[test]
fn faults_of_gzip_are_told_apart() {
    let bytes = data(3, 1000);
    let good = gzip(&Zlib::level(6).compress(&bytes), &bytes, 0x1e);
    let check = |at: usize, bits: u8, expected: Fault| {
        let mut damaged = good.clone();
        damaged[at] ^= bits;
        assert_eq!(fault(&damaged, Container::Gzip), expected, "byte {at}");
    };
    check(0, 1, Fault::Magic);
    check(2, 1, Fault::Method);
    check(3, 0x20, Fault::Flags);
    check(4, 1, Fault::HeaderCrc);
    check(good.len() - 8, 1, Fault::Crc);
    check(good.len() - 4, 1, Fault::Length);
    for end in 0..good.len() {
        assert_eq!(
            fault(&good[..end], Container::Gzip),
            Fault::Truncated,
            "{end} bytes"
        );
    }
    let with = |tail: &[u8]| fault(&[&good[..], tail].concat(), Container::Gzip);
    assert_eq!(with(b"x"), Fault::TrailingData);
    assert_eq!(with(b"\0x"), Fault::TrailingData);
    assert_eq!(with(&[0x1f]), Fault::Truncated);
    assert_eq!(with(&[0x1f, 0]), Fault::Truncated);
}

#[test]
fn limits_and_closed_sinks_end_the_stream() {
    struct Closed;
    impl super::Sink for Closed {
        fn block(&mut self, _: super::Block) -> Option<Vec<u8>> {
            None
        }
    }
    let bytes = vec![7; 3 << 20];
    let compressed = libdeflate(&bytes, 1);
    let limited = |limit| {
        decode(
            &compressed[..],
            Container::Raw,
            limit,
            &mut Collected::default(),
        )
    };
    assert!(limited(bytes.len() as u64).is_ok());
    assert!(matches!(
        limited(bytes.len() as u64 - 1),
        Err(DecodeError::TooLarge { .. })
    ));
    assert!(matches!(
        decode(&compressed[..], Container::Raw, u64::MAX, &mut Closed),
        Err(DecodeError::SinkClosed)
    ));
}
