//! Watches, with eBPF where it can be used, which bytes of which files a cgroup's tasks touch.
//!
//! Enters: a cgroup, and for every file of the image the (device, inode) pair under which the
//! kernel knows it. Leaves: for every file that was opened or touched, the touched pages, in order
//! of first touch; names that were looked up in vain; and a count of everything that was lost.
//! Nothing is pinned and no mount is left: when the [`Profiler`] is dropped, or the process dies,
//! the kernel forgets all of it.
//!
//! How much is known depends on the kernel: see [`Tier`]. What `filemap` cannot see: files on tmpfs,
//! O_DIRECT and DAX; pages of a mapping that the page
//! cache already held in a folio of more than 16 pages, so the root file system must be freshly mounted
//! with a read-ahead of at most 64 KiB.

mod attach;
mod bpf;
mod btf;
mod cgroup;
mod drain;
mod error;
mod fanotify;
mod hooks;
mod index;
mod interpreters;
mod load;
mod members;
mod names;
mod observations;
mod observe;
mod offsets;
mod opens;
mod tracefs;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::fanotify::MaskFlags;
use nix::unistd::{SysconfVar, sysconf};
use rustix::time::{ClockId, clock_gettime};

pub use btf::BtfError;
pub use cgroup::CgroupFilter;
pub use error::ProfilerError;
pub use observations::{
    Losses, Observations, ObservedFile, Opens, Phase, Tier, TouchedRange, Unattributed,
};
pub use offsets::FormatError;

use members::Counted;

use crate::rootfs::MountedFile;

/// A ring of this size never filled up in tests; see [`ProfilerConfig::ring_bytes`].
pub const DEFAULT_RING_BYTES: u32 = 4 << 20;

/// How touches through mappings are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// A fault counts the pages that the kernel maps around it: nothing is missed, up to 15 pages
    /// too many. For a read-ahead of up to 64 KiB. How many too many depends on [`CacheAtStart`].
    FaultAround,
    /// A fault counts its own page. Nothing is missed only if the read-ahead is 0.
    Exact,
}

/// What the page cache holds of the watched files when the profiler is attached. Matters for
/// [`Exactness::FaultAround`]: of the pages around a fault, the kernel maps those that are cached, but
/// does not say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheAtStart {
    /// Nothing: which pages are cached is known from watching what enters. A fault counts the pages
    /// around it that have entered by then. If something was cached nevertheless, pages are missed;
    /// where that is noticed, it is counted in [`Losses::warm_mappings`].
    Cold,
    /// Not known: a fault counts all pages around it.
    Unknown,
}

/// How opens become known, beside [`Tier::Open`] and [`Tier::Fanotify`], which have no choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenSource {
    /// From fanotify(7), which costs nobody anything who does not use the same file system. Nothing is known of names
    /// that are looked up in vain. Where it cannot be used, as [`OpenSource::SystemCalls`].
    Fanotify,
    /// From tracepoints of system calls, whose results also tell of names that are looked up in vain. As long as one
    /// is in use, the kernel takes a slower way for every system call of every task.
    SystemCalls,
}

/// What to watch.
#[derive(Clone, Copy, Debug)]
pub struct ProfilerConfig<'a> {
    /// How; see [`choose`].
    pub tier: Tier,
    /// Tasks outside of it are ignored.
    pub cgroup: &'a CgroupFilter,
    /// The files by the device and inode of the file system that holds their pages: of overlayfs,
    /// the lower one.
    pub files: &'a [MountedFile],
    /// The files once more, by the device and inode that opening them in the merged mount gives:
    /// `st_ino` and the kernel's `s_dev` there, overlayfs mounted with `xino=on`. Empty where no
    /// file system is stacked.
    pub opened_as: &'a [MountedFile],
    /// How opens of them become known.
    pub opens: OpenSource,
    /// The files of `opened_as` that do not lie on the root's file system. For [`OpenSource::Fanotify`].
    pub also_opened: &'a [PathBuf],
    /// Where the workload's root is mounted. For fanotify, which watches its file system, and [`Tier::Open`], which
    /// reads there what interpreters the executed programs name.
    pub root: &'a Path,
    /// The workload's working directory, absolute, below its root: relative names are joined to it.
    pub cwd: &'a [u8],
    /// Size of the ring buffer in bytes, rounded up to a power of two; at least 4096.
    pub ring_bytes: u32,
    /// How touches through mappings are counted.
    pub exactness: Exactness,
    /// What is known of the page cache.
    pub cache: CacheAtStart,
}

/// A running profiler. Dropping it detaches everything.
pub struct Profiler {
    collector: Collector,
    tier: Tier,
    index: index::FileIndex,
    kernel: String,
    page_bytes: u32,
    cwd: Box<[u8]>,
    root: PathBuf,
}

enum Collector {
    Bpf(Box<bpf::BpfCollector>),
    Fanotify {
        fanotify: fanotify::FanotifyCollector,
        start_ns: u64,
    },
}

impl fmt::Debug for Profiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profiler")
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}

/// The tier to use: `wanted`, or the one that knows most of those that work here. Takes some 30 ms.
///
/// # Errors
/// [`ProfilerError::Collector`] if `wanted` does not work, [`ProfilerError::NotPermitted`] and
/// [`ProfilerError::NoCollector`] if none does.
pub fn choose(wanted: Option<Tier>) -> Result<Tier, ProfilerError> {
    choose_among(&Tier::ALL, wanted)
}

/// As [`choose`], for a page cache that is not our own: all but [`Tier::PageCache`], which sees only what is read
/// for the first time.
///
/// # Errors
/// As [`choose`].
pub fn choose_for_shared_cache(wanted: Option<Tier>) -> Result<Tier, ProfilerError> {
    choose_among(&[Tier::Filemap, Tier::Open, Tier::Fanotify], wanted)
}

fn choose_among(tiers: &[Tier], wanted: Option<Tier>) -> Result<Tier, ProfilerError> {
    let mut reasons = Vec::new();
    for tier in wanted.map_or(tiers.to_vec(), |tier| vec![tier]) {
        let Err(error) = check(tier) else {
            if !reasons.is_empty() {
                tracing::warn!(
                    "the collector {} is used: {}",
                    tier.name(),
                    reasons.join("; ")
                );
            }
            return Ok(tier);
        };
        match wanted {
            Some(_) => {
                let source = Box::new(error);
                return Err(ProfilerError::Collector { tier, source });
            }
            // Who may not use this one may not use any.
            None if tier == Tier::Fanotify
                && matches!(error, ProfilerError::NotPermitted { .. }) =>
            {
                return Err(error);
            }
            None => reasons.push(format!("{}: {}", tier.name(), error.in_one_line())),
        }
    }
    let reasons = reasons.join("; ");
    Err(ProfilerError::NoCollector { reasons })
}

fn check(tier: Tier) -> Result<(), ProfilerError> {
    if tier == Tier::Fanotify {
        return fanotify::check().map_err(ProfilerError::permission_first);
    }
    let config = ProfilerConfig {
        tier,
        cgroup: &CgroupFilter {
            id: 0,
            level: 0,
            path_in_proc: None,
        },
        files: &[],
        opened_as: &[],
        opens: OpenSource::SystemCalls,
        also_opened: &[],
        root: Path::new("/"),
        cwd: b"/",
        ring_bytes: 4096,
        exactness: Exactness::FaultAround,
        cache: CacheAtStart::Cold,
    };
    bpf::check(&config, &kernel_release())
}

impl Profiler {
    /// Attaches. When this returns, every touch is seen; the phase is [`Phase::Setup`].
    ///
    /// Needs root (CAP_BPF, CAP_PERFMON; CAP_SYS_ADMIN where tracefs is not mounted, and for fanotify),
    /// and the kernel that the [`Tier`] says. For opens by system calls, the kernel must have BTF; without it
    /// only touches are known.
    ///
    /// # Errors
    /// [`ProfilerError::NotPermitted`], [`ProfilerError::MissingTracepoint`] on older kernels, and
    /// the rest.
    pub fn start(config: &ProfilerConfig<'_>) -> Result<Self, ProfilerError> {
        let kernel = kernel_release();
        let page_bytes = page_bytes();
        let index = index::FileIndex::new(config.files, config.opened_as, u64::from(page_bytes))?;
        let collector = if config.tier == Tier::Fanotify {
            let mask = MaskFlags::FAN_OPEN | MaskFlags::FAN_ACCESS | MaskFlags::FAN_OPEN_EXEC;
            let marked =
                fanotify::mark(config.root, &[], mask).map_err(ProfilerError::permission_first)?;
            Collector::Fanotify {
                start_ns: marked.start_ns,
                fanotify: fanotify::FanotifyCollector::start(marked, &index, Counted::All)?,
            }
        } else {
            Collector::Bpf(Box::new(bpf::BpfCollector::start(config, &index, &kernel)?))
        };
        Ok(Self {
            collector,
            tier: config.tier,
            index,
            kernel,
            page_bytes,
            cwd: config.cwd.into(),
            root: config.root.into(),
        })
    }

    /// Tells that the container is set up and its program is about to be executed: the next
    /// execution in the cgroup begins [`Phase::Run`].
    ///
    /// # Errors
    /// [`ProfilerError::Map`].
    pub fn begin_run(&mut self) -> Result<(), ProfilerError> {
        match &mut self.collector {
            Collector::Bpf(bpf) => bpf.begin_run(),
            Collector::Fanotify { fanotify, .. } => {
                fanotify.begin_run();
                Ok(())
            }
        }
    }

    /// Stops and evaluates. Nothing is recorded any more when this returns; the kernel may take a
    /// second longer to let go of the programs. The root must still be mounted.
    ///
    /// # Errors
    /// When the kernel's maps cannot be read, or the thread that reads events failed.
    pub fn finish(self) -> Result<Observations, ProfilerError> {
        let (opens, start_ns, recorded) = match self.collector {
            Collector::Bpf(mut bpf) => {
                let opens = std::mem::replace(&mut bpf.opens, Opens::Tracked);
                (opens, bpf.start_ns, bpf.finish()?)
            }
            Collector::Fanotify { fanotify, start_ns } => {
                let end_ns = monotonic_ns();
                let fanotify::Told {
                    opens,
                    losses,
                    unattributed,
                    run_time_ns,
                } = fanotify.finish()?;
                let mut log = drain::EventLog {
                    run_time_ns,
                    ..drain::EventLog::default()
                };
                opens::place(&mut log, &opens);
                let recorded = bpf::Recorded {
                    log,
                    pages: Vec::new(),
                    losses,
                    unattributed,
                    end_ns,
                };
                (Opens::WithoutMissing, start_ns, recorded)
            }
        };
        let bpf::Recorded {
            mut log,
            pages,
            mut losses,
            mut unattributed,
            end_ns,
        } = recorded;
        if self.tier == Tier::Open {
            interpreters::add(&mut log, &self.index, &self.root, &self.cwd);
        }
        let granularity_bytes = if self.tier.knows_ranges() {
            self.page_bytes
        } else {
            0
        };
        let context = observe::Context {
            page_bytes: u64::from(granularity_bytes),
            start_ns,
            end_ns,
            cwd: &self.cwd,
        };
        let observed = observe::observe(&self.index, log, &pages, &context, &mut losses);
        unattributed.relative_names = observed.unresolved_names;
        unattributed.conflicting_rows = self.index.conflicting_rows;
        Ok(Observations {
            tier: self.tier,
            kernel: self.kernel,
            granularity_bytes,
            opens,
            files: observed.files,
            missing: observed.missing,
            run_began: observed.run_began,
            watched: Duration::from_nanos(end_ns.saturating_sub(start_ns)),
            lost_events: losses.total(),
            losses,
            unattributed,
        })
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".into(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

fn page_bytes() -> u32 {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    page.and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(4096)
}

/// The clock of the events.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
