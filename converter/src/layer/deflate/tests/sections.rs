//! Sections that are joined give what decoding in one go gives, whatever borders are proposed.

use proptest::prelude::*;

use super::super::fuzz::{Collected, check_member};
use super::super::{
    Begin, Block, Border, BorderKind, Container, DecodeError, Fault, Index, Joiner, Scratch, Sink,
    Source, Transcoder, decode, decode_section,
};
use super::streams::{Numbers, data, gzip};
use super::zlib;
use crate::layer::encode::Level;

/// A border with the history before it.
type Seen = (Border, Vec<u8>);

/// Keeps bytes and borders.
#[derive(Default)]
struct Watched {
    bytes: Vec<u8>,
    borders: Vec<Seen>,
}

impl Sink for Watched {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        self.bytes.extend_from_slice(block.bytes());
        Some(block.into_buffer())
    }

    fn border(&mut self, border: Border, output_bytes: u64, history: &[u8]) {
        assert!(output_bytes >= history.len() as u64);
        self.borders.push((border, history.to_vec()));
    }
}

/// What is joined of sections that begin at `proposed`, and how many of these were right.
fn joined(compressed: &[u8], proposed: &[Seen]) -> Result<(Vec<u8>, Index, usize), DecodeError> {
    let (mut joiner, mut bytes, mut right) = (Joiner::default(), Vec::new(), 0);
    let mut scratch = Scratch::default();
    for (number, (border, history)) in proposed.iter().enumerate() {
        let catch_up = |joiner: &mut Joiner, bytes: &mut Vec<u8>, until_bits: u64| {
            while let Some(next) = joiner.next()
                && next.border.position_bits < until_bits
            {
                let mut sink = Collected::default();
                let mut scratch = Scratch::default();
                let section =
                    decode_section(compressed, next, until_bits, &mut scratch, &mut sink)?;
                bytes.extend(sink.0);
                joiner.append(section)?;
            }
            Ok::<(), DecodeError>(())
        };
        catch_up(&mut joiner, &mut bytes, border.position_bits)?;
        let begin = Begin {
            border: *border,
            history,
        };
        let until_bits = proposed
            .get(number + 1)
            .map_or(u64::MAX, |(next, _)| next.position_bits);
        let mut sink = Collected::default();
        let section = decode_section(compressed, begin, until_bits, &mut scratch, &mut sink);
        if joiner.fits(&begin) {
            right += 1;
            joiner.append(section?)?;
            bytes.extend(sink.0);
        }
        if number + 1 == proposed.len() {
            catch_up(&mut joiner, &mut bytes, u64::MAX)?;
        }
    }
    assert_eq!(joiner.output_bytes(), bytes.len() as u64);
    Ok((bytes, joiner.finish(), right))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_joined_is_the_stream(
        parts in prop::collection::vec((zlib(), 0..150_000_usize, 0..32_u8), 1..5),
        seed: u64,
        every in 1..40_usize,
        wrong in 0..4_usize,
        padding in 0..3_usize,
    ) {
        let (mut compressed, mut all) = (Vec::new(), Vec::new());
        for (number, (settings, len, flags)) in (0..).zip(&parts) {
            let bytes = data(seed ^ number, *len);
            compressed.extend(gzip(&settings.compress(&bytes), &bytes, flags & 0x1e));
            all.extend(bytes);
        }
        compressed.resize(compressed.len() + padding * 300, 0);
        let mut watched = Watched::default();
        let whole = decode(&compressed[..], Container::Gzip, u64::MAX, &mut watched).unwrap();
        prop_assert!(watched.bytes == all);
        let mut numbers = Numbers::new(seed);
        let mut proposed: Vec<Seen> = watched.borders.iter().step_by(every).cloned().collect();
        let rightly = proposed.len();
        for _ in 0..wrong {
            // A border that is none, or one with another history.
            let (mut border, mut history) = proposed[numbers.below(rightly)].clone();
            match numbers.below(3) {
                0 => border.position_bits += 1 + numbers.below(5000) as u64,
                1 => border.kind = match border.kind {
                    BorderKind::Member => BorderKind::Block,
                    BorderKind::Block => BorderKind::Member,
                },
                _ => match history.last_mut() {
                    Some(last) => *last ^= 1,
                    None => history = data(seed, 500),
                },
            }
            proposed.push((border, history));
        }
        proposed.sort_by_key(|(border, _)| border.position_bits);
        let (bytes, index, right) = joined(&compressed, &proposed).unwrap();
        prop_assert!(bytes == all, "other bytes than in one go");
        prop_assert_eq!(index.without_checkpoints(), whole.index.without_checkpoints());
        if wrong == 0 {
            prop_assert_eq!(right, rightly);
        }
    }

    /// A section of anything, from anywhere: bytes or an error.
    #[test]
    fn any_border_of_anything(bytes in prop::collection::vec(any::<u8>(), 0..400), at: prop::sample::Index, kind: bool, history in 0..40_000_usize) {
        let border = Border {
            position_bits: at.index(bytes.len() * 8 + 20) as u64,
            kind: if kind { BorderKind::Member } else { BorderKind::Block },
        };
        let history = vec![7; if kind { 0 } else { history.min(32 << 10) }];
        let begin = Begin { border, history: &history };
        let _ = decode_section(&bytes[..], begin, u64::MAX, &mut Scratch::default(), &mut Collected::default());
    }
}

#[test]
fn the_checksum_of_a_member_in_sections_is_checked() {
    let bytes = data(5, 900_000);
    let settings = super::streams::Zlib::level(6);
    let good = gzip(&settings.compress(&bytes), &bytes, 0);
    let mut watched = Watched::default();
    decode(&good[..], Container::Gzip, u64::MAX, &mut watched).unwrap();
    assert!(watched.borders.len() > 5);
    let check = |at: usize, expected: Fault| {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        match joined(&damaged, &watched.borders) {
            Err(DecodeError::Corrupt { fault, .. }) => assert_eq!(fault, expected),
            other => panic!("{:?} instead of a fault", other.map(|_| ())),
        }
        assert_eq!(super::fault(&damaged, Container::Gzip), expected);
    };
    check(good.len() - 8, Fault::Crc);
    check(good.len() - 1, Fault::Length);
}

/// Members of the source that are wanted as they are.
#[test]
fn whole_members_are_copied_byte_for_byte() {
    let (mut compressed, mut all, mut members) = (Vec::new(), Vec::new(), Vec::new());
    // With an extra field, a checksum of the header, both; a name and a comment; short; empty.
    let kinds = [
        (0, 90_000),
        (4, 50_000),
        (6, 40_000),
        (8, 60_000),
        (0x18, 60_000),
        (0, 10_000),
        (0, 0),
        (0, 70_000),
    ];
    for (number, (flags, len)) in (0..).zip(kinds) {
        let bytes = data(number, len);
        let member = gzip(
            &super::streams::Zlib::level(6).compress(&bytes),
            &bytes,
            flags,
        );
        members.push((
            flags,
            all.len(),
            compressed.len()..compressed.len() + member.len(),
        ));
        compressed.extend(member);
        all.extend(bytes);
    }
    let whole = super::decoded(&compressed, Container::Gzip, &all);
    let source = Source {
        compressed: &compressed[..],
        index: &whole.index,
    };
    let mut transcoder = Transcoder::new(Level::default().compressor());
    for (number, (flags, start, place)) in members.iter().enumerate() {
        let end = members
            .get(number + 1)
            .map_or(all.len(), |(_, next, _)| *next);
        let bytes = &all[*start..end];
        let mut made = vec![1, 2];
        let is_copied = transcoder.whole_member(bytes, *start as u64, &source, &mut made);
        assert_eq!(
            is_copied.unwrap(),
            bytes.len() > 32 << 10,
            "member {number}"
        );
        if bytes.len() < 32 << 10 {
            assert_eq!(made, [1, 2]);
            continue;
        }
        check_member(&made[2..], bytes, &mut Scratch::default());
        let original = &compressed[place.clone()];
        if flags & 0x18 == 0 {
            assert!(&made[2..] == original, "member {number}");
        } else {
            assert_eq!(made[2..12], super::super::gzip::PLAIN_HEADER);
            assert!(original.ends_with(&made[12..]));
        }
        // Other bytes than a member's.
        for range in [*start..end - 1, *start + 1..end] {
            let bytes = &all[range.clone()];
            let copied =
                transcoder.whole_member(bytes, range.start as u64, &source, &mut Vec::new());
            assert!(!copied.unwrap(), "{range:?}");
        }
        // The source changes under way.
        let mut changed = bytes.to_vec();
        changed[7] ^= 1;
        let error = transcoder.whole_member(&changed, *start as u64, &source, &mut Vec::new());
        assert!(error.is_err());
    }
}
