//! Layers that are eStargz already and stay as they are.

use std::io;

use crate::blob::{ReadAt, Supply};
use crate::convert::copy::pass_on;
use crate::convert::layer::{Job, report};
use crate::convert::{ConvertedLayer, ImageError, Reuse, Verify};
use crate::layer::entry::{Entry, ScannedLayer};
use crate::layer::footer::{self, FOOTER_BYTES};
use crate::layer::plan::{LayerPlan, is_pack};
use crate::layer::reuse::{Reusable, Unscanned, reusable, reusable_unscanned};
use crate::layer::verify::{VerifyError, parse_toc, read_toc, verify_layer};
use crate::planner::HotPack;
use crate::progress::{Metered, Stage, Step};
use crate::sink::{PassedOn, Sink};

/// A TOC that is longer is left to the scan.
const MAX_TAIL_BYTES: u64 = 256 << 20;

/// What can be said of a layer before it is scanned.
pub(super) enum Before {
    /// It stays as it is.
    Reused(Box<ConvertedLayer>, PassedOn),
    /// It has to be converted.
    Converted,
    /// Whether it can stay, the scan has to say.
    Unknown,
}

/// Looks at the layer's TOC alone, which is read from the blob's end: of a layer of which nothing is to be
/// prefetched, and that is not to be verified. That the blob has its digest, the copy checks.
pub(super) fn before_scan(job: &Job<'_>) -> Result<Before, ImageError> {
    let (source, options) = (job.source, job.options);
    if options.reuse == Reuse::Never {
        return Ok(Before::Converted);
    }
    if options.verify == Verify::Full {
        return Ok(Before::Unknown);
    }
    let (Some(annotated), Some(uncompressed_bytes)) =
        (source.toc_digest.as_deref(), source.uncompressed_bytes)
    else {
        // Without its TOC's digest no scan makes it reusable.
        return Ok(match source.toc_digest {
            None => Before::Converted,
            Some(_) => Before::Unknown,
        });
    };
    let blob = passed_on(job)?;
    let tail = match Tail::read(&*blob.supply, source.blob.size_bytes) {
        Ok(Some(tail)) => tail,
        Ok(None) => return Ok(Before::Unknown),
        // Some registries send no parts. Whatever it is, the scan says it better.
        Err(error) => {
            job.cancel.check()?;
            tracing::debug!(layer = %source.blob.digest, %error, "its end alone cannot be read");
            return Ok(Before::Unknown);
        }
    };
    let verdict = read_toc(&tail).and_then(|(json, toc_offset_bytes)| {
        let toc = parse_toc(&json, toc_offset_bytes)?;
        let unscanned = Unscanned {
            blob: source.blob,
            diff_id: source.diff_id,
            uncompressed_bytes,
        };
        Ok(reusable_unscanned(
            (&json, &toc),
            toc_offset_bytes,
            annotated,
            &unscanned,
        ))
    });
    let reason = match verdict {
        Ok(Ok((reused, _)))
            if options.planner.hot_pack == HotPack::Off && reused.prefetch.packed.files > 0 =>
        {
            "it has packs".to_owned()
        }
        Ok(Ok((reused, contents))) => {
            tracing::info!("reusing \"{}\" without conversion", source.blob.digest);
            let converted = ConvertedLayer {
                source: source.blob,
                source_tar_bytes: uncompressed_bytes,
                entries: contents.entries,
                files: contents.files,
                file_bytes: contents.file_bytes,
                finished: reused.finished,
                prefetch: reused.prefetch,
                reused: true,
                choice: None,
            };
            return Ok(Before::Reused(Box::new(converted), blob));
        }
        Ok(Err(reason)) => reason.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::debug!(layer = %source.blob.digest, reason, "not reused");
    Ok(Before::Converted)
}

/// The end of a blob, as if all of it were there.
struct Tail {
    bytes: Vec<u8>,
    start_bytes: u64,
    len_bytes: u64,
}

impl Tail {
    /// TOC and footer, of a blob that ends as eStargz does; or its last bytes alone.
    fn read(supply: &dyn Supply, len_bytes: u64) -> io::Result<Option<Self>> {
        let read = |start_bytes: u64| {
            let len = usize::try_from(len_bytes - start_bytes).map_err(io::Error::other)?;
            let mut bytes = vec![0; len];
            supply.read_exact_at(&mut bytes, start_bytes)?;
            Ok::<_, io::Error>(Self {
                bytes,
                start_bytes,
                len_bytes,
            })
        };
        let end = read(len_bytes.saturating_sub(FOOTER_BYTES as u64))?;
        let toc_at = end.bytes.as_slice().try_into().ok().and_then(footer::parse);
        match toc_at {
            Some(at) if at >= end.start_bytes => Ok(Some(end)),
            Some(at) if len_bytes - at > MAX_TAIL_BYTES => Ok(None),
            Some(at) => read(at).map(Some),
            None => Ok(Some(end)),
        }
    }
}

impl ReadAt for Tail {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let offset_bytes = offset_bytes.checked_sub(self.start_bytes);
        self.bytes
            .read_exact_at(buffer, offset_bytes.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

fn passed_on(job: &Job<'_>) -> Result<PassedOn, ImageError> {
    Ok(PassedOn {
        id: job.source.blob,
        supply: job.image.supply_layer(job.source)?,
    })
}

/// The layer as it is, if it can be carried over; says why on a level for the curious if not.
pub(super) fn find_reusable(
    job: &Job<'_>,
    layer: &ScannedLayer,
    plan: &LayerPlan,
) -> Result<Option<Reusable>, ImageError> {
    let Job {
        source,
        options,
        cancel,
        progress,
        ..
    } = *job;
    let holds_chunks = |entry: &Entry| entry.path().is_some_and(|path| is_pack(&path));
    if options.planner.hot_pack == HotPack::Off && layer.entries.iter().any(holds_chunks) {
        tracing::debug!(layer = %layer.digest, "not reused: it has packs");
        return Ok(None);
    }
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
            let verified = verify_layer(&Metered::new(&blob, &*meter), job.parallel, cancel);
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
pub(super) fn reuse(
    job: &Job<'_>,
    layer: &ScannedLayer,
    reused: Reusable,
    sink: &mut Sink,
) -> Result<ConvertedLayer, ImageError> {
    tracing::info!("reusing \"{}\" without conversion", layer.digest);
    let blob = passed_on(job)?;
    pass_on("layer", vec![blob], sink, job.cancel, job.progress)?;
    Ok(ConvertedLayer {
        reused: true,
        ..report(layer, reused.finished, reused.prefetch)
    })
}
