//! Brings the BPF programs into the kernel: offsets, maps, programs, tracepoints.

use std::fs::File;
use std::os::unix::fs::FileExt;

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::TracePoint;
use aya::programs::trace_point::TracePointLink;
use aya::{Ebpf, EbpfLoader};
use esgz_ebpf_abi::{ChunkBitmap, FILE_MAPPED};
use zerocopy::transmute;

use super::btf::{Btf, BtfError};
use super::index::FileIndex;
use super::offsets::TracepointFormat;
use super::tracefs::Tracefs;
use super::{CacheAtStart, Exactness, Opens, ProfilerConfig, ProfilerError};

/// The object that `cargo xtask bpf` builds from `converter-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../converter-ebpf/esgz.bpf.o");

/// Room for names that are looked up in vain, each counted once.
const MAX_NAMES: u32 = 1 << 17;
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The attached programs and their maps. Dropping a link detaches its program; the last link keeps
/// the program.
pub(super) struct Loaded {
    pub(super) links: Vec<TracePointLink>,
    /// CLOCK_MONOTONIC just before the first was attached.
    pub(super) start_ns: u64,
    pub(super) phase: Array<MapData, u32>,
    pub(super) pages: Array<MapData, ChunkBitmap>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) ring: RingBuf<MapData>,
    pub(super) opens: Opens,
}

/// A tracepoint whose record a program reads.
struct Hook {
    group: &'static str,
    tracepoint: &'static str,
    program: &'static str,
    /// Global, field, its size in bytes.
    fields: &'static [(&'static str, &'static str, u32)],
}

const GET_PAGES: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_get_pages",
    program: "get_pages",
    fields: &[
        ("GET_PAGES_DEVICE", "s_dev", 4),
        ("GET_PAGES_INODE", "i_ino", 8),
        ("GET_PAGES_FIRST", "index", 8),
        ("GET_PAGES_LAST", "last_index", 8),
    ],
};
const MAP_PAGES: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_map_pages",
    program: "map_pages",
    fields: &[
        ("MAP_PAGES_DEVICE", "s_dev", 4),
        ("MAP_PAGES_INODE", "i_ino", 8),
        ("MAP_PAGES_FIRST", "index", 8),
        ("MAP_PAGES_LAST", "last_index", 8),
    ],
};
const FAULT: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_fault",
    program: "fault",
    fields: &[
        ("FAULT_DEVICE", "s_dev", 4),
        ("FAULT_INODE", "i_ino", 8),
        ("FAULT_PAGE", "index", 8),
    ],
};
/// Shares its tracepoint, and so the offsets, with `FILL`.
const CACHED: Hook = Hook {
    program: "cached",
    fields: &[],
    ..FILL
};
const FILL: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_add_to_page_cache",
    program: "fill",
    fields: &[
        ("FILL_DEVICE", "s_dev", 4),
        ("FILL_INODE", "i_ino", 8),
        ("FILL_PAGE", "index", 8),
        ("FILL_ORDER", "order", 1),
    ],
};

/// System calls whose return is watched, each with its program. Not every architecture has all.
const SYSTEM_CALLS: &[(&str, &str)] = &[
    ("sys_exit_open", "exit_open"),
    ("sys_exit_creat", "exit_open"),
    ("sys_exit_openat", "exit_openat"),
    ("sys_exit_openat2", "exit_openat"),
    ("sys_exit_open_by_handle_at", "exit_open_by_handle"),
    ("sys_exit_execve", "exit_execve"),
    ("sys_exit_execveat", "exit_execveat"),
];

/// Members that the programs follow: global, structure, member.
const MEMBERS: &[(&str, &str, &str)] = &[
    ("TASK_FILES", "task_struct", "files"),
    ("TASK_MM", "task_struct", "mm"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("FILE_INODE", "file", "f_inode"),
    ("INODE_SUPER", "inode", "i_sb"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("SUPER_DEVICE", "super_block", "s_dev"),
    ("MM_EXE_FILE", "mm_struct", "exe_file"),
];
/// Where the registers hold a system call's first two arguments, on return.
#[cfg(target_arch = "x86_64")]
const ARGUMENTS: &[(&str, &str, &str)] = &[
    ("REGS_ARGUMENT_0", "pt_regs", "di"),
    ("REGS_ARGUMENT_1", "pt_regs", "si"),
];
#[cfg(not(target_arch = "x86_64"))]
const ARGUMENTS: &[(&str, &str, &str)] = &[("REGS_ARGUMENT_0", "pt_regs", "unsupported")];

/// Folios of more than 16 pages, which the kernel maps without further events.
const LARGE_FOLIO_ORDER: u32 = 5;

/// Loads and attaches everything. Runs on a thread of its own; see [`Tracefs::open`].
pub(super) fn load(
    config: &ProfilerConfig<'_>,
    index: &FileIndex,
    kernel: &str,
) -> Result<Loaded, ProfilerError> {
    let tracefs = Tracefs::open()?;
    // In the order of attachment: what fills the cache must be known before what maps it.
    let (hooks, cached_chunks): (&[Hook], _) = match (config.exactness, config.cache) {
        (Exactness::FaultAround, CacheAtStart::Cold) => {
            (&[CACHED, GET_PAGES, MAP_PAGES, FAULT, FILL], index.chunks)
        }
        (Exactness::FaultAround, CacheAtStart::Unknown) => {
            (&[GET_PAGES, MAP_PAGES, FAULT, FILL], 0)
        }
        (Exactness::Exact, _) => (&[GET_PAGES, FAULT, FILL], 0),
    };
    let ring_bytes = config.ring_bytes.clamp(4096, 1 << 30).next_power_of_two();
    let mut globals = hook_offsets(&tracefs, hooks, kernel)?;
    globals.push(("GET_PAGES_EXCLUSIVE", probe(&globals)?));
    globals.push(("CGROUP_LEVEL", config.cgroup.level));
    globals.push(("WAKE_BYTES", ring_bytes / 8));
    globals.push(("FILL_MIN_ORDER", LARGE_FOLIO_ORDER));
    globals.push(("FILL_NEEDS_FLAGS", FILE_MAPPED));
    globals.push(("COLD_CACHE", u32::from(cached_chunks != 0)));
    let opens = match kernel_offsets() {
        Ok(members) => {
            globals.extend(members);
            globals.push(("KERNEL_WALKS", 1));
            Opens::Tracked
        }
        Err(reason) => Opens::Untracked { reason },
    };
    let system_calls = match opens {
        Opens::Tracked => present_system_calls(&tracefs, &mut globals)?,
        Opens::Untracked { .. } => Vec::new(),
    };

    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .override_global("CGROUP_ID", &config.cgroup.id, true);
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    loader
        .map_max_entries("FILES", index.keys.len().max(1) as u32)
        .map_max_entries("PAGES", index.chunks.max(1))
        .map_max_entries("CACHED", cached_chunks.max(1))
        .map_max_entries("CACHED_LARGE", cached_chunks.max(1))
        .map_max_entries("EVENTS", ring_bytes)
        .map_max_entries("NAMES", MAX_NAMES);
    let mut programs = loader
        .load(OBJECT)
        .map_err(|source| ProfilerError::Object {
            source: Box::new(source),
        })?;
    let phase = take(&mut programs, "PHASE", Array::try_from)?;
    let pages = take(&mut programs, "PAGES", Array::try_from)?;
    let counters = take(&mut programs, "COUNTERS", PerCpuArray::try_from)?;
    let ring = take(&mut programs, "EVENTS", RingBuf::try_from)?;
    fill_files(&mut programs, index)?;

    let start_ns = super::monotonic_ns();
    let mut links = Vec::new();
    for hook in hooks {
        links.push(attach(
            &mut programs,
            hook.program,
            hook.group,
            hook.tracepoint,
        )?);
    }
    links.push(attach(
        &mut programs,
        "exec",
        "sched",
        "sched_process_exec",
    )?);
    for (tracepoint, program) in system_calls {
        links.push(attach(&mut programs, program, "syscalls", tracepoint)?);
    }
    Ok(Loaded {
        start_ns,
        links,
        phase,
        pages,
        counters,
        ring,
        opens,
    })
}

fn loader<'a>(globals: &'a [(&'static str, u32)]) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, value) in globals {
        loader.override_global(name, value, true);
    }
    loader
}

/// 1 if this kernel's mm_filemap_get_pages gives the page behind the last one as the last, else 0.
/// Reads a page of our own program to see; 0 if that is not in the page cache of a file system,
/// which at worst counts a page too many.
fn probe(offsets: &[(&'static str, u32)]) -> Result<u32, ProfilerError> {
    const MAP: &str = "PROBE";
    let mut programs = loader(offsets)
        .load(OBJECT)
        .map_err(|source| ProfilerError::Object {
            source: Box::new(source),
        })?;
    let result: Array<_, u64> = take(&mut programs, MAP, Array::try_from)?;
    let link = attach(
        &mut programs,
        "probe",
        GET_PAGES.group,
        GET_PAGES.tracepoint,
    )?;
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

/// Detaches without waiting: the kernel takes some 80 ms for each.
pub(super) fn detach_behind(links: Vec<TracePointLink>) {
    let detach = std::thread::Builder::new().name("esgz-detach".into());
    if let Err(error) = detach.spawn(move || drop(links)) {
        tracing::debug!("detached at once, no thread: {error}");
    }
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
        globals.extend(field_offsets(&text, hook.fields, &tracepoint)?);
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

/// The globals that say where the kernel keeps its structures' members, or why they are unknown.
fn kernel_offsets() -> Result<Vec<(&'static str, u32)>, String> {
    let bytes = std::fs::read(KERNEL_BTF).map_err(|error| format!("{KERNEL_BTF}: {error}"))?;
    let look_up = || -> Result<Vec<_>, BtfError> {
        let btf = Btf::parse(&bytes)?;
        let members = MEMBERS.iter().chain(ARGUMENTS);
        members
            .map(|&(global, structure, member)| {
                Ok((global, btf.member_offset_bytes(structure, member)?))
            })
            .collect()
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

fn attach(
    programs: &mut Ebpf,
    program: &'static str,
    group: &str,
    tracepoint: &str,
) -> Result<TracePointLink, ProfilerError> {
    let failed = |operation| {
        move |source| ProfilerError::Program {
            operation,
            program,
            source: Box::new(source),
        }
    };
    let found = programs
        .program_mut(program)
        .ok_or(ProfilerError::ObjectLacks(program))?;
    let found: &mut TracePoint = found.try_into().map_err(failed("use"))?;
    if found.fd().is_err() {
        found.load().map_err(failed("load"))?;
    }
    let link = found.attach(group, tracepoint).map_err(failed("attach"))?;
    found.take_link(link).map_err(failed("attach"))
}
