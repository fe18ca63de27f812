//! Whether a layer's compressed bits are copied or its bytes compressed again: decided before the
//! work, by doing both on a few samples.
//!
//! Deterministic: the samples depend on the plan, and the verdict on their sizes alone.

use std::fmt;
use std::thread;

use libdeflater::Compressor;

use crate::blob::{Blob, ReadAt as _};
use crate::layer::deflate::{Index, MIN_RUN_BYTES, Run, Source, Transcoder};
use crate::layer::encode::{EncodeError, Level};
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::{LayerPlan, Member, Segment};

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Compression {
    /// At this level.
    Level(Level),
    /// As the source is, by copying its compressed bits, where that makes the layer larger by no more
    /// than this part of one; otherwise at the default level.
    Keep {
        /// 0.01 is one percent.
        overhead: f64,
    },
}

/// How a layer is to be encoded, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The source's compressed bits are copied.
    Copy(Reason),
    /// Everything is compressed again.
    Compress(Reason),
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The user asked for a level.
    LevelGiven,
    /// The source is no gzip stream.
    NotGzip,
    /// With a minimum size of members, chunks share what cannot be copied.
    SharedMembers,
    /// No run of bytes is long enough.
    NothingToCopy,
    /// Compressing again would make the layer smaller, by this part of one.
    Smaller(f64),
    /// Copying would make the layer larger, by this part of one.
    Larger(f64),
    /// Copying changes the layer's size by this part of one.
    AsSmall(f64),
}

impl Choice {
    /// The level of what is compressed.
    pub fn level(&self, compression: Compression) -> Level {
        match (self, compression) {
            (Self::Copy(_), _) => Level::FOR_THE_REST,
            (_, Compression::Level(level)) => level,
            _ => Level::default(),
        }
    }

    /// The reason.
    pub fn reason(&self) -> Reason {
        match *self {
            Self::Copy(reason) | Self::Compress(reason) => reason,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LevelGiven => f.write_str("a compression level is given"),
            Self::NotGzip => f.write_str("the source is not gzip"),
            Self::SharedMembers => f.write_str("chunks share gzip members"),
            Self::NothingToCopy => f.write_str("no file is long enough"),
            Self::Smaller(part) => {
                write!(f, "compressing again saves {:.1} %", part * 100.0)
            }
            Self::Larger(part) => write!(f, "copying would add {:.1} %", part * 100.0),
            Self::AsSmall(part) => write!(f, "the size changes by {:+.2} %", part * 100.0),
        }
    }
}

/// Samples of a layer.
const SAMPLES: usize = 8;
/// A sample has at most so many bytes: what the cuts cost is known of whole runs only.
const SAMPLE_BYTES: u32 = 4 << 20;
/// So many of these are compressed again, which takes far longer than copying.
const COMPRESSED_BYTES: usize = 1 << 20;
/// The same for a guess, which comes while nobody else has work.
const GUESSED_BYTES: usize = COMPRESSED_BYTES / 4;
/// Compressing again is worth its time from here on.
const WORTH: f64 = 0.03;
/// By so much the first runs may tell another story than all. Compressing in vain takes far longer than
/// copying in vain, and so a guess has to be surer of it.
const DOUBT: f64 = 0.01;

/// Decides for `layer`, whose blob is `compressed`; `threads` do the work.
///
/// # Errors
/// When blob or spool cannot be read.
pub fn choose(
    layer: &ScannedLayer,
    plan: &LayerPlan,
    compressed: &Blob,
    compression: Compression,
    threads: usize,
) -> Result<Choice, EncodeError> {
    let Compression::Keep { overhead } = compression else {
        return Ok(Choice::Compress(Reason::LevelGiven));
    };
    if plan.min_chunk_bytes > 0 {
        return Ok(Choice::Compress(Reason::SharedMembers));
    }
    let Some(index) = &layer.deflate else {
        return Ok(Choice::Compress(Reason::NotGzip));
    };
    let samples = samples(plan);
    if samples.is_empty() {
        return Ok(Choice::Compress(Reason::NothingToCopy));
    }
    let source = Source { compressed, index };
    let shares: Vec<&[Sample]> = samples
        .chunks(samples.len().div_ceil(threads.max(1)))
        .collect();
    let sizes = thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(|| measure(share, layer, &source)))
            .collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<Sizes, EncodeError>>| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers
            .into_iter()
            .map(join)
            .try_fold(Sizes::default(), |sum, sizes| {
                Ok::<_, EncodeError>(sum.plus(sizes?))
            })
    })?;
    Ok(verdict(sizes, overhead, WORTH))
}

/// Bytes of all samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    source: u64,
    copied: u64,
    /// Of their first bytes: in the source, and compressed again.
    source_starts: u64,
    compressed_starts: u64,
}

impl Sizes {
    fn plus(self, other: Self) -> Self {
        Self {
            source: self.source + other.source,
            copied: self.copied + other.copied,
            source_starts: self.source_starts + other.source_starts,
            compressed_starts: self.compressed_starts + other.compressed_starts,
        }
    }
}

fn verdict(sizes: Sizes, overhead: f64, worth: f64) -> Choice {
    let Sizes {
        source,
        copied,
        source_starts,
        compressed_starts,
    } = sizes;
    let [source, copied, source_starts, compressed_starts] =
        [source, copied, source_starts, compressed_starts].map(|bytes| bytes.max(1) as f64);
    let compressed = source * compressed_starts / source_starts;
    let (saved, added) = (1.0 - compressed / copied, copied / source - 1.0);
    if saved > worth {
        Choice::Compress(Reason::Smaller(saved))
    } else if added > overhead && saved > 0.0 {
        Choice::Compress(Reason::Larger(added))
    } else {
        Choice::Copy(Reason::AsSmall(added))
    }
}

/// What [`verdict`] will probably be, from the first runs.
fn guess(sizes: Sizes, overhead: f64) -> Choice {
    verdict(sizes, overhead + DOUBT, WORTH + DOUBT)
}

/// A run that would be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    offset_bytes: u64,
    len_bytes: u32,
}

/// Runs of the plan, evenly spread over its bytes.
fn samples(plan: &LayerPlan) -> Vec<Sample> {
    let run = |member: &Member| {
        plan.segments_of(member)
            .iter()
            .find_map(|segment| match *segment {
                Segment::Spool {
                    offset_bytes,
                    len_bytes,
                } if len_bytes as usize >= MIN_RUN_BYTES => Some(Sample {
                    offset_bytes,
                    len_bytes: len_bytes.min(SAMPLE_BYTES),
                }),
                _ => None,
            })
    };
    let runs: Vec<Sample> = plan.members.iter().filter_map(run).collect();
    let total: u64 = runs.iter().map(|run| u64::from(run.len_bytes)).sum();
    let mut samples = Vec::with_capacity(SAMPLES);
    let mut passed = 0;
    for run in runs {
        let end = passed + u64::from(run.len_bytes);
        // The middles of as many equal parts as there are samples.
        let wanted = (2 * samples.len() as u64 + 1) * total / (2 * SAMPLES as u64);
        if samples.len() < SAMPLES && end > wanted {
            samples.push(run);
        }
        passed = end;
    }
    samples
}

fn measure(
    samples: &[Sample],
    layer: &ScannedLayer,
    source: &Source<'_, Blob>,
) -> Result<Sizes, EncodeError> {
    let mut scales = Scales::default();
    let mut raw = Vec::new();
    for sample in samples {
        raw.resize(sample.len_bytes as usize, 0);
        let offset_bytes = sample.offset_bytes;
        layer
            .spool
            .read_exact_at(&mut raw, offset_bytes)
            .map_err(|source| EncodeError::Spool {
                offset_bytes,
                source,
            })?;
        scales.weigh(&raw, COMPRESSED_BYTES, offset_bytes, source)?;
    }
    Ok(scales.sizes)
}

/// Does both to one sample after the other.
struct Scales {
    compressor: Compressor,
    transcoder: Transcoder,
    member: Vec<u8>,
    sizes: Sizes,
}

impl Default for Scales {
    fn default() -> Self {
        Self {
            compressor: Level::default().compressor(),
            transcoder: Transcoder::new(Level::FOR_THE_REST.compressor()),
            member: Vec::new(),
            sizes: Sizes::default(),
        }
    }
}

impl Scales {
    /// Adds the run `raw`, which stands at `offset_bytes` of `source`; of it, `compressed_bytes` are
    /// compressed again.
    fn weigh(
        &mut self,
        raw: &[u8],
        compressed_bytes: usize,
        offset_bytes: u64,
        source: &Source<'_, Blob>,
    ) -> Result<(), EncodeError> {
        let run = Run {
            start: 0,
            len_bytes: raw.len(),
            source_bytes: offset_bytes,
        };
        let member = &mut self.member;
        member.clear();
        self.transcoder.member(raw, &[run], source, member, None)?;
        self.sizes.copied += member.len() as u64;
        let start = &raw[..raw.len().min(compressed_bytes)];
        member.resize(self.compressor.gzip_compress_bound(start.len()), 0);
        self.sizes.compressed_starts +=
            self.compressor
                .gzip_compress(start, member)
                .expect("the buffer has the size that libdeflate asks for") as u64;
        let of_source = |bytes: &[u8]| source_bytes(source.index, offset_bytes, bytes.len() as u64);
        self.sizes.source_starts += of_source(start);
        self.sizes.source += of_source(raw);
        Ok(())
    }
}

/// Guesses what [`choose`] will say, from the first runs of a layer.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    /// The layer's blob.
    pub(super) compressed: &'a Blob,
    /// As for [`choose`].
    pub(super) overhead: f64,
}

impl Sampler<'_> {
    /// Whether the layer's compressed bits will probably be copied. `samples` are runs and their bytes,
    /// `index` is of the stream as far as they go.
    ///
    /// # Errors
    /// When the blob cannot be read.
    pub(super) fn copies(
        &self,
        samples: &[(&[u8], &Run)],
        index: &Index,
    ) -> Result<bool, EncodeError> {
        let compressed = self.compressed;
        let mut scales = Scales::default();
        for (bytes, run) in samples {
            let bytes = &bytes[..bytes.len().min(SAMPLE_BYTES as usize)];
            let source = Source { compressed, index };
            scales.weigh(bytes, GUESSED_BYTES, run.source_bytes, &source)?;
        }
        let guess = guess(scales.sizes, self.overhead);
        tracing::debug!(?guess, "guessed from the first {} runs", samples.len());
        Ok(matches!(guess, Choice::Copy(_)))
    }
}

fn source_bytes(index: &Index, offset_bytes: u64, len_bytes: u64) -> u64 {
    let end = index.compressed_bits(offset_bytes + len_bytes);
    end.saturating_sub(index.compressed_bits(offset_bytes)) / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_way_is_taken_where_it_is_worth_it() {
        let check = |source: u64, copied: u64, compressed: u64, copies: bool| {
            let sizes = Sizes {
                source,
                copied,
                source_starts: source / 4,
                compressed_starts: compressed / 4,
            };
            let choice = verdict(sizes, 0.01, WORTH);
            assert_eq!(matches!(choice, Choice::Copy(_)), copies, "{choice:?}");
        };
        // A level 6 source; a level 9 source; a level 1 source; stored blocks.
        check(100000, 100300, 100100, true);
        check(100000, 100300, 102000, true);
        check(100000, 100300, 93000, false);
        check(100000, 100000, 54000, false);
        // Small chunks: copying adds more than it may, unless compressing adds as much.
        check(100000, 102000, 101000, false);
        check(100000, 102000, 102000, true);
    }

    /// Near the border a layer is begun as a copy, whatever is chosen in the end.
    #[test]
    fn a_guess_has_to_be_surer() {
        let check = |copied: u64, compressed: u64, chosen: bool, guessed: bool| {
            let sizes = Sizes {
                source: 100_000,
                copied,
                source_starts: 100_000,
                compressed_starts: compressed,
            };
            let copies = |choice: Choice| matches!(choice, Choice::Copy(_));
            assert_eq!(copies(verdict(sizes, 0.01, WORTH)), chosen, "{sizes:?}");
            assert_eq!(copies(guess(sizes, 0.01)), guessed, "{sizes:?}");
        };
        // It would save 2.6, 3.3 and 4.3 %.
        check(100_300, 97_700, true, true);
        check(100_300, 97_000, false, true);
        check(100_300, 96_000, false, false);
        // It would add 1.5 and 2.5 %.
        check(101_500, 101_000, false, true);
        check(102_500, 102_000, false, false);
    }

    #[test]
    fn samples_are_spread_over_the_bytes() {
        let lens: Vec<u32> = (0..100)
            .map(|n| if n < 50 { 70_000 } else { 700_000 })
            .collect();
        let mut plan = LayerPlan::default();
        let mut offset_bytes = 0;
        for (number, &len_bytes) in lens.iter().enumerate() {
            plan.segments.push(Segment::Spool {
                offset_bytes,
                len_bytes,
            });
            plan.members.push(Member {
                first_segment: u32::try_from(number).unwrap(),
                segments: 1,
                len_bytes,
                lead_bytes: 0,
                chunk_bytes: len_bytes,
                place: crate::layer::plan::ChunkPlace::Whole,
            });
            offset_bytes += u64::from(len_bytes);
        }
        let samples = samples(&plan);
        assert_eq!(samples.len(), SAMPLES);
        let large = samples.iter().filter(|sample| sample.len_bytes == 700_000);
        assert!(large.count() >= 7, "{samples:?}");
        assert!(super::samples(&LayerPlan::default()).is_empty());
    }
}
