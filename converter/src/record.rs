//! The first half of an image's way, on one screen: scanned layers to a profile.

use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::layer::entry::ScannedLayer;
use crate::profile::{self, Ended, Image, Profile, Run, Workload};
use crate::profiler::{
    self, CacheAtStart, CgroupFilter, Exactness, Profiler, ProfilerConfig, ProfilerError, Tier,
};
use crate::rootfs::{self, Backend, RootfsError, RootfsOptions};
use crate::runtime::{self, Cgroup, RuntimeError, WorkloadOptions};
use crate::source::SourceImage;

/// How a workload is run and watched.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// How the root file system is made.
    pub rootfs: RootfsOptions,
    /// What is run.
    pub workload: WorkloadOptions,
    /// When it is stopped.
    pub period: Duration,
    /// How touches through mappings are counted.
    pub exactness: Exactness,
    /// How to watch; None: with the collector that knows most of those that work.
    pub collector: Option<Tier>,
    /// Size of the ring buffer in bytes.
    pub ring_bytes: u32,
}

/// A profile, and how long it took.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was touched.
    pub profile: Profile,
    /// Time to mount the root file system.
    pub mount: Duration,
    /// Time from there until everything was removed again, the run included.
    pub run: Duration,
}

/// Why no profile could be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps a stage's error")]
pub enum RecordError {
    #[error("mounting the image")]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("watching the workload")]
    Profiler(#[from] ProfilerError),
}

/// Runs the workload of `source`, whose layers have been scanned, and watches what it touches.
/// Needs root. Mounts, cgroup and container are gone afterwards, whatever happens.
///
/// # Errors
/// [`RecordError`]; a workload that fails is no error but an [`Profile::exit_code`].
pub fn record(
    source: &SourceImage,
    layers: &[ScannedLayer],
    options: &RecordOptions,
    cancel: &Cancel,
) -> Result<Recorded, RecordError> {
    let scratch = &options.rootfs.scratch;
    let started = Instant::now();
    let plan = runtime::plan(&source.config.parsed, &options.workload)?;
    let all: Vec<&ScannedLayer> = layers.iter().collect();
    let tier = profiler::choose(options.collector)?;
    let mut rootfs_options = options.rootfs.clone();
    if tier == Tier::PageCache {
        // Every page that enters the cache counts.
        rootfs_options.read_ahead_kib = 0;
    }
    let rootfs = rootfs::mount(&all, &rootfs_options, cancel)?;
    if let Some(reason) = rootfs.fallback_reason() {
        tracing::warn!("layers are unpacked, EROFS cannot be used: {reason}");
    }
    let mount = started.elapsed();

    let started = Instant::now();
    let cgroup = Cgroup::create(&unique_name())?;
    let mut profiler = Profiler::start(&ProfilerConfig {
        tier,
        cgroup: CgroupFilter::from_directory(cgroup.directory())?,
        files: rootfs.files(),
        opened_as: rootfs.opened_as(),
        root: rootfs.path(),
        cwd: plan.cwd().as_bytes(),
        ring_bytes: options.ring_bytes,
        exactness: options.exactness,
        cache: match rootfs.backend() {
            Backend::Erofs => CacheAtStart::Cold,
            Backend::Unpack => CacheAtStart::Unknown,
        },
    })?;
    // This reads files of the image: only now, or the profiler would not know that they are cached.
    let process = plan.resolve(rootfs.path())?;
    let mut container =
        runtime::create(&process, &options.workload, rootfs.path(), &cgroup, scratch)?;
    profiler.begin_run()?;
    let outcome = runtime::run(&mut container, options.period, cancel)?;
    let observations = profiler.finish()?;
    tracing::debug!(lost = ?observations.losses, unattributed = ?observations.unattributed, "watched");
    container.delete()?;
    cgroup.remove()?;
    let backend = rootfs.backend();
    rootfs.unmount()?;

    let run = Run {
        image: Image {
            reference: source.reference.to_string(),
            manifest: source.manifest.id.digest,
            platform: source.platform.to_string(),
            layers: layers.iter().map(|layer| layer.digest).collect(),
            unknown: serde_json::Map::new(),
        },
        workload: Workload {
            args: process.args,
            env: options.workload.env.clone(),
            user: process.user,
            cwd: process.cwd,
            unknown: serde_json::Map::new(),
        },
        backend,
        ended: match outcome.ended {
            runtime::Ended::Exit => Ended::Exit,
            runtime::Ended::Period => Ended::Period,
        },
        exit_code: outcome.exit_code,
        duration: outcome.duration,
    };
    let profile = profile::from_observations(&observations, run, layers);
    Ok(Recorded {
        profile,
        mount,
        run: started.elapsed(),
    })
}

/// Unique on this machine: process ids are, and a process may record more than once.
fn unique_name() -> String {
    static RUNS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let run = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("esgz-{}-{run}", std::process::id())
}
