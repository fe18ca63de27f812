//! `esgz inspect`.

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::cli::args::InspectArgs;
use crate::cli::containerd::Remotes;
use crate::cli::failure::{Failure, USAGE};
use crate::cli::output::{self, Size};
use crate::cli::plan;
use crate::cli::reading;
use crate::cli::registry;
use crate::cli::report::{in_packs, packed_json};
use crate::containerd::ContainerdOptions;
use crate::layer::plan::{LANDMARK_NAMES, Packed};
use crate::layer::toc::Toc;
use crate::layer::toc_packs::packed;
use crate::layer::verify::{VerifyError, parse_toc, read_toc};
use crate::source::{Selection, SourceImage, SourceLayer};

/// Runs `esgz inspect`.
pub(super) fn inspect(
    args: &InspectArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let unless = Selection::ThisMachine;
    let remotes = Remotes {
        registry: registry::options(&args.registry, Some(&args.registry_user))?,
        containerd: containerd.clone(),
    };
    let source = reading::open_to_look(&args.image, &args.platforms, unless, remotes, cancel)?;
    if args.plan.plan {
        return plan::print(&source.into_image()?, args, cancel);
    }
    if let Some(number) = args.layer {
        let image = source.into_image()?;
        let layer = image.layers.get(number).ok_or_else(|| {
            let message = format!(
                "{} has layers 0 to {}",
                args.image,
                image.layers.len().max(1) - 1
            );
            Failure::message(USAGE, message)
        })?;
        return inspect_layer(&image, layer, args);
    }
    if !args.json {
        return source.images.iter().try_for_each(print);
    }
    let images = source.images.iter().map(image_json);
    let mut images = images.collect::<Result<Vec<Value>, Failure>>()?;
    match images.len() {
        1 => output::json(&images.remove(0)),
        _ => output::json(&json!({ "reference": args.image.to_string(), "images": images })),
    }
}

fn summaries(image: &SourceImage) -> Result<Vec<Option<Summary>>, Failure> {
    let layers = image.layers.iter();
    layers.map(|layer| summarize(image, layer)).collect()
}

fn image_json(image: &SourceImage) -> Result<Value, Failure> {
    let summaries = summaries(image)?;
    let layers = image.layers.iter().zip(&summaries);
    let layers: Vec<Value> = layers
        .map(|(layer, s)| layer_json(layer, s.as_ref()))
        .collect();
    Ok(json!({
        "reference": image.reference.to_string(),
        "manifest": image.manifest.id.digest,
        "platform": image.platform.to_string(),
        "layers": layers,
    }))
}

fn print(image: &SourceImage) -> Result<(), Failure> {
    let summaries = summaries(image)?;
    output::line(format_args!(
        "image      {} {}",
        image.reference, image.manifest.id.digest
    ))?;
    output::line(format_args!("platform   {}", image.platform))?;
    output::line(format_args!(
        "\n{:>5}  {:<20} {:>10} {:>7} {:>7}  prefetched",
        "layer", "digest", "size", "files", "chunks"
    ))?;
    for (number, (layer, summary)) in image.layers.iter().zip(&summaries).enumerate() {
        let digest = layer.blob.digest.to_string();
        let head = format!(
            "{number:>5}  {:<20} {:>10}",
            &digest[..19],
            Size(layer.blob.size_bytes)
        );
        match summary {
            Some(summary) => output::line(format_args!(
                "{head} {:>7} {:>7}  {}",
                summary.files,
                summary.chunks,
                summary.prefetched()
            ))?,
            None => output::line(format_args!("{head} {:>7} {:>7}  not eStargz", "-", "-"))?,
        }
    }
    Ok(())
}

/// A layer's TOC in figures.
struct Summary {
    toc_digest: String,
    toc_bytes: u64,
    toc_offset_bytes: u64,
    files: u64,
    chunks: u64,
    landmark: Option<&'static str>,
    prefetch_files: u64,
    prefetch_bytes: u64,
    packed: Packed,
    /// Where a reader stops prefetching.
    prefetch_end_bytes: u64,
}

impl Summary {
    fn prefetched(&self) -> String {
        match self.landmark {
            Some(name) if name == LANDMARK_NAMES[0] => format!(
                "{} files, {}{} ({} compressed)",
                self.prefetch_files,
                Size(self.prefetch_bytes),
                in_packs(self.packed),
                Size(self.prefetch_end_bytes)
            ),
            Some(_) => "nothing".to_owned(),
            None => "no landmark".to_owned(),
        }
    }
}

/// `None` for a layer that is no eStargz.
fn summarize(image: &SourceImage, layer: &SourceLayer) -> Result<Option<Summary>, Failure> {
    let file = image.open_layer(layer)?;
    let (json, toc_offset_bytes) = match read_toc(&file) {
        Ok(found) => found,
        Err(VerifyError::NoFooter) => return Ok(None),
        Err(error) => return Err(named(layer, error)),
    };
    let toc = parse_toc(&json, toc_offset_bytes).map_err(|error| named(layer, error))?;
    let is_landmark = |name: &str| {
        let name = name.trim_start_matches("./").trim_start_matches('/');
        LANDMARK_NAMES
            .into_iter()
            .find(|landmark| *landmark == name)
    };
    let landmark = toc
        .entries
        .iter()
        .find_map(|row| Some((is_landmark(&row.name)?, row.offset)));
    let (landmark, end) = landmark.map_or((None, 0), |(name, offset)| (Some(name), offset));
    let prefetch_end_bytes = if landmark == Some(LANDMARK_NAMES[0]) {
        end
    } else {
        0
    };
    let prefetched = |row: &&crate::layer::toc::TocEntry<'_>| {
        row.kind == "reg" && row.size > 0 && row.offset < prefetch_end_bytes
    };
    Ok(Some(Summary {
        toc_digest: crate::image::Digest::of(&json).to_string(),
        toc_bytes: json.len() as u64,
        toc_offset_bytes,
        files: toc
            .entries
            .iter()
            .filter(|row| row.kind != "chunk" && is_landmark(&row.name).is_none())
            .count() as u64,
        chunks: toc
            .entries
            .iter()
            .filter(|row| row.kind == "chunk" || row.kind == "reg" && row.size > 0)
            .count() as u64,
        landmark,
        prefetch_files: toc.entries.iter().filter(prefetched).count() as u64,
        prefetch_bytes: toc
            .entries
            .iter()
            .filter(prefetched)
            .map(|row| row.size)
            .sum(),
        packed: packed(&toc),
        prefetch_end_bytes,
    }))
}

fn layer_json(layer: &SourceLayer, summary: Option<&Summary>) -> Value {
    let mut value = json!({
        "digest": layer.blob.digest,
        "size_bytes": layer.blob.size_bytes,
        "media_type": layer.media_type,
        "diff_id": layer.diff_id,
        "estargz": summary.is_some(),
    });
    if let Some(summary) = summary {
        value["toc"] = json!({
            "digest": summary.toc_digest,
            "annotated_digest": layer.toc_digest,
            "size_bytes": summary.toc_bytes,
            "offset_bytes": summary.toc_offset_bytes,
            "files": summary.files,
            "chunks": summary.chunks,
        });
        value["prefetch"] = json!({
            "landmark": summary.landmark,
            "files": summary.prefetch_files,
            "bytes": summary.prefetch_bytes,
            "packed": packed_json(summary.packed),
            "compressed_bytes": summary.prefetch_end_bytes,
        });
    }
    value
}

fn inspect_layer(
    image: &SourceImage,
    layer: &SourceLayer,
    args: &InspectArgs,
) -> Result<(), Failure> {
    let file = image.open_layer(layer)?;
    let (json, offset) = read_toc(&file).map_err(|error| named(layer, error))?;
    let toc: Toc<'_> = parse_toc(&json, offset).map_err(|error| named(layer, error))?;
    if args.json {
        let toc = serde_json::to_value(&toc).map_err(|error| Failure::new(1, error))?;
        return output::json(&toc);
    }
    output::line(format_args!(
        "{:>12} {:>10} {:<8} name",
        "offset", "size", "type"
    ))?;
    for row in &toc.entries {
        let offset = match row.inner_offset {
            0 => row.offset.to_string(),
            inner => format!("{}+{inner}", row.offset),
        };
        let (offset, size) = match &*row.kind {
            "reg" if row.size > 0 => (offset, Size(row.size).to_string()),
            "chunk" => (offset, format!("+{}", Size(row.chunk_offset))),
            _ => ("-".to_owned(), "-".to_owned()),
        };
        let link = match &*row.link_name {
            "" => String::new(),
            target => format!(" -> {target}"),
        };
        output::line(format_args!(
            "{offset:>12} {size:>10} {:<8} {}{link}",
            row.kind, row.name
        ))?;
    }
    Ok(())
}

fn named(layer: &SourceLayer, error: VerifyError) -> Failure {
    Failure::from(error).context(format!("layer {}", layer.blob.digest))
}
