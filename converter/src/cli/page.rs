//! `esgz report`, and `--report` of `esgz optimize`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cancel::Cancel;
use crate::cli::args::{OptimizeArgs, PlatformArgs};
use crate::cli::containerd::Remotes;
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::output::{self, Size};
use crate::cli::profile_place::{ProfilePlace, artifact_options, place_parser};
use crate::cli::reading;
use crate::cli::registry::{self, RegistryArgs, UserArg};
use crate::containerd::ContainerdOptions;
use crate::image::ImageRef;
use crate::profile::Profile;
use crate::report::{Measured, Report};
use crate::simulate::{Constants, ImageModel, Link};
use crate::source::{Selection, SourceImage};

/// What `cargo xtask bench readiness` calls its raw results.
const RUNS: &str = "runs.jsonl";

#[derive(Debug, Args)]
pub(super) struct PageArgs {
    /// Image that esgz has made, oci:DIR[:TAG], docker://NAME or an archive
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// What its workload touches: a file, or docker://NAME of the profile or of its image
    #[arg(long, value_name = "PROFILE", value_parser = place_parser())]
    profile: ProfilePlace,
    /// Write the page there
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Image that it was made of: a plain pull is predicted of this one
    #[arg(long, value_name = "SRC")]
    source: Option<ImageRef>,
    /// Bandwidth and round trip to the registry, such as 1gbit,10ms or 25MB/s,40ms; may be repeated
    /// [default: 1gbit,10ms; 10gbit,1ms; 200mbit,40ms; 50mbit,80ms]
    #[arg(long, value_name = "BANDWIDTH,RTT")]
    link: Vec<Link>,
    /// Show measured runs, too: a directory of a readiness benchmark
    #[arg(long, value_name = "DIR")]
    measured: Option<PathBuf>,
    /// Which of the images measured there this is
    #[arg(long, value_name = "NAME", requires = "measured")]
    measured_image: Option<String>,
    /// Cores of the node [default: 2, as where the constants were measured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    cores: Option<u32>,
    #[command(flatten)]
    platforms: PlatformArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    registry_user: UserArg,
}

/// Runs `esgz report`.
pub(super) fn report(
    args: &PageArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let remotes = Remotes {
        registry: registry::options(&args.registry, Some(&args.registry_user))?,
        containerd: containerd.clone(),
    };
    let artifacts = artifact_options(&remotes.registry, &reading::default_scratch(), cancel);
    let profile = args.profile.read(&artifacts)?;
    let measured = match &args.measured {
        Some(dir) => read_measured(dir, args.measured_image.as_deref())?,
        None => Vec::new(),
    };
    let open = |reference: &ImageRef| -> Result<ImageModel, Failure> {
        let (platforms, remotes) = (&args.platforms, remotes.clone());
        let unless = Selection::ThisMachine;
        let source = reading::open_to_look(reference, platforms, unless, remotes, cancel)?;
        Ok(ImageModel::read(&source.into_image()?)?)
    };
    let image = open(&args.image)?;
    let source = args.source.as_ref().map(open).transpose()?;
    let links = match args.link.as_slice() {
        [] => &Report::LINKS[..],
        links => links,
    };
    let mut constants = Constants::measured();
    constants.cores = args.cores.unwrap_or(constants.cores);
    let report = Report {
        reference: &args.image.to_string(),
        image: &image,
        source: source.as_ref(),
        profile: &profile,
        links,
        measured: &measured,
        constants: &constants,
    };
    write(&report, &args.output)
}

/// Writes the page of the image that has just been made of `source`, as its destination has it now.
pub(super) fn report_on(
    args: &OptimizeArgs,
    source: &SourceImage,
    profile: &Profile,
    output: &Path,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let remotes = Remotes {
        registry: registry::options(&args.conversion.registry, None)?,
        containerd: containerd.clone(),
    };
    let platforms = PlatformArgs {
        platform: vec![source.platform.clone()],
        all_platforms: false,
    };
    let (of, unless) = (&args.destination, Selection::ThisMachine);
    let made = reading::open_to_look(of, &platforms, unless, remotes, cancel)?;
    let image = ImageModel::read(&made.into_image()?)?;
    let source = ImageModel::read(source)?;
    let report = Report {
        reference: &args.destination.to_string(),
        image: &image,
        source: Some(&source),
        profile,
        links: &Report::LINKS,
        measured: &[],
        constants: &Constants::measured(),
    };
    write(&report, output)
}

fn write(report: &Report<'_>, path: &Path) -> Result<(), Failure> {
    let is_lazy = report
        .image
        .layers
        .iter()
        .any(|layer| layer.contents.is_some());
    if !is_lazy {
        tracing::warn!(
            "{} has no layer that can be pulled lazily: it is no eStargz, or its media types are Docker's",
            report.reference
        );
    }
    let html = report.html();
    output::write_file(path, html.as_bytes())?;
    tracing::info!(
        "report written to {} ({})",
        path.display(),
        Size(html.len() as u64)
    );
    Ok(())
}

fn read_measured(dir: &Path, image: Option<&str>) -> Result<Vec<Measured>, Failure> {
    let path = dir.join(RUNS);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::new(IMAGE, error).context(format!("reading {}", path.display()))
    })?;
    Measured::parse(&text, image)
        .map_err(|error| Failure::new(IMAGE, error).context(path.display().to_string()))
}
