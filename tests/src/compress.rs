//! Compressed blobs as the writers in the field make them.

use std::io::Write as _;

use flate2::{Compress, Compression as Level, Crc, FlushCompress, Status};

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// One gzip member at this level (1 to 9).
    Gzip(u32),
    /// Several gzip members with borders anywhere, an empty one among them.
    MultiMember,
    /// One gzip member whose header has every optional field: FEXTRA, FNAME, FCOMMENT, FHCRC.
    FullHeader,
    /// One gzip member of stored blocks.
    Stored,
    /// zstd.
    Zstd,
    /// None.
    Plain,
}

impl Compression {
    /// Every kind the tests go through.
    pub const ALL: [Self; 8] = [
        Self::Gzip(1),
        Self::Gzip(6),
        Self::Gzip(9),
        Self::MultiMember,
        Self::FullHeader,
        Self::Stored,
        Self::Zstd,
        Self::Plain,
    ];

    /// The compressed form of `bytes`.
    ///
    /// # Panics
    /// When zstd fails, which it does not in memory.
    pub fn compress(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Gzip(level) => gzip_member(bytes, level, HeaderFields::Bare),
            Self::Stored => gzip_member(bytes, 0, HeaderFields::Bare),
            Self::FullHeader => gzip_member(bytes, 6, HeaderFields::All),
            Self::MultiMember => {
                let (first, rest) = bytes.split_at(bytes.len() / 3);
                let (second, third) = rest.split_at(rest.len() / 2);
                [first, second, &[], third]
                    .iter()
                    .flat_map(|part| gzip_member(part, 6, HeaderFields::Bare))
                    .collect()
            }
            Self::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("level 3 exists");
                encoder.write_all(bytes).expect("memory can be written");
                encoder.finish().expect("memory can be written")
            }
            Self::Plain => bytes.to_vec(),
        }
    }

    /// What the OCI media type of a layer ends with.
    pub fn oci_suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Zstd => "+zstd",
            _ => "+gzip",
        }
    }
}

/// Which optional fields a gzip header has (RFC 1952, 2.3.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeaderFields {
    Bare,
    All,
}

fn gzip_member(bytes: &[u8], level: u32, fields: HeaderFields) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 0, 3];
    if fields == HeaderFields::All {
        member[3] = 0x02 | 0x04 | 0x08 | 0x10;
        member.extend([6, 0, b'X', b'Y', 2, 0, 0x1f, 0x8b]);
        member.extend(b"layer.tar\0a comment with \xe9\0");
        let mut crc = Crc::new();
        crc.update(&member);
        member.extend(&crc.sum().to_le_bytes()[..2]);
    }
    deflate(bytes, level, &mut member);
    let mut crc = Crc::new();
    crc.update(bytes);
    member.extend(crc.sum().to_le_bytes());
    // ISIZE is the length modulo 2^32.
    member.extend(&(bytes.len() as u64).to_le_bytes()[..4]);
    member
}

fn deflate(bytes: &[u8], level: u32, output: &mut Vec<u8>) {
    let mut encoder = Compress::new(Level::new(level), false);
    loop {
        let consumed = usize::try_from(encoder.total_in()).expect("input lies in memory");
        output.reserve(64 * 1024);
        let status = encoder
            .compress_vec(&bytes[consumed..], output, FlushCompress::Finish)
            .expect("deflate cannot fail");
        if status == Status::StreamEnd {
            return;
        }
    }
}
