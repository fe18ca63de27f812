//! One layer of an image: converted, copied as a plain tar, or reused as it is.

use crate::blob::{Blob, ReadAt as _};
use crate::cancel::Cancel;
use crate::convert::copy::copy_blob;
use crate::convert::{
    Compression, ConvertedLayer, ImageError, ImageOptions, LayerFormat, Reuse, Verify,
};
use crate::image::BlobId;
use crate::layer::assemble::FinishedLayer;
use crate::layer::choice::{Choice, Reason, choose};
use crate::layer::encode::{Check, Level};
use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::plan::{LayerPlan, Prefetch, plan_layer};
use crate::layer::reuse::{Reusable, reusable};
use crate::layer::verbatim::{copy_tar, verify_copy};
use crate::layer::verify::{VerifyError, check_toc, parse_toc, read_toc, verify_layer};
use crate::layer::{ConvertError, ConvertOptions, Encoding, convert_layer};
use crate::progress::{Metered, Progress, Stage, Step};
use crate::sink::Sink;
use crate::source::{SourceImage, SourceLayer};

/// A layer, and what is wanted of it.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) image: &'a SourceImage,
    pub(super) source: &'a SourceLayer,
    pub(super) layer: &'a ScannedLayer,
    /// Entries to prefetch, by index.
    pub(super) prioritized: &'a [u32],
    pub(super) options: &'a ImageOptions,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a dyn Progress,
}

/// Writes the layer to `sink`, and checks what was written.
pub(super) fn convert(job: &Job<'_>, sink: &mut Sink) -> Result<ConvertedLayer, ImageError> {
    let Job {
        layer,
        options,
        cancel,
        progress,
        ..
    } = *job;
    let plan = plan_layer(layer, job.prioritized, options.plan)?;
    if options.reuse == Reuse::WhereValid
        && let Some(reused) = find_reusable(job, &plan)?
    {
        return reuse(job, reused, sink);
    }
    let convert_options = ConvertOptions {
        check: match options.verify {
            Verify::Full => Check::Inflate,
            Verify::Skip => Check::Skip,
        },
        parallel: options.parallel,
    };
    let mut blob = sink.stage()?;
    let step = |total_bytes| Step::of(Stage::Encode, layer.digest, total_bytes);
    let (made, choice) = match options.format {
        LayerFormat::Estargz => {
            let source_blob = job.image.open_layer(job.source)?;
            let choice = choose_encoding(job, &plan, &source_blob)?;
            let encoding = match (choice, &layer.deflate, options.compression) {
                (Choice::Copy(_), Some(index), _) => {
                    Encoding::Copy(&source_blob, index, Level::FOR_THE_REST)
                }
                (_, _, Compression::Level(level)) => Encoding::Compress(level),
                _ => Encoding::Compress(Level::default()),
            };
            let meter = progress.begin(step(plan.tar_bytes));
            let out = &mut blob;
            let made = convert_layer(
                layer,
                &plan,
                &encoding,
                convert_options,
                out,
                cancel,
                &*meter,
            );
            (made.inspect(|_| meter.finish()), Some(choice))
        }
        LayerFormat::Tar => {
            let meter = progress.begin(step(layer.spool.len_bytes()));
            let made = copy_tar(layer, &mut blob, cancel, &*meter);
            (made.inspect(|_| meter.finish()), None)
        }
    };
    let finished = made.map_err(|source| match source {
        ConvertError::Write { .. } => ImageError::Write {
            place: sink.place().to_owned(),
            source,
        },
        other => other.into(),
    })?;
    if options.verify == Verify::Full {
        // The members have been inflated and compared before they were written.
        let found = match finished.toc_digest {
            Some(toc_digest) => check_toc(&blob.blob(), toc_digest),
            None => verify_copy(&blob.blob(), layer.diff_id, cancel),
        };
        found.map_err(|source| ImageError::Verify {
            layer: layer.digest,
            source,
        })?;
    }
    let id = BlobId {
        digest: finished.digest,
        size_bytes: finished.size_bytes,
    };
    sink.add(id, blob)?;
    // A plain tar has no landmark, and so nothing before it.
    let prefetch = finished
        .toc_digest
        .map_or_else(Prefetch::default, |_| plan.prefetch);
    Ok(ConvertedLayer {
        choice,
        ..report(layer, finished, prefetch)
    })
}

/// Whether the layer's compressed bits are copied.
fn choose_encoding(job: &Job<'_>, plan: &LayerPlan, source: &Blob) -> Result<Choice, ImageError> {
    let Compression::Keep { overhead } = job.options.compression else {
        return Ok(Choice::Compress(Reason::LevelGiven));
    };
    let threads = job.options.parallel.threads;
    let choice = choose(job.layer, plan, source, overhead, threads);
    let choice = choice.map_err(|source| ConvertError::Encode {
        layer: job.layer.digest,
        source,
    })?;
    tracing::debug!(layer = %job.layer.digest, ?choice, "chosen");
    Ok(choice)
}

/// The layer as it is, if it can be carried over; says why on a level for the curious if not.
fn find_reusable(job: &Job<'_>, plan: &LayerPlan) -> Result<Option<Reusable>, ImageError> {
    let Job {
        source,
        layer,
        options,
        cancel,
        progress,
        ..
    } = *job;
    let blob = job.image.open_layer(source)?;
    let (json, toc_offset_bytes) = match read_toc(&blob) {
        Ok(found) => found,
        Err(reason) => {
            tracing::debug!(layer = %layer.digest, %reason, "no eStargz");
            return Ok(None);
        }
    };
    let verdict = parse_toc(&json, toc_offset_bytes).map(|toc| {
        let annotated = source.toc_digest.as_deref();
        reusable((&json, &toc), toc_offset_bytes, annotated, layer, plan)
    });
    let reason = match verdict {
        Ok(Ok(found)) if options.verify == Verify::Skip => return Ok(Some(found)),
        // The scan has checked the blob's digest; what it must still be is what its TOC says.
        Ok(Ok(found)) => {
            let step = Step::of(Stage::Verify, layer.digest, layer.size_bytes);
            let meter = progress.begin(step);
            let verified = verify_layer(&Metered::new(&blob, &*meter), options.parallel, cancel);
            match verified.and_then(|verified| verified.must_equal(&found.finished)) {
                Ok(()) => {
                    meter.finish();
                    return Ok(Some(found));
                }
                Err(VerifyError::Cancelled(cancelled)) => return Err(cancelled.into()),
                Err(error) => error.to_string(),
            }
        }
        Ok(Err(reason)) => reason.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::debug!(layer = %layer.digest, reason, "not reused");
    Ok(None)
}

/// Puts the source's own blob into the destination.
fn reuse(job: &Job<'_>, reused: Reusable, sink: &mut Sink) -> Result<ConvertedLayer, ImageError> {
    tracing::info!("reusing \"{}\" without conversion", job.layer.digest);
    copy_blob(
        "layer",
        || job.image.open_layer(job.source),
        job.source.blob,
        sink,
        job.cancel,
        job.progress,
    )?;
    Ok(ConvertedLayer {
        reused: true,
        ..report(job.layer, reused.finished, reused.prefetch)
    })
}

fn report(layer: &ScannedLayer, finished: FinishedLayer, prefetch: Prefetch) -> ConvertedLayer {
    let files = layer.entries.iter();
    let files = files.filter(|entry| entry.kind == EntryKind::Regular);
    ConvertedLayer {
        source: BlobId {
            digest: layer.digest,
            size_bytes: layer.size_bytes,
        },
        source_tar_bytes: layer.spool.len_bytes(),
        entries: layer.entries.len() as u64,
        files: files.clone().count() as u64,
        file_bytes: files.map(|entry| entry.size_bytes).sum(),
        finished,
        prefetch,
        reused: false,
        choice: None,
    }
}
