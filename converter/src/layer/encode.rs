//! Encode: a group of planned members in, gzip members out. Runs on worker threads; compressors
//! belong to the worker, buffers go round.

mod random;

use std::io;

use libdeflater::{CompressionLvl, Compressor};

use crate::blob::{Blob, ReadAt};
use crate::image::Digest;
use crate::layer::buffers::Buffers;
use crate::layer::deflate::{self, MIN_RUN_BYTES, Reread, Run, TranscodeError, Transcoder};
use crate::layer::encode::random::looks_random;
use crate::layer::plan::{ChunkPlace, Group, LayerPlan, Member, Segment};

/// Compression level of libdeflate: 0 stores, 12 is slowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(CompressionLvl);

impl Level {
    /// For what cannot be copied where the rest is: little, and a better level makes up for what the
    /// cuts cost.
    pub const FOR_THE_REST: Self = match CompressionLvl::new(7) {
        Ok(level) => Self(level),
        Err(_) => panic!("libdeflate has level 7"),
    };

    /// For what is not worth compressing.
    const STORE: Self = match CompressionLvl::new(0) {
        Ok(level) => Self(level),
        Err(_) => panic!("libdeflate has level 0"),
    };

    /// For what looks random, in place of a better one, which finds hardly more there and takes longer.
    const QUICK: Self = match CompressionLvl::new(1) {
        Ok(level) => Self(level),
        Err(_) => panic!("libdeflate has level 1"),
    };

    /// From this one on the least bytes are wanted, whatever the time and memory.
    const NEAR_OPTIMAL: Self = match CompressionLvl::new(10) {
        Ok(level) => Self(level),
        Err(_) => panic!("libdeflate has level 10"),
    };

    /// Whether [`Level::QUICK`] may take this one's place.
    fn yields_to_quick(self) -> bool {
        (Self::QUICK.0..Self::NEAR_OPTIMAL.0).contains(&self.0)
    }

    /// `None` above 12.
    pub fn new(level: u8) -> Option<Self> {
        CompressionLvl::new(i32::from(level)).ok().map(Self)
    }

    /// Memory that a compressor of this level takes, at most, and one of [`Level::QUICK`] beside it: the highest
    /// levels look far ahead.
    fn table_bytes(self) -> u64 {
        if self.0 >= Self::NEAR_OPTIMAL.0 {
            10 << 20
        } else {
            1 << 20
        }
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

/// Whether members are checked as soon as they are made, while they are in the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Every member is proven to inflate to its bytes: copied ones by comparing bits, where that is quicker
    /// ([`deflate::Emitted::is_proven`]), all others by inflating them. For bytes that are known to be those that
    /// were scanned.
    Prove,
    /// Every member is inflated, and compared byte by byte.
    Inflate,
    /// None.
    Skip,
}

/// A finished group.
#[derive(Debug)]
pub struct EncodedGroup {
    /// The plan's members.
    pub members: Vec<Member>,
    /// The uncompressed bytes.
    pub raw: Vec<u8>,
    /// Where these came to lie, one for each.
    pub parts: Vec<Part>,
    /// The digests of their chunks, one for each, if they have been hashed.
    pub(super) chunk_digests: Option<Vec<Option<Digest>>>,
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

/// A group's uncompressed bytes, and where they stand in the source.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The plan's members.
    pub(super) members: Vec<Member>,
    /// All bytes of these, one behind the other.
    pub(super) raw: Vec<u8>,
    /// For each member, the stretches that stand in the source and are worth copying.
    pub(super) runs: Vec<Vec<Run>>,
    /// And where it stands there, if it does as a whole.
    pub(super) source_bytes: Vec<Option<u64>>,
    /// The digest of its chunk, if they have been hashed.
    pub(super) chunk_digests: Option<Vec<Option<Digest>>>,
    /// Spool offset of the first spooled byte; 0 if there is none.
    pub(super) offset_bytes: u64,
}

impl Gathered {
    /// Reads the members of `group`.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn read<R: ReadAt>(
        plan: &LayerPlan,
        group: &Group,
        spool: &R,
        buffers: &Buffers,
    ) -> Result<Self, EncodeError> {
        let members = plan.members[group.members.clone()].to_vec();
        let mut raw = buffers.take(group.len_bytes as usize);
        let mut rest = raw.as_mut_slice();
        for member in &members {
            let (target, behind) = rest.split_at_mut(member.len_bytes as usize);
            rest = behind;
            read_member(plan, member, spool, target)?;
        }
        let offset_bytes = members.iter().find_map(|member| plan.spool_offset(member));
        Ok(Self {
            runs: members.iter().map(|member| runs(plan, member)).collect(),
            source_bytes: members
                .iter()
                .map(|member| stands_at(plan, member))
                .collect(),
            members,
            raw,
            chunk_digests: None,
            offset_bytes: offset_bytes.unwrap_or(0),
        })
    }
}

impl Gathered {
    /// What was made of them is wrong.
    fn failed_check(&self) -> EncodeError {
        EncodeError::Check {
            offset_bytes: self.offset_bytes,
        }
    }

    /// The runs, and their bytes.
    pub(super) fn copyable(&self) -> impl Iterator<Item = (&[u8], &Run)> {
        let mut start = 0;
        let members = self.members.iter().zip(&self.runs);
        members.flat_map(move |(member, runs)| {
            let bytes = &self.raw[start..][..member.len_bytes as usize];
            start += member.len_bytes as usize;
            runs.iter()
                .map(|run| (&bytes[run.start..][..run.len_bytes], run))
        })
    }
}

/// A packed chunk that compressing makes no shorter than this many percent is stored. A reader inflates it while
/// somebody waits, with one core: at 125 MB/s (`simulate::Constants`) it takes longer to inflate a byte than to fetch a
/// quarter of one from 250 Mbit/s on.
const STORED_FROM_PERCENT: u64 = 75;

/// A chunk that looks random and of which compressing leaves this much is stored: by the rates of
/// [`STORED_FROM_PERCENT`] the rest is fetched in a fiftieth of the time in which a reader would inflate the chunk.
const RANDOM_STORED_FROM_PERMILLE: u64 = 995;

/// Whether a packed chunk of `raw_bytes` is stored, as `gzip_bytes` are what it comes to.
fn is_stored(place: ChunkPlace, raw_bytes: u64, gzip_bytes: u64) -> bool {
    place == ChunkPlace::Copy && gzip_bytes * 100 >= raw_bytes * STORED_FROM_PERCENT
}

/// A worker's state.
pub struct Encoder<'a> {
    level: Level,
    compressor: Compressor,
    /// For what looks random. Made when it is needed.
    quick: Option<Compressor>,
    /// Made when it is needed.
    storer: Option<Compressor>,
    /// Made when it is needed.
    transcoder: Option<Transcoder>,
    /// None if members are not checked.
    reread: Option<Reread>,
    check: Check,
    buffers: &'a Buffers,
}

impl<'a> Encoder<'a> {
    /// A worker that compresses at `level` what is not copied.
    pub fn new(level: Level, check: Check, buffers: &'a Buffers) -> Self {
        Self {
            level,
            compressor: level.compressor(),
            quick: None,
            storer: None,
            transcoder: None,
            reread: (check != Check::Skip).then(Reread::default),
            check,
            buffers,
        }
    }

    /// Memory that [`Gathered::read`] and [`Encoder::encode`] take for `group` until its result is
    /// written.
    pub fn cost_bytes(group: &Group) -> u64 {
        Self::cost_of(group.len_bytes, group.members.len())
    }

    /// The same for some members with so many bytes together.
    pub(super) fn cost_of(len_bytes: u64, members: usize) -> u64 {
        let raw_bytes = Buffers::size_bytes(len_bytes as usize) as u64;
        // Every part has a place, and every member its runs and perhaps a digest.
        raw_bytes + Self::gzip_cost_of(len_bytes, members) + 120 * members as u64
    }

    /// How much of that is the gzip members.
    pub(super) fn gzip_cost_of(len_bytes: u64, members: usize) -> u64 {
        // Incompressible data grows by 5 bytes in 5000, and every gzip member has some of its own.
        let bound = len_bytes + len_bytes / 900 + 64 * members as u64;
        Buffers::size_bytes(bound as usize) as u64
    }

    /// Memory that a worker holds from group to group, at most, if the longest has `longest_bytes`.
    pub fn held_bytes(level: Level, copies: bool, check: Check, longest_bytes: u64) -> u64 {
        let check_bytes = match check {
            Check::Prove | Check::Inflate => longest_bytes,
            Check::Skip => 0,
        };
        if copies {
            check_bytes + level.table_bytes() + Transcoder::held_bytes(longest_bytes)
        } else {
            check_bytes
        }
        .saturating_add(level.table_bytes())
    }

    /// Compresses and checks the members of one group; copies from `copied` what it can.
    ///
    /// With `min_chunk_bytes` nothing is copied, and a gzip member ends as soon as it has so many
    /// compressed bytes, as far as the last one's ratio foretells where that is, and at the group's end.
    ///
    /// # Errors
    /// When the source cannot be copied from, or the check fails.
    pub fn encode(
        &mut self,
        gathered: Gathered,
        copied: Option<&Copied<'_>>,
        min_chunk_bytes: u32,
    ) -> Result<EncodedGroup, EncodeError> {
        let raw = &gathered.raw;
        let mut starts = Vec::with_capacity(gathered.members.len() + 1);
        let mut start = 0;
        for member in &gathered.members {
            let end = start + member.len_bytes as usize;
            starts.push(start);
            start = end;
        }
        starts.push(start);
        let mut gzip;
        let (parts, gzip_bytes, copied_bytes) = match (min_chunk_bytes as usize, copied) {
            (0, Some(copied)) => {
                let members = gathered.members.len();
                let len_bytes = Self::gzip_cost_of(raw.len() as u64, members);
                gzip = self.buffers.take_empty(len_bytes as usize);
                // Each is checked as it is made.
                self.copy_each(&gathered, copied, &mut gzip)?
            }
            (min_bytes, _) => {
                let bounds = starts.windows(2).map(|pair| pair[1] - pair[0]);
                let bounds = bounds.map(|len| self.compressor.gzip_compress_bound(len));
                gzip = self.buffers.take(bounds.sum());
                // A member of a pack shares with none, and is alone in its group.
                let is_packed = |member: &Member| member.place == ChunkPlace::Copy;
                let min_bytes = match gathered.members.iter().any(is_packed) {
                    true => 0,
                    false => min_bytes,
                };
                let (parts, gzip_bytes) = match min_bytes {
                    0 => self.compress_each(&gathered.members, raw, &starts, &mut gzip),
                    min_bytes => self.compress_sharing(raw, &starts, min_bytes, &mut gzip),
                };
                if !self.come_out_again(raw, &starts, &gzip[..gzip_bytes], &parts) {
                    return Err(gathered.failed_check());
                }
                (parts, gzip_bytes, 0)
            }
        };
        Ok(EncodedGroup {
            members: gathered.members,
            raw: gathered.raw,
            chunk_digests: gathered.chunk_digests,
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
        gathered: &Gathered,
        copied: &Copied<'_>,
        gzip: &mut Vec<u8>,
    ) -> Result<(Vec<Part>, usize, u64), EncodeError> {
        let mut copied_bytes = 0;
        let mut parts = Vec::with_capacity(gathered.members.len());
        let mut rest = gathered.raw.as_slice();
        let sources = gathered.runs.iter().zip(&gathered.source_bytes);
        for (member, (runs, source_bytes)) in gathered.members.iter().zip(sources) {
            parts.push(Part {
                gzip_offset_bytes: gzip.len() as u64,
                inner_bytes: 0,
            });
            let (raw, behind) = rest.split_at(member.len_bytes as usize);
            rest = behind;
            let start = gzip.len();
            let transcoder = self
                .transcoder
                .get_or_insert_with(|| Transcoder::new(self.level.compressor()));
            let mut is_proven = false;
            let from_source = if let Some(source_bytes) = *source_bytes
                && transcoder.whole_member(raw, source_bytes, copied, gzip)?
            {
                raw.len() as u64
            } else if runs.is_empty() {
                gzip.resize(start + self.compressor.gzip_compress_bound(raw.len()), 0);
                let len = self.compress(raw, &mut gzip[start..]);
                gzip.truncate(start + len);
                0
            } else {
                let proves = self.check == Check::Prove;
                let reread = self.reread.as_mut().filter(|_| proves);
                let emitted = transcoder.member(raw, runs, copied, gzip, reread)?;
                is_proven = emitted.is_proven;
                emitted.copied_bytes
            };
            let made_bytes = (gzip.len() - start) as u64;
            if is_stored(member.place, raw.len() as u64, made_bytes) {
                gzip.resize(start + self.compressor.gzip_compress_bound(raw.len()), 0);
                let len = self.store(raw, &mut gzip[start..]);
                gzip.truncate(start + len);
                is_proven = false;
            } else {
                copied_bytes += from_source;
            }
            if !is_proven
                && let Some(reread) = &mut self.reread
                && !reread.is_gzip_of(&gzip[start..], raw)
            {
                return Err(gathered.failed_check());
            }
        }
        Ok((parts, gzip.len(), copied_bytes))
    }

    /// A gzip member for every part.
    fn compress_each(
        &mut self,
        members: &[Member],
        raw: &[u8],
        starts: &[usize],
        gzip: &mut [u8],
    ) -> (Vec<Part>, usize) {
        let mut filled = 0;
        let parts = members.iter().zip(starts.windows(2)).map(|(member, pair)| {
            let part = Part {
                gzip_offset_bytes: filled as u64,
                inner_bytes: 0,
            };
            let (raw, gzip) = (&raw[pair[0]..pair[1]], &mut gzip[filled..]);
            let mut len = self.compress(raw, gzip);
            if is_stored(member.place, raw.len() as u64, len as u64) {
                len = self.store(raw, gzip);
            }
            filled += len;
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
        let is_quick = self.level.yields_to_quick() && looks_random(raw);
        let compressor = if is_quick {
            self.quick.get_or_insert_with(|| Level::QUICK.compressor())
        } else {
            &mut self.compressor
        };
        let len = compressor.gzip_compress(raw, gzip).expect(
            "the buffer has the size that libdeflate asks for, which is one for all levels",
        );
        if is_quick && len as u64 * 1000 >= raw.len() as u64 * RANDOM_STORED_FROM_PERMILLE {
            self.store(raw, gzip)
        } else {
            len
        }
    }

    fn store(&mut self, raw: &[u8], gzip: &mut [u8]) -> usize {
        self.storer
            .get_or_insert_with(|| Level::STORE.compressor())
            .gzip_compress(raw, gzip)
            .expect("stored bytes are no longer than the bound of any level")
    }

    /// Whether each gzip member inflates to its bytes of `raw`.
    fn come_out_again(
        &mut self,
        raw: &[u8],
        starts: &[usize],
        gzip: &[u8],
        parts: &[Part],
    ) -> bool {
        let Some(reread) = &mut self.reread else {
            return true;
        };
        let begin = |&part: &usize| parts[part].inner_bytes == 0;
        let mut begins = (0..parts.len()).filter(begin).peekable();
        while let Some(part) = begins.next() {
            let next = begins.peek();
            let gzip_start = parts[part].gzip_offset_bytes as usize;
            let gzip_end = next.map_or(gzip.len(), |&next| parts[next].gzip_offset_bytes as usize);
            let raw = &raw[starts[part]..next.map_or(raw.len(), |&next| starts[next])];
            if !reread.is_gzip_of(&gzip[gzip_start..gzip_end], raw) {
                return false;
            }
        }
        true
    }
}

/// The stretches of `member` that stand in the source and are worth copying.
pub(super) fn runs(plan: &LayerPlan, member: &Member) -> Vec<Run> {
    let mut start = 0;
    let mut runs = Vec::new();
    for segment in plan.segments_of(member) {
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
pub(super) fn stands_at(plan: &LayerPlan, member: &Member) -> Option<u64> {
    match *plan.segments_of(member) {
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
    let mut rest = raw;
    for segment in plan.segments_of(member) {
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
