//! What can be wrong with one row of a TOC.

use std::fmt;

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFault {
    /// The row is no object of the specification's fields.
    Malformed(String),
    /// The type is none of the specification's.
    UnknownType(String),
    /// A chunk follows no file, or its offset is not where the last chunk ended.
    ChunkOrder,
    /// The chunks of a file do not add up to its size.
    ChunkSizes,
    /// A chunk has no digest.
    NoChunkDigest,
    /// The offset lies outside the blob's payload.
    Offset(u64),
    /// Another row has the same offset and inner offset.
    OffsetTwice(u64),
    /// The chunk begins inside another chunk.
    Overlap(u64),
    /// A hardlink names no earlier row.
    LinkTarget(String),
    /// The data is shorter than the chunk.
    ShortMember,
    /// The chunk's data has another digest.
    ChunkDigest,
    /// The whole file's data has another digest.
    FileDigest,
    /// The chunk's data is not where the file's tar entry has it; offsets in the uncompressed stream.
    Position {
        /// Where the row leads.
        found_bytes: u64,
        /// Where the tar has the data; `None` if its header comes later or never.
        expected_bytes: Option<u64>,
    },
    /// The row says something else than the tar header.
    Header {
        /// Which field.
        field: &'static str,
        /// The TOC's value.
        toc: String,
        /// The tar header's value.
        tar: String,
    },
    /// The tar has no entry for the row.
    NotInTar,
    /// A landmark's contents, or size, are not the specification's.
    LandmarkContents,
    /// `.no.prefetch.landmark` is not the first row.
    LandmarkNotFirst,
    /// It is the second landmark.
    LandmarkTwice,
    /// The row is a pack's; readers would show it.
    PackInToc,
    /// The row leads to a pack's first byte of a member; readers would take that for the end of the file
    /// before it.
    PackedWithoutLead,
    /// What the pack holds is not what the file's own entry does.
    PackedDiffers,
    /// The row stands behind the landmark and leads before it: readers would prefetch the whole file.
    FirstChunkPrefetched,
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(reason) => write!(f, "not a TOC row: {reason}"),
            Self::UnknownType(kind) => write!(f, "unknown type \"{kind}\""),
            Self::ChunkOrder => f.write_str("a chunk out of order"),
            Self::ChunkSizes => f.write_str("the chunks do not add up to the file's size"),
            Self::NoChunkDigest => f.write_str("a chunk without digest"),
            Self::Offset(offset) => write!(f, "offset {offset} lies outside the payload"),
            Self::OffsetTwice(offset) => write!(f, "offset {offset} stands in two rows"),
            Self::Overlap(offset) => {
                write!(
                    f,
                    "the chunk overlaps another in the member at offset {offset}"
                )
            }
            Self::LinkTarget(target) => write!(f, "no earlier row \"{target}\" to link to"),
            Self::ShortMember => f.write_str("the gzip member is shorter than the chunk"),
            Self::ChunkDigest => f.write_str("the chunk's digest does not match its data"),
            Self::FileDigest => f.write_str("the file's digest does not match its data"),
            Self::Position {
                found_bytes,
                expected_bytes: Some(expected),
            } => write!(
                f,
                "the chunk lies at uncompressed offset {found_bytes}, in the tar at {expected}"
            ),
            Self::Position { found_bytes, .. } => write!(
                f,
                "the chunk lies at uncompressed offset {found_bytes}, before its tar header"
            ),
            Self::Header { field, toc, tar } => {
                write!(f, "{field} is \"{toc}\", in the tar header \"{tar}\"")
            }
            Self::NotInTar => f.write_str("the tar has no such entry"),
            Self::LandmarkContents => f.write_str("a landmark is one byte 0x0f"),
            Self::LandmarkNotFirst => f.write_str("this landmark must be the first entry"),
            Self::LandmarkTwice => f.write_str("a second landmark"),
            Self::PackInToc => f.write_str("a pack has no TOC row"),
            Self::PackedWithoutLead => f.write_str("a chunk in a pack has an innerOffset"),
            Self::PackedDiffers => {
                f.write_str("the pack holds other bytes than the file's own tar entry")
            }
            Self::FirstChunkPrefetched => {
                f.write_str("the first chunk of a file behind the landmark lies before it")
            }
        }
    }
}
