//! `esgz convert`, and what `esgz optimize` shares with it.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::cli::args::{Annotated, ConversionArgs, ConvertArgs, OptimizeArgs, OutputArgs};
use crate::cli::created::Created;
use crate::cli::failure::{Failure, IMAGE, USAGE};
use crate::cli::output;
use crate::cli::reading;
use crate::cli::registry;
use crate::cli::report::Report;
use crate::convert::{
    Compression, Conversion, ImageError, ImageOptions, LayerFormat, Reuse, Scanner, Verify,
};
use crate::image::manifest::{DocumentOptions, MediaTypes};
use crate::image::{ImageRef, Platform};
use crate::layer::Parallel;
use crate::layer::entry::ScannedLayer;
use crate::layer::index_cache::IndexCache;
use crate::layer::plan::PlanOptions;
use crate::planner::{self, Costs, Placements, PlannerOptions};
use crate::profile::{self, PrefetchList, Profile};
use crate::progress::Progress;
use crate::registry::RegistryOptions;
use crate::simulate::Constants;
use crate::sink::{Sink, SinkOptions};
use crate::source::{Node, Source, SourceImage};

pub(super) use crate::cli::reading::{scan_options, threads};

/// Runs `esgz convert`.
pub(super) fn convert(
    args: &ConvertArgs,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let clock = Instant::now();
    let mut options = image_options(&args.conversion)?;
    if args.uncompress {
        options.format = LayerFormat::Tar;
    }
    let ends = (&args.source, &args.destination);
    let registry = registry::options(&args.conversion.registry, Some(&args.registry_user))?;
    let (source, sink) = open_ends(ends, (&args.conversion, registry), &options, cancel)?;
    let wanted = Wanted::read(args)?;
    let threads = options.parallel.threads;
    let mut scanner = Scanner::new(&source, &options.scan, threads, cancel).shown(progress);
    let mut conversion = Conversion::new(&source, &options, sink, cancel)?.shown(progress);
    let others = others(&args.conversion.output);
    for (number, image) in source.images.iter().enumerate() {
        let wanted = if wanted.is_for(image, &source, others) {
            &wanted
        } else {
            &Wanted::Nothing
        };
        if matches!(wanted, Wanted::Nothing) && conversion.can_go_in_one_pass() {
            conversion.image_in_one_pass(number)?;
            continue;
        }
        let layers = scanner.scan(image)?;
        let placements = wanted.resolve(&layers, &options)?;
        warn_missed(&placements);
        conversion.image(number, &layers, &placements)?;
    }
    let converted = conversion.finish()?;
    let report = Report {
        source: &args.source,
        destination: &args.destination,
        converted: &converted,
        stages: scan_stage(&scanner),
        total: clock.elapsed(),
        verified: options.verify,
        profile: None,
    };
    if args.conversion.json {
        output::json(&report.json())
    } else {
        report.print()
    }
}

/// The scan's time; none where every layer was scanned as it was encoded.
pub(super) fn scan_stage(scanner: &Scanner<'_>) -> Vec<(&'static str, Duration)> {
    let elapsed = scanner.elapsed();
    let is_apart = elapsed > Duration::ZERO;
    is_apart.then_some(("scan", elapsed)).into_iter().collect()
}

/// Which platforms get a profile's paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// The one that it was recorded on.
    Unprofiled,
    /// All.
    Profiled,
}

pub(super) fn others(args: &OutputArgs) -> Others {
    if args.profile_other_platforms {
        Others::Profiled
    } else {
        Others::Unprofiled
    }
}

/// Opens source and destination; changes nothing.
pub(super) fn open_ends(
    (from, to): (&ImageRef, &ImageRef),
    (args, registry): (&ConversionArgs, RegistryOptions),
    options: &ImageOptions,
    cancel: &Cancel,
) -> Result<(Source, Sink), Failure> {
    let sink_options = SinkOptions {
        scratch: options.scan.scratch.clone(),
        registry: registry.clone(),
        cancel: cancel.clone(),
    };
    // Cheap, where opening the source may take a while.
    let sink = Sink::open(to, from, &sink_options)?;
    let source = reading::open(from, &args.platforms, &options.scan, registry, cancel)?;
    warn_of_output(to, &source, &options.documents);
    Ok((source, sink))
}

/// Says what the destination will not keep.
fn warn_of_output(destination: &ImageRef, source: &Source, documents: &DocumentOptions) {
    if documents.media_types == MediaTypes::Docker {
        tracing::warn!(
            "with Docker media types registries and tools drop the TOC digests: lazy pulling fails"
        );
    }
    if matches!(destination, ImageRef::DockerArchive { .. }) {
        tracing::warn!(
            "docker load and skopeo drop the TOC digests of a Docker archive: what they make of it cannot be pulled lazily"
        );
    }
    if !documents.index_annotations.is_empty() && !matches!(source.root, Node::Index(_)) {
        tracing::warn!("one image alone has no index: its annotations are not written");
    }
}

/// What the user wants to be prefetched.
pub(super) enum Wanted {
    Nothing,
    Profile(Box<Profile>),
    Paths(Vec<String>),
    List(PrefetchList),
}

impl Wanted {
    /// What `esgz optimize` takes instead of a run's profile, if that is what the user wants.
    pub(super) fn instead_of_run(args: &OptimizeArgs) -> Result<Option<Self>, Failure> {
        match &args.prefetch_list {
            Some(path) => Self::read_list(path).map(Some),
            None => Ok(args.no_optimize.then_some(Self::Nothing)),
        }
    }

    fn read_list(path: &Path) -> Result<Self, Failure> {
        let list = PrefetchList::parse(&read_input(path)?);
        if list.is_empty() {
            tracing::warn!("{} names nothing to prefetch", path.display());
        }
        Ok(Self::List(list))
    }

    fn read(args: &ConvertArgs) -> Result<Self, Failure> {
        if let Some(path) = &args.profile {
            return Ok(Self::Profile(Box::new(read_profile(path)?)));
        }
        if let Some(path) = &args.record_in {
            let bytes = read_input(path)?;
            let lines = profile::parse_record(&bytes).map_err(|error| bad_input(path, error))?;
            return Ok(Self::Paths(
                lines.into_iter().map(|line| line.path).collect(),
            ));
        }
        match &args.prefetch_list {
            Some(path) => Self::read_list(path),
            None => Ok(Self::Nothing),
        }
    }

    /// A profile is for its own platform; paths that the user lists are for every image.
    fn is_for(&self, image: &SourceImage, source: &Source, others: Others) -> bool {
        match self {
            Self::Nothing | Self::Paths(_) | Self::List(_) => true,
            Self::Profile(profile) => {
                let is_alone = source.images.len() == 1;
                let recorded: Option<Platform> = profile.image.platform.parse().ok();
                others == Others::Profiled
                    || is_alone
                    || recorded.is_some_and(|recorded| recorded.has_machine_of(&image.platform))
            }
        }
    }

    pub(super) fn resolve(
        &self,
        layers: &[ScannedLayer],
        options: &ImageOptions,
    ) -> Result<Placements, Failure> {
        Ok(match self {
            Self::Nothing => profile::from_paths([], layers).into(),
            Self::Profile(profile) => place(profile, layers, options)?,
            Self::List(list) => profile::from_list(list, layers).into(),
            Self::Paths(paths) => {
                profile::from_paths(paths.iter().map(String::as_str), layers).into()
            }
        })
    }
}

/// Decides by sizes, or where a link is assumed by what each plan would cost over it.
pub(super) fn place(
    profile: &Profile,
    layers: &[ScannedLayer],
    options: &ImageOptions,
) -> Result<Placements, Failure> {
    let Some(costs) = &options.planner.costs else {
        return Ok(planner::place(profile, layers, &options.planner));
    };
    let choice = planner::choose(profile, layers, &options.planner, costs, options.plan);
    Ok(choice.map_err(ImageError::from)?.into_placements())
}

pub(super) fn read_profile(path: &Path) -> Result<Profile, Failure> {
    Profile::parse(&read_input(path)?).map_err(|error| bad_input(path, error))
}

fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| bad_input(path, error))
}

fn bad_input(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(IMAGE, error).context(format!("reading {}", path.display()))
}

pub(super) fn warn_missed(placements: &Placements) {
    if let Some(first) = placements.missed.first() {
        tracing::warn!(
            "{} of the paths to prefetch are in no layer, the first is \"{first}\"",
            placements.missed.len()
        );
    }
}

/// Resolves the flags.
pub(super) fn image_options(args: &ConversionArgs) -> Result<ImageOptions, Failure> {
    let mut scan = scan_options(&args.reading);
    scan.decode.index_cache = args.index_cache.clone().map(IndexCache::new);
    let plan = PlanOptions {
        chunk_bytes: args.estargz_chunk_size,
        min_chunk_bytes: args.estargz_min_chunk_size,
    };
    let costs = |link| Costs::new(link, Constants::measured(), plan);
    Ok(ImageOptions {
        scan,
        planner: PlannerOptions {
            hot_pack: args.hot_pack.into(),
            costs: args.assume_link.map(costs),
            ..PlannerOptions::default()
        },
        plan,
        compression: match args.estargz_compression_level {
            Some(level) => Compression::Level(level),
            None => Compression::Keep {
                overhead: args.transcode_overhead,
            },
        },
        parallel: Parallel {
            threads: threads(&args.reading),
            memory_bytes: args.reading.memory,
        },
        format: LayerFormat::Estargz,
        reuse: if args.reuse {
            Reuse::WhereValid
        } else {
            Reuse::Never
        },
        verify: if args.no_verify {
            Verify::Skip
        } else {
            Verify::Full
        },
        documents: document_options(&args.output)?,
    })
}

fn document_options(args: &OutputArgs) -> Result<DocumentOptions, Failure> {
    let annotations = |of: Annotated| {
        let wanted = args.annotation.iter().filter(move |wanted| wanted.of == of);
        wanted
            .map(|wanted| (wanted.key.clone(), wanted.value.clone()))
            .collect()
    };
    let created = match &args.created {
        Some(created) => Some(created.clone()),
        None => source_date_epoch()?,
    };
    Ok(DocumentOptions {
        media_types: if args.oci {
            MediaTypes::Oci
        } else {
            MediaTypes::Docker
        },
        annotations: annotations(Annotated::Manifest),
        index_annotations: annotations(Annotated::Index),
        created: created.map(|created| created.0),
    })
}

fn source_date_epoch() -> Result<Option<Created>, Failure> {
    const VARIABLE: &str = "SOURCE_DATE_EPOCH";
    let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(created) if is_number => Ok(Some(created)),
        _ => {
            let message = format!("{VARIABLE} is \"{text}\", not seconds since 1970");
            Err(Failure::message(USAGE, message))
        }
    }
}
