//! Encode: a group of planned members in, gzip members out. Runs on worker threads; compressors
//! belong to the worker, buffers go round.

use std::io;

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use crate::blob::{Blob, ReadAt};
use crate::layer::buffers::Buffers;
use crate::layer::deflate::{self, MIN_RUN_BYTES, Run, TranscodeError, Transcoder};
use crate::layer::plan::{Group, LayerPlan, Member, Segment};

/// Compression level of libdeflate: 0 stores, 12 is slowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(CompressionLvl);

impl Level {
    /// For what cannot be copied where the rest is: little, and a better level makes up for what the
    /// cuts cost.
    pub const FOR_THE_REST: Self = match CompressionLvl::new(8) {
        Ok(level) => Self(level),
        Err(_) => panic!("libdeflate has level 8"),
    };

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
    /// The source's compressed bytes could not be copied.
    #[error("copying the compressed source")]
    Copy(#[from] TranscodeError),
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

/// A finished group.
#[derive(Debug)]
pub struct EncodedGroup {
    /// The uncompressed bytes.
    pub raw: Vec<u8>,
    /// Where the plan's members came to lie, one for each.
    pub parts: Vec<Part>,
    /// The gzip members, one behind the other, at the start of a buffer that is longer.
    pub(super) gzip: Vec<u8>,
    pub(super) gzip_bytes: usize,
    /// How many of the bytes were copied from the source's compressed form.
    pub copied_bytes: u64,
}

impl EncodedGroup {
    /// Compressed bytes.
    pub fn gzip_len_bytes(&self) -> u64 {
        self.gzip_bytes as u64
    }

    /// Gives the buffers back.
    pub fn recycle(self, buffers: &Buffers) {
        buffers.give_back(self.raw);
        buffers.give_back(self.gzip);
    }
}

/// A planned member inside a gzip member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where its gzip member starts in the group's.
    pub gzip_offset_bytes: u64,
    /// Uncompressed bytes before it in the gzip member.
    pub inner_bytes: u64,
}

/// A compressed source whose tokens are copied.
pub type Copied<'a> = deflate::Source<'a, Blob>;

/// A worker's state.
pub struct Encoder<'a> {
    compressor: Compressor,
    transcoder: Option<(Transcoder, Copied<'a>)>,
    /// With the buffer that it writes to.
    decompressor: Option<(Decompressor, Vec<u8>)>,
    buffers: &'a Buffers,
}

impl<'a> Encoder<'a> {
    /// A worker that copies from `copied` what it can, and compresses the rest at `level`.
    pub fn new(
        level: Level,
        copied: Option<Copied<'a>>,
        check: Check,
        buffers: &'a Buffers,
    ) -> Self {
        let transcoder = |copied| (Transcoder::new(level.compressor()), copied);
        Self {
            compressor: level.compressor(),
            transcoder: copied.map(transcoder),
            decompressor: (check == Check::Inflate).then(|| (Decompressor::new(), Vec::new())),
            buffers,
        }
    }

    /// Memory that [`Encoder::encode`] takes for `group` until its result is written.
    pub fn cost_bytes(group: &Group) -> u64 {
        // Raw and compressed; incompressible data grows by less than one part in 2048, and every
        // gzip member has some bytes of its own, every part a place.
        2 * group.len_bytes + group.len_bytes / 1024 + 128 * group.members.len() as u64 + 4096
    }

    /// Reads, compresses and checks the members of one group.
    ///
    /// With [`LayerPlan::min_chunk_bytes`] a gzip member ends as soon as it has so many compressed
    /// bytes, as far as the last one's ratio foretells where that is, and at the group's end.
    ///
    /// # Errors
    /// When the spool cannot be read, or the check fails.
    pub fn encode<R: ReadAt>(
        &mut self,
        plan: &LayerPlan,
        group: &Group,
        spool: &R,
    ) -> Result<EncodedGroup, EncodeError> {
        let members = &plan.members[group.members.clone()];
        let mut raw = self.buffers.take(group.len_bytes as usize);
        let mut starts = Vec::with_capacity(members.len() + 1);
        let mut bound = 0;
        let mut start = 0;
        for member in members {
            let end = start + member.len_bytes as usize;
            read_member(plan, member, spool, &mut raw[start..end])?;
            starts.push(start);
            bound += self.compressor.gzip_compress_bound(end - start);
            start = end;
        }
        starts.push(start);
        let mut gzip = self.buffers.take(bound);
        let (parts, gzip_bytes, copied_bytes) = match plan.min_chunk_bytes {
            0 if self.transcoder.is_some() => self.copy_each(plan, members, &raw, &mut gzip)?,
            min_bytes => {
                let (parts, gzip_bytes) = match min_bytes as usize {
                    0 => self.compress_each(&raw, &starts, &mut gzip),
                    min_bytes => self.compress_sharing(&raw, &starts, min_bytes, &mut gzip),
                };
                (parts, gzip_bytes, 0)
            }
        };
        if !self.come_out_again(&raw, &starts, &gzip[..gzip_bytes], &parts) {
            let offset_bytes = members.iter().find_map(|member| plan.spool_offset(member));
            return Err(EncodeError::Check {
                offset_bytes: offset_bytes.unwrap_or(0),
            });
        }
        Ok(EncodedGroup {
            raw,
            parts,
            gzip,
            gzip_bytes,
            copied_bytes,
        })
    }

    /// A gzip member for every part: the source's own where there is one, else from the source's tokens
    /// where they are long enough.
    fn copy_each(
        &mut self,
        plan: &LayerPlan,
        members: &[Member],
        raw: &[u8],
        gzip: &mut Vec<u8>,
    ) -> Result<(Vec<Part>, usize, u64), EncodeError> {
        let mut copied_bytes = 0;
        let mut parts = Vec::with_capacity(members.len());
        let mut rest = raw;
        gzip.clear();
        for member in members {
            parts.push(Part {
                gzip_offset_bytes: gzip.len() as u64,
                inner_bytes: 0,
            });
            let (raw, behind) = rest.split_at(member.len_bytes as usize);
            rest = behind;
            let runs = runs(plan, member);
            if let (Some((transcoder, copied)), Some(source_bytes)) =
                (&mut self.transcoder, stands_at(plan, member))
                && transcoder.whole_member(raw, source_bytes, copied, gzip)?
            {
                copied_bytes += raw.len() as u64;
                continue;
            }
            match &mut self.transcoder {
                Some((transcoder, copied)) if !runs.is_empty() => {
                    copied_bytes += transcoder.member(raw, &runs, copied, gzip)?.copied_bytes;
                }
                _ => {
                    let start = gzip.len();
                    gzip.resize(start + self.compressor.gzip_compress_bound(raw.len()), 0);
                    let len = self.compress(raw, &mut gzip[start..]);
                    gzip.truncate(start + len);
                }
            }
        }
        Ok((parts, gzip.len(), copied_bytes))
    }

    /// A gzip member for every part.
    fn compress_each(
        &mut self,
        raw: &[u8],
        starts: &[usize],
        gzip: &mut [u8],
    ) -> (Vec<Part>, usize) {
        let mut filled = 0;
        let parts = starts.windows(2).map(|pair| {
            let part = Part {
                gzip_offset_bytes: filled as u64,
                inner_bytes: 0,
            };
            filled += self.compress(&raw[pair[0]..pair[1]], &mut gzip[filled..]);
            part
        });
        (parts.collect(), filled)
    }

    /// A gzip member for as many parts as give `min_bytes`.
    fn compress_sharing(
        &mut self,
        raw: &[u8],
        starts: &[usize],
        min_bytes: usize,
        gzip: &mut [u8],
    ) -> (Vec<Part>, usize) {
        let count = starts.len() - 1;
        let mut parts = Vec::with_capacity(count);
        let mut filled = 0;
        // Uncompressed bytes that are expected to give the minimum.
        let mut wanted_bytes = min_bytes;
        while parts.len() < count {
            let first = parts.len();
            let (end, compressed_bytes) = loop {
                let reached =
                    starts[first + 1..].partition_point(|&at| at < starts[first] + wanted_bytes);
                let end = (first + 1 + reached).min(count);
                let compressed_bytes =
                    self.compress(&raw[starts[first]..starts[end]], &mut gzip[filled..]);
                if compressed_bytes >= min_bytes || end == count {
                    break (end, compressed_bytes);
                }
                // By the ratio seen so far, and at least one part more.
                let raw_bytes = starts[end] - starts[first];
                wanted_bytes = scaled(raw_bytes, min_bytes, compressed_bytes).max(raw_bytes + 1);
            };
            parts.extend(starts[first..end].iter().map(|start| Part {
                gzip_offset_bytes: filled as u64,
                inner_bytes: (start - starts[first]) as u64,
            }));
            wanted_bytes = scaled(starts[end] - starts[first], min_bytes, compressed_bytes);
            filled += compressed_bytes;
        }
        (parts, filled)
    }

    fn compress(&mut self, raw: &[u8], gzip: &mut [u8]) -> usize {
        self.compressor
            .gzip_compress(raw, gzip)
            .expect("the buffer has the size that libdeflate asks for")
    }

    /// Whether each gzip member inflates to its bytes of `raw`.
    fn come_out_again(
        &mut self,
        raw: &[u8],
        starts: &[usize],
        gzip: &[u8],
        parts: &[Part],
    ) -> bool {
        let Some((decompressor, buffer)) = &mut self.decompressor else {
            return true;
        };
        let begin = |&part: &usize| parts[part].inner_bytes == 0;
        let mut begins = (0..parts.len()).filter(begin).peekable();
        while let Some(part) = begins.next() {
            let next = begins.peek();
            let gzip_start = parts[part].gzip_offset_bytes as usize;
            let gzip_end = next.map_or(gzip.len(), |&next| parts[next].gzip_offset_bytes as usize);
            let raw = &raw[starts[part]..next.map_or(raw.len(), |&next| starts[next])];
            if buffer.len() < raw.len() {
                buffer.resize(raw.len(), 0);
            }
            let out = &mut buffer[..raw.len()];
            let made = decompressor.gzip_decompress(&gzip[gzip_start..gzip_end], out);
            if made != Ok(raw.len()) || out != raw {
                return false;
            }
        }
        true
    }
}

/// The stretches of `member` that stand in the source and are worth copying.
fn runs(plan: &LayerPlan, member: &Member) -> Vec<Run> {
    let first = member.first_segment as usize;
    let mut start = 0;
    let mut runs = Vec::new();
    for segment in &plan.segments[first..first + member.segments as usize] {
        let len_bytes = segment.len_bytes() as usize;
        if let Segment::Spool { offset_bytes, .. } = *segment
            && len_bytes >= MIN_RUN_BYTES
        {
            runs.push(Run {
                start,
                len_bytes,
                source_bytes: offset_bytes,
            });
        }
        start += len_bytes;
    }
    runs
}

/// Where `member` stands in the source, if it does so as a whole: the plan joins what follows each other.
fn stands_at(plan: &LayerPlan, member: &Member) -> Option<u64> {
    let first = member.first_segment as usize;
    match plan.segments[first..first + member.segments as usize] {
        [Segment::Spool { offset_bytes, .. }] => Some(offset_bytes),
        _ => None,
    }
}

/// `bytes * wanted / found`, which is not 0: a gzip member has a header.
fn scaled(bytes: usize, wanted: usize, found: usize) -> usize {
    (bytes as u128 * wanted as u128 / found.max(1) as u128)
        .try_into()
        .unwrap_or(usize::MAX)
}

/// Fills `raw` with the uncompressed bytes of `member`, exactly as many as it has.
///
/// # Errors
/// When the spool cannot be read.
pub fn read_member<R: ReadAt>(
    plan: &LayerPlan,
    member: &Member,
    spool: &R,
    raw: &mut [u8],
) -> Result<(), EncodeError> {
    let first = member.first_segment as usize;
    let mut rest = raw;
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

#[cfg(test)]
mod tests;
