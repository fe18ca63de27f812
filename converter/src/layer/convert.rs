//! The second half of a layer's way, on one screen: plan → encode → assemble.

use std::io::Write;
use std::thread;

use crate::blob::Blob;
use crate::cancel::{Cancel, Cancelled};
use crate::image::Digest;
use crate::layer::assemble::{Assembler, FinishedLayer};
use crate::layer::blob::{self, BlobWriter, HELD_PARTS, WriteError};
use crate::layer::buffers::Buffers;
use crate::layer::deflate::Index;
use crate::layer::encode::{Check, Copied, EncodeError, Encoder, Level};
use crate::layer::entry::ScannedLayer;
use crate::layer::in_order::{Costed, Parallel, in_order};
use crate::layer::plan::{Group, LayerPlan, groups};
use crate::progress::Meter;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// Whether members are inflated again.
    pub check: Check,
    /// Threads and memory; the output does not depend on them.
    pub parallel: Parallel,
}

/// Why a layer could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A member could not be made.
    #[error("converting layer {layer}")]
    Encode {
        /// The source layer.
        layer: Digest,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// The blob could not be written.
    #[error("writing the converted layer {layer}")]
    Write {
        /// The source layer.
        layer: Digest,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// Another part failed, or the user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Where compressed bytes come from.
pub enum Encoding<'a> {
    /// Everything is compressed, at this level.
    Compress(Level),
    /// The source's tokens are copied where that is possible, the rest is compressed at this level.
    Copy(&'a Blob, &'a Index, Level),
}

impl<'a> Encoding<'a> {
    fn level(&self) -> Level {
        match *self {
            Self::Compress(level) | Self::Copy(_, _, level) => level,
        }
    }

    fn copied(&self) -> Option<Copied<'a>> {
        match *self {
            Self::Compress(_) => None,
            Self::Copy(compressed, index, _) => Some(Copied { compressed, index }),
        }
    }
}

/// What the memory goes to.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// Threads, and memory for the groups that they have under way.
    jobs: Parallel,
    /// Memory for buffers that nobody has.
    idle_bytes: usize,
}

impl Shares {
    /// As many of the threads as there is memory for, or one: what a thread holds, what waits to be written
    /// and what is kept for readers are counted, beside a group for each thread and half as
    /// many that wait for their turn.
    fn of(
        layer: &ScannedLayer,
        groups: &[Group],
        encoding: &Encoding<'_>,
        options: ConvertOptions,
    ) -> Self {
        let longest = groups.iter().max_by_key(|group| group.len_bytes);
        let (longest_bytes, cost_bytes, gzip_bytes) = longest.map_or((0, 0, 0), |group| {
            let gzip_bytes = Encoder::gzip_cost_bytes(group);
            (group.len_bytes, Encoder::cost_bytes(group), gzip_bytes)
        });
        let copies = encoding.copied().is_some();
        let worker_bytes =
            Encoder::held_bytes(encoding.level(), copies, options.check, longest_bytes);
        let memory_bytes = options.parallel.memory_bytes;
        let idle_bytes = memory_bytes / IDLE_SHARE;
        let beside_bytes = |threads: u64| {
            idle_bytes
                + HELD_PARTS * gzip_bytes
                + layer.spool.held_bytes(threads)
                + threads * worker_bytes
        };
        let fits =
            |threads: &u64| beside_bytes(*threads) + threads * cost_bytes * 3 / 2 <= memory_bytes;
        let threads = options.parallel.threads.max(1) as u64;
        let threads = (1..=threads).rev().find(fits).unwrap_or(1);
        Self {
            jobs: Parallel {
                threads: threads as usize,
                memory_bytes: memory_bytes.saturating_sub(beside_bytes(threads)),
            },
            idle_bytes: idle_bytes as usize,
        }
    }
}

/// Buffers that nobody has take at most this part of the memory.
const IDLE_SHARE: u64 = 16;

/// Writes the blob that `plan` lays out for `layer` to `out`; `meter` sees uncompressed bytes, group
/// by group.
///
/// # Errors
/// [`ConvertError`]; what was written to `out` until then is of no use.
pub fn convert_layer(
    layer: &ScannedLayer,
    plan: &LayerPlan,
    encoding: &Encoding<'_>,
    options: ConvertOptions,
    out: impl Write + Send,
    cancel: &Cancel,
    meter: &dyn Meter,
) -> Result<FinishedLayer, ConvertError> {
    let digest = layer.digest;
    let encode_error = |source| ConvertError::Encode {
        layer: digest,
        source,
    };
    let level = encoding.level();
    let groups = groups(plan);
    let shares = Shares::of(layer, &groups, encoding, options);
    if shares.jobs.threads < options.parallel.threads {
        tracing::debug!(layer = %digest, threads = shares.jobs.threads, "memory allows no more threads");
    }
    let buffers = Buffers::within(shares.idle_bytes);
    let mut assembler = Assembler::default();
    thread::scope(|scope| {
        let blob = BlobWriter::start(scope, out, &buffers);
        let write = |buffer, len_bytes| {
            let sent = blob.send(blob::Part { buffer, len_bytes });
            // Whoever asks the writer below learns why.
            sent.then_some(()).ok_or(Cancelled)
        };
        let made = in_order(
            shares.jobs,
            cancel,
            groups.iter().map(|group| Costed {
                cost_bytes: Encoder::cost_bytes(group),
                job: group,
            }),
            || Encoder::new(level, encoding.copied(), options.check, &buffers),
            |encoder, group| {
                let encoded = encoder.encode(plan, group, &layer.spool);
                Ok((group, encoded.map_err(encode_error)?))
            },
            |(group, encoded)| {
                assembler.group(&plan.members[group.members.clone()], &encoded);
                meter.advance(encoded.raw.len() as u64);
                buffers.give_back(encoded.raw);
                Ok(write(encoded.gzip, encoded.gzip_bytes)?)
            },
        );
        // A large layer's TOC takes the place of what its members took.
        buffers.clear();
        layer.spool.forget();
        let made: Result<_, ConvertError> = made.and_then(|()| {
            let mut assembled = assembler.finish(layer, plan, &mut level.compressor());
            let tail = std::mem::take(&mut assembled.tail);
            let len_bytes = tail.len();
            write(tail, len_bytes)?;
            Ok(assembled)
        });
        let written = blob.finish().map_err(|source| ConvertError::Write {
            layer: digest,
            source,
        })?;
        Ok(made?.finish(written))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::plan::{PlanOptions, plan_layer};
    use crate::layer::scan::tests::scan_bytes;

    #[test]
    fn threads_are_as_many_as_memory_allows() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(9 << 20);
        let contents = vec![7; 9 << 20];
        tar.append_data(&mut header, "file", &*contents).unwrap();
        let layer = scan_bytes(&tar.into_inner().unwrap()).unwrap();
        let plan = plan_layer(&layer, &[], PlanOptions::default()).unwrap();
        let groups = groups(&plan);
        let threads_of = |memory_bytes| {
            let parallel = Parallel {
                threads: 16,
                memory_bytes,
            };
            let options = ConvertOptions {
                check: Check::Inflate,
                parallel,
            };
            let encoding = Encoding::Compress(Level::default());
            let shares = Shares::of(&layer, &groups, &encoding, options);
            let Parallel {
                threads,
                memory_bytes: jobs_bytes,
            } = shares.jobs;
            // A thread's own buffer, and a chunk and a half with their compressed form.
            let least_bytes = threads as u64 * (4 << 20) + shares.idle_bytes as u64;
            assert!(jobs_bytes + least_bytes <= memory_bytes || threads == 1);
            assert!(jobs_bytes >= threads as u64 * (12 << 20) || threads == 1);
            threads
        };
        assert_eq!(threads_of(0), 1);
        let some = threads_of(128 << 20);
        assert!((2..8).contains(&some), "{some}");
        assert_eq!(threads_of(1 << 30), 16);
    }
}
