//! `esgz verify`.

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::cli::args::VerifyArgs;
use crate::cli::containerd::Remotes;
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::output::{self, Size};
use crate::cli::reading::{self, scan_options, threads};
use crate::cli::registry;
use crate::cli::report::Usage;
use crate::containerd::ContainerdOptions;
use crate::layer::Parallel;
use crate::layer::verify::{VerifiedLayer, VerifyOptions};
use crate::progress::Progress;
use crate::source::{Selection, Source, SourceImage};
use crate::verify::{compare_images, verify_image};

/// Runs `esgz verify`.
pub(super) fn verify(
    args: &VerifyArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(), Failure> {
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
    let remotes = Remotes {
        registry: registry::options(&args.registry, Some(&args.registry_user))?,
        containerd: containerd.clone(),
    };
    let open = |reference| {
        let (platforms, remotes) = (&args.platforms, remotes.clone());
        reading::open_to_look(reference, platforms, Selection::All, remotes, cancel)
    };
    let source = open(&args.image)?;
    let mut verified = Vec::new();
    match &args.source {
        None => {
            for image in &source.images {
                verified.extend(verify_image(image, options, cancel, progress)?);
            }
        }
        Some(reference) => {
            let scan = scan_options(&args.reading);
            let expected = open(reference)?;
            for image in &source.images {
                let expected = same_platform(image, &expected)?;
                verified.extend(compare_images(
                    image, expected, options, &scan, cancel, progress,
                )?);
            }
        }
    }
    let chunks: u64 = verified.iter().map(|layer| layer.chunks).sum();
    let files: u64 = verified.iter().map(|layer| layer.files).sum();
    let bytes: u64 = verified.iter().map(|layer| layer.uncompressed_bytes).sum();
    if args.json {
        return output::json(&json!({
            "reference": args.image.to_string(),
            "manifest": source.images[0].manifest.id.digest,
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

/// The image of `source` for the platform of `image`; the only one whatever its platform.
fn same_platform<'a>(image: &SourceImage, source: &'a Source) -> Result<&'a SourceImage, Failure> {
    let is_same = |other: &&SourceImage| other.platform == image.platform;
    match (source.images.iter().find(is_same), source.images.as_slice()) {
        (Some(found), _) => Ok(found),
        (None, [only]) => Ok(only),
        (None, _) => Err(Failure::message(
            IMAGE,
            format!("{} has no image for {}", source.reference, image.platform),
        )),
    }
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
