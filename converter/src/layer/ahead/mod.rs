//! Encoding ahead: a layer of which nothing is to be prefetched is encoded while it is being scanned.
//!
//! Nearly always such a layer keeps the order of its source, and so its members are known as soon as
//! their bytes are. Whether that holds, and whether copying compressed bits was the better way, is known
//! for sure at the end: then what was made is either what the plan asks for, byte for byte, or thrown
//! away, and the layer goes the usual way. So this changes how long a conversion takes, never what comes
//! out.
//!
//! The scan's last thread gathers groups of members ([`gather`]), workers encode them, and another thread
//! assembles the results in order. What is between is bounded by a [`Budget`], at which the scan waits.

mod budget;
mod gather;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::blob::{Blob, ReadAt as _};
use crate::cancel::{Cancel, Cancelled};
use crate::image::Digest;
use crate::layer::ahead::budget::Budget;
use crate::layer::ahead::gather::{Feed, Gatherer, Job, Way};
use crate::layer::assemble::{Assembled, Assembler, FinishedLayer};
use crate::layer::blob::BlobWriter;
use crate::layer::blob_hash::{BlobHasher, Part};
use crate::layer::buffers::Buffers;
use crate::layer::choice::{Choice, Compression, Sampler, choose};
use crate::layer::convert::{ConvertError, ConvertOptions};
use crate::layer::digests::MemberDigests;
use crate::layer::encode::{Copied, EncodeError, EncodedGroup, Encoder, Level};
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::{LayerPlan, PlanOptions, keeps_order};
use crate::layer::scan::tar::BLOCK_BYTES;
use crate::layer::scan::{Expected, Follower, SCAN_BYTES, ScanError, ScanOptions, scan_followed};
use crate::layer::shares::{Shares, Want};

/// How a layer is scanned and encoded.
#[derive(Clone, Copy, Debug)]
pub struct AheadOptions<'a> {
    /// How it is read.
    pub scan: &'a ScanOptions,
    /// How it is cut.
    pub plan: PlanOptions,
    /// How it is compressed.
    pub compression: Compression,
    /// Threads, memory and checks.
    pub convert: ConvertOptions,
}

impl AheadOptions<'_> {
    /// A chunk of at most this part of the memory may be held without being counted.
    const UNCOUNTED_PART: u64 = 16;
    /// So many bytes of the source's blob, and of the new one, wait to be hashed together: a chunk.
    const MAX_UNHASHED_BYTES: u64 = 4 << 20;
    /// At most this part of the memory.
    const UNHASHED_PART: u64 = 64;

    fn unhashed_bytes(&self) -> u64 {
        let share = self.convert.parallel.memory_bytes / Self::UNHASHED_PART;
        share.min(Self::MAX_UNHASHED_BYTES)
    }

    /// What the memory goes to, of a layer that may be `copied`.
    fn shares(&self, is_copied: bool) -> Shares {
        let chunk_bytes = u64::from(self.plan.chunk_bytes);
        let want = Want {
            longest_bytes: chunk_bytes + Self::TAIL_BYTES,
            longest_members: 1,
            level: match self.compression {
                Compression::Level(level) => level,
                Compression::Keep { .. } => Level::FOR_THE_REST,
            },
            copies: is_copied,
            check: self.convert.check,
            parallel: self.convert.parallel,
        };
        // What is kept until its member is known to end, once more while it grows.
        let sections = self.scan.decode.parallel;
        let sections_bytes = if sections.threads > 1 {
            sections.memory_bytes
        } else {
            0
        };
        let beside_bytes = sections_bytes + 2 * chunk_bytes + 2 * self.unhashed_bytes();
        Shares::of(&want, |_| SCAN_BYTES + beside_bytes)
    }

    /// Most chunks are followed by less.
    const TAIL_BYTES: u64 = 64 << 10;

    /// Whether layers can be encoded ahead: gzip members are not shared, and a chunk is not so large
    /// that it would have to be counted while it is being collected.
    pub fn are_possible(&self) -> bool {
        self.plan.min_chunk_bytes == 0
            && u64::from(self.plan.chunk_bytes)
                <= self.convert.parallel.memory_bytes / Self::UNCOUNTED_PART
    }
}

/// A layer that was encoded while it was scanned.
#[derive(Debug)]
pub struct MadeAhead {
    /// The blob, whole.
    pub finished: FinishedLayer,
    /// How it was compressed, and why.
    pub choice: Choice,
}

/// Why a layer could not be scanned, or not be encoded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps a stage's error")]
pub enum AheadError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

/// Scans a layer, and writes the blob that is planned for it if nothing is prioritised to `out`. If it
/// has to be planned otherwise, there is no blob, and what was written is of no use. `stream` is the
/// blob to be scanned, and `blob` the same to be read again.
///
/// # Errors
/// [`AheadError`]; what was written is of no use then.
pub fn scan_ahead(
    stream: impl Read + Send,
    blob: &Blob,
    expected: &Expected,
    options: AheadOptions<'_>,
    out: impl Write + Send,
    cancel: &Cancel,
) -> Result<(ScannedLayer, Option<MadeAhead>), AheadError> {
    let is_copied = matches!(options.compression, Compression::Keep { .. }) && is_gzip(blob);
    let shares = options.shares(is_copied);
    let threads = shares.jobs.threads;
    let entries = options.scan.entry_memory.clone();
    let budget = &Budget::new(shares.jobs.memory_bytes, entries);
    let buffers = &Buffers::within(shares.idle_bytes);
    let (job_sender, job_receiver) = bounded::<Job>(threads);
    let (result_sender, result_receiver) = unbounded();
    // Apart from the caller's: a failure of the encoders stops the scan.
    let stop = &Cancel::default();
    let encode_error = |source| ConvertError::Encode {
        layer: expected.digest,
        source,
    };
    let (way, overhead) = match options.compression {
        Compression::Level(_) => (Some(Way::Compress), 0.0),
        Compression::Keep { .. } if !is_copied => (Some(Way::Compress), 0.0),
        Compression::Keep { overhead } => (None, overhead),
    };
    thread::scope(|scope| {
        let unhashed_bytes = options.unhashed_bytes() as usize;
        let [read, written] = BlobHasher::start_two(scope, buffers, unhashed_bytes);
        let writer = BlobWriter::start(scope, out, written);
        for index in 0..threads {
            let (jobs, results) = (job_receiver.clone(), result_sender.clone());
            let worker = move || encode(&jobs, &results, blob, options, buffers, cancel);
            let builder = thread::Builder::new().name(format!("ahead-{index}"));
            if let Err(error) = builder.spawn_scoped(scope, worker) {
                // One worker is enough to go on.
                assert!(index > 0, "no thread can be started: {error}");
                break;
            }
        }
        drop((job_receiver, result_sender));
        let digest = expected.digest;
        let assembly = scope.spawn(move || {
            let assembled = assemble(&result_receiver, &writer, budget, buffers, digest);
            if assembled.is_err() {
                stop.cancel();
            }
            budget.close();
            (assembled, writer)
        });
        let feed = Feed {
            jobs: job_sender,
            budget,
            buffers,
        };
        let sampler = Sampler {
            compressed: blob,
            overhead,
        };
        let mut gatherer = Gatherer::new(options.plan, way, sampler, feed);
        let scanned = scan_followed(
            stream,
            Some(blob),
            expected,
            options.scan,
            &[cancel, stop],
            Some(Follower {
                follow: &mut gatherer,
                hasher: read,
                buffers,
            }),
        );
        // Ends the gatherer, and with it the workers.
        let sent = match &scanned {
            Ok(layer) => agree(gatherer, layer, blob, &options).map_err(encode_error),
            Err(_) => {
                drop(gatherer);
                Ok(None)
            }
        };
        let (assembled, writer) = assembly
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let tail = match (&scanned, assembled) {
            (_, Err(error)) => Err(error),
            (Err(_), _) => Ok(None),
            (Ok(layer), Ok(assembled)) => {
                sent.and_then(|sent| end_blob(layer, sent, assembled, &options, &writer))
            }
        };
        let written = writer.finish().map_err(|source| ConvertError::Write {
            layer: digest,
            source,
        });
        let made = written.and_then(|blob| {
            Ok(tail?.map(|(tail, choice)| MadeAhead {
                finished: tail.finish(blob),
                choice,
            }))
        });
        match (scanned, made) {
            // The failure that stopped the scan.
            (Err(ScanError::Cancelled(_)), Err(error)) => Err(error.into()),
            (Err(error), _) => Err(error.into()),
            (Ok(layer), made) => Ok((layer, made?)),
        }
    })
}

fn is_gzip(blob: &Blob) -> bool {
    let mut magic = [0; 2];
    blob.read_exact_at(&mut magic, 0).is_ok() && magic == [0x1f, 0x8b]
}

/// What was gathered, if the layer's plan is that.
struct Sent {
    plan: LayerPlan,
    digests: MemberDigests,
    groups: u64,
    choice: Choice,
}

/// Compares what was gathered with what is to be made of `layer`, and sends the rest if they agree.
fn agree(
    gatherer: Gatherer<'_>,
    layer: &ScannedLayer,
    blob: &Blob,
    options: &AheadOptions<'_>,
) -> Result<Option<Sent>, EncodeError> {
    let Some((plan, way)) = gatherer.whole() else {
        return Ok(None);
    };
    let tar_bytes = layer.spool.len_bytes();
    let mut ends = layer.entries.iter().map(|entry| entry.payload.end_bytes());
    let is_padded = ends.all(|end| end.next_multiple_of(BLOCK_BYTES) <= tar_bytes);
    // A layer that cannot be planned fails when it is planned in earnest.
    if !is_padded || !keeps_order(layer).unwrap_or(false) {
        tracing::debug!(layer = %layer.digest, "planned in another order than encoded ahead");
        return Ok(None);
    }
    let threads = options.convert.parallel.threads;
    let choice = choose(layer, plan, blob, options.compression, threads)?;
    let chosen = match choice {
        Choice::Copy(_) => Way::Copy,
        Choice::Compress(_) => Way::Compress,
    };
    if way.is_some_and(|way| way != chosen) {
        tracing::debug!(layer = %layer.digest, ?choice, "encoded ahead the other way");
        return Ok(None);
    }
    let (plan, digests, groups) = gatherer.finish(chosen, layer.deflate.as_deref());
    Ok(Some(Sent {
        plan,
        digests,
        groups,
        choice,
    }))
}

/// A worker.
fn encode(
    jobs: &Receiver<Job>,
    results: &Sender<Encoded>,
    compressed: &Blob,
    options: AheadOptions<'_>,
    buffers: &Buffers,
    cancel: &Cancel,
) {
    let mut encoder: Option<Encoder<'_>> = None;
    for job in jobs {
        if cancel.is_cancelled() {
            break;
        }
        let level = match (&job.index, options.compression) {
            (Some(_), _) => Level::FOR_THE_REST,
            (None, Compression::Level(level)) => level,
            (None, Compression::Keep { .. }) => Level::default(),
        };
        // All groups of a layer go one way.
        let encoder =
            encoder.get_or_insert_with(|| Encoder::new(level, options.convert.check, buffers));
        let copied = job.index.as_ref().map(|index| Copied { compressed, index });
        let result = encoder.encode(job.gathered, copied.as_ref(), 0);
        let encoded = Encoded {
            number: job.number,
            cost_bytes: job.cost_bytes,
            result,
        };
        if results.send(encoded).is_err() {
            break;
        }
    }
}

/// What became of a job.
struct Encoded {
    number: u64,
    cost_bytes: u64,
    result: Result<EncodedGroup, EncodeError>,
}

/// Takes groups in their order until no more come; how many there were.
fn assemble(
    results: &Receiver<Encoded>,
    writer: &BlobWriter<'_>,
    budget: &Budget,
    buffers: &Buffers,
    layer: Digest,
) -> Result<(Assembler, u64), ConvertError> {
    let mut assembler = Assembler::default();
    let mut early = BTreeMap::new();
    let mut next = 0;
    for encoded in results {
        early.insert(encoded.number, encoded);
        while let Some(encoded) = early.remove(&next) {
            next += 1;
            let result = encoded.result;
            let group = result.map_err(|source| ConvertError::Encode { layer, source })?;
            assembler.group(&group);
            buffers.give_back(group.raw);
            let part = Part {
                buffer: group.gzip,
                len_bytes: group.gzip_bytes,
            };
            // Whoever asks the writer learns why.
            writer.send(part).then_some(()).ok_or(Cancelled)?;
            budget.give_back(encoded.cost_bytes);
        }
    }
    Ok((assembler, next))
}

/// Writes TOC and footer, if what was assembled is all that is planned.
fn end_blob(
    layer: &ScannedLayer,
    sent: Option<Sent>,
    (mut assembler, groups): (Assembler, u64),
    options: &AheadOptions<'_>,
    writer: &BlobWriter<'_>,
) -> Result<Option<(Assembled, Choice)>, ConvertError> {
    let Some(sent) = sent else {
        return Ok(None);
    };
    if groups < sent.groups {
        return Err(Cancelled.into());
    }
    let mut compressor = sent.choice.level(options.compression).compressor();
    assembler.hashed(sent.digests);
    let mut assembled = assembler.finish(layer, &sent.plan, &mut compressor);
    let buffer = std::mem::take(&mut assembled.tail);
    let len_bytes = buffer.len();
    let part = Part { buffer, len_bytes };
    writer.send(part).then_some(()).ok_or(Cancelled)?;
    Ok(Some((assembled, sent.choice)))
}
