//! A small compressor that uses the fixed code alone, in many blocks, as .NET's old `DeflateStream` does.

use std::collections::HashMap;

/// Uncompressed bytes of a block.
const BLOCK_BYTES: usize = 16 << 10;
const WINDOW_BYTES: usize = 32 << 10;
const MAX_MATCH_BYTES: usize = 258;

/// One gzip member of `bytes`.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = Writer {
        bytes: vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 0],
        ..Writer::default()
    };
    let mut seen = HashMap::new();
    let mut at = 0;
    loop {
        let end = bytes.len().min(at + BLOCK_BYTES);
        // BFINAL, and BTYPE 1.
        writer.put(u32::from(end == bytes.len()), 1);
        writer.put(1, 2);
        while at < end {
            let found = longest(bytes, at, end, &mut seen);
            match found {
                Some((len, back)) => {
                    writer.length(len);
                    writer.distance(back);
                    at += len;
                }
                None => {
                    writer.symbol(u32::from(bytes[at]));
                    at += 1;
                }
            }
        }
        writer.symbol(256);
        if at == bytes.len() {
            break;
        }
    }
    writer.put(0, 7);
    let mut member = writer.bytes;
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    member.extend(crc.sum().to_le_bytes());
    member.extend(&(bytes.len() as u64).to_le_bytes()[..4]);
    member
}

/// A match of three bytes and more with where the same three bytes were last.
fn longest(
    bytes: &[u8],
    at: usize,
    end: usize,
    seen: &mut HashMap<[u8; 3], usize>,
) -> Option<(usize, usize)> {
    let three = *bytes[at..end].first_chunk::<3>()?;
    let before = seen.insert(three, at)?;
    let back = at - before;
    if back > WINDOW_BYTES {
        return None;
    }
    let limit = (end - at).min(MAX_MATCH_BYTES);
    let len = (0..limit)
        .take_while(|n| bytes[before + n] == bytes[at + n])
        .count();
    Some((len, back))
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    buffer: u64,
    count: u32,
}

impl Writer {
    fn put(&mut self, value: u32, count: u32) {
        self.buffer |= u64::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.buffer as u8);
            self.buffer >>= 8;
            self.count -= 8;
        }
    }

    /// The fixed code of a literal or length (RFC 1951, 3.2.6), whose bits stand the other way round.
    fn symbol(&mut self, symbol: u32) {
        let (code, count) = match symbol {
            0..=143 => (0x30 + symbol, 8),
            144..=255 => (0x190 + symbol - 144, 9),
            256..=279 => (symbol - 256, 7),
            _ => (0xc0 + symbol - 280, 8),
        };
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    fn length(&mut self, len: usize) {
        if len == MAX_MATCH_BYTES {
            return self.symbol(285);
        }
        let value = len as u32 - 3;
        let (group, extra) = grouped(value, 4);
        self.symbol(257 + group);
        self.put(value & ((1 << extra) - 1), extra);
    }

    fn distance(&mut self, back: usize) {
        let value = back as u32 - 1;
        let (group, extra) = grouped(value, 2);
        self.put(group.reverse_bits() >> 27, 5);
        self.put(value & ((1 << extra) - 1), extra);
    }
}

/// The symbol of `value` where `in_row` symbols have the same number of extra bits, and that number.
fn grouped(value: u32, in_row: u32) -> (u32, u32) {
    if value < 2 * in_row {
        return (value, 0);
    }
    let row_bits = in_row.trailing_zeros();
    let extra = 31 - value.leading_zeros() - row_bits;
    (
        (extra + 1) * in_row + ((value >> extra) & (in_row - 1)),
        extra,
    )
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    #[test]
    fn zlib_reads_what_it_makes() {
        let text: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| format!("{} ", n * n % 7919).into_bytes())
            .take(150_000)
            .collect();
        for len in [0, 1, 5, 16 << 10, (16 << 10) + 1, text.len()] {
            let gzip = super::gzip(&text[..len]);
            let mut bytes = Vec::new();
            flate2::bufread::GzDecoder::new(&gzip[..])
                .read_to_end(&mut bytes)
                .unwrap();
            assert!(bytes == text[..len], "{len}");
            assert!(len < 1000 || gzip.len() < len, "{len}");
        }
    }
}
