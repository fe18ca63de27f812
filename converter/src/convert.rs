//! An image's way from scanned layers to a written image, on one screen; and the scan before it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cancel::{Cancel, Cancelled};
use crate::image::manifest::{rewrite_config, rewrite_manifest};
use crate::image::{BlobId, Digest, ImageRef, NewLayer};
use crate::layer::assemble::FinishedLayer;
use crate::layer::encode::{Check, Level};
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::{LayerPlan, PlanError, PlanOptions, Prefetch, plan_layer};
use crate::layer::reuse::{Reusable, reusable};
use crate::layer::scan::{Expected, ScanError, ScanOptions, scan_layer};
use crate::layer::verbatim::{copy_tar, verify_copy};
use crate::layer::verify::{VerifyError, check_toc, parse_toc, read_toc, verify_layer};
use crate::layer::{ConvertError, ConvertOptions, Parallel, convert_layer};
use crate::profile::Prioritized;
use crate::scratch::{self, Needed, ScratchError};
use crate::sink::{OciLayoutSink, SinkError};
use crate::source::{SourceError, SourceImage, SourceLayer};

/// How an image is converted.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// How layers are read.
    pub scan: ScanOptions,
    /// How they are cut.
    pub plan: PlanOptions,
    /// How they are compressed.
    pub level: Level,
    /// Threads and memory.
    pub parallel: Parallel,
    /// What layers become.
    pub format: LayerFormat,
    /// Whether layers that are eStargz already may stay as they are.
    pub reuse: Reuse,
    /// Whether written layers are read back.
    pub verify: Verify,
}

/// What layers become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerFormat {
    /// eStargz.
    Estargz,
    /// The source's tar, without compression.
    Tar,
}

/// Whether layers that are eStargz already may stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Every layer is converted.
    Never,
    /// Those that are valid, and prefetch nothing else than what is wanted.
    WhereValid,
}

/// Whether written layers are read back and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Every digest, TOC row and chunk.
    Full,
    /// Not at all.
    Skip,
}

/// A converted image.
#[derive(Clone, Debug)]
pub struct ConvertedImage {
    /// The new manifest.
    pub manifest: BlobId,
    /// What became of each layer, base first.
    pub layers: Vec<ConvertedLayer>,
    /// Time spent making the layers, and checking them.
    pub encode: Duration,
    /// Time spent naming and syncing.
    pub commit: Duration,
}

/// What became of a layer.
#[derive(Clone, Debug)]
pub struct ConvertedLayer {
    /// The source blob.
    pub source: BlobId,
    /// Length of the source's tar.
    pub source_tar_bytes: u64,
    /// Entries of the source.
    pub entries: u64,
    /// The written blob.
    pub finished: FinishedLayer,
    /// What is before the landmark.
    pub prefetch: Prefetch,
    /// Whether the blob is the source's own.
    pub reused: bool,
}

/// Why an image could not be converted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps a stage's error")]
pub enum ImageError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("writing to {}", directory.display())]
    Write {
        directory: PathBuf,
        #[source]
        source: ConvertError,
    },
    #[error("copying layer {layer} to {}", directory.display())]
    Copy {
        layer: Digest,
        directory: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the converted layer of {layer} is faulty")]
    Verify {
        layer: Digest,
        #[source]
        source: VerifyError,
    },
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Reads all layers of `source`, in parallel, the largest first.
///
/// # Errors
/// That of the layer which failed first; the others are cancelled and joined.
pub fn scan_image(
    source: &SourceImage,
    options: &ScanOptions,
    threads: usize,
    cancel: &Cancel,
) -> Result<Vec<ScannedLayer>, ImageError> {
    scratch::check(&options.scratch, Needed::of_image(source))?;
    let mut order: Vec<usize> = (0..source.layers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(source.layers[index].blob.size_bytes));
    let next = AtomicUsize::new(0);
    let scanned: Mutex<Vec<Option<ScannedLayer>>> =
        Mutex::new(source.layers.iter().map(|_| None).collect());
    let failure: Mutex<Option<ImageError>> = Mutex::new(None);
    // Apart from the caller's: a failure here cancels only the other layers.
    let stop = Cancel::default();
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, source.layers.len().max(1)) {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match scan_one(source, &source.layers[index], options, &[cancel, &stop]) {
                        Ok(layer) => lock(&scanned)[index] = Some(layer),
                        Err(error) => {
                            lock(&failure).get_or_insert(error);
                            stop.cancel();
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    cancel.check()?;
    let scanned = scanned.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(scanned.into_iter().flatten().collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scan_one(
    source: &SourceImage,
    layer: &SourceLayer,
    options: &ScanOptions,
    cancels: &[&Cancel],
) -> Result<ScannedLayer, ImageError> {
    for cancel in cancels {
        cancel.check()?;
    }
    let blob = source.open_layer(layer)?;
    let expected = Expected {
        digest: layer.blob.digest,
        size_bytes: layer.blob.size_bytes,
        diff_id: layer.diff_id,
    };
    let started = Instant::now();
    let scanned = scan_layer(blob, &expected, options, cancels)?;
    tracing::debug!(layer = %scanned.digest, entries = scanned.entries.len(), elapsed = ?started.elapsed(), "scanned");
    Ok(scanned)
}

/// Converts all layers, checks them, and writes the image to `sink`.
///
/// # Errors
/// [`ImageError`]; the destination is as it was then.
pub fn convert_image(
    source: &SourceImage,
    layers: &[ScannedLayer],
    prioritized: &Prioritized,
    options: &ImageOptions,
    mut sink: OciLayoutSink,
    cancel: &Cancel,
) -> Result<ConvertedImage, ImageError> {
    let convert_options = ConvertOptions {
        level: options.level,
        check: match options.verify {
            Verify::Full => Check::Inflate,
            Verify::Skip => Check::Skip,
        },
        parallel: options.parallel,
    };
    let mut encode = Duration::ZERO;
    let mut converted = Vec::with_capacity(layers.len());
    let sources = source.layers.iter().zip(layers);
    for ((source_layer, layer), prioritized) in sources.zip(&prioritized.layers) {
        let started = Instant::now();
        let plan = plan_layer(layer, prioritized, options.plan)?;
        if options.reuse == Reuse::WhereValid
            && let Some(reused) = reuse_layer(source_layer, source, layer, &plan, options, cancel)?
        {
            converted.push(copy_layer(
                reused,
                source_layer,
                source,
                layer,
                options,
                &mut sink,
                cancel,
            )?);
            encode += started.elapsed();
            continue;
        }
        let blob = sink.stage()?;
        let made = match options.format {
            LayerFormat::Estargz => convert_layer(layer, &plan, convert_options, &blob, cancel),
            LayerFormat::Tar => copy_tar(layer, &blob, cancel),
        };
        let finished = made.map_err(|source| match source {
            ConvertError::Write { .. } => ImageError::Write {
                directory: sink.directory().to_owned(),
                source,
            },
            other => other.into(),
        })?;
        if options.verify == Verify::Full {
            // The members have been inflated and compared before they were written.
            let found = match finished.toc_digest {
                Some(toc_digest) => check_toc(blob.file(), toc_digest),
                None => verify_copy(blob.file(), layer.diff_id, cancel),
            };
            found.map_err(|source| ImageError::Verify {
                layer: layer.digest,
                source,
            })?;
        }
        encode += started.elapsed();
        sink.add(
            BlobId {
                digest: finished.digest,
                size_bytes: finished.size_bytes,
            },
            blob,
        )?;
        converted.push(report(layer, &plan, finished));
    }
    let started = Instant::now();
    let new_layers: Vec<NewLayer> = converted
        .iter()
        .map(|layer| new_layer(&layer.finished))
        .collect();
    let config = sink.add_bytes(&rewrite_config(&source.config, &new_layers))?;
    let manifest = rewrite_manifest(&source.manifest, config, &new_layers);
    cancel.check()?;
    sink.commit(&manifest, &platform(source))?;
    let commit = started.elapsed();
    Ok(ConvertedImage {
        manifest: BlobId::of(&manifest),
        layers: converted,
        encode,
        commit,
    })
}

/// The layer as it is, if it can be carried over; says why on a level for the curious if not.
fn reuse_layer(
    source_layer: &SourceLayer,
    source: &SourceImage,
    layer: &ScannedLayer,
    plan: &LayerPlan,
    options: &ImageOptions,
    cancel: &Cancel,
) -> Result<Option<Reusable>, ImageError> {
    let blob = source.open_layer(source_layer)?;
    let (json, toc_offset_bytes) = match read_toc(&blob) {
        Ok(found) => found,
        Err(reason) => {
            tracing::debug!(layer = %layer.digest, %reason, "no eStargz");
            return Ok(None);
        }
    };
    let verdict = parse_toc(&json, toc_offset_bytes).map(|toc| {
        let annotated = source_layer.toc_digest.as_deref();
        reusable((&json, &toc), toc_offset_bytes, annotated, layer, plan)
    });
    let reason = match verdict {
        Ok(Ok(found)) if options.verify == Verify::Skip => return Ok(Some(found)),
        // The scan has checked the blob's digest; what it must still be is what its TOC says.
        Ok(Ok(found)) => match verify_layer(&blob, options.parallel, cancel)
            .and_then(|verified| verified.must_equal(&found.finished))
        {
            Ok(()) => return Ok(Some(found)),
            Err(VerifyError::Cancelled(cancelled)) => return Err(cancelled.into()),
            Err(error) => error.to_string(),
        },
        Ok(Err(reason)) => reason.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::debug!(layer = %layer.digest, reason, "not reused");
    Ok(None)
}

/// Puts the source's own blob into the destination.
fn copy_layer(
    reused: Reusable,
    source_layer: &SourceLayer,
    source: &SourceImage,
    layer: &ScannedLayer,
    options: &ImageOptions,
    sink: &mut OciLayoutSink,
    cancel: &Cancel,
) -> Result<ConvertedLayer, ImageError> {
    tracing::info!("reusing \"{}\" without conversion", layer.digest);
    let blob = sink.stage()?;
    let mut from = source.open_layer(source_layer)?;
    std::io::copy(&mut from, &mut &blob).map_err(|source| ImageError::Copy {
        layer: layer.digest,
        directory: sink.directory().to_owned(),
        source,
    })?;
    if options.verify == Verify::Full {
        verify_copy(blob.file(), layer.digest, cancel).map_err(|source| ImageError::Verify {
            layer: layer.digest,
            source,
        })?;
    }
    sink.add(source_layer.blob, blob)?;
    let plan = LayerPlan {
        prefetch: reused.prefetch,
        ..LayerPlan::default()
    };
    Ok(ConvertedLayer {
        reused: true,
        ..report(layer, &plan, reused.finished)
    })
}

fn report(layer: &ScannedLayer, plan: &LayerPlan, finished: FinishedLayer) -> ConvertedLayer {
    use crate::layer::spool::ReadAt as _;
    ConvertedLayer {
        source: BlobId {
            digest: layer.digest,
            size_bytes: layer.size_bytes,
        },
        source_tar_bytes: layer.spool.len_bytes(),
        entries: layer.entries.len() as u64,
        // A plain tar has no landmark, and so nothing before it.
        prefetch: finished
            .toc_digest
            .map_or_else(Prefetch::default, |_| plan.prefetch),
        finished,
        reused: false,
    }
}

fn new_layer(finished: &FinishedLayer) -> NewLayer {
    NewLayer {
        blob: BlobId {
            digest: finished.digest,
            size_bytes: finished.size_bytes,
        },
        diff_id: finished.diff_id,
        toc_digest: finished.toc_digest,
        uncompressed_bytes: finished.uncompressed_bytes,
    }
}

/// The platform for the index, from the configuration.
fn platform(source: &SourceImage) -> Value {
    let mut platform = serde_json::Map::new();
    for (from, to) in [
        ("architecture", "architecture"),
        ("os", "os"),
        ("os.version", "os.version"),
        ("os.features", "os.features"),
        ("variant", "variant"),
    ] {
        if let Some(value) = source.config.raw.get(from) {
            platform.insert(to.to_owned(), json!(value));
        }
    }
    if platform.is_empty() {
        Value::Null
    } else {
        Value::Object(platform)
    }
}

/// `os/architecture` of the image.
pub fn platform_name(source: &SourceImage) -> String {
    let text = |key: &str| {
        source
            .config
            .raw
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or("unknown")
    };
    format!("{}/{}", text("os"), text("architecture"))
}

/// Opens the place where an image is to be written; changes nothing there.
///
/// # Errors
/// When it cannot be written to, or is something else.
pub fn open_sink(reference: &ImageRef) -> Result<OciLayoutSink, SinkError> {
    let ImageRef::OciLayout { dir, tag } = reference;
    OciLayoutSink::open(dir, tag.as_deref())
}
