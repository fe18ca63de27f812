//! `esgz convert`, and what `esgz optimize` shares with it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::cli::args::{ConversionArgs, ConvertArgs, OptimizeArgs, ReadingArgs};
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::output::{self, Size};
use crate::convert::{
    ConvertedImage, ImageOptions, LayerFormat, Reuse, Verify, convert_image, open_sink, scan_image,
};
use crate::image::ImageRef;
use crate::layer::Parallel;
use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::plan::PlanOptions;
use crate::layer::scan::{EntryMemory, ScanOptions};
use crate::profile::{self, PrefetchList, Prioritized, Profile, ProfiledFile};
use crate::source::{self, SourceImage};

/// Runs `esgz convert`.
pub(super) fn convert(args: &ConvertArgs, cancel: &Cancel) -> Result<(), Failure> {
    let clock = Instant::now();
    let mut options = image_options(&args.conversion);
    if args.uncompress {
        options.format = LayerFormat::Tar;
    }
    let source = source::open(&args.source)?;
    let sink = open_sink(&args.destination)?;
    let wanted = Wanted::read(args)?;
    let scanning = Instant::now();
    let layers = scan_image(&source, &options.scan, options.parallel.threads, cancel)?;
    let scan = scanning.elapsed();
    let prioritized = wanted.resolve(&layers);
    warn_missed(&prioritized);
    let converted = convert_image(&source, &layers, &prioritized, &options, sink, cancel)?;
    let report = Report {
        source: &source,
        destination: &args.destination,
        layers: &layers,
        converted: &converted,
        stages: vec![("scan", scan)],
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
            let bytes = read_input(path)?;
            let profile = Profile::parse(&bytes).map_err(|error| bad_input(path, error))?;
            return Ok(Self::Profile(Box::new(profile)));
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

    pub(super) fn resolve(&self, layers: &[ScannedLayer]) -> Prioritized {
        match self {
            Self::Nothing => profile::from_paths([], layers),
            Self::Profile(profile) => profile::from_profile(profile, layers),
            Self::List(list) => profile::from_list(list, layers),
            Self::Paths(paths) => profile::from_paths(paths.iter().map(String::as_str), layers),
        }
    }
}

fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| bad_input(path, error))
}

fn bad_input(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(IMAGE, error).context(format!("reading {}", path.display()))
}

pub(super) fn warn_missed(prioritized: &Prioritized) {
    if let Some(first) = prioritized.missed.first() {
        tracing::warn!(
            "{} of the paths to prefetch are in no layer, the first is \"{first}\"",
            prioritized.missed.len()
        );
    }
}

/// Resolves the flags.
pub(super) fn image_options(args: &ConversionArgs) -> ImageOptions {
    ImageOptions {
        scan: scan_options(&args.reading),
        plan: PlanOptions {
            chunk_bytes: args.estargz_chunk_size,
            min_chunk_bytes: args.estargz_min_chunk_size,
        },
        level: args.estargz_compression_level,
        // The rest is for entries, the TOC and the compressors' own tables.
        parallel: Parallel {
            threads: threads(&args.reading),
            memory_bytes: args.reading.memory / 2,
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
    }
}

pub(super) fn scan_options(args: &ReadingArgs) -> ScanOptions {
    ScanOptions {
        scratch: args.scratch.clone().unwrap_or_else(default_scratch),
        max_layer_bytes: args.max_layer_size,
        entry_memory: EntryMemory::new(args.memory / 2),
    }
}

pub(super) fn threads(args: &ReadingArgs) -> usize {
    args.threads.map_or_else(all_cores, usize::from)
}

pub(super) fn all_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn default_scratch() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A finished conversion, for people and for programs.
pub(super) struct Report<'a> {
    pub(super) source: &'a SourceImage,
    pub(super) destination: &'a ImageRef,
    pub(super) layers: &'a [ScannedLayer],
    pub(super) converted: &'a ConvertedImage,
    /// The stages before encoding, in order.
    pub(super) stages: Vec<(&'static str, Duration)>,
    pub(super) total: Duration,
    pub(super) verified: Verify,
    /// The profile that was recorded for it.
    pub(super) profile: Option<&'a Profile>,
}

impl Report<'_> {
    fn sum(&self, value: impl Fn(&crate::convert::ConvertedLayer) -> u64) -> u64 {
        self.converted.layers.iter().map(value).sum()
    }

    fn all_stages(&self) -> Vec<(&'static str, Duration)> {
        let mut stages = self.stages.clone();
        stages.push(("encode", self.converted.encode));
        stages.push(("commit", self.converted.commit));
        stages
    }

    /// Regular files of all layers, and the bytes of their contents.
    fn contents(&self) -> (u64, u64) {
        let files = self.layers.iter().flat_map(|layer| &layer.entries);
        let files = files.filter(|entry| entry.kind == EntryKind::Regular);
        files.fold((0, 0), |(count, bytes), entry| {
            (count + 1, bytes + entry.size_bytes)
        })
    }

    pub(super) fn json(&self) -> Value {
        let (files, bytes) = self.contents();
        let tar_bytes = self.sum(|layer| layer.source_tar_bytes);
        let seconds: serde_json::Map<String, Value> = self
            .all_stages()
            .into_iter()
            .chain([("total", self.total)])
            .map(|(stage, time)| (stage.to_owned(), json!(rounded(time.as_secs_f64()))))
            .collect();
        let rates: serde_json::Map<String, Value> = self
            .all_stages()
            .into_iter()
            .filter(|(stage, _)| matches!(*stage, "scan" | "encode"))
            .map(|(stage, time)| (stage.to_owned(), json!(rounded(rate(tar_bytes, time)))))
            .collect();
        let usage = Usage::of_this_process();
        let mut value = json!({
            "source": {
                "reference": self.source.reference.to_string(),
                "manifest": self.source.manifest.id.digest,
                "size_bytes": self.sum(|layer| layer.source.size_bytes),
            },
            "destination": {
                "reference": self.destination.to_string(),
                "manifest": self.converted.manifest.digest,
                "size_bytes": self.sum(|layer| layer.finished.size_bytes),
            },
            "image": { "files": files, "bytes": bytes, "tar_bytes": tar_bytes },
            "prefetch": {
                "files": self.sum(|layer| layer.prefetch.files),
                "bytes": self.sum(|layer| layer.prefetch.bytes),
                "compressed_bytes": self.sum(|layer| layer.finished.prefetch_bytes),
            },
            "layers": self.converted.layers.iter().map(layer_json).collect::<Vec<_>>(),
            "verified": self.verified == Verify::Full,
            "seconds": seconds,
            "megabytes_per_second": rates,
            "cpu_seconds": rounded(usage.cpu.as_secs_f64()),
            "peak_memory_bytes": usage.peak_memory_bytes,
        });
        if let Some(profile) = self.profile {
            value["profile"] = profile_json(profile);
        }
        value
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        let (files, bytes) = self.contents();
        let total = self.sum(|layer| layer.finished.size_bytes);
        let source = self.sum(|layer| layer.source.size_bytes);
        output::line(format_args!(
            "image      {files} files, {} in {} layers",
            Size(bytes),
            self.layers.len()
        ))?;
        if let Some(profile) = self.profile {
            print_profile(profile)?;
        }
        output::line(format_args!(
            "prefetch   {} files, {} ({} compressed)",
            self.sum(|layer| layer.prefetch.files),
            Size(self.sum(|layer| layer.prefetch.bytes)),
            Size(self.sum(|layer| layer.finished.prefetch_bytes)),
        ))?;
        output::line(format_args!(
            "size       {} from {} ({:+.2} %)",
            Size(total),
            Size(source),
            (total as f64 / source.max(1) as f64 - 1.0) * 100.0
        ))?;
        let stages: Vec<String> = self
            .all_stages()
            .iter()
            .map(|(stage, time)| format!("{stage} {:.1} s", time.as_secs_f64()))
            .collect();
        output::line(format_args!(
            "time       {:.1} s: {}",
            self.total.as_secs_f64(),
            stages.join(", ")
        ))?;
        let tar_bytes = self.sum(|layer| layer.source_tar_bytes);
        let rates: Vec<String> = self
            .all_stages()
            .iter()
            .filter(|(stage, _)| matches!(*stage, "scan" | "encode"))
            .map(|(stage, time)| format!("{stage} {:.0} MB/s", rate(tar_bytes, *time)))
            .collect();
        let usage = Usage::of_this_process();
        output::line(format_args!(
            "rate       {} of uncompressed tar; {:.1} s of CPU, peak memory {}",
            rates.join(", "),
            usage.cpu.as_secs_f64(),
            Size(usage.peak_memory_bytes)
        ))?;
        let checked = match self.verified {
            Verify::Full => "every member inflated and compared, every blob and TOC read back",
            Verify::Skip => "skipped",
        };
        output::line(format_args!("verified   {checked}"))?;
        output::line(format_args!(
            "written    {} {}",
            self.destination, self.converted.manifest.digest
        ))
    }
}

/// A profile in figures.
pub(super) fn profile_json(profile: &Profile) -> Value {
    let count =
        |wanted: &dyn Fn(&&ProfiledFile) -> bool| profile.files.iter().filter(wanted).count();
    json!({
        "tier": profile.collector.tier,
        "complete": profile.complete,
        "lost_events": profile.lost_events,
        "ended": profile.ended,
        "exit_code": profile.exit_code,
        "duration_ms": profile.duration_ms,
        "files_opened": count(&|file| file.opened),
        "files_executed": count(&|file| file.executed),
        "files_touched": count(&|file| !file.ranges.is_empty()),
        "opened_bytes": profile.files.iter().filter(|file| file.opened).map(|file| file.size_bytes).sum::<u64>(),
        "touched_bytes": profile.touched_bytes(),
        "missing": profile.missing.len(),
    })
}

/// The lines that say what a workload did.
pub(super) fn print_profile(profile: &Profile) -> Result<(), Failure> {
    let opened = profile.files.iter().filter(|file| file.opened);
    let touched = profile.files.iter().filter(|file| !file.ranges.is_empty());
    output::line(format_args!(
        "opened     {} files, {}",
        opened.clone().count(),
        Size(opened.map(|file| file.size_bytes).sum())
    ))?;
    output::line(format_args!(
        "touched    {} files, {} of {}",
        touched.clone().count(),
        Size(profile.touched_bytes()),
        Size(touched.map(|file| file.size_bytes).sum())
    ))
}

fn layer_json(layer: &crate::convert::ConvertedLayer) -> Value {
    let finished = &layer.finished;
    json!({
        "source": { "digest": layer.source.digest, "size_bytes": layer.source.size_bytes },
        "entries": layer.entries,
        "tar_bytes": layer.source_tar_bytes,
        "digest": finished.digest,
        "size_bytes": finished.size_bytes,
        "diff_id": finished.diff_id,
        "toc_digest": finished.toc_digest,
        "members": finished.members,
        "reused": layer.reused,
        "prefetch": {
            "files": layer.prefetch.files,
            "bytes": layer.prefetch.bytes,
            "compressed_bytes": finished.prefetch_bytes,
        },
    })
}

/// Megabytes a second.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

/// Three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// What this process has used so far.
pub(super) struct Usage {
    cpu: Duration,
    pub(super) peak_memory_bytes: u64,
}

impl Usage {
    pub(super) fn of_this_process() -> Self {
        use nix::sys::resource::{UsageWho, getrusage};
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
            return Self {
                cpu: Duration::ZERO,
                peak_memory_bytes: 0,
            };
        };
        let seconds = |time: nix::sys::time::TimeVal| {
            Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0))
                + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
        };
        Self {
            cpu: seconds(usage.user_time()) + seconds(usage.system_time()),
            // Linux counts in KiB.
            peak_memory_bytes: u64::try_from(usage.max_rss()).unwrap_or(0) * 1024,
        }
    }
}
