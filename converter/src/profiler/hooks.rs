//! Which programs are attached where, and what they read of the kernel's structures: tables.

use super::{CacheAtStart, Exactness, ProfilerConfig, Tier};

/// A tracepoint and its program.
pub(super) struct Hook {
    pub(super) group: &'static str,
    pub(super) tracepoint: &'static str,
    pub(super) program: &'static str,
    pub(super) gets: Gets,
}

/// What a program is given.
#[derive(Clone, Copy)]
pub(super) enum Gets {
    /// The tracepoint's record. Global, field, its size in bytes.
    Record(&'static [(&'static str, &'static str, u32)]),
    /// The tracepoint's arguments, with their types.
    Arguments,
}

pub(super) const GET_PAGES: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_get_pages",
    program: "get_pages",
    gets: Gets::Arguments,
};
/// Finds out what the last argument is.
pub(super) const PROBE: Hook = Hook {
    program: "probe",
    ..GET_PAGES
};
const MAP_PAGES: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_map_pages",
    program: "map_pages",
    gets: Gets::Arguments,
};
const FAULT: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_fault",
    program: "fault",
    gets: Gets::Arguments,
};
/// Shares its tracepoint, and so the offsets, with `FILL`.
const CACHED: Hook = Hook {
    program: "cached",
    ..FILL
};
const FILL: Hook = Hook {
    group: "filemap",
    tracepoint: "mm_filemap_add_to_page_cache",
    program: "fill",
    gets: Gets::Record(&[
        ("FILL_DEVICE", "s_dev", 4),
        ("FILL_INODE", "i_ino", 8),
        ("FILL_PAGE", "index", 8),
        ("FILL_ORDER", "order", 1),
    ]),
};

/// System calls whose return is watched, each with its program. Not every architecture has all.
pub(super) const SYSTEM_CALLS: &[(&str, &str)] = &[
    ("sys_exit_open", "exit_open"),
    ("sys_exit_creat", "exit_open"),
    ("sys_exit_openat", "exit_openat"),
    ("sys_exit_openat2", "exit_openat"),
    ("sys_exit_open_by_handle_at", "exit_open_by_handle"),
    ("sys_exit_execve", "exit_execve"),
    ("sys_exit_execveat", "exit_execveat"),
];

/// Members that the programs follow: global, structure, member.
pub(super) const MEMBERS: &[(&str, &str, &str)] = &[
    ("TASK_FILES", "task_struct", "files"),
    ("TASK_MM", "task_struct", "mm"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("FILE_INODE", "file", "f_inode"),
    ("MAPPING_HOST", "address_space", "host"),
    ("INODE_SUPER", "inode", "i_sb"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("SUPER_DEVICE", "super_block", "s_dev"),
    ("MM_EXE_FILE", "mm_struct", "exe_file"),
];
/// Where the registers hold a system call's first two arguments, on return.
#[cfg(target_arch = "x86_64")]
pub(super) const ARGUMENTS: &[(&str, &str, &str)] = &[
    ("REGS_ARGUMENT_0", "pt_regs", "di"),
    ("REGS_ARGUMENT_1", "pt_regs", "si"),
];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ARGUMENTS: &[(&str, &str, &str)] =
    &[("REGS_ARGUMENT_0", "pt_regs", "unsupported")];

/// Folios of more than 16 pages, which the kernel maps without further events.
pub(super) const LARGE_FOLIO_ORDER: u32 = 5;

/// Completed requests of io_uring, with which files can be opened; and what its program reads of them.
pub(super) const URING: Hook = Hook {
    group: "io_uring",
    tracepoint: "io_uring_complete",
    program: "uring_complete",
    gets: Gets::Record(&[("URING_REQUEST", "req", 8), ("URING_RESULT", "res", 4)]),
};
pub(super) const URING_MEMBERS: &[(&str, &str, &str)] = &[
    ("URING_OPCODE", "io_kiocb", "opcode"),
    // `struct io_open` lies at the start of the request.
    ("URING_OPEN_SLOT", "io_open", "file_slot"),
];

/// Where a program's name lies in the record of an execution.
pub(super) const EXEC_NAME: Hook = Hook {
    group: "sched",
    tracepoint: "sched_process_exec",
    program: "exec",
    gets: Gets::Record(&[("EXEC_NAME", "filename", 4)]),
};

/// A process ends: its arguments do not matter, so the program has no types to agree about.
pub(super) const ENDED_TRACEPOINT: &str = "sched_process_exit";
pub(super) const ENDED_PROGRAM: &str = "ended";

/// The hooks that see touches, in the order of attachment: what fills the cache must be known before
/// what maps it.
pub(super) fn touch_hooks(config: &ProfilerConfig<'_>) -> &'static [Hook] {
    match (config.tier, config.exactness, config.cache) {
        (Tier::Filemap, Exactness::FaultAround, CacheAtStart::Cold) => {
            &[CACHED, GET_PAGES, MAP_PAGES, FAULT, FILL]
        }
        (Tier::Filemap, Exactness::FaultAround, CacheAtStart::Unknown) => {
            &[GET_PAGES, MAP_PAGES, FAULT, FILL]
        }
        (Tier::Filemap, Exactness::Exact, _) => &[GET_PAGES, FAULT, FILL],
        (Tier::PageCache, _, _) => &[FILL],
        (Tier::Open | Tier::Fanotify, _, _) => &[],
    }
}
