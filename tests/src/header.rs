//! Tar header blocks and PAX records.

use crate::archive::{Entry, Kind};

/// One header block under construction.
pub(crate) struct Header {
    pub(crate) block: [u8; 512],
    /// Blocks that follow the header: the rest of an old GNU sparse map.
    pub(crate) extension: Vec<u8>,
}

impl Header {
    pub(crate) fn of(entry: &Entry) -> Self {
        let flag = match entry.kind {
            Kind::File => b'0',
            Kind::Hardlink => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
            Kind::Global => b'g',
        };
        let mut header = Self::named(&entry.name, flag);
        header.number(100..108, entry.mode.into());
        header.text(157..257, &entry.link);
        header.text(265..297, entry.user.as_bytes());
        header.text(297..329, entry.group.as_bytes());
        if matches!(entry.kind, Kind::Char | Kind::Block) {
            header.number(329..337, entry.device.0.into());
            header.number(337..345, entry.device.1.into());
        }
        header
    }

    pub(crate) fn named(name: &[u8], flag: u8) -> Self {
        let mut header = Self {
            block: [0; 512],
            extension: Vec::new(),
        };
        header.text(0..100, name);
        header.block[156] = flag;
        for field in [100..108, 108..116, 116..124, 124..136, 136..148] {
            header.number(field, 0);
        }
        header
    }

    pub(crate) fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        let field = &mut self.block[field];
        let len = text.len().min(field.len());
        field.fill(0);
        field[..len].copy_from_slice(&text[..len]);
    }

    pub(crate) fn split_name(&mut self, name: &[u8]) {
        let earliest = name.len() - 101;
        let slash = name[earliest..]
            .iter()
            .position(|&byte| byte == b'/')
            .map(|at| at + earliest);
        let slash = slash
            .filter(|&at| at <= 155)
            .expect("the name fits prefix and name fields");
        self.text(345..500, &name[..slash]);
        self.text(0..100, &name[slash + 1..]);
    }

    pub(crate) fn set_magic(&mut self, magic: &[u8; 8]) {
        self.block[257..265].copy_from_slice(magic);
    }

    /// Octal; a number that does not fit becomes 0, and has a PAX record.
    pub(crate) fn number(&mut self, field: std::ops::Range<usize>, number: u64) {
        self.block[field.clone()].copy_from_slice(&octal(field.len(), number));
    }

    /// Octal where it fits, else big-endian two's complement with the first bit set.
    pub(crate) fn number_base256(&mut self, field: std::ops::Range<usize>, number: i128) {
        let width = field.len();
        match u64::try_from(number) {
            Ok(fits) if fits < 1 << (3 * (width - 1)) => self.number(field, fits),
            _ => {
                self.block[field.clone()].copy_from_slice(&number.to_be_bytes()[16 - width..]);
                self.block[field.start] |= 0x80;
            }
        }
    }

    pub(crate) fn finish(&mut self) -> [u8; 512] {
        self.block[148..156].fill(b' ');
        let sum: u64 = self.block.iter().map(|&byte| u64::from(byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.block
    }
}

/// `number` in octal digits and a NUL, `width` bytes together.
pub(crate) fn octal(width: usize, number: u64) -> Vec<u8> {
    let digits = format!("{number:0width$o}\0", width = width - 1);
    if digits.len() == width {
        digits.into_bytes()
    } else {
        octal(width, 0)
    }
}

pub(crate) fn gnu_long(bytes: &mut Vec<u8>, flag: u8, text: &[u8]) {
    let mut header = Header::named(b"././@LongLink", flag);
    header.set_magic(b"ustar  \0");
    header.number(124..136, text.len() as u64 + 1);
    bytes.extend(header.finish());
    push_padded(bytes, &[text, b"\0"].concat());
}

pub(crate) fn push_padded(bytes: &mut Vec<u8>, payload: &[u8]) {
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

pub(crate) fn encode_records(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let len = (1..)
            .map(|digits| rest + digits)
            .find(|len| len.to_string().len() + rest == *len);
        text.extend(format!("{} {key}=", len.expect("some number of digits fits")).bytes());
        text.extend(value);
        text.push(b'\n');
    }
    text
}

/// Seconds with a fraction; before 1970 the fraction counts down too (-1.5 is half a second
/// before -1).
pub(crate) fn decimal_time((secs, nanos): (i64, u32)) -> String {
    let total = i128::from(secs) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, part) = (
        total.unsigned_abs() / 1_000_000_000,
        total.unsigned_abs() % 1_000_000_000,
    );
    if part == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{part:09}")
            .trim_end_matches('0')
            .to_owned()
    }
}
