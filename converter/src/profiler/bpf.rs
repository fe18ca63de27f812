//! The BPF programs at work, and what they leave in their maps.

use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray};
use esgz_ebpf_abi::{ChunkBitmap, counter, phase};

use nix::sys::fanotify::MaskFlags;

use super::attach::{Link, detach_behind, detach_one_and_wait};
use super::drain::{Drain, EventLog};
use super::fanotify::{self, FanotifyCollector, Told};
use super::index::FileIndex;
use super::members::{self, Counted, Members};
use super::{
    Losses, OpenSource, Opens, ProfilerConfig, ProfilerError, Tier, Unattributed, load,
    monotonic_ns, opens,
};

/// Attached programs. Dropping it detaches them.
pub(super) struct BpfCollector {
    // Dropped first: nothing is recorded any more when the rest goes.
    links: Vec<Link>,
    phase: Array<MapData, u32>,
    pages: Array<MapData, ChunkBitmap>,
    counters: PerCpuArray<MapData, u64>,
    drain: Drain,
    /// Tells of opens, where system calls are not watched.
    fanotify: Option<FanotifyCollector>,
    /// Chunks of `pages` that are in use.
    chunks: u32,
    pub(super) opens: Opens,
    pub(super) start_ns: u64,
    diagnostics: load::Diagnostics,
}

/// Everything that was recorded.
pub(super) struct Recorded {
    pub(super) log: EventLog,
    pub(super) pages: Vec<ChunkBitmap>,
    pub(super) losses: Losses,
    pub(super) unattributed: Unattributed,
    pub(super) end_ns: u64,
}

impl BpfCollector {
    pub(super) fn start(
        config: &ProfilerConfig<'_>,
        index: &FileIndex,
        kernel: &str,
    ) -> Result<Self, ProfilerError> {
        let marked = mark(config);
        let source = match marked {
            Some(_) => OpenSource::Fanotify,
            None => OpenSource::SystemCalls,
        };
        let config = &ProfilerConfig {
            opens: source,
            ..*config
        };
        let loaded = on_own_thread(|| load::load(config, index, kernel))
            .and_then(|loaded| loaded)
            .map_err(ProfilerError::permission_first)?;
        let load::Loaded {
            start_ns,
            links,
            phase,
            pages,
            counters,
            ring,
            ended,
            opens,
            diagnostics,
        } = loaded;
        let (mut fanotify, mut first_ns) = (None, start_ns);
        if let Some((marked, path)) = marked {
            first_ns = first_ns.min(marked.start_ns);
            let counted = Counted::Cgroup(Members::new(ended, path));
            fanotify = Some(FanotifyCollector::start(marked, index, counted)?);
        }
        let chunks = if config.tier.knows_ranges() {
            index.chunks
        } else {
            0
        };
        Ok(Self {
            links,
            phase,
            pages,
            counters,
            drain: Drain::start(ring)?,
            fanotify,
            chunks,
            opens,
            start_ns: first_ns,
            diagnostics,
        })
    }

    pub(super) fn begin_run(&mut self) -> Result<(), ProfilerError> {
        // What the kernel opens for the execution that begins the run must come after this.
        if let Some(fanotify) = &self.fanotify {
            fanotify.begin_run();
        }
        self.set_phase(phase::ARMED)
    }

    pub(super) fn finish(mut self) -> Result<Recorded, ProfilerError> {
        self.set_phase(phase::STOPPED)?;
        let end_ns = monotonic_ns();
        // Then none is running that does not know of the new phase.
        detach_one_and_wait(&mut self.links);
        let told = match self.fanotify {
            // Who ended is needed until all is read.
            Some(fanotify) => fanotify.finish()?,
            None => Told::default(),
        };
        detach_behind(self.links);
        let mut log = self.drain.finish()?;
        opens::place(&mut log, &told.opens);
        (self.diagnostics)();
        let (mut losses, mut unattributed) = read_counters(&self.counters)?;
        losses.overflows += told.losses.overflows;
        unattributed.opens += told.unattributed.opens;
        unattributed.unmarked_places += told.unattributed.unmarked_places;
        Ok(Recorded {
            log,
            pages: read_pages(&self.pages, self.chunks)?,
            losses,
            unattributed,
            end_ns,
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

/// Makes fanotify tell of opens, if that is wanted and possible here. With the path of the cgroup in /proc.
fn mark(config: &ProfilerConfig<'_>) -> Option<(fanotify::Marked, Box<[u8]>)> {
    if config.opens == OpenSource::SystemCalls || config.tier == Tier::Open {
        return None;
    }
    let Some(path) = members::path_in_proc(config.cgroup) else {
        tracing::debug!("opens are seen by system calls: /proc is another namespace's");
        return None;
    };
    let mask = MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC;
    match fanotify::mark(config.root, config.also_opened, mask) {
        Ok(marked) => Some((marked, path)),
        Err(error) => {
            tracing::debug!("opens are seen by system calls: {}", error.in_one_line());
            None
        }
    }
}

/// Whether the tier of `config` works here.
pub(super) fn check(config: &ProfilerConfig<'_>, kernel: &str) -> Result<(), ProfilerError> {
    let clock = std::time::Instant::now();
    let checked = on_own_thread(|| load::check(config, kernel))
        .and_then(|checked| checked)
        .map_err(ProfilerError::permission_first);
    let took: Duration = clock.elapsed();
    tracing::debug!(
        tier = config.tier.name(),
        works = checked.is_ok(),
        ?took,
        "probed"
    );
    checked
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
