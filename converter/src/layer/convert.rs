//! The second half of a layer's way, on one screen: plan → encode → assemble.

use std::io::Write;
use std::thread;

use crate::blob::Blob;
use crate::cancel::{Cancel, Cancelled};
use crate::image::Digest;
use crate::layer::assemble::{Assembler, FinishedLayer};
use crate::layer::blob::{BlobWriter, WriteError};
use crate::layer::blob_hash::{BlobHasher, Part};
use crate::layer::buffers::Buffers;
use crate::layer::deflate::Index;
use crate::layer::encode::{Check, Copied, EncodeError, Encoder, Gathered, Level};
use crate::layer::entry::ScannedLayer;
use crate::layer::in_order::{Costed, Parallel, in_order};
use crate::layer::plan::{LayerPlan, groups};
use crate::layer::shares::{Shares, Want};
use crate::progress::Meter;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// Whether members are checked.
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
    let copied = encoding.copied();
    let groups = groups(plan);
    let longest = groups.iter().max_by_key(|group| group.len_bytes);
    let check = match options.check {
        // Nobody knows that a file's bytes are still those that were scanned.
        Check::Prove if !layer.spool.is_compared() => Check::Inflate,
        check => check,
    };
    let want = Want {
        longest_bytes: longest.map_or(0, |group| group.len_bytes),
        longest_members: longest.map_or(0, |group| group.members.len()),
        level,
        copies: copied.is_some(),
        check,
        parallel: options.parallel,
    };
    let shares = Shares::of(&want, |threads| layer.spool.held_bytes(threads));
    if shares.jobs.threads < options.parallel.threads {
        tracing::debug!(layer = %digest, threads = shares.jobs.threads, "memory allows no more threads");
    }
    let buffers = Buffers::within(shares.idle_bytes);
    let mut assembler = Assembler::default();
    thread::scope(|scope| {
        let blob = BlobWriter::start(scope, out, BlobHasher::start(scope, &buffers));
        let write = |buffer, len_bytes| {
            let sent = blob.send(Part { buffer, len_bytes });
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
            || Encoder::new(level, check, &buffers),
            |encoder, group| {
                let gathered = Gathered::read(plan, group, &layer.spool, &buffers);
                let encoded = gathered.and_then(|gathered| {
                    encoder.encode(gathered, copied.as_ref(), plan.min_chunk_bytes)
                });
                encoded.map_err(encode_error)
            },
            |encoded| {
                assembler.group(&encoded);
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
