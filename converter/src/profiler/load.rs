//! Brings the BPF programs into the kernel: offsets, maps, programs, tracepoints.

use std::fs::File;
use std::os::unix::fs::FileExt;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use esgz_ebpf_abi::{ChunkBitmap, FILE_MAPPED};
use zerocopy::transmute;

use super::attach::{Attacher, Link, Place, detach_behind};
use super::btf::{Btf, BtfError};
use super::hooks::{
    ARGUMENTS, ENDED_PROGRAM, ENDED_TRACEPOINT, EXEC_NAME, Gets, Hook, LARGE_FOLIO_ORDER, MEMBERS,
    PROBE, SYSTEM_CALLS, URING, URING_MEMBERS, touch_hooks,
};
use super::index::FileIndex;
use super::offsets::TracepointFormat;
use super::tracefs::Tracefs;
use super::{CacheAtStart, Exactness, OpenSource, Opens, ProfilerConfig, ProfilerError, Tier};

/// The object that `cargo xtask bpf` builds from `converter-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../converter-ebpf/esgz.bpf.o");

/// Room for names that are looked up in vain, each counted once.
const MAX_NAMES: u32 = 1 << 17;
/// `Level::Debug` of aya-log.
const DEBUG_MESSAGES: u8 = 4;
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The attached programs and their maps. Dropping a link detaches its program; the last link keeps
/// the program.
pub(super) struct Loaded {
    pub(super) links: Vec<Link>,
    /// CLOCK_MONOTONIC just before the first was attached.
    pub(super) start_ns: u64,
    pub(super) phase: Array<MapData, u32>,
    pub(super) pages: Array<MapData, ChunkBitmap>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) ring: RingBuf<MapData>,
    /// A bit for each process id: whether who ended with it was of the cgroup.
    pub(super) ended: Array<MapData, u64>,
    pub(super) opens: Opens,
    /// Passes on what the programs say of rare failures.
    pub(super) diagnostics: Diagnostics,
}

/// Reads the programs' messages and gives them to the log.
pub(super) type Diagnostics = Box<dyn FnMut() + Send>;

/// An object in the kernel whose programs are not attached yet.
struct Prepared {
    programs: Ebpf,
    /// Names of programs, in the order of attachment.
    attachments: Vec<(&'static str, Place)>,
    opens: Opens,
    /// Attaching looks into it.
    tracefs: Tracefs,
}

/// Loads and attaches everything. Runs on a thread of its own; see [`Tracefs::open`].
pub(super) fn load(
    config: &ProfilerConfig<'_>,
    index: &FileIndex,
    kernel: &str,
) -> Result<Loaded, ProfilerError> {
    let Prepared {
        mut programs,
        attachments,
        opens,
        tracefs,
    } = prepare(config, index, kernel, probe)?;
    let phase = take(&mut programs, "PHASE", Array::try_from)?;
    let pages = take(&mut programs, "PAGES", Array::try_from)?;
    let counters = take(&mut programs, "COUNTERS", PerCpuArray::try_from)?;
    let ring = take(&mut programs, "EVENTS", RingBuf::try_from)?;
    let ended = take(&mut programs, "ENDED", Array::try_from)?;
    let mut messages =
        EbpfLogger::init(&mut programs).map_err(|_| ProfilerError::ObjectLacks("AYA_LOGS"))?;
    fill_files(&mut programs, index)?;

    let start_ns = super::monotonic_ns();
    let mut attacher = Attacher::default();
    let mut links = Vec::new();
    for (program, place) in attachments {
        links.push(attacher.attach(&mut programs, program, place)?);
    }
    drop(tracefs);
    Ok(Loaded {
        start_ns,
        links,
        phase,
        pages,
        counters,
        ring,
        ended,
        opens,
        diagnostics: Box::new(move || messages.flush()),
    })
}

/// Whether the tier of `config` works here: the kernel has what its programs are attached to and read,
/// and takes a program with their maps. Only the smallest of each sort, since to verify all takes a second. Runs on
/// a thread of its own, as `load`.
pub(super) fn check(config: &ProfilerConfig<'_>, kernel: &str) -> Result<(), ProfilerError> {
    let index = FileIndex::new(&[], &[], 4096)?;
    let mut prepared = prepare(config, &index, kernel, || Ok(0))?;
    if let (Tier::Open, Opens::Untracked { reason }) = (config.tier, prepared.opens) {
        return Err(ProfilerError::OpensUntracked { reason });
    }
    let mut attacher = Attacher::default();
    let mut load = |hook: &Hook| attacher.load(&mut prepared.programs, hook.program, hook.place());
    if config.tier == Tier::Filemap {
        load(&PROBE)?;
    }
    load(&EXEC_NAME)
}

/// `exclusive` finds out what [`probe`] does.
fn prepare(
    config: &ProfilerConfig<'_>,
    index: &FileIndex,
    kernel: &str,
    exclusive: impl FnOnce() -> Result<u32, ProfilerError>,
) -> Result<Prepared, ProfilerError> {
    let tracefs = Tracefs::open()?;
    let hooks = touch_hooks(config);
    let ring_bytes = config.ring_bytes.clamp(4096, 1 << 30).next_power_of_two();
    let mut globals = hook_offsets(&tracefs, hooks, kernel)?;
    let offsets = kernel_offsets();
    let mut cached_chunks = 0;
    if config.tier == Tier::Filemap {
        if let Err(reason) = &offsets {
            let reason = reason.clone();
            return Err(ProfilerError::KernelTypes { reason });
        }
        let exclusive = exclusive()?;
        globals.push(("GET_PAGES_EXCLUSIVE", exclusive));
        globals.push(("FILL_MIN_ORDER", LARGE_FOLIO_ORDER));
        globals.push(("FILL_NEEDS_FLAGS", FILE_MAPPED));
        if config.exactness == Exactness::FaultAround && config.cache == CacheAtStart::Cold {
            cached_chunks = index.chunks;
        }
    }
    globals.push(("CGROUP_LEVEL", config.cgroup.level));
    globals.push(("WAKE_BYTES", ring_bytes / 8));
    globals.push(("COLD_CACHE", u32::from(cached_chunks != 0)));
    let mut attachments: Vec<_> = hooks.iter().map(Hook::attachment).collect();
    attachments.push(EXEC_NAME.attachment());
    if config.tier == Tier::Open {
        globals.extend(hook_offsets(&tracefs, &[EXEC_NAME], kernel)?);
    }
    let by_fanotify = config.opens == OpenSource::Fanotify;
    if by_fanotify {
        attachments.push((ENDED_PROGRAM, Place::Raw(ENDED_TRACEPOINT)));
    }
    let opens = match offsets {
        Ok(KernelOffsets { members, uring }) => {
            globals.extend(members);
            globals.push(("KERNEL_WALKS", 1));
            if by_fanotify {
                Opens::WithoutMissing
            } else {
                for (tracepoint, program) in present_system_calls(&tracefs, &mut globals)? {
                    attachments.push((program, Place::Record("syscalls", tracepoint)));
                }
                // A kernel may be built without io_uring; before 5.19 the request is not known.
                if let (Some(members), Ok(offsets)) =
                    (uring, hook_offsets(&tracefs, &[URING], kernel))
                {
                    globals.extend(members);
                    globals.extend(offsets);
                    attachments.push(URING.attachment());
                }
                Opens::Tracked
            }
        }
        Err(_) if by_fanotify => Opens::WithoutMissing,
        Err(reason) => Opens::Untracked { reason },
    };

    // Where nobody would see their messages, the verifier takes them out of the programs.
    let message_level: u8 = if tracing::enabled!(tracing::Level::DEBUG) {
        DEBUG_MESSAGES
    } else {
        0
    };
    let devices = index.devices();
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .override_global(aya_log::LEVEL, &message_level, true)
        .override_global("CGROUP_ID", &config.cgroup.id, true)
        .override_global("DEVICES", &devices, true);
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    let chunks = if config.tier.knows_ranges() {
        index.chunks
    } else {
        0
    };
    loader
        .map_max_entries("FILES", index.keys.len().max(1) as u32)
        .map_max_entries("PAGES", chunks.max(1))
        .map_max_entries("CACHED", cached_chunks.max(1))
        .map_max_entries("CACHED_LARGE", cached_chunks.max(1))
        .map_max_entries("EVENTS", ring_bytes)
        .map_max_entries("NAMES", MAX_NAMES);
    let programs = loader
        .load(OBJECT)
        .map_err(|source| ProfilerError::Object {
            source: Box::new(source),
        })?;
    Ok(Prepared {
        programs,
        attachments,
        opens,
        tracefs,
    })
}

/// 1 if this kernel's mm_filemap_get_pages gives the page behind the last one as the last, else 0.
/// Reads a page of our own program to see; 0 if that is not in the page cache of a file system,
/// which at worst counts a page too many.
fn probe() -> Result<u32, ProfilerError> {
    const MAP: &str = "PROBE";
    let mut programs =
        EbpfLoader::new()
            .btf(None)
            .load(OBJECT)
            .map_err(|source| ProfilerError::Object {
                source: Box::new(source),
            })?;
    let result: Array<_, u64> = take(&mut programs, MAP, Array::try_from)?;
    let (program, place) = PROBE.attachment();
    let link = Attacher::default().attach(&mut programs, program, place)?;
    if let Ok(file) = File::open("/proc/self/exe") {
        // Whatever this gives: if nothing was read, nothing was seen.
        let _ = file.read_at(&mut [0], 0);
    }
    detach_behind(vec![link]);
    let seen = result.get(&0, 0).map_err(|source| ProfilerError::Map {
        operation: "read",
        map: MAP,
        source,
    })?;
    Ok(u32::from(seen == 2))
}

/// The globals that say where the tracepoints keep their fields.
fn hook_offsets(
    tracefs: &Tracefs,
    hooks: &[Hook],
    kernel: &str,
) -> Result<Vec<(&'static str, u32)>, ProfilerError> {
    let mut globals = Vec::new();
    for hook in hooks {
        let tracepoint = || format!("{}:{}", hook.group, hook.tracepoint);
        let text = tracefs
            .format(hook.group, hook.tracepoint)?
            .ok_or_else(|| ProfilerError::MissingTracepoint {
                tracepoint: tracepoint(),
                kernel: kernel.into(),
            })?;
        if let Gets::Record(fields) = hook.gets {
            globals.extend(field_offsets(&text, fields, &tracepoint)?);
        }
    }
    Ok(globals)
}

fn field_offsets(
    text: &str,
    fields: &[(&'static str, &'static str, u32)],
    tracepoint: &dyn Fn() -> String,
) -> Result<Vec<(&'static str, u32)>, ProfilerError> {
    let failed = |source| ProfilerError::TracepointFormat {
        tracepoint: tracepoint(),
        source,
    };
    let format = TracepointFormat::parse(text).map_err(failed)?;
    fields
        .iter()
        .map(|&(global, field, size)| {
            Ok((global, format.offset_bytes(field, size).map_err(failed)?))
        })
        .collect()
}

/// The system calls that this kernel has, and where they keep their result.
fn present_system_calls(
    tracefs: &Tracefs,
    globals: &mut Vec<(&'static str, u32)>,
) -> Result<Vec<(&'static str, &'static str)>, ProfilerError> {
    let mut present = Vec::new();
    for &(tracepoint, program) in SYSTEM_CALLS {
        if let Some(text) = tracefs.format("syscalls", tracepoint)? {
            if present.is_empty() {
                let fields = [("SYS_EXIT_RET", "ret", 8)];
                globals.extend(field_offsets(&text, &fields, &|| {
                    format!("syscalls:{tracepoint}")
                })?);
            }
            present.push((tracepoint, program));
        }
    }
    Ok(present)
}

/// The globals that say where the kernel keeps its structures' members.
struct KernelOffsets {
    members: Vec<(&'static str, u32)>,
    /// Those of io_uring, if there is one.
    uring: Option<Vec<(&'static str, u32)>>,
}

/// Looks them up in the running kernel, or says why they are unknown.
fn kernel_offsets() -> Result<KernelOffsets, String> {
    let bytes = std::fs::read(KERNEL_BTF).map_err(|error| format!("{KERNEL_BTF}: {error}"))?;
    let look_up = || -> Result<_, BtfError> {
        let btf = Btf::parse(&bytes)?;
        let offsets = |rows: &[(&'static str, &'static str, &'static str)]| {
            rows.iter()
                .map(|&(global, structure, member)| {
                    Ok((global, btf.member_offset_bytes(structure, member)?))
                })
                .collect::<Result<Vec<_>, BtfError>>()
        };
        let mut members = offsets(MEMBERS)?;
        members.extend(offsets(ARGUMENTS)?);
        // Without it, what the kernel reads in order to execute it is not told apart.
        if let Ok(bit) = btf.member_offset_bits("task_struct", "in_execve") {
            members.push(("TASK_IN_EXECVE", bit / 8));
            members.push(("IN_EXECVE_MASK", 1 << (bit % 8)));
        }
        Ok(KernelOffsets {
            members,
            uring: offsets(URING_MEMBERS).ok(),
        })
    };
    look_up().map_err(|error| format!("{KERNEL_BTF}: {error}"))
}

/// Takes a map out of the object.
fn take<T>(
    programs: &mut Ebpf,
    map: &'static str,
    convert: impl FnOnce(aya::maps::Map) -> Result<T, aya::maps::MapError>,
) -> Result<T, ProfilerError> {
    let found = programs
        .take_map(map)
        .ok_or(ProfilerError::ObjectLacks(map))?;
    convert(found).map_err(|source| ProfilerError::Map {
        operation: "use",
        map,
        source,
    })
}

/// Fills the table of watched files, which stays with the programs.
fn fill_files(programs: &mut Ebpf, index: &FileIndex) -> Result<(), ProfilerError> {
    const MAP: &str = "FILES";
    let failed = |operation| {
        move |source| ProfilerError::Map {
            operation,
            map: MAP,
            source,
        }
    };
    let map = programs
        .map_mut(MAP)
        .ok_or(ProfilerError::ObjectLacks(MAP))?;
    let mut files: HashMap<_, [u64; 2], [u64; 3]> = map.try_into().map_err(failed("use"))?;
    for (key, value) in &index.keys {
        let key: [u64; 2] = transmute!(*key);
        let value: [u64; 3] = transmute!(*value);
        files.insert(key, value, 0).map_err(failed("fill"))?;
    }
    Ok(())
}
