//! Why a deflate stream is no stream.

use std::io;

use super::huffman::BadLengths;

/// Damage at one place of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The stream ends in the middle.
    Truncated,
    /// No gzip member begins here.
    Magic,
    /// A gzip header with a method other than deflate.
    Method,
    /// A gzip header with reserved flags.
    Flags,
    /// The checksum of a gzip header is wrong.
    HeaderCrc,
    /// The reserved block type.
    BlockType,
    /// The two copies of a stored block's length differ.
    StoredLength,
    /// More symbols than deflate has.
    SymbolCount,
    /// The code of code lengths is none.
    Precode(BadLengths),
    /// A repeated code length without one before it, or past the end.
    Repeat,
    /// The block could never end.
    NoEndOfBlock,
    /// The code of literals and lengths is none.
    LitlenCode(BadLengths),
    /// The code of distances is none.
    DistanceCode(BadLengths),
    /// Bits that are no symbol.
    Symbol,
    /// A match that begins before its member.
    Distance,
    /// A gzip member's CRC-32 is wrong.
    Crc,
    /// A gzip member's length is wrong.
    Length,
    /// Data that is not gzip behind the last member.
    TrailingData,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the stream is cut off",
            Self::Magic => "no gzip member begins there",
            Self::Method => "a compression method other than deflate",
            Self::Flags => "reserved flags in a gzip header",
            Self::HeaderCrc => "wrong checksum of a gzip header",
            Self::BlockType => "block of the reserved type",
            Self::StoredLength => "damaged length of a stored block",
            Self::SymbolCount => "too many length or distance symbols",
            Self::Precode(_) => "invalid code of code lengths",
            Self::Repeat => "invalid repetition of a code length",
            Self::NoEndOfBlock => "no end-of-block code",
            Self::LitlenCode(_) => "invalid code of literals and lengths",
            Self::DistanceCode(_) => "invalid code of distances",
            Self::Symbol => "bits that are no symbol",
            Self::Distance => "a match that reaches back before the data",
            Self::Crc => "wrong checksum of the uncompressed bytes",
            Self::Length => "wrong length of the uncompressed bytes",
            Self::TrailingData => "data that is not gzip behind the last member",
        })
    }
}

/// Why a stream could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The compressed bytes could not be read.
    #[error("reading compressed data at offset {offset_bytes}")]
    Read {
        /// Compressed offset.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The compressed bytes are damaged.
    #[error("{fault}, at bit {position_bits} after {output_bytes} uncompressed bytes")]
    Corrupt {
        /// What is wrong.
        fault: Fault,
        /// Bit position in the compressed stream where it was noticed.
        position_bits: u64,
        /// How much was good.
        output_bytes: u64,
    },
    /// More bytes came out than the caller allows.
    #[error("more than {limit_bytes} uncompressed bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The receiver of the bytes is gone; its own error says why.
    #[error("the uncompressed bytes could not be stored")]
    SinkClosed,
}

impl DecodeError {
    /// The same error in a stream in which `before_bytes` uncompressed bytes go before.
    #[must_use]
    pub fn behind(self, before_bytes: u64) -> Self {
        match self {
            Self::Corrupt {
                fault,
                position_bits,
                output_bytes,
            } => Self::Corrupt {
                fault,
                position_bits,
                output_bytes: output_bytes + before_bytes,
            },
            other => other,
        }
    }
}

/// Why a member could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TranscodeError {
    /// The compressed bytes could not be read again.
    #[error("reading compressed data at offset {offset_bytes}")]
    Read {
        /// Compressed offset.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The compressed bytes are not those that were indexed.
    #[error("the compressed data near bit {position_bits} changed while it was in use")]
    Changed {
        /// Bit position in the compressed stream.
        position_bits: u64,
    },
}
