//! Encode: one planned member in, one gzip member out. Runs on worker threads; compressor and
//! buffers belong to the worker and are reused.

mod group;

use std::io;

use crossbeam::queue::SegQueue;
use libdeflater::{CompressionLvl, Compressor};

use crate::image::Digest;
use crate::layer::plan::{LayerPlan, Member, Segment};
use crate::layer::spool::ReadAt;

pub use group::EncodedGroup;

/// Compression level of libdeflate: 0 stores, 12 is slowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(CompressionLvl);

impl Level {
    /// `None` above 12.
    pub fn new(level: u8) -> Option<Self> {
        CompressionLvl::new(i32::from(level)).ok().map(Self)
    }

    /// A compressor of this level.
    pub fn compressor(self) -> Compressor {
        Compressor::new(self.0)
    }
}

impl Default for Level {
    /// Level 6.
    fn default() -> Self {
        Self(CompressionLvl::default())
    }
}

/// Why a member could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The spool could not be read.
    #[error("reading the spool at offset {offset_bytes}")]
    Spool {
        /// Uncompressed offset.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A finished member.
#[derive(Debug)]
pub struct Encoded {
    /// The uncompressed bytes, for the DiffID.
    pub raw: Vec<u8>,
    /// The gzip member.
    pub gzip: Vec<u8>,
    /// Digest of the chunk at the member's start; `None` if it holds headers alone.
    pub chunk_digest: Option<Digest>,
}

/// Buffers that went through the pipeline and can be used again.
#[derive(Debug, Default)]
pub struct Buffers(SegQueue<Vec<u8>>);

/// Smaller buffers are cheap to make, and a large one must not be held by a small member: its
/// cost would be counted too low.
const REUSED_BUFFER_BYTES: usize = 512 << 10;

impl Buffers {
    fn take(&self, len_bytes: usize) -> Vec<u8> {
        let reused = if len_bytes >= REUSED_BUFFER_BYTES {
            self.0.pop()
        } else {
            None
        };
        reused.unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= REUSED_BUFFER_BYTES {
            self.0.push(buffer);
        }
    }
}

/// A worker's state.
pub struct Encoder<'a> {
    compressor: Compressor,
    buffers: &'a Buffers,
}

impl<'a> Encoder<'a> {
    /// A worker that compresses at `level`.
    pub fn new(level: Level, buffers: &'a Buffers) -> Self {
        Self {
            compressor: level.compressor(),
            buffers,
        }
    }

    /// Memory that [`Encoder::encode`] takes for `member` until its result is dropped.
    pub fn cost_bytes(member: &Member) -> u64 {
        // Raw and compressed; incompressible data grows by less than one part in 4096.
        2 * u64::from(member.len_bytes) + u64::from(member.len_bytes) / 2048 + 4096
    }

    /// Reads, hashes and compresses one member.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn encode<R: ReadAt>(
        &mut self,
        plan: &LayerPlan,
        member: &Member,
        spool: &R,
    ) -> Result<Encoded, EncodeError> {
        let mut raw = self.buffers.take(member.len_bytes as usize);
        read_member(plan, member, spool, &mut raw)?;
        let chunk = &raw[..member.chunk_bytes as usize];
        let chunk_digest = (!chunk.is_empty()).then(|| Digest::of(chunk));
        let bound = self.compressor.gzip_compress_bound(raw.len());
        let mut gzip = self.buffers.take(bound);
        gzip.resize(bound, 0);
        let len = self
            .compressor
            .gzip_compress(&raw, &mut gzip)
            .expect("the buffer has the size that libdeflate asks for");
        gzip.truncate(len);
        Ok(Encoded {
            raw,
            gzip,
            chunk_digest,
        })
    }
}

/// Fills `raw` with the member's uncompressed bytes.
pub(in crate::layer) fn read_member<R: ReadAt>(
    plan: &LayerPlan,
    member: &Member,
    spool: &R,
    raw: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    raw.resize(member.len_bytes as usize, 0);
    let first = member.first_segment as usize;
    let mut rest = raw.as_mut_slice();
    for segment in &plan.segments[first..first + member.segments as usize] {
        let (target, behind) = rest.split_at_mut(segment.len_bytes() as usize);
        rest = behind;
        match *segment {
            Segment::Spool { offset_bytes, .. } => spool
                .read_exact_at(target, offset_bytes)
                .map_err(|source| EncodeError::Spool {
                    offset_bytes,
                    source,
                })?,
            Segment::Literal { offset, .. } => {
                let offset = offset as usize;
                target.copy_from_slice(&plan.literals[offset..offset + target.len()]);
            }
            Segment::Zeros { .. } => target.fill(0),
        }
    }
    Ok(())
}
