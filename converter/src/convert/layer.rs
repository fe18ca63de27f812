//! One layer of an image: converted, copied as a plain tar, or reused as it is.

use crate::blob::{Blob, ReadAt as _};
use crate::cancel::Cancel;
use crate::convert::reuse::{find_reusable, reuse};
use crate::convert::scan::expected;
use crate::convert::{
    ConvertedLayer, ImageError, ImageOptions, LayerFormat, Reuse, Verify, blob_id,
};
use crate::image::BlobId;
use crate::layer::assemble::FinishedLayer;
use crate::layer::choice::{Choice, choose};
use crate::layer::encode::Check;
use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::placement::Placement;
use crate::layer::plan::{LayerPlan, Packed, Prefetch, plan_layer};
use crate::layer::scan::{EntryMemory, Keep, ScanOptions};
use crate::layer::verbatim::{copy_tar, verify_copy};
use crate::layer::verify::check_toc;
use crate::layer::{
    AheadError, AheadOptions, ConvertError, ConvertOptions, Encoding, MadeAhead, Parallel,
    convert_layer, scan_ahead,
};
use crate::progress::{Metered, Progress, Stage, Step};
use crate::scratch::{self, Needed};
use crate::sink::{Sink, StagedBlob};
use crate::source::{SourceImage, SourceLayer};

/// A layer of an image, and how it is converted.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) image: &'a SourceImage,
    pub(super) source: &'a SourceLayer,
    pub(super) options: &'a ImageOptions,
    /// Threads, and memory for this layer.
    pub(super) parallel: Parallel,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a dyn Progress,
}

impl Job<'_> {
    fn convert_options(&self) -> ConvertOptions {
        ConvertOptions {
            check: match self.options.verify {
                Verify::Full => Check::Prove,
                Verify::Skip => Check::Skip,
            },
            parallel: self.parallel,
        }
    }
}

fn ahead_options<'a>(
    options: &ImageOptions,
    scan: &'a ScanOptions,
    convert: ConvertOptions,
) -> AheadOptions<'a> {
    AheadOptions {
        scan,
        plan: options.plan,
        compression: options.compression,
        convert,
    }
}

/// Whether [`scan_and_convert`] can make layers of which nothing is prefetched.
pub(super) fn can_go_in_one_pass(options: &ImageOptions, parallel: Parallel) -> bool {
    let convert = ConvertOptions {
        check: Check::Skip,
        parallel,
    };
    let is_read_for_reuse = options.reuse == Reuse::WhereValid && options.verify == Verify::Full;
    options.format == LayerFormat::Estargz
        && !is_read_for_reuse
        && ahead_options(options, &options.scan, convert).are_possible()
}

/// Scans the layer and writes it to `sink`, with nothing to be prefetched.
pub(super) fn scan_and_convert(
    job: &Job<'_>,
    sink: &mut Sink,
) -> Result<ConvertedLayer, ImageError> {
    let Job {
        image,
        source,
        options,
        cancel,
        progress,
        ..
    } = *job;
    let mut scan = options.scan.clone();
    scan.keep = Keep::Readable;
    // The rest of what the layer may take is for encoding at the same time.
    let decode = &mut scan.decode.parallel;
    decode.memory_bytes = (decode.memory_bytes / 2).min(job.parallel.memory_bytes / 4);
    // The entries of other layers are not in memory.
    scan.entry_memory = EntryMemory::new(scan.entry_memory.limit_bytes());
    let ahead = ahead_options(options, &scan, job.convert_options());
    scratch::check(
        &scan.scratch,
        Needed::of_layers(image, &[source], scan.keep),
    )?;
    let mut out = sink.stage()?;
    let blob = image.open_layer(source)?;
    let step = Step::of(Stage::Encode, source.blob.digest, source.blob.size_bytes);
    let meter = progress.begin(step);
    let stream = Metered::new(blob.clone(), &*meter);
    let made = scan_ahead(stream, &blob, &expected(source), ahead, &mut out, cancel);
    let (layer, made) = made.map_err(|error| match error {
        AheadError::Scan(error) => error.into(),
        AheadError::Convert(error) => convert_error(error, sink),
    })?;
    meter.finish();
    tracing::debug!(layer = %layer.digest, entries = layer.entries.len(), is_made = made.is_some(), "scanned");
    let Some(MadeAhead { finished, choice }) = made else {
        drop(out);
        // Of what was scanned more is held now than when the job was made.
        let index_bytes = layer
            .deflate
            .as_ref()
            .map_or(0, |index| index.memory_bytes());
        let held_bytes = scan.entry_memory.used_bytes() + index_bytes;
        let Parallel {
            threads,
            memory_bytes,
        } = job.parallel;
        let parallel = Parallel {
            threads,
            memory_bytes: memory_bytes.saturating_sub(held_bytes),
        };
        let job = Job { parallel, ..*job };
        return convert(&job, &layer, &Placement::default(), sink);
    };
    check(job, &layer, &finished, &mut out, sink)?;
    sink.add(blob_id(&finished), out)?;
    Ok(ConvertedLayer {
        choice: Some(choice),
        ..report(&layer, finished, Prefetch::default())
    })
}

/// Writes the scanned layer to `sink`, with what `placement` names in front, and checks what was written.
pub(super) fn convert(
    job: &Job<'_>,
    layer: &ScannedLayer,
    placement: &Placement,
    sink: &mut Sink,
) -> Result<ConvertedLayer, ImageError> {
    let Job {
        options,
        cancel,
        progress,
        ..
    } = *job;
    let plan = plan_layer(layer, placement, options.plan)?;
    if options.reuse == Reuse::WhereValid
        && let Some(reused) = find_reusable(job, layer, &plan)?
    {
        return reuse(job, layer, reused, sink);
    }
    let mut blob = sink.stage()?;
    let step = |total_bytes| Step::of(Stage::Encode, layer.digest, total_bytes);
    let (made, choice) = match options.format {
        LayerFormat::Estargz => {
            let source_blob = job.image.open_layer(job.source)?;
            let choice = choose_encoding(job, layer, &plan, &source_blob)?;
            let level = choice.level(options.compression);
            let encoding = match (choice, &layer.deflate) {
                (Choice::Copy(_), Some(index)) => Encoding::Copy(&source_blob, index, level),
                _ => Encoding::Compress(level),
            };
            let meter = progress.begin(step(plan.tar_bytes));
            let out = &mut blob;
            let made = convert_layer(
                layer,
                &plan,
                &encoding,
                job.convert_options(),
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
    let finished = made.map_err(|error| convert_error(error, sink))?;
    let Packed {
        files,
        chunks,
        bytes,
        first_bytes,
    } = plan.prefetch.packed;
    if files > 0 && finished.toc_digest.is_some() {
        tracing::info!(
            "layer {}: {bytes} bytes in {chunks} chunks of {files} big files are packed in front, {first_bytes} behind the landmark",
            layer.digest
        );
    }
    check(job, layer, &finished, &mut blob, sink)?;
    sink.add(blob_id(&finished), blob)?;
    // A plain tar has no landmark, and so nothing before it.
    let prefetch = finished
        .toc_digest
        .map_or_else(Prefetch::default, |_| plan.prefetch);
    Ok(ConvertedLayer {
        choice,
        ..report(layer, finished, prefetch)
    })
}

fn convert_error(error: ConvertError, sink: &Sink) -> ImageError {
    match error {
        ConvertError::Write { .. } => ImageError::Write {
            place: sink.place().to_owned(),
            source: error,
        },
        other => other.into(),
    }
}

/// Checks what was written.
fn check(
    job: &Job<'_>,
    layer: &ScannedLayer,
    finished: &FinishedLayer,
    blob: &mut StagedBlob,
    sink: &Sink,
) -> Result<(), ImageError> {
    if job.options.verify == Verify::Skip {
        return Ok(());
    }
    let blob = blob.blob().map_err(|source| ImageError::Copy {
        digest: finished.digest,
        place: sink.place().to_owned(),
        source,
    })?;
    // The members have been checked before they were written.
    let found = match finished.toc_digest {
        Some(toc_digest) => check_toc(&blob, toc_digest),
        None => verify_copy(&blob, layer.diff_id, job.cancel),
    };
    found.map_err(|source| ImageError::Verify {
        layer: layer.digest,
        source,
    })
}

/// Whether the layer's compressed bits are copied.
fn choose_encoding(
    job: &Job<'_>,
    layer: &ScannedLayer,
    plan: &LayerPlan,
    source: &Blob,
) -> Result<Choice, ImageError> {
    let compression = job.options.compression;
    let choice = choose(layer, plan, source, compression, job.parallel.threads);
    let choice = choice.map_err(|source| ConvertError::Encode {
        layer: layer.digest,
        source,
    })?;
    tracing::debug!(layer = %layer.digest, ?choice, "chosen");
    Ok(choice)
}

pub(super) fn report(
    layer: &ScannedLayer,
    finished: FinishedLayer,
    prefetch: Prefetch,
) -> ConvertedLayer {
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
