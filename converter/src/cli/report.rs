//! What `esgz convert` and `esgz optimize` say of their work.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::failure::Failure;
use crate::cli::output::{self, Size};
use crate::convert::{Converted, ConvertedImage, ConvertedLayer, Verify};
use crate::image::ImageRef;
use crate::layer::choice::Choice;
use crate::layer::plan::Packed;
use crate::profile::{Profile, ProfiledFile};

/// A finished conversion, for people and for programs.
pub(super) struct Report<'a> {
    pub(super) source: &'a ImageRef,
    pub(super) destination: &'a ImageRef,
    pub(super) converted: &'a Converted,
    /// The stages before encoding, in order.
    pub(super) stages: Vec<(&'static str, Duration)>,
    pub(super) total: Duration,
    pub(super) verified: Verify,
    /// The profile that was recorded for it.
    pub(super) profile: Option<&'a Profile>,
}

impl Report<'_> {
    fn layers(&self) -> impl Iterator<Item = &ConvertedLayer> {
        self.converted.images.iter().flat_map(|image| &image.layers)
    }

    fn sum(&self, value: impl Fn(&ConvertedLayer) -> u64) -> u64 {
        self.layers().map(value).sum()
    }

    fn packed(&self) -> Packed {
        Packed {
            files: self.sum(|layer| layer.prefetch.packed.files),
            chunks: self.sum(|layer| layer.prefetch.packed.chunks),
            bytes: self.sum(|layer| layer.prefetch.packed.bytes),
            first_bytes: self.sum(|layer| layer.prefetch.packed.first_bytes),
        }
    }

    fn time(&self, value: impl Fn(&ConvertedImage) -> Duration) -> Duration {
        self.converted.images.iter().map(value).sum()
    }

    fn all_stages(&self) -> Vec<(&'static str, Duration)> {
        let mut stages = self.stages.clone();
        stages.push(("encode", self.time(|image| image.encode)));
        stages.push(("commit", self.converted.commit));
        stages
    }

    pub(super) fn json(&self) -> Value {
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
                "reference": self.source.to_string(),
                "manifest": self.converted.images.first().map(|image| image.source),
                "size_bytes": self.sum(|layer| layer.source.size_bytes),
            },
            "destination": {
                "reference": self.destination.to_string(),
                "manifest": self.converted.root.digest,
                "size_bytes": self.sum(|layer| layer.finished.size_bytes),
            },
            "image": {
                "files": self.sum(|layer| layer.files),
                "bytes": self.sum(|layer| layer.file_bytes),
                "tar_bytes": tar_bytes,
            },
            "platforms": self.converted.images.iter().map(image_json).collect::<Vec<_>>(),
            "carried": self.converted.carried,
            "prefetch": {
                "files": self.sum(|layer| layer.prefetch.files),
                "bytes": self.sum(|layer| layer.prefetch.bytes),
                "packed": packed_json(self.packed()),
                "compressed_bytes": self.sum(|layer| layer.finished.prefetch_bytes),
            },
            "layers": self.layers().map(layer_json).collect::<Vec<_>>(),
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
        let total = self.sum(|layer| layer.finished.size_bytes);
        let source = self.sum(|layer| layer.source.size_bytes);
        output::line(format_args!(
            "image      {} files, {} in {} layers",
            self.sum(|layer| layer.files),
            Size(self.sum(|layer| layer.file_bytes)),
            self.layers().count()
        ))?;
        if self.converted.images.len() + self.converted.carried > 1 {
            let platforms = self.converted.images.iter();
            let platforms: Vec<String> = platforms.map(|i| i.platform.to_string()).collect();
            let carried = self.converted.carried;
            output::line(format_args!(
                "platforms  {}; {carried} other manifests carried over",
                platforms.join(", ")
            ))?;
        }
        if let Some(profile) = self.profile {
            print_profile(profile)?;
        }
        output::line(format_args!(
            "prefetch   {} files, {}{} ({} compressed)",
            self.sum(|layer| layer.prefetch.files),
            Size(self.sum(|layer| layer.prefetch.bytes)),
            in_packs(self.packed()),
            Size(self.sum(|layer| layer.finished.prefetch_bytes)),
        ))?;
        output::line(format_args!(
            "size       {} from {} ({:+.2} %)",
            Size(total),
            Size(source),
            (total as f64 / source.max(1) as f64 - 1.0) * 100.0
        ))?;
        let tar_bytes = self.sum(|layer| layer.source_tar_bytes);
        let copied = self.sum(|layer| layer.finished.copied_bytes);
        output::line(format_args!(
            "copied     {} of {} without compressing again",
            Size(copied),
            Size(tar_bytes)
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
            Verify::Full => "every member checked, every TOC read back",
            Verify::Skip => "skipped",
        };
        output::line(format_args!("verified   {checked}"))?;
        output::line(format_args!(
            "written    {} {}",
            self.destination, self.converted.root.digest
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

fn image_json(image: &ConvertedImage) -> Value {
    json!({
        "platform": image.platform.to_string(),
        "source_manifest": image.source,
        "manifest": image.manifest.digest,
        "layers": image.layers.len(),
    })
}

fn layer_json(layer: &ConvertedLayer) -> Value {
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
        "copied_bytes": finished.copied_bytes,
        "encoding": layer.choice.map(|choice| json!({
            "copied": matches!(choice, Choice::Copy(_)),
            "reason": choice.reason().to_string(),
        })),
        "prefetch": {
            "files": layer.prefetch.files,
            "bytes": layer.prefetch.bytes,
            "packed": packed_json(layer.prefetch.packed),
            "compressed_bytes": finished.prefetch_bytes,
        },
    })
}

/// What is in packs, in figures.
pub(super) fn packed_json(packed: Packed) -> Value {
    json!({
        "files": packed.files,
        "chunks": packed.chunks,
        "bytes": packed.bytes,
        "first_chunks_bytes": packed.first_bytes,
    })
}

/// What is prefetched besides whole files, in words.
pub(super) fn in_packs(packed: Packed) -> String {
    match packed.files {
        0 => String::new(),
        files => format!(", and {} of {files} big files", Size(packed.bytes)),
    }
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
            peak_memory_bytes: peak_memory_bytes()
                .unwrap_or_else(|| u64::try_from(usage.max_rss()).unwrap_or(0) * 1024),
        }
    }
}

/// `VmHWM` of proc(5), in KiB there. `getrusage` counts what the parent had when it forked as well.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
