//! The maps, and what every program does with them: filter, count, emit.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use esgz_ebpf_abi::{
    ChunkBitmap, DEVICE_WORDS, Event, FILE_EXECUTED, FILE_OPENED, FileKey, PID_WORDS, WatchedFile,
    counter, device_bit, phase,
};

use crate::atomic::Word;
use crate::kernel;

/// Id of the watched cgroup and its depth below the root of the v2 hierarchy.
#[unsafe(no_mangle)]
static CGROUP_ID: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_LEVEL: Global<u32> = Global::new(0);
/// One bit for each device that has watched files; others may share it.
#[unsafe(no_mangle)]
static DEVICES: Global<[u64; DEVICE_WORDS]> = Global::new([0; DEVICE_WORDS]);
/// Bytes waiting in the ring from which on its reader is woken.
#[unsafe(no_mangle)]
static WAKE_BYTES: Global<u32> = Global::new(0);

// The loader replaces every `max_entries` but those of STATE and COUNTERS.
#[map]
static FILES: HashMap<FileKey, WatchedFile> = HashMap::with_max_entries(1, 0);
/// The touched pages of all files.
#[map]
pub(crate) static PAGES: Array<ChunkBitmap> = Array::with_max_entries(1, 0);
/// The pages that entered the page cache, and those of them in folios of several pages. Used where
/// the cache was cold.
#[map]
pub(crate) static CACHED: Array<ChunkBitmap> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static CACHED_LARGE: Array<ChunkBitmap> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
static PHASE: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static SEQUENCE: Array<u64> = Array::with_max_entries(1, 0);
/// One bit for each process id: the last process that had it and ended was of the watched cgroup.
#[map]
pub(crate) static ENDED: Array<u64> = Array::with_max_entries(PID_WORDS, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// The phase, if the current task is in the watched cgroup and recording is on. What the kernel reads
/// for the execution that begins the run belongs to the run.
#[inline(always)]
pub(crate) fn watching() -> Option<u32> {
    let phase = watching_as_told()?;
    if phase == phase::ARMED && kernel::executing() {
        return Some(phase::RUN);
    }
    Some(phase)
}

/// As `watching`, but the phase is what the phase word says.
#[inline(always)]
pub(crate) fn watching_as_told() -> Option<u32> {
    if is_in_cgroup() { recording() } else { None }
}

/// Whether the current task is in the watched cgroup.
#[inline(always)]
pub(crate) fn is_in_cgroup() -> bool {
    // SAFETY: the helper takes no pointer.
    let id = unsafe { bpf_get_current_ancestor_cgroup_id(CGROUP_LEVEL.load() as i32) };
    id == CGROUP_ID.load()
}

/// Whether a device may have watched files. Nearly all that others do ends here, after three loads.
#[inline(always)]
pub(crate) fn is_of_watched_device(device: u32) -> bool {
    let bit = device_bit(device);
    // SAFETY: the word's index is below the array's length; the loader alone writes it, before the start.
    let word = unsafe {
        (&raw const DEVICES)
            .cast::<u64>()
            .add((bit / 64) as usize)
            .read_volatile()
    };
    word >> (bit % 64) & 1 != 0
}

/// The phase, if recording is on.
#[inline(always)]
pub(crate) fn recording() -> Option<u32> {
    let phase = phase_word()?.load();
    (phase != phase::STOPPED).then_some(phase)
}

/// The phase word that the loader and the exec program share.
#[inline(always)]
pub(crate) fn phase_word() -> Option<Word<u32>> {
    let word = PHASE.get_ptr_mut(0)?;
    // SAFETY: an array's element lives as long as the program and is aligned to 8 bytes; everyone
    // accesses this word atomically.
    Some(unsafe { Word::new(word) })
}

/// Counts one more of `counter`.
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own element. An interrupting program may lose one increment of many,
        // never the fact that there was one.
        unsafe { *value += 1 };
    }
}

/// The next position in the one order of events.
#[inline(always)]
pub(crate) fn next_sequence() -> u64 {
    match SEQUENCE.get_ptr_mut(0) {
        // SAFETY: as `phase_word`.
        Some(word) => unsafe { Word::new(word) }.fetch_add(1),
        None => 0,
    }
}

/// A new event without its chunk and windows.
#[inline(always)]
pub(crate) fn event(kind: u16, phase: u32, file: u32) -> Event {
    Event {
        sequence: next_sequence(),
        // SAFETY: the helper takes no pointer.
        time_ns: unsafe { bpf_ktime_get_ns() },
        kind,
        phase: phase as u16,
        file,
        chunk: 0,
        windows: 0,
    }
}

/// Ring buffer flags: the reader sleeps until enough waits for it.
#[inline(always)]
pub(crate) fn wake_up() -> u64 {
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= u64::from(WAKE_BYTES.load()) {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

/// Sends an event; counts it as `lost` if the ring is full.
#[inline(always)]
pub(crate) fn emit(event: Event, lost: u32) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(event);
            entry.submit(wake_up());
        }
        None => {
            count(lost);
        }
    }
}

/// A watched file, as it lies in the table.
pub(crate) struct Watched(*mut WatchedFile);

impl Watched {
    #[inline(always)]
    pub(crate) fn find(device: u32, inode: u64) -> Option<Self> {
        FILES
            .get_ptr_mut(&FileKey {
                inode,
                device,
                padding: 0,
            })
            .map(Self)
    }

    #[inline(always)]
    pub(crate) fn file(&self) -> u32 {
        // SAFETY: nobody removes entries, and nobody writes this field after the start.
        unsafe { (*self.0).file }
    }

    #[inline(always)]
    pub(crate) fn size_pages(&self) -> u32 {
        // SAFETY: as `file`.
        unsafe { (*self.0).size_pages }
    }

    /// The bitmap in `map` of chunk `chunk` of the file.
    #[inline(always)]
    pub(crate) fn bitmap(&self, map: &Array<ChunkBitmap>, chunk: u32) -> Option<*mut ChunkBitmap> {
        // SAFETY: as `file`.
        map.get_ptr_mut(unsafe { (*self.0).first_chunk } + chunk)
    }

    /// The pages of the last long touch, `first << 32 | last`.
    #[inline(always)]
    pub(crate) fn marked(&self) -> Word<u64> {
        // SAFETY: as `phase_word`; the table's values are aligned to 8 bytes.
        unsafe { Word::new(&raw mut (*self.0).marked) }
    }

    /// The `FILE_*` bits.
    #[inline(always)]
    pub(crate) fn flags(&self) -> Word<u32> {
        // SAFETY: as `marked`.
        unsafe { Word::new(&raw mut (*self.0).flags) }
    }

    /// Sets `flag`; true for the one who set it first.
    #[inline(always)]
    pub(crate) fn set(&self, flag: u32) -> bool {
        self.flags().load() & flag == 0 && self.flags().fetch_or(flag) & flag == 0
    }

    /// Records the first open or execution.
    #[inline(always)]
    pub(crate) fn record(&self, kind: u16, phase: u32) {
        let flag = if kind == esgz_ebpf_abi::kind::OPEN {
            FILE_OPENED
        } else {
            FILE_EXECUTED
        };
        if self.set(flag) {
            emit(event(kind, phase, self.file()), counter::LOST_OPENS);
        }
    }
}
