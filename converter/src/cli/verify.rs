//! `esgz verify`.

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::cli::args::VerifyArgs;
use crate::cli::conversion::all_cores;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Size};
use crate::cli::reading;
use crate::layer::Parallel;
use crate::layer::verify::{VerifiedLayer, VerifyError, must_equal, verify_layer};
use crate::source::{Selection, SourceLayer};

/// Memory for buffers; verifying needs no flag for it.
const MEMORY_BYTES: u64 = 256 << 20;

/// Runs `esgz verify`.
pub(super) fn verify(args: &VerifyArgs, cancel: &Cancel) -> Result<(), Failure> {
    let threads = args.threads.map_or_else(all_cores, usize::from);
    let parallel = Parallel {
        threads,
        memory_bytes: MEMORY_BYTES,
    };
    let source = reading::open_to_look(&args.image, &args.platforms, Selection::All, cancel)?;
    let mut verified = Vec::new();
    for image in &source.images {
        for layer in &image.layers {
            let blob = image.open_layer(layer)?;
            let found = verify_layer(&blob, parallel, cancel)
                .and_then(|found| as_described(layer, &found).map(|()| found))
                .map_err(|error| {
                    Failure::from(error).context(format!("layer {}", layer.blob.digest))
                })?;
            verified.push(found);
        }
    }
    let chunks: u64 = verified.iter().map(|layer| layer.chunks).sum();
    let bytes: u64 = verified.iter().map(|layer| layer.uncompressed_bytes).sum();
    if args.json {
        return output::json(&json!({
            "reference": args.image.to_string(),
            "manifest": source.images[0].manifest.id.digest,
            "verified": true,
            "layers": verified.iter().map(layer_json).collect::<Vec<_>>(),
        }));
    }
    output::line(format_args!(
        "verified   {} layers, {chunks} chunks, {} uncompressed: all digests match",
        verified.len(),
        Size(bytes)
    ))
}

/// Compares a blob with what manifest and configuration say of it.
fn as_described(layer: &SourceLayer, found: &VerifiedLayer) -> Result<(), VerifyError> {
    must_equal("size", &found.size_bytes, &layer.blob.size_bytes)?;
    must_equal("digest", &found.digest, &layer.blob.digest)?;
    must_equal("DiffID", &found.diff_id, &layer.diff_id)?;
    let annotated = layer
        .toc_digest
        .clone()
        .unwrap_or_else(|| "none".to_owned());
    must_equal("TOC digest", &found.toc_digest.to_string(), &annotated)
}

fn layer_json(layer: &VerifiedLayer) -> Value {
    json!({
        "digest": layer.digest,
        "size_bytes": layer.size_bytes,
        "diff_id": layer.diff_id,
        "toc_digest": layer.toc_digest,
        "uncompressed_bytes": layer.uncompressed_bytes,
        "files": layer.files,
        "chunks": layer.chunks,
    })
}
