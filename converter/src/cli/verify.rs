//! `esgz verify`.

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::cli::args::VerifyArgs;
use crate::cli::conversion::{Usage, scan_options, threads};
use crate::cli::failure::Failure;
use crate::cli::output::{self, Size};
use crate::layer::Parallel;
use crate::layer::verify::{VerifiedLayer, VerifyOptions};
use crate::source;
use crate::verify::{compare_images, verify_image};

/// Runs `esgz verify`.
pub(super) fn verify(args: &VerifyArgs, cancel: &Cancel) -> Result<(), Failure> {
    // With a source two layers' entries are in memory beside one's TOC.
    let memory_bytes = args.reading.memory;
    let buffers_bytes = memory_bytes / if args.source.is_some() { 8 } else { 4 };
    let options = VerifyOptions {
        parallel: Parallel {
            threads: threads(&args.reading),
            memory_bytes: buffers_bytes,
        },
        toc_memory_bytes: memory_bytes - buffers_bytes,
        max_layer_bytes: args.reading.max_layer_size,
    };
    let image = source::open(&args.image)?;
    let verified = match &args.source {
        None => verify_image(&image, options, cancel)?,
        Some(reference) => {
            let source = source::open(reference)?;
            let scan = scan_options(&args.reading);
            compare_images(&image, &source, options, &scan, cancel)?
        }
    };
    let chunks: u64 = verified.iter().map(|layer| layer.chunks).sum();
    let files: u64 = verified.iter().map(|layer| layer.files).sum();
    let bytes: u64 = verified.iter().map(|layer| layer.uncompressed_bytes).sum();
    if args.json {
        return output::json(&json!({
            "reference": args.image.to_string(),
            "manifest": image.manifest.id.digest,
            "verified": true,
            "equal_to": args.source.as_ref().map(ToString::to_string),
            "peak_memory_bytes": Usage::of_this_process().peak_memory_bytes,
            "layers": verified.iter().map(layer_json).collect::<Vec<_>>(),
        }));
    }
    output::line(format_args!(
        "verified   {} layers, {files} files, {chunks} chunks, {} uncompressed: all digests match",
        verified.len(),
        Size(bytes)
    ))?;
    if let Some(source) = &args.source {
        output::line(format_args!("equal      every entry is as in {source}"))?;
    }
    Ok(())
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
