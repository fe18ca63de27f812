//! Encode: one planned member in, one gzip member out. Runs on worker threads; compressor and
//! buffers belong to the worker and are reused.

use std::io;

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use crate::image::Digest;
use crate::layer::buffers::Buffers;
use crate::layer::plan::{LayerPlan, Member, Segment};
use crate::layer::spool::ReadAt;

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
    /// What was compressed does not come out again: faulty memory, or a faulty compressor.
    #[error("the gzip member made at spool offset {offset_bytes} does not inflate to its bytes")]
    Check {
        /// Uncompressed offset of the member's first spooled byte; 0 if it has none.
        offset_bytes: u64,
    },
}

/// Whether members are inflated again as soon as they are made, while they are in the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Every member, and compared byte by byte.
    Inflate,
    /// None.
    Skip,
}

/// A finished member.
#[derive(Debug)]
pub struct Encoded {
    /// The uncompressed bytes, for the DiffID.
    pub raw: Vec<u8>,
    /// The gzip member is at the start of this buffer, which is longer: it is used again.
    buffer: Vec<u8>,
    gzip_bytes: usize,
    /// Digest of the chunk at the member's start; `None` if it holds headers alone.
    pub chunk_digest: Option<Digest>,
}

impl Encoded {
    /// The gzip member.
    pub fn gzip(&self) -> &[u8] {
        &self.buffer[..self.gzip_bytes]
    }

    /// Gives the buffers back to the pool that they came from.
    pub fn recycle(self, buffers: &Buffers) {
        buffers.give_back(self.raw);
        buffers.give_back(self.buffer);
    }
}

/// A worker's state.
pub struct Encoder<'a> {
    compressor: Compressor,
    /// With the buffer that it writes to.
    decompressor: Option<(Decompressor, Vec<u8>)>,
    buffers: &'a Buffers,
}

impl<'a> Encoder<'a> {
    /// A worker that compresses at `level`.
    pub fn new(level: Level, check: Check, buffers: &'a Buffers) -> Self {
        Self {
            compressor: level.compressor(),
            decompressor: (check == Check::Inflate).then(|| (Decompressor::new(), Vec::new())),
            buffers,
        }
    }

    /// Memory that [`Encoder::encode`] takes for `member` until its result is dropped.
    pub fn cost_bytes(member: &Member) -> u64 {
        // Raw and compressed; incompressible data grows by less than one part in 4096.
        2 * u64::from(member.len_bytes) + u64::from(member.len_bytes) / 2048 + 4096
    }

    /// Reads, hashes, compresses and checks one member.
    ///
    /// # Errors
    /// When the spool cannot be read, or the check fails.
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
        let mut buffer = self.buffers.take(bound);
        let gzip_bytes = self
            .compressor
            .gzip_compress(&raw, &mut buffer)
            .expect("the buffer has the size that libdeflate asks for");
        if !self.comes_out_again(&raw, &buffer[..gzip_bytes]) {
            let offset_bytes = plan.spool_offset(member).unwrap_or(0);
            return Err(EncodeError::Check { offset_bytes });
        }
        Ok(Encoded {
            raw,
            buffer,
            gzip_bytes,
            chunk_digest,
        })
    }

    fn comes_out_again(&mut self, raw: &[u8], gzip: &[u8]) -> bool {
        let Some((decompressor, buffer)) = &mut self.decompressor else {
            return true;
        };
        if buffer.len() < raw.len() {
            buffer.resize(raw.len(), 0);
        }
        let len = decompressor.gzip_decompress(gzip, &mut buffer[..raw.len()]);
        len == Ok(raw.len()) && buffer[..raw.len()] == *raw
    }
}

/// Fills `raw` with the uncompressed bytes of `member`.
///
/// # Errors
/// When the spool cannot be read.
pub fn read_member<R: ReadAt>(
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
