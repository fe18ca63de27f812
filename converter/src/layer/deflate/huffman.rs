//! Decoding tables: code lengths in, tables out that one look-up answers for short codes.
//!
//! A table has a primary part indexed by the next bits; codes longer than that lead to a second
//! table. An entry of 32 bits holds all that is needed of a symbol, so that the inner loop shifts
//! by it without taking it apart (the layout follows libdeflate's):
//!
//! | bits   | literal       | length or distance    | second table        | end of block, invalid |
//! |--------|---------------|-----------------------|---------------------|-----------------------|
//! | 0..6   | bits consumed | consumed, with extra  | primary bits        | bits consumed         |
//! | 8..12  |               | of these, the code    | index bits          |                       |
//! | 13..16 | 0             | 0                     | EXCEPTIONAL, SECOND | EXCEPTIONAL, (END)    |
//! | 16..31 | the byte      | base                  | where it begins     |                       |
//! | 31     | LITERAL       | 0                     | 0                   | 0                     |

/// Longest code of a literal, length or distance (RFC 1951, 3.2.7).
pub(super) const MAX_CODE_BITS: usize = 15;
/// Index bits of the primary table of literals and lengths.
const LITLEN_BITS: u32 = 11;
/// Index bits of the primary table of distances.
const DISTANCE_BITS: u32 = 8;
/// Primary and second tables together need at most 2342 entries (zlib's `enough 288 11 15`).
const LITLEN_ENTRIES: usize = 4096;
/// Primary and second tables together need at most 402 entries (zlib's `enough 32 8 15`).
const DISTANCE_ENTRIES: usize = 512;

/// The entry is a literal byte.
pub(super) const LITERAL: u32 = 1 << 31;
/// The entry is neither a literal nor a length or distance.
pub(super) const EXCEPTIONAL: u32 = 1 << 15;
/// The exceptional entry leads to a second table.
pub(super) const SECOND: u32 = 1 << 14;
/// The exceptional entry ends the block.
pub(super) const END: u32 = 1 << 13;

/// Why code lengths are no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLengths {
    /// More codes than the lengths have room for, or fewer.
    Oversubscribed,
    /// Some bit patterns mean nothing.
    Incomplete,
}

/// Table of literals, lengths and the end of block.
pub(super) struct LitlenTable {
    entries: [u32; LITLEN_ENTRIES],
}

/// Table of distances.
pub(super) struct DistanceTable {
    entries: [u32; DISTANCE_ENTRIES],
}

impl LitlenTable {
    pub(super) fn new() -> Self {
        Self {
            entries: [EXCEPTIONAL; LITLEN_ENTRIES],
        }
    }

    /// Makes the table of `lengths`, one for each symbol.
    pub(super) fn build(&mut self, lengths: &[u8]) -> Result<(), BadLengths> {
        build(&mut self.entries, LITLEN_BITS, lengths, &LITLEN_SYMBOLS)
    }

    /// The entry in the primary table for the next bits.
    #[inline(always)]
    pub(super) fn primary(&self, bits: u64) -> u32 {
        self.entries[(bits & ((1 << LITLEN_BITS) - 1)) as usize]
    }

    /// The entry that `entry` leads to; its primary bits are consumed already.
    #[inline(always)]
    pub(super) fn second(&self, entry: u32, bits: u64) -> u32 {
        self.entries[second_index(entry, bits) & (LITLEN_ENTRIES - 1)]
    }
}

impl DistanceTable {
    pub(super) fn new() -> Self {
        Self {
            entries: [EXCEPTIONAL; DISTANCE_ENTRIES],
        }
    }

    /// Makes the table of `lengths`, one for each symbol.
    pub(super) fn build(&mut self, lengths: &[u8]) -> Result<(), BadLengths> {
        build(&mut self.entries, DISTANCE_BITS, lengths, &DISTANCE_SYMBOLS)
    }

    /// The entry in the primary table for the next bits.
    #[inline(always)]
    pub(super) fn primary(&self, bits: u64) -> u32 {
        self.entries[(bits & ((1 << DISTANCE_BITS) - 1)) as usize]
    }

    /// The entry that `entry` leads to; its primary bits are consumed already.
    #[inline(always)]
    pub(super) fn second(&self, entry: u32, bits: u64) -> u32 {
        self.entries[second_index(entry, bits) & (DISTANCE_ENTRIES - 1)]
    }
}

#[inline(always)]
fn second_index(entry: u32, bits: u64) -> usize {
    let index_bits = (entry >> 8) & 15;
    ((entry >> 16) as usize) + (bits & ((1 << index_bits) - 1)) as usize
}

/// Base and extra bits: the value of a length or distance whose entry is `entry`, from the bits
/// before any of it was consumed.
#[inline(always)]
pub(super) fn value(entry: u32, bits: u64) -> usize {
    let with_code = bits & ((1 << (entry & 63)) - 1);
    (entry >> 16) as usize + (with_code >> ((entry >> 8) & 15)) as usize
}

/// Entries of the symbols without their code's length, for literals and lengths.
const LITLEN_SYMBOLS: [u32; 288] = {
    // RFC 1951, 3.2.5.
    const BASES: [u32; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115,
        131, 163, 195, 227, 258,
    ];
    const EXTRA: [u32; 29] = [
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
    ];
    let mut symbols = [EXCEPTIONAL; 288];
    let mut byte = 0;
    while byte < 256 {
        symbols[byte] = LITERAL | ((byte as u32) << 16);
        byte += 1;
    }
    symbols[256] = EXCEPTIONAL | END;
    let mut length = 0;
    while length < 29 {
        symbols[257 + length] = (BASES[length] << 16) | EXTRA[length];
        length += 1;
    }
    symbols
};

/// Entries of the symbols without their code's length, for distances.
const DISTANCE_SYMBOLS: [u32; 32] = {
    // RFC 1951, 3.2.5: two codes for each number of extra bits, four without any.
    let mut symbols = [EXCEPTIONAL; 32];
    let (mut code, mut base) = (0, 1);
    while code < 30 {
        let extra = if code < 4 { 0 } else { code / 2 - 1 };
        symbols[code as usize] = (base << 16) | extra;
        base += 1 << extra;
        code += 1;
    }
    symbols
};

/// A symbol's entry once `code_bits` of its code are left to consume.
#[inline(always)]
fn entry(symbol: u32, code_bits: u32) -> u32 {
    // The code's own length matters to lengths and distances alone; in the others it would stand
    // where nothing looks.
    symbol + ((code_bits << 8) | code_bits)
}

/// How a code is laid out, or that it is none.
pub(super) struct Code {
    /// How many codes have each length.
    pub(super) counts: [u16; MAX_CODE_BITS + 1],
    /// Symbols that have a code, in the order of their codes.
    pub(super) sorted: [u16; 288],
    /// How many these are.
    pub(super) used: usize,
}

impl Code {
    /// Sorts the symbols of `lengths`, which has at most 288 of at most 15.
    pub(super) fn new(lengths: &[u8]) -> Result<Self, BadLengths> {
        let mut counts = [0_u16; MAX_CODE_BITS + 1];
        for &length in lengths {
            counts[usize::from(length & 15)] += 1;
        }
        counts[0] = 0;
        let (mut offsets, mut used, mut left) = ([0_u16; MAX_CODE_BITS + 1], 0, 1_i32);
        for bits in 1..=MAX_CODE_BITS {
            offsets[bits] = used;
            used += counts[bits];
            left = 2 * left - i32::from(counts[bits]);
            if left < 0 {
                return Err(BadLengths::Oversubscribed);
            }
        }
        // As zlib: no code at all, or a single one of one bit, may stand; only its use is an error.
        if left > 0 && used > 0 && !(used == 1 && counts[1] == 1) {
            return Err(BadLengths::Incomplete);
        }
        let mut sorted = [0_u16; 288];
        for (symbol, &length) in (0_u16..).zip(lengths) {
            if length != 0 {
                let offset = &mut offsets[usize::from(length & 15)];
                if let Some(slot) = sorted.get_mut(usize::from(*offset)) {
                    *slot = symbol;
                }
                *offset += 1;
            }
        }
        Ok(Self {
            counts,
            sorted,
            used: usize::from(used),
        })
    }
}

/// The code that follows `code` of `bits` bits, both with their first bit lowest; `None` after the
/// last one.
#[inline(always)]
fn following(code: usize, bits: u32) -> Option<usize> {
    let zeros = code ^ ((1 << bits) - 1);
    let highest = 1_usize << zeros.checked_ilog2()?;
    Some((code & (highest - 1)) | highest)
}

/// Fills `entries`; see the module for their meaning.
fn build(
    entries: &mut [u32],
    primary_bits: u32,
    lengths: &[u8],
    symbols: &[u32],
) -> Result<(), BadLengths> {
    let code = Code::new(lengths)?;
    let primary = 1_usize << primary_bits;
    if code.used < 2 {
        entries[..primary].fill(EXCEPTIONAL);
        if code.used == 1 {
            let only = entry(symbols[usize::from(code.sorted[0])], 1);
            entries[..primary]
                .iter_mut()
                .step_by(2)
                .for_each(|e| *e = only);
        }
        return Ok(());
    }
    let mut sorted = code.sorted[..code.used].iter();
    let mut counts = code.counts;
    let (mut at, mut bits) = (0_usize, 1_u32);
    // Short codes: the table of `bits` bits, then the same twice for one bit more.
    loop {
        while counts[bits as usize] > 0 {
            let Some(&symbol) = sorted.next() else { break };
            counts[bits as usize] -= 1;
            entries[at] = entry(symbols[usize::from(symbol)], bits);
            let Some(next) = following(at, bits) else {
                for bits in bits..primary_bits {
                    entries.copy_within(..1 << bits, 1 << bits);
                }
                return Ok(());
            };
            at = next;
        }
        if bits == primary_bits {
            break;
        }
        entries.copy_within(..1 << bits, 1 << bits);
        bits += 1;
    }
    // Long codes, by their first `primary_bits` bits.
    let mut end = primary;
    let (mut prefix, mut start) = (usize::MAX, 0);
    loop {
        while bits as usize <= MAX_CODE_BITS && counts[bits as usize] == 0 {
            bits += 1;
        }
        let Some(&symbol) = sorted.next() else {
            return Ok(());
        };
        if at & (primary - 1) != prefix {
            prefix = at & (primary - 1);
            start = end;
            // As many index bits as the longest code with this prefix has behind it.
            let mut index_bits = bits - primary_bits;
            let mut used = u32::from(counts[bits as usize]);
            while used < 1 << index_bits {
                index_bits += 1;
                used = 2 * used + u32::from(counts[(primary_bits + index_bits) as usize]);
            }
            end = start + (1 << index_bits);
            let lead = (start as u32) << 16;
            entries[prefix] = lead | EXCEPTIONAL | SECOND | (index_bits << 8) | primary_bits;
        }
        counts[bits as usize] -= 1;
        let long = entry(symbols[usize::from(symbol)], bits - primary_bits);
        let stride = 1 << (bits - primary_bits);
        entries[start + (at >> primary_bits)..end]
            .iter_mut()
            .step_by(stride)
            .for_each(|e| *e = long);
        match following(at, bits) {
            Some(next) => at = next,
            None => return Ok(()),
        }
    }
}
