//! From a run's observations to its profile.

use std::time::Duration;

use crate::layer::entry::ScannedLayer;
use crate::profile::{Collector, Ended, Image, Phase, Profile, ProfiledFile, Workload};
use crate::profiler::{self, Observations, ObservedFile, Opens, Tier};
use crate::rootfs::Backend;

/// What is known of a run besides what was observed.
#[derive(Clone, Debug)]
pub struct Run {
    /// The image.
    pub image: Image,
    /// The process.
    pub workload: Workload,
    /// How the root file system was made.
    pub backend: Backend,
    /// Why the run ended.
    pub ended: Ended,
    /// The workload's exit code, where it ended by itself.
    pub exit_code: Option<i32>,
    /// How long it ran.
    pub duration: Duration,
}

/// Makes the profile of one run.
pub fn from_observations(
    observations: &Observations,
    run: Run,
    layers: &[ScannedLayer],
) -> Profile {
    let began = observations.run_began.unwrap_or_default();
    Profile {
        esgz_profile: Profile::VERSION,
        image: run.image,
        workload: run.workload,
        collector: Collector {
            tier: observations.tier.name().to_owned(),
            kernel: observations.kernel.clone(),
            granularity_bytes: observations.granularity_bytes,
            ranges: ranges(observations.tier, run.backend).map(str::to_owned),
            not_known: not_known(observations),
            unknown: serde_json::Map::new(),
        },
        complete: observations.lost_events == 0 && observations.opens == Opens::Tracked,
        lost_events: observations.lost_events,
        ended: run.ended,
        exit_code: run.exit_code,
        duration_ms: millis(run.duration),
        runs: 1,
        files: observations
            .files
            .iter()
            .filter_map(|file| profiled(file, began, layers))
            .collect(),
        missing: observations
            .missing
            .iter()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect(),
        unknown: serde_json::Map::new(),
    }
}

/// What the ranges are if not what was touched: see docs/profile.md.
fn ranges(tier: Tier, backend: Backend) -> Option<&'static str> {
    match backend {
        _ if !tier.knows_ranges() => Some("whole"),
        // Their cache and read-ahead are the host's.
        Backend::Unpack => Some("partial"),
        Backend::Erofs => None,
    }
}

fn not_known(observations: &Observations) -> Vec<String> {
    let tracked = observations.opens == Opens::Tracked;
    let unknown = [
        ("ranges", !observations.tier.knows_ranges()),
        ("opened", !tracked),
        ("missing", !tracked || !observations.tier.knows_missing()),
    ];
    let unknown = unknown.into_iter().filter(|&(_, unknown)| unknown);
    unknown.map(|(key, _)| key.to_owned()).collect()
}

fn profiled(file: &ObservedFile, began: Duration, layers: &[ScannedLayer]) -> Option<ProfiledFile> {
    let layer = layers.get(file.file.layer as usize)?;
    let entry = layer.entries.get(file.file.entry as usize)?;
    Some(ProfiledFile {
        path: String::from_utf8_lossy(&entry.path()?).into_owned(),
        layer: file.file.layer,
        size_bytes: entry.size_bytes,
        phase: match file.phase {
            profiler::Phase::Setup => Phase::Setup,
            profiler::Phase::Run => Phase::Run,
        },
        first_touch_seq: file.first_touch_seq,
        first_touch_ms: millis(file.first_touch.saturating_sub(began)),
        opened: file.opened,
        executed: file.executed,
        touched_bytes: file.ranges.iter().map(|range| range.len_bytes).sum(),
        ranges: file
            .ranges
            .iter()
            .map(|range| (range.offset_bytes, range.len_bytes))
            .collect(),
        unknown: serde_json::Map::new(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
