//! Decompression of a whole layer as a stream: gzip of any number of members, zstd of any number
//! of frames, or no compression. The format is told by the first bytes, as containerd does.

use std::io::{self, BufRead, Read};

use crossbeam::channel::Sender;

use crate::layer::buffers::Buffers;
use crate::layer::deflate::{Block, Border, Container, DecodeError, Index, Known, Sink, decode};
use crate::layer::index_cache::Recorder;
use crate::layer::scan::BLOCK_BYTES;
use crate::layer::scan::passing::Passage;
use crate::layer::scan::sections::Onward;

/// Why a blob cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    /// The gzip stream is damaged or cut off.
    #[error("corrupt gzip data")]
    Gzip(#[source] DecodeError),
    /// The blob could not be read on.
    #[error("reading the blob after {output_bytes} uncompressed bytes")]
    Read {
        /// How much was good.
        output_bytes: u64,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The zstd stream is damaged or cut off.
    #[error("corrupt zstd data after {output_bytes} uncompressed bytes")]
    Zstd {
        /// How much was good.
        output_bytes: u64,
        /// What is wrong.
        #[source]
        source: io::Error,
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

impl From<DecodeError> for InflateError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::TooLarge { limit_bytes } => Self::TooLarge { limit_bytes },
            DecodeError::SinkClosed => Self::SinkClosed,
            error => Self::Gzip(error),
        }
    }
}

/// Inflates `stream` to its end and sends the bytes in blocks. Gives the index of a gzip stream, whose
/// borders `recorder` sees.
pub(super) fn inflate(
    stream: &mut impl BufRead,
    onward: Onward<'_>,
    recorder: Option<&mut Recorder>,
) -> Result<Option<Index>, InflateError> {
    let Onward {
        sender,
        buffers,
        limit_bytes,
        is_index_wanted,
    } = onward;
    let mut out = Output::new(sender, limit_bytes, buffers);
    let head = stream.fill_buf().map_err(|source| InflateError::Read {
        output_bytes: 0,
        source,
    })?;
    match head {
        [0x1f, 0x8b, ..] => {
            let mut forward = Forward {
                sender,
                buffers,
                recorder,
                known: is_index_wanted.then(Known::default),
                index: Index::default(),
            };
            let decoded = decode(stream, Container::Gzip, limit_bytes, &mut forward)?;
            return Ok(Some(decoded.index));
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let corrupt = |output_bytes, source| InflateError::Zstd {
                output_bytes,
                source,
            };
            let mut decoder =
                zstd::Decoder::with_buffer(stream).map_err(|source| InflateError::Zstd {
                    output_bytes: 0,
                    source,
                })?;
            out.copy(&mut decoder, corrupt)?;
        }
        _ => out.copy(stream, |output_bytes, source| InflateError::Read {
            output_bytes,
            source,
        })?,
    }
    out.finish().map(|()| None)
}

/// Sends on what the decoder makes.
struct Forward<'a> {
    sender: &'a Sender<Passage>,
    buffers: &'a Buffers,
    recorder: Option<&'a mut Recorder>,
    /// How much of the index has been sent, if it is sent.
    known: Option<Known>,
    index: Index,
}

impl Sink for Forward<'_> {
    fn indexed(&mut self, index: &Index) {
        if let Some(known) = &mut self.known {
            self.index = index.settled_after(known);
        }
    }

    fn border(&mut self, border: Border, output_bytes: u64, history: &[u8]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.border(border, output_bytes, history);
        }
    }

    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        let index = std::mem::take(&mut self.index);
        self.sender.send(Passage { block, index }).ok()?;
        Some(self.buffers.reuse())
    }
}

/// Collects bytes into blocks of one size.
struct Output<'a> {
    sender: &'a Sender<Passage>,
    limit_bytes: u64,
    buffers: &'a Buffers,
    block: Vec<u8>,
    filled: usize,
    total_bytes: u64,
}

impl<'a> Output<'a> {
    fn new(sender: &'a Sender<Passage>, limit_bytes: u64, buffers: &'a Buffers) -> Self {
        Self {
            sender,
            limit_bytes,
            buffers,
            block: buffers.take(BLOCK_BYTES),
            filled: 0,
            total_bytes: 0,
        }
    }

    /// Takes over all of `source`.
    fn copy(
        &mut self,
        source: &mut impl Read,
        corrupt: impl Fn(u64, io::Error) -> InflateError,
    ) -> Result<(), InflateError> {
        loop {
            match source.read(&mut self.block[self.filled..]) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    self.filled += len;
                    self.total_bytes += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(corrupt(self.total_bytes, error)),
            }
            if self.total_bytes > self.limit_bytes {
                return Err(InflateError::TooLarge {
                    limit_bytes: self.limit_bytes,
                });
            }
            if self.filled == self.block.len() {
                let next = self.buffers.take(BLOCK_BYTES);
                self.send(next)?;
            }
        }
    }

    /// Sends what is left.
    fn finish(mut self) -> Result<(), InflateError> {
        if self.filled == 0 {
            Ok(())
        } else {
            self.send(Vec::new())
        }
    }

    fn send(&mut self, next: Vec<u8>) -> Result<(), InflateError> {
        let mut block = std::mem::replace(&mut self.block, next);
        block.truncate(self.filled);
        self.filled = 0;
        let passage = Passage {
            block: Block::of(block),
            index: Index::default(),
        };
        self.sender
            .send(passage)
            .map_err(|_| InflateError::SinkClosed)
    }
}
