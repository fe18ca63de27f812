//! As [`super::record`], for a container that something else runs: scanned layers to a profile.

use std::time::{Duration, Instant};

use super::{AttachOptions, RecordError, Recorded};
use crate::attach;
use crate::cancel::Cancel;
use crate::layer::entry::ScannedLayer;
use crate::profile::{self, Ended, Origin, Run, Workload};
use crate::profiler::{self, CacheAtStart, CgroupFilter, Exactness, Profiler, ProfilerConfig};
use crate::rootfs::{self, Bound};
use crate::source::SourceImage;

/// Watches a running container of the image `source`, whose layers have been scanned. The container is not changed
/// and runs on. What it touched before is not known.
///
/// # Errors
/// [`RecordError`]; if the container is of another image, nothing has been watched.
pub fn attach(
    source: &SourceImage,
    layers: &[ScannedLayer],
    options: &AttachOptions,
    cancel: &Cancel,
) -> Result<Recorded, RecordError> {
    let tier = profiler::choose_for_shared_cache(options.collector)?;
    let started = Instant::now();
    let container = attach::find(&options.target)?;
    let located = rootfs::locate(layers, &container.stack(), cancel)?;
    let bound = Bound::list(container.binds(), layers.len() as u32);
    let mount = started.elapsed();
    let cwd = container.cwd();
    let opened_as = [&*located.opened_as, &bound.rows].concat();
    let profiler = Profiler::start(&ProfilerConfig {
        tier,
        cgroup: &CgroupFilter::from_directory(container.cgroup())?,
        files: &located.files,
        opened_as: &opened_as,
        opens: options.opens,
        also_opened: &bound.places,
        root: container.root_path(),
        cwd: cwd.as_bytes(),
        ring_bytes: options.ring_bytes,
        exactness: Exactness::FaultAround,
        cache: CacheAtStart::Unknown,
    })?;
    let started = Instant::now();
    let (args, user) = (container.args(), container.user());
    let ended = container.wait(&options.until, cancel)?;
    let run: Duration = started.elapsed();
    let observations = profiler.finish()?;
    tracing::debug!(lost = ?observations.losses, unattributed = ?observations.unattributed, "watched");
    let run_of = Run {
        image: super::image_of(source, layers),
        workload: Workload {
            args,
            env: Vec::new(),
            user,
            cwd,
            unknown: serde_json::Map::new(),
        },
        origin: Origin::Attached,
        ended: match ended {
            attach::Ended::Exit => Ended::Exit,
            attach::Ended::Period => Ended::Period,
            attach::Ended::Port => Ended::Port,
            attach::Ended::Http => Ended::Http,
            attach::Ended::Signal => Ended::Signal,
        },
        exit_code: None,
        duration: run,
    };
    Ok(Recorded {
        profile: profile::from_observations(&observations, run_of, layers, &bound),
        failed_commands: Vec::new(),
        mount,
        run,
    })
}
