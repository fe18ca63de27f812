//! The first half of an image's way, on one screen: scanned layers to a profile.

mod attached;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use attached::attach;

use crate::attach::{AttachError, Target, Until};
use crate::cancel::Cancel;
use crate::layer::entry::ScannedLayer;
use crate::profile::{self, Ended, Image, MergeError, Origin, Profile, Run, SameFile, Workload};
use crate::profiler::{
    self, CacheAtStart, CgroupFilter, Exactness, OpenSource, Profiler, ProfilerConfig,
    ProfilerError, Tier,
};
use crate::rootfs::{self, Backend, BindMount, Bound, LocateError, RootfsError, RootfsOptions};
use crate::runtime::{self, Cgroup, Claim, FailedCommand, RuntimeError, WorkloadOptions};
use crate::source::SourceImage;

/// How a workload is run and watched.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// How the root file system is made.
    pub rootfs: RootfsOptions,
    /// What is run, and for how long.
    pub workload: WorkloadOptions,
    /// How many times it is run; at least once. The profiles are merged.
    pub runs: u32,
    /// Where it is written down what a killed process leaves behind: `/run/esgz`, on a tmpfs.
    pub state: PathBuf,
    /// How touches through mappings are counted.
    pub exactness: Exactness,
    /// How to watch; None: with the collector that knows most of those that work.
    pub collector: Option<Tier>,
    /// How opens become known.
    pub opens: OpenSource,
    /// Size of the ring buffer in bytes.
    pub ring_bytes: u32,
}

/// How a running container is watched.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Which one.
    pub target: Target,
    /// For how long.
    pub until: Until,
    /// How to watch; None: with the collector that knows most of those that work. Not [`Tier::PageCache`].
    pub collector: Option<Tier>,
    /// How opens become known.
    pub opens: OpenSource,
    /// Size of the ring buffer in bytes.
    pub ring_bytes: u32,
}

/// A profile, and how long it took.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was touched.
    pub profile: Profile,
    /// Those of the commands in the container that failed.
    pub failed_commands: Vec<FailedCommand>,
    /// Time to mount the root file system, or to find that of a running container.
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
    #[error("merging the runs")]
    Merge(#[from] MergeError),
    #[error("attaching")]
    Attach(#[from] AttachError),
    #[error("the container is of another image")]
    Locate(#[from] LocateError),
}

/// Runs the workload of `source`, whose layers have been scanned, as often as is wanted, and watches what it
/// touches. Needs root. Mounts, cgroup and container are gone afterwards, whatever happens; first, those of
/// processes that were killed are removed.
///
/// # Errors
/// [`RecordError`]; a workload that fails is no error but an [`Profile::exit_code`]. After one that failed it
/// is not run again.
pub fn record(
    source: &SourceImage,
    layers: &[ScannedLayer],
    options: &RecordOptions,
    cancel: &Cancel,
) -> Result<Recorded, RecordError> {
    runtime::remove_abandoned(&options.state);
    let tier = profiler::choose(options.collector)?;
    let once = || {
        let recorded = record_once(source, layers, options, tier, cancel);
        recorded.map_err(|error| interruption_first(error, cancel))
    };
    let mut all = once()?;
    for _ in 1..options.runs {
        if all.has_failed() {
            break;
        }
        let next = once()?;
        all.profiles.extend(next.profiles);
        all.failed_commands.extend(next.failed_commands);
        all.mount += next.mount;
        all.run += next.run;
    }
    Ok(Recorded {
        profile: profile::merge(&all.profiles, SameFile::InImage)?,
        failed_commands: all.failed_commands,
        mount: all.mount,
        run: all.run,
    })
}

/// Who interrupts while a hook hangs at the end of a run is told that it was interrupted.
fn interruption_first(error: RecordError, cancel: &Cancel) -> RecordError {
    match cancel.check() {
        Err(cancelled)
            if !matches!(
                &error,
                RecordError::Runtime(RuntimeError::Cancelled(_))
                    | RecordError::Rootfs(RootfsError::Cancelled(_))
            ) =>
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "after the interruption"
            );
            RecordError::Runtime(cancelled.into())
        }
        _ => error,
    }
}

/// What one or several runs gave.
struct Runs {
    profiles: Vec<Profile>,
    failed_commands: Vec<FailedCommand>,
    mount: Duration,
    run: Duration,
}

impl Runs {
    fn has_failed(&self) -> bool {
        let of_profile = |profile: &Profile| profile.exit_code.is_some_and(|code| code != 0);
        !self.failed_commands.is_empty() || self.profiles.iter().any(of_profile)
    }
}

fn record_once(
    source: &SourceImage,
    layers: &[ScannedLayer],
    options: &RecordOptions,
    tier: Tier,
    cancel: &Cancel,
) -> Result<Runs, RecordError> {
    let started = Instant::now();
    let workload = &options.workload;
    let plan = runtime::plan(&source.config.parsed, workload)?;
    let claim = Claim::take(&options.state, &options.rootfs.scratch, &workload.runtime)?;
    let all: Vec<&ScannedLayer> = layers.iter().collect();
    let mut rootfs_options = RootfsOptions {
        scratch: claim.scratch().to_owned(),
        ..options.rootfs.clone()
    };
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
    let cgroup = Cgroup::create(claim.name())?;
    let bound = Bound::list(&binds(workload)?, layers.len() as u32);
    let opened_as = [rootfs.opened_as(), &bound.rows].concat();
    let mut profiler = Profiler::start(&ProfilerConfig {
        tier,
        cgroup: &CgroupFilter::from_directory(cgroup.directory())?,
        files: rootfs.files(),
        opened_as: &opened_as,
        opens: options.opens,
        also_opened: &bound.places,
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
        runtime::create(&process, workload, rootfs.path(), &cgroup, &claim, cancel)?;
    profiler.begin_run()?;
    let outcome = runtime::run(&mut container, cancel)?;
    let observations = profiler.finish()?;
    tracing::debug!(lost = ?observations.losses, unattributed = ?observations.unattributed, "watched");
    container.delete()?;
    cgroup.remove()?;
    let backend = rootfs.backend();
    rootfs.unmount()?;
    claim.release()?;

    let run = Run {
        image: image_of(source, layers),
        workload: Workload {
            args: process.args,
            env: workload.env.clone(),
            user: process.user,
            cwd: process.cwd,
            unknown: serde_json::Map::new(),
        },
        origin: Origin::Mounted(backend),
        ended: match outcome.ended {
            runtime::Ended::Exit => Ended::Exit,
            runtime::Ended::Period => Ended::Period,
            runtime::Ended::Line => Ended::Line,
            runtime::Ended::Port => Ended::Port,
            runtime::Ended::Http => Ended::Http,
            runtime::Ended::Signal => Ended::Signal,
        },
        exit_code: outcome.exit_code,
        duration: outcome.duration,
    };
    let profile = profile::from_observations(&observations, run, layers, &bound);
    Ok(Runs {
        profiles: vec![profile],
        failed_commands: outcome.failed_commands,
        mount,
        run: started.elapsed(),
    })
}

fn image_of(source: &SourceImage, layers: &[ScannedLayer]) -> Image {
    Image {
        reference: source.reference.to_string(),
        manifest: source.manifest.id.digest,
        platform: source.platform.to_string(),
        layers: layers.iter().map(|layer| layer.digest).collect(),
        by_path: false,
        unknown: serde_json::Map::new(),
    }
}

fn binds(workload: &WorkloadOptions) -> Result<Vec<BindMount>, RuntimeError> {
    let bind = |mount: runtime::Mount| {
        let source = Path::new(&mount.source);
        BindMount {
            destination: PathBuf::from(&mount.destination),
            root: PathBuf::from("/"),
            // The runtime follows links, too.
            path: source.canonicalize().unwrap_or_else(|_| source.to_owned()),
            device: None,
        }
    };
    let mounts = runtime::bind_mounts(workload)?;
    Ok(mounts.into_iter().map(bind).collect())
}
