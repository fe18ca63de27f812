//! Streams written token by token, with any code.

use super::streams::Numbers;
use crate::layer::deflate::bit_copy::BitWriter;

/// A literal, or a match.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    Literal(u8),
    Match { len: usize, back: usize },
}

/// Code lengths of literals and lengths, and of distances.
pub(super) struct Lengths {
    pub(super) litlen: Vec<u8>,
    pub(super) distance: Vec<u8>,
}

/// A stream under construction, and the bytes that it means.
pub(super) struct Stream {
    writer: BitWriter,
    pub(super) bytes: Vec<u8>,
}

impl Stream {
    pub(super) fn new() -> Self {
        Self {
            writer: BitWriter::after(Vec::new()),
            bytes: Vec::new(),
        }
    }

    pub(super) fn stored(&mut self, bytes: &[u8], is_last: u64) {
        self.writer.put(is_last, 3);
        self.writer.align();
        let len = bytes.len() as u64;
        self.writer.put(len | (len ^ 0xffff) << 16, 32);
        self.writer.put_bytes(bytes);
        self.bytes.extend(bytes);
    }

    pub(super) fn fixed(&mut self, tokens: &[Token], is_last: u64) {
        self.writer.put(is_last | 1 << 1, 3);
        let mut litlen = vec![8; 288];
        litlen[144..256].fill(9);
        litlen[256..280].fill(7);
        let distance = vec![5; 30];
        self.tokens(tokens, &Lengths { litlen, distance });
    }

    pub(super) fn dynamic(&mut self, tokens: &[Token], lengths: &Lengths, is_last: u64) {
        // The code of code lengths: 4 bits for the lengths 0 to 12, 5 for all else.
        const ORDER: [usize; 19] = [
            16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
        ];
        let mut precode = [5; 19];
        precode[..13].fill(4);
        self.writer.put(is_last | 2 << 1, 3);
        self.writer.put(lengths.litlen.len() as u64 - 257, 5);
        self.writer.put(lengths.distance.len() as u64 - 1, 5);
        self.writer.put(15, 4);
        for symbol in ORDER {
            self.writer.put(u64::from(precode[symbol]), 3);
        }
        let codes = codes(&precode);
        let all = [&lengths.litlen[..], &lengths.distance[..]].concat();
        let mut at = 0;
        while at < all.len() {
            let run = all[at..].iter().take_while(|&&l| l == all[at]).count();
            let (symbol, extra, bits, used) = match (all[at], run) {
                (0, 11..) => (18, run.min(138) - 11, 7, run.min(138)),
                (0, 3..) => (17, run.min(10) - 3, 3, run.min(10)),
                (length, 4..) => {
                    self.code(codes[usize::from(length)]);
                    let more = (run - 1).min(6);
                    (16, more - 3, 2, more + 1)
                }
                (length, _) => (usize::from(length), 0, 0, 1),
            };
            self.code(codes[symbol]);
            self.writer.put(extra as u64, bits);
            at += used;
        }
        self.tokens(tokens, lengths);
    }

    fn tokens(&mut self, tokens: &[Token], lengths: &Lengths) {
        let (litlen, distance) = (codes(&lengths.litlen), codes(&lengths.distance));
        for &token in tokens {
            match token {
                Token::Literal(byte) => {
                    self.code(litlen[usize::from(byte)]);
                    self.bytes.push(byte);
                }
                Token::Match { len, back } => {
                    let (symbol, extra, bits) = length_symbol(len);
                    self.code(litlen[symbol]);
                    self.writer.put(extra as u64, bits);
                    let (symbol, extra, bits) = distance_symbol(back);
                    self.code(distance[symbol]);
                    self.writer.put(extra as u64, bits);
                    for _ in 0..len {
                        self.bytes.push(self.bytes[self.bytes.len() - back]);
                    }
                }
            }
        }
        self.code(litlen[256]);
    }

    fn code(&mut self, (bits, count): (u64, u32)) {
        assert!(count > 0, "a symbol without a code");
        self.writer.put(bits, count);
    }

    /// The compressed stream and what it means.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<u8>) {
        (self.writer.finish(), self.bytes)
    }
}

/// RFC 1951, 3.2.2, with the first bit of a code lowest.
fn codes(lengths: &[u8]) -> Vec<(u64, u32)> {
    let mut codes = vec![(0, 0); lengths.len()];
    let mut next = 0_u16;
    for bits in 1..=15_u8 {
        next <<= 1;
        for (symbol, _) in lengths.iter().enumerate().filter(|&(_, &l)| l == bits) {
            codes[symbol] = (
                u64::from(next.reverse_bits() >> (16 - bits)),
                u32::from(bits),
            );
            next += 1;
        }
    }
    codes
}

fn length_symbol(len: usize) -> (usize, usize, u32) {
    if len == 258 {
        return (285, 0, 0);
    }
    let (mut symbol, mut base) = (257, 3);
    loop {
        let bits = if symbol < 265 { 0 } else { (symbol - 261) / 4 };
        if len < base + (1 << bits) {
            return (symbol, len - base, bits as u32);
        }
        base += 1 << bits;
        symbol += 1;
    }
}

fn distance_symbol(back: usize) -> (usize, usize, u32) {
    let (mut symbol, mut base) = (0, 1);
    loop {
        let bits = if symbol < 4 { 0 } else { symbol / 2 - 1 };
        if back < base + (1 << bits) {
            return (symbol, back - base, bits as u32);
        }
        base += 1 << bits;
        symbol += 1;
    }
}

/// A complete code of all `symbols`, as uneven as chance has it.
fn complete(numbers: &mut Numbers, symbols: usize) -> Vec<u8> {
    let mut lengths = vec![0_u8];
    while lengths.len() < symbols {
        // Always the same leaf makes long codes, any leaf short ones.
        let last = lengths.len() - 1;
        let leaf = [last, numbers.below(lengths.len())][numbers.below(2)];
        let leaf = if lengths[leaf] < 15 {
            leaf
        } else {
            let (shortest, _) = (lengths.iter().enumerate().min_by_key(|&(_, l)| l)).expect("one");
            shortest
        };
        lengths[leaf] += 1;
        lengths.push(lengths[leaf]);
    }
    for at in (1..lengths.len()).rev() {
        lengths.swap(at, numbers.below(at + 1));
    }
    lengths
}

/// Codes in which every symbol has one.
pub(super) fn random_lengths(numbers: &mut Numbers) -> Lengths {
    Lengths {
        litlen: complete(numbers, 286),
        distance: complete(numbers, 30),
    }
}

/// Tokens that may follow `written` bytes.
pub(super) fn random_tokens(numbers: &mut Numbers, mut written: usize, count: usize) -> Vec<Token> {
    let matches = numbers.below(4);
    let mut tokens = Vec::with_capacity(count);
    for _ in 0..count {
        if written == 0 || numbers.below(4) >= matches {
            tokens.push(Token::Literal(numbers.byte()));
            written += 1;
            continue;
        }
        let reach = written.min(32_768);
        let back = match numbers.below(6) {
            0 => 1,
            1 => reach,
            2 => 1 + numbers.below(reach.min(40)),
            _ => 1 + numbers.below(reach),
        };
        let len = match numbers.below(4) {
            0 => 258,
            1 => 3 + numbers.below(256),
            _ => 3 + numbers.below(12),
        };
        tokens.push(Token::Match { len, back });
        written += len;
    }
    tokens
}
