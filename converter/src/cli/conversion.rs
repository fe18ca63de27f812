//! `esgz convert`, and what `esgz optimize` shares with it.

use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::cli::args::{Annotated, ConversionArgs, ConvertArgs, OutputArgs};
use crate::cli::containerd::Remotes;
use crate::cli::created::Created;
use crate::cli::failure::{Failure, USAGE};
use crate::cli::output;
use crate::cli::profile_place::artifact_options;
use crate::cli::reading;
use crate::cli::registry;
use crate::cli::report::Report;
use crate::cli::wanted::{Wanted, WantedOf, others, warn_missed};
use crate::containerd::ContainerdOptions;
use crate::convert::{Compression, Conversion, ImageOptions, LayerFormat, Reuse, Scanner, Verify};
use crate::image::ImageRef;
use crate::image::manifest::{DocumentOptions, MediaTypes};
use crate::layer::Parallel;
use crate::layer::index_cache::IndexCache;
use crate::layer::plan::PlanOptions;
use crate::planner::{Costs, PlannerOptions};
use crate::progress::Progress;
use crate::registry::RegistryOptions;
use crate::simulate::Constants;
use crate::sink::{Sink, SinkOptions};
use crate::source::{Node, Source};

pub(super) use crate::cli::reading::{scan_options, threads};

/// What a finished conversion prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Everything.
    Report,
    /// The digest of what was written, as ctr-remote does.
    Digest,
}

/// Runs `esgz convert`.
pub(super) fn convert(
    args: &ConvertArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
    said: Said,
) -> Result<(), Failure> {
    let clock = Instant::now();
    let mut options = image_options(&args.conversion)?;
    if args.uncompress {
        options.format = LayerFormat::Tar;
    }
    let ends = (&args.source, &args.destination);
    let remotes = Remotes {
        registry: registry::options(&args.conversion.registry, Some(&args.registry_user))?,
        containerd: containerd.clone(),
    };
    let artifacts = artifact_options(&remotes.registry, &options.scan.scratch, cancel);
    let (source, sink) = open_ends(ends, (&args.conversion, remotes), &options, cancel)?;
    let wanted = Wanted::read(args, &artifacts)?;
    let threads = options.parallel.threads;
    let mut scanner = Scanner::new(&source, &options.scan, threads, cancel).shown(progress);
    let mut conversion = Conversion::new(&source, &options, sink, cancel)?.shown(progress);
    let others = others(&args.conversion.output);
    for (number, image) in source.images.iter().enumerate() {
        let wanted = wanted.of(image, &source, others);
        if matches!(wanted, WantedOf::Nothing) && conversion.can_go_in_one_pass() {
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
    say(&report, args.conversion.json, said)
}

/// Prints what a conversion has to say.
pub(super) fn say(report: &Report<'_>, json: bool, said: Said) -> Result<(), Failure> {
    match said {
        _ if json => output::json(&report.json()),
        Said::Report => report.print(),
        Said::Digest => output::line(format_args!("{}", report.converted.root.digest)),
    }
}

/// The scan's time; none where every layer was scanned as it was encoded.
pub(super) fn scan_stage(scanner: &Scanner<'_>) -> Vec<(&'static str, Duration)> {
    let elapsed = scanner.elapsed();
    let is_apart = elapsed > Duration::ZERO;
    is_apart.then_some(("scan", elapsed)).into_iter().collect()
}

/// Opens source and destination; changes nothing.
pub(super) fn open_ends(
    (from, to): (&ImageRef, &ImageRef),
    (args, remotes): (&ConversionArgs, Remotes),
    options: &ImageOptions,
    cancel: &Cancel,
) -> Result<(Source, Sink), Failure> {
    let sink_options = SinkOptions {
        scratch: options.scan.scratch.clone(),
        registry: RegistryOptions {
            early: args.early_push.into(),
            ..remotes.registry.clone()
        },
        containerd: remotes.containerd.clone(),
        cancel: cancel.clone(),
    };
    // Cheap, where opening the source may take a while.
    let sink = Sink::open(to, from, &sink_options)?;
    let source = reading::open(from, &args.platforms, &options.scan, remotes, cancel)?;
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
            growth: args.hot_pack_growth,
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
