//! Block headers (RFC 1951, 3.2.3 to 3.2.7): bits in, decoding tables and the end-of-block code out.
//!
//! What is accepted is what zlib accepts: complete codes, or one distance code of one bit, or none.

use super::bits::Bits;
use super::error::Fault;
use super::huffman::{BadLengths, Code, DistanceTable, LitlenTable, MAX_CODE_BITS};

/// No header is longer: 17 bits, 19 lengths of 3 bits, 316 lengths of at most 7 + 7 bits.
pub(super) const MAX_HEADER_BYTES: usize = 576;

/// A block's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// The block is the last one of its member.
    pub(super) is_last: bool,
    /// What follows.
    pub(super) body: Body,
}

/// What follows a header.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// So many bytes as they are, from the next byte border on.
    Stored {
        /// How many.
        len_bytes: u16,
    },
    /// Tokens.
    Coded,
}

/// A Huffman code as it stands in the stream, its first bit lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CodeBits {
    /// The bits.
    pub(super) bits: u16,
    /// How many.
    pub(super) count: u8,
}

/// The tables of the current block; reused from block to block.
pub(super) struct Tables {
    pub(super) litlen: LitlenTable,
    pub(super) distance: DistanceTable,
    /// The end-of-block code.
    pub(super) end_of_block: CodeBits,
    holds: Holds,
}

/// Which code the tables are of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Fixed,
    Dynamic,
}

const LITLEN_SYMBOLS: usize = 288;
const DISTANCE_SYMBOLS: usize = 32;

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

impl Tables {
    pub(super) fn new() -> Self {
        Self {
            litlen: LitlenTable::new(),
            distance: DistanceTable::new(),
            end_of_block: CodeBits::default(),
            holds: Holds::Dynamic,
        }
    }

    /// Reads a header. Of `input` [`MAX_HEADER_BYTES`] must be there, or its end and the padding.
    /// The position is left at the first token, or at the first stored byte.
    pub(super) fn read_header(&mut self, bits: &mut Bits, input: &[u8]) -> Result<Header, Fault> {
        bits.refill(input);
        let is_last = bits.take(1) == 1;
        let body = match bits.take(2) {
            0 => {
                bits.align();
                bits.refill(input);
                let len_bytes = bits.take(16);
                if len_bytes ^ bits.take(16) != 0xffff {
                    return Err(Fault::StoredLength);
                }
                bits.align();
                let len_bytes = len_bytes as u16;
                Body::Stored { len_bytes }
            }
            1 => {
                self.set_fixed()?;
                Body::Coded
            }
            2 => {
                self.read_dynamic(bits, input)?;
                Body::Coded
            }
            _ => return Err(Fault::BlockType),
        };
        Ok(Header { is_last, body })
    }

    fn set_fixed(&mut self) -> Result<(), Fault> {
        if self.holds == Holds::Fixed {
            return Ok(());
        }
        let mut lengths = [8; LITLEN_SYMBOLS];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.build(&lengths, &[5; DISTANCE_SYMBOLS])?;
        self.holds = Holds::Fixed;
        Ok(())
    }

    fn read_dynamic(&mut self, bits: &mut Bits, input: &[u8]) -> Result<(), Fault> {
        let litlens = bits.take(5) as usize + 257;
        let distances = bits.take(5) as usize + 1;
        let precodes = bits.take(4) as usize + 4;
        if litlens > 286 || distances > 30 {
            return Err(Fault::SymbolCount);
        }
        let precode = Precode::read(bits, input, precodes)?;
        let mut lengths = [0_u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS];
        let all = lengths
            .get_mut(..litlens + distances)
            .ok_or(Fault::SymbolCount)?;
        precode.read_lengths(bits, input, all)?;
        let (litlen, distance) = all.split_at(litlens);
        if litlen[256] == 0 {
            return Err(Fault::NoEndOfBlock);
        }
        self.holds = Holds::Dynamic;
        self.build(litlen, distance)
    }

    fn build(&mut self, litlen: &[u8], distance: &[u8]) -> Result<(), Fault> {
        self.litlen.build(litlen).map_err(Fault::LitlenCode)?;
        self.distance.build(distance).map_err(Fault::DistanceCode)?;
        self.end_of_block = end_of_block(litlen);
        Ok(())
    }
}

/// The code of symbol 256 (RFC 1951, 3.2.2).
fn end_of_block(lengths: &[u8]) -> CodeBits {
    let count = lengths[256];
    let shorter = lengths.iter().filter(|&&l| l != 0 && l < count);
    // Every shorter code takes its share of the codes of this length.
    let before: u32 = shorter.map(|&l| 1 << (count - l)).sum();
    let same = lengths[..256].iter().filter(|&&l| l == count).count();
    let code = before as u16 + same as u16;
    CodeBits {
        bits: code.reverse_bits() >> (16 - count),
        count,
    }
}

/// The code of code lengths: symbol and code length for each pattern of seven bits.
struct Precode([(u8, u8); 128]);

impl Precode {
    fn read(bits: &mut Bits, input: &[u8], count: usize) -> Result<Self, Fault> {
        const ORDER: [usize; 19] = [
            16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
        ];
        let mut lengths = [0_u8; 19];
        for &symbol in &ORDER[..count] {
            bits.refill(input);
            lengths[symbol] = bits.take(3).to_le_bytes()[0];
        }
        let code = Code::new(&lengths).map_err(Fault::Precode)?;
        if code.used < 2 {
            return Err(Fault::Precode(BadLengths::Incomplete));
        }
        let mut table = [(0, 0); 128];
        let (mut next, mut bits) = (0_u16, 0_u8);
        for &symbol in &code.sorted[..code.used] {
            let length = lengths[usize::from(symbol)];
            next <<= length - bits;
            bits = length;
            let first = usize::from(next.reverse_bits() >> (16 - length));
            let entry = (symbol.to_le_bytes()[0], length);
            table[first..]
                .iter_mut()
                .step_by(1 << length)
                .for_each(|e| *e = entry);
            next += 1;
        }
        Ok(Self(table))
    }

    fn read_lengths(&self, bits: &mut Bits, input: &[u8], all: &mut [u8]) -> Result<(), Fault> {
        let (mut at, mut previous) = (0, None);
        while at < all.len() {
            bits.refill(input);
            let (symbol, code_bits) = self.0[(bits.peek() & 127) as usize];
            bits.consume(u32::from(code_bits));
            let (length, repeat) = match symbol {
                0..=15 => (symbol, 1),
                16 => (previous.ok_or(Fault::Repeat)?, 3 + bits.take(2)),
                17 => (0, 3 + bits.take(3)),
                _ => (0, 11 + bits.take(7)),
            };
            let end = at + repeat as usize;
            all.get_mut(at..end).ok_or(Fault::Repeat)?.fill(length);
            previous = Some(length);
            at = end;
        }
        Ok(())
    }
}

const _: () = assert!(
    MAX_CODE_BITS == 15,
    "code lengths are four bits in a header"
);
