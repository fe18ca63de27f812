//! `esgz simulate`.

use clap::Args;
use serde_json::json;

use crate::cancel::Cancel;
use crate::cli::args::PlatformArgs;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Size, printable};
use crate::cli::profile_place::{ProfilePlace, artifact_options, place_parser};
use crate::cli::reading;
use crate::cli::registry::{self, RegistryArgs, UserArg};
use crate::image::ImageRef;
use crate::profile::Profile;
use crate::simulate::{Constants, ImageModel, Link, Prediction, Pulling, simulate as predict};
use crate::source::{Selection, SourceImage};

/// Files of a list that are printed.
const SHOWN_FILES: usize = 10;

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Image to pull, oci:DIR[:TAG], docker://NAME or an archive
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// What the workload touches: a file, or docker://NAME of the profile or of its image
    #[arg(long, value_name = "PROFILE", value_parser = place_parser())]
    profile: ProfilePlace,
    /// Bandwidth and round trip to the registry, such as 1gbit,10ms or 25MB/s,40ms; may be repeated
    /// [default: 1gbit,10ms and 200mbit,40ms]
    #[arg(long, value_name = "BANDWIDTH,RTT")]
    link: Vec<Link>,
    /// Download and unpack all layers, as a node without lazy pulling does
    #[arg(long)]
    eager: bool,
    /// Cores of the node [default: 2, as where the constants were measured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    cores: Option<u32>,
    #[command(flatten)]
    platforms: PlatformArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    registry_user: UserArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `esgz simulate`.
pub(super) fn simulate(args: &SimulateArgs, cancel: &Cancel) -> Result<(), Failure> {
    let registry = registry::options(&args.registry, Some(&args.registry_user))?;
    let artifacts = artifact_options(&registry, &reading::default_scratch(), cancel);
    let profile = args.profile.read(&artifacts)?;
    let unless = Selection::ThisMachine;
    let source = reading::open_to_look(&args.image, &args.platforms, unless, registry, cancel)?;
    let image = source.into_image()?;
    let model = ImageModel::read(&image)?;
    let links = match args.link.as_slice() {
        [] => &[Link::FAST, Link::SLOW][..],
        links => links,
    };
    let pulling = if args.eager {
        Pulling::Eager
    } else {
        Pulling::Lazy
    };
    let mut constants = Constants::measured();
    constants.cores = args.cores.unwrap_or(constants.cores);
    let predict = |&link: &Link| (link, predict(&model, &profile, link, pulling, &constants));
    let predictions: Vec<(Link, Prediction)> = links.iter().map(predict).collect();
    if let Some((_, first)) = predictions.first()
        && first.unknown_files > 0
    {
        let of = profile.files.len();
        tracing::warn!(
            "{} of the profile's {of} files are not in the image",
            first.unknown_files
        );
    }
    if args.json {
        return print_json(&image, &predictions);
    }
    print_head(&image, &profile)?;
    predictions
        .iter()
        .try_for_each(|(link, prediction)| print(*link, prediction))?;
    predictions
        .first()
        .map_or(Ok(()), |(link, prediction)| print_files(*link, prediction))
}

fn print_json(image: &SourceImage, predictions: &[(Link, Prediction)]) -> Result<(), Failure> {
    let predictions: Vec<serde_json::Value> = predictions
        .iter()
        .map(|(link, prediction)| {
            json!({
                "link": {
                    "bytes_per_second": link.bytes_per_second,
                    "round_trip_seconds": link.round_trip_seconds,
                },
                "prediction": prediction,
            })
        })
        .collect();
    output::json(&json!({
        "reference": image.reference.to_string(),
        "manifest": image.manifest.id.digest,
        "predictions": predictions,
    }))
}

fn print_head(image: &SourceImage, profile: &Profile) -> Result<(), Failure> {
    output::line(format_args!(
        "image      {} {}",
        image.reference, image.manifest.id.digest
    ))?;
    output::line(format_args!(
        "workload   {} files, {} touched, ran {:.1} s",
        profile.files.len(),
        Size(profile.touched_bytes()),
        profile.duration_ms as f64 / 1000.0
    ))
}

fn print(link: Link, prediction: &Prediction) -> Result<(), Failure> {
    output::line(format_args!(
        "\n{link}: ready after {:.1} s, {} in {} requests",
        prediction.seconds,
        Size(prediction.bytes),
        prediction.requests
    ))?;
    let chunks: u64 = prediction
        .layers
        .iter()
        .map(|layer| layer.missed_chunks)
        .sum();
    output::line(format_args!(
        "  pull {:.1} s; waiting: {:.1} s for the prefetch, {:.1} s for {chunks} chunks that were missed, \
         {:.1} s for inflating",
        prediction.pull_seconds,
        prediction.prefetch_wait_seconds,
        prediction.network_wait_seconds,
        prediction.inflate_wait_seconds
    ))?;
    output::line(format_args!(
        "{:>7}  {:<20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
        "layer", "digest", "size", "prefetch", "unused", "missed", "received", "requests"
    ))?;
    for (number, layer) in prediction.layers.iter().enumerate() {
        let digest = layer.digest.to_string();
        let of_lazy = |bytes: u64| match layer.lazy {
            true => Size(bytes).to_string(),
            false => "-".to_owned(),
        };
        output::line(format_args!(
            "{number:>7}  {:<20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
            &digest[..19],
            Size(layer.size_bytes),
            of_lazy(layer.prefetch_bytes),
            of_lazy(layer.unused_bytes),
            of_lazy(layer.missed_bytes),
            Size(layer.bytes),
            layer.requests
        ))?;
    }
    Ok(())
}

/// What could be better.
fn print_files(link: Link, prediction: &Prediction) -> Result<(), Failure> {
    if !prediction.unused.is_empty() {
        let all = prediction.unused.len();
        let title = "prefetched and not used";
        output::line(format_args!("\n{title}: of {all} files, compressed bytes"))?;
    }
    for file in prediction.unused.iter().take(SHOWN_FILES) {
        let size = Size(file.compressed_bytes);
        output::line(format_args!("{size:>12}  {}", printable(&file.path)))?;
    }
    if !prediction.missed.is_empty() {
        let all = prediction.missed.len();
        output::line(format_args!(
            "\nmissed: of {all} files, seconds at {link}, chunks, bytes"
        ))?;
    }
    for file in prediction.missed.iter().take(SHOWN_FILES) {
        output::line(format_args!(
            "{:>12.2} {:>5} {:>10}  {}",
            file.seconds,
            file.chunks,
            Size(file.bytes),
            printable(&file.path)
        ))?;
    }
    Ok(())
}
