//! The BPF programs at work, and what they leave in their maps.

use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::trace_point::TracePointLink;
use esgz_ebpf_abi::{ChunkBitmap, counter, phase};

use super::drain::{Drain, EventLog};
use super::index::FileIndex;
use super::{Losses, Opens, ProfilerConfig, ProfilerError, Unattributed, load, monotonic_ns};

/// Attached programs. Dropping it detaches them.
pub(super) struct BpfCollector {
    // Dropped first: nothing is recorded any more when the rest goes.
    links: Vec<TracePointLink>,
    phase: Array<MapData, u32>,
    pages: Array<MapData, ChunkBitmap>,
    counters: PerCpuArray<MapData, u64>,
    drain: Drain,
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
            opens,
            diagnostics,
        } = loaded;
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
            chunks,
            opens,
            start_ns,
            diagnostics,
        })
    }

    pub(super) fn begin_run(&mut self) -> Result<(), ProfilerError> {
        self.set_phase(phase::ARMED)
    }

    pub(super) fn finish(mut self) -> Result<Recorded, ProfilerError> {
        self.set_phase(phase::STOPPED)?;
        let end_ns = monotonic_ns();
        // Detaching one program waits until none is running that does not know of the new phase.
        drop(self.links.pop());
        load::detach_behind(self.links);
        let log = self.drain.finish()?;
        (self.diagnostics)();
        let (losses, unattributed) = read_counters(&self.counters)?;
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
