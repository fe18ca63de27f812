//! Watches with eBPF which bytes of which files a cgroup's tasks touch.
//!
//! Enters: a cgroup, and for every file of the image the (device, inode) pair under which the
//! kernel knows it. Leaves: for every file that was opened or touched, the touched pages, in order
//! of first touch; names that were looked up in vain; and a count of everything that was lost.
//! Nothing is pinned and no mount is left: when the [`Profiler`] is dropped, or the process dies,
//! the kernel forgets all of it.
//!
//! What it cannot see: files on tmpfs, O_DIRECT and DAX; opens through io_uring (their reads are
//! seen); pages of a mapping that the page cache already held in a folio of more than 16 pages, so
//! the root file system must be freshly mounted with a read-ahead of at most 64 KiB.

mod btf;
mod cgroup;
mod drain;
mod error;
mod index;
mod load;
mod names;
mod observations;
mod observe;
mod offsets;
mod tracefs;

use std::fmt;
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::trace_point::TracePointLink;
use esgz_ebpf_abi::{ChunkBitmap, counter, phase};
use nix::unistd::{SysconfVar, sysconf};
use rustix::time::{ClockId, clock_gettime};

pub use btf::BtfError;
pub use cgroup::CgroupFilter;
pub use error::ProfilerError;
pub use observations::{
    Losses, Observations, ObservedFile, Opens, Phase, Tier, TouchedRange, Unattributed,
};
pub use offsets::FormatError;

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

/// What to watch.
#[derive(Clone, Copy, Debug)]
pub struct ProfilerConfig<'a> {
    /// Tasks outside of it are ignored.
    pub cgroup: CgroupFilter,
    /// The files by the device and inode of the file system that holds their pages: of overlayfs,
    /// the lower one.
    pub files: &'a [MountedFile],
    /// The files once more, by the device and inode that opening them in the merged mount gives:
    /// `st_ino` and the kernel's `s_dev` there, overlayfs mounted with `xino=on`. Empty where no
    /// file system is stacked.
    pub opened_as: &'a [MountedFile],
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
    // Dropped first: nothing is recorded any more when the rest goes.
    links: Vec<TracePointLink>,
    phase: Array<MapData, u32>,
    pages: Array<MapData, ChunkBitmap>,
    counters: PerCpuArray<MapData, u64>,
    drain: drain::Drain,
    index: index::FileIndex,
    opens: Opens,
    kernel: String,
    page_bytes: u32,
    cwd: Box<[u8]>,
    start_ns: u64,
}

impl fmt::Debug for Profiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profiler")
            .field("opens", &self.opens)
            .finish_non_exhaustive()
    }
}

impl Profiler {
    /// Attaches. When this returns, every touch is seen; the phase is [`Phase::Setup`].
    ///
    /// Needs Linux 6.12 and root (CAP_BPF, CAP_PERFMON; CAP_SYS_ADMIN where tracefs is not
    /// mounted). For opens, the kernel must have BTF; without it only touches are known.
    ///
    /// # Errors
    /// [`ProfilerError::NotPermitted`], [`ProfilerError::MissingTracepoint`] on older kernels, and
    /// the rest.
    pub fn start(config: &ProfilerConfig<'_>) -> Result<Self, ProfilerError> {
        let kernel = kernel_release();
        let page_bytes = page_bytes();
        let index = index::FileIndex::new(config.files, config.opened_as, u64::from(page_bytes))?;
        let loaded = on_own_thread(|| load::load(config, &index, &kernel))
            .and_then(|loaded| loaded)
            .map_err(ProfilerError::permission_first)?;
        let load::Loaded {
            start_ns,
            links,
            phase,
            pages,
            counters,
            ring,
            opens,
        } = loaded;
        let drain = drain::Drain::start(ring)?;
        let cwd = config.cwd.into();
        Ok(Self {
            links,
            phase,
            pages,
            counters,
            drain,
            index,
            opens,
            kernel,
            page_bytes,
            cwd,
            start_ns,
        })
    }

    /// Tells that the container is set up and its program is about to be executed: the next
    /// execution in the cgroup begins [`Phase::Run`].
    ///
    /// # Errors
    /// [`ProfilerError::Map`].
    pub fn begin_run(&mut self) -> Result<(), ProfilerError> {
        self.set_phase(phase::ARMED)
    }

    /// Stops and evaluates. Nothing is recorded any more when this returns; the kernel may take a
    /// second longer to let go of the programs.
    ///
    /// # Errors
    /// When the kernel's maps cannot be read, or the thread that reads events failed.
    pub fn finish(mut self) -> Result<Observations, ProfilerError> {
        self.set_phase(phase::STOPPED)?;
        let end_ns = monotonic_ns();
        let Self {
            mut links,
            pages,
            counters,
            drain,
            index,
            cwd,
            ..
        } = self;
        // Detaching one program waits until none is running that does not know of the new phase.
        drop(links.pop());
        load::detach_behind(links);
        let log = drain.finish()?;
        let (mut losses, mut unattributed) = read_counters(&counters)?;
        let pages = read_pages(&pages, index.chunks)?;
        let context = observe::Context {
            page_bytes: u64::from(self.page_bytes),
            start_ns: self.start_ns,
            end_ns,
            cwd: &cwd,
        };
        let observed = observe::observe(&index, log, &pages, &context, &mut losses);
        unattributed.relative_names = observed.unresolved_names;
        unattributed.conflicting_rows = index.conflicting_rows;
        Ok(Observations {
            tier: Tier::Filemap,
            kernel: self.kernel,
            granularity_bytes: self.page_bytes,
            opens: self.opens,
            files: observed.files,
            missing: observed.missing,
            run_began: observed.run_began,
            watched: Duration::from_nanos(end_ns.saturating_sub(self.start_ns)),
            lost_events: losses.total(),
            losses,
            unattributed,
        })
    }

    fn set_phase(&mut self, phase: u32) -> Result<(), ProfilerError> {
        self.phase
            .set(0, phase, 0)
            .map_err(|source| ProfilerError::Map {
                operation: "write",
                map: "PHASE",
                source,
            })
    }
}

/// Loading may change the calling thread's mount namespace, so it gets a thread of its own.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ProfilerError> {
    // The probe knows it by this name: `LOADER_COMM`.
    const THREAD: &str = "esgz-bpf-load";
    let failed = |operation, source| ProfilerError::Thread {
        operation,
        thread: THREAD,
        source,
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(THREAD.into())
            .spawn_scoped(scope, work)
            .map_err(|source| failed("start", source))?
            .join()
            .map_err(|_| failed("finish", std::io::Error::other("it panicked")))
    })
}

fn read_counters(
    counters: &PerCpuArray<MapData, u64>,
) -> Result<(Losses, Unattributed), ProfilerError> {
    let read = |counter| -> Result<u64, ProfilerError> {
        let values = counters
            .get(&counter, 0)
            .map_err(|source| ProfilerError::Map {
                operation: "read",
                map: "COUNTERS",
                source,
            })?;
        Ok(values.iter().sum())
    };
    let losses = Losses {
        touches: read(counter::LOST_TOUCHES)?,
        opens: read(counter::LOST_OPENS)?,
        names: read(counter::LOST_NAMES)? + read(counter::NAME_TABLE_FULL)?,
        unreadable_opens: read(counter::UNREADABLE_OPENS)?,
        unmarked_touches: read(counter::UNMARKED_TOUCHES)?,
        warm_mappings: read(counter::WARM_MAPPINGS)?,
        ..Losses::default()
    };
    let unattributed = Unattributed {
        touches: read(counter::OTHER_TOUCHES)?,
        touches_behind_end: read(counter::TOUCHES_BEHIND_END)?,
        opens: read(counter::OTHER_OPENS)?,
        unreadable_names: read(counter::UNREADABLE_NAMES)?,
        ..Unattributed::default()
    };
    Ok((losses, unattributed))
}

fn read_pages(
    pages: &Array<MapData, ChunkBitmap>,
    chunks: u32,
) -> Result<Vec<ChunkBitmap>, ProfilerError> {
    let read = |chunk| pages.get(&chunk, 0);
    (0..chunks)
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(|source| ProfilerError::Map {
            operation: "read",
            map: "PAGES",
            source,
        })
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
