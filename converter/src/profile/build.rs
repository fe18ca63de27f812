//! From a run's observations to its profile.

use std::time::Duration;

use crate::layer::entry::ScannedLayer;
use crate::profile::{BoundFile, Collector, Ended, Image, Phase, Profile, ProfiledFile, Workload};
use crate::profiler::{self, Observations, ObservedFile, Opens, Tier};
use crate::rootfs::{Backend, Bound};

/// What is known of a run besides what was observed.
#[derive(Clone, Debug)]
pub struct Run {
    /// The image.
    pub image: Image,
    /// The process.
    pub workload: Workload,
    /// Whose root file system it was.
    pub origin: Origin,
    /// Why the run ended.
    pub ended: Ended,
    /// The workload's exit code, where it ended by itself.
    pub exit_code: Option<i32>,
    /// How long it ran.
    pub duration: Duration,
}

/// Whose root file system a container had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// One that was mounted for the run.
    Mounted(Backend),
    /// That of a container which ran already.
    Attached,
}

/// Makes the profile of one run. `bound` has what was mounted into the container; files of a layer that is not in
/// `layers` are those.
pub fn from_observations(
    observations: &Observations,
    run: Run,
    layers: &[ScannedLayer],
    bound: &Bound,
) -> Profile {
    let is_attached = run.origin == Origin::Attached;
    let phase = |phase| match phase {
        profiler::Phase::Setup if !is_attached => Phase::Setup,
        profiler::Phase::Setup | profiler::Phase::Run => Phase::Run,
    };
    let began = observations.run_began.unwrap_or_default();
    Profile {
        esgz_profile: Profile::VERSION,
        image: run.image,
        workload: run.workload,
        collector: Collector {
            tier: observations.tier.name().to_owned(),
            kernel: observations.kernel.clone(),
            granularity_bytes: observations.granularity_bytes,
            ranges: ranges(observations.tier, run.origin).map(str::to_owned),
            not_known: not_known(observations, bound),
            attached: is_attached,
            unknown: serde_json::Map::new(),
        },
        complete: observations.lost_events == 0
            && !matches!(observations.opens, Opens::Untracked { .. }),
        lost_events: observations.lost_events,
        ended: run.ended,
        exit_code: run.exit_code,
        duration_ms: millis(run.duration),
        runs: 1,
        files: observations
            .files
            .iter()
            .filter_map(|file| profiled(file, phase(file.phase), began, layers))
            .collect(),
        mounted: observations
            .files
            .iter()
            .filter(|file| file.file.layer as usize >= layers.len())
            .filter_map(|file| mounted(file, phase(file.phase), began, bound))
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
fn ranges(tier: Tier, origin: Origin) -> Option<&'static str> {
    match origin {
        _ if !tier.knows_ranges() => Some("whole"),
        // Their cache and read-ahead are the host's.
        Origin::Mounted(Backend::Unpack) | Origin::Attached => Some("partial"),
        Origin::Mounted(Backend::Erofs) => None,
    }
}

fn not_known(observations: &Observations, bound: &Bound) -> Vec<String> {
    let tracked = !matches!(observations.opens, Opens::Untracked { .. });
    let unknown = [
        ("ranges", !observations.tier.knows_ranges()),
        ("opened", !tracked),
        ("missing", observations.opens != Opens::Tracked),
        // As a tier of its own, fanotify watches the image's file system alone.
        (
            "mounted",
            bound.is_partial
                || observations.unattributed.unmarked_places > 0
                || !bound.files.is_empty() && (!tracked || observations.tier == Tier::Fanotify),
        ),
    ];
    let unknown = unknown.into_iter().filter(|&(_, unknown)| unknown);
    unknown.map(|(key, _)| key.to_owned()).collect()
}

fn mounted(file: &ObservedFile, phase: Phase, began: Duration, bound: &Bound) -> Option<BoundFile> {
    let known = bound.files.get(file.file.entry as usize)?;
    Some(BoundFile {
        path: known.path.to_string_lossy().into_owned(),
        mount: known.mount.to_string_lossy().into_owned(),
        size_bytes: known.size_bytes,
        phase,
        first_touch_seq: file.first_touch_seq,
        first_touch_ms: millis(file.first_touch.saturating_sub(began)),
        opened: file.opened,
        executed: file.executed,
        unknown: serde_json::Map::new(),
    })
}

fn profiled(
    file: &ObservedFile,
    phase: Phase,
    began: Duration,
    layers: &[ScannedLayer],
) -> Option<ProfiledFile> {
    let layer = layers.get(file.file.layer as usize)?;
    let entry = layer.entries.get(file.file.entry as usize)?;
    Some(ProfiledFile {
        path: String::from_utf8_lossy(&entry.path()?).into_owned(),
        layer: file.file.layer,
        size_bytes: entry.size_bytes,
        phase,
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
