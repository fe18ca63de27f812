//! Layers that are eStargz already and stay as they are.

use crate::cancel::Cancel;
use crate::convert::{ConvertedLayer, ImageError, ImageOptions, Verify, report};
use crate::layer::entry::ScannedLayer;
use crate::layer::plan::LayerPlan;
use crate::layer::reuse::{Reusable, reusable};
use crate::layer::verify::{VerifyError, parse_toc, read_toc, verify_layer};
use crate::sink::Sink;
use crate::source::{SourceImage, SourceLayer};

/// The layer as it is, if it can be carried over; says why on a level for the curious if not.
pub(super) fn find(
    source: &SourceImage,
    source_layer: &SourceLayer,
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
pub(super) fn copy(
    reused: Reusable,
    source: &SourceImage,
    source_layer: &SourceLayer,
    layer: &ScannedLayer,
    sink: &mut Sink,
) -> Result<ConvertedLayer, ImageError> {
    tracing::info!("reusing \"{}\" without conversion", layer.digest);
    let mut blob = sink.stage()?;
    let mut from = source.open_layer(source_layer)?;
    std::io::copy(&mut from, &mut blob).map_err(|source| ImageError::Copy {
        layer: layer.digest,
        place: sink.place().to_owned(),
        source,
    })?;
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
