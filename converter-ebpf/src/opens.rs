//! Opens and executions: intent, where the `filemap` tracepoints give touches.
//!
//! All is done when the system call returns. A success is found through the new descriptor, so no
//! string is read; a name that was not found is read then, when its page is surely mapped.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user_str};
use aya_ebpf::macros::{map, tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::TracePointContext;
use aya_ebpf::{EbpfContext as _, Global, bindings::BPF_NOEXIST};
use aya_log_ebpf::debug;
use esgz_ebpf_abi::{Event, NAME_BYTES, NameEvent, base, counter, kind, phase};

use crate::kernel;
use crate::record::{
    EVENTS, Watched, count, emit, event, phase_word, wake_up, watching, watching_as_told,
};

/// Where `sys_exit_*` keeps the return value.
#[unsafe(no_mangle)]
static SYS_EXIT_RET: Global<u32> = Global::new(0);
/// 1 where the kernel has BTF, so that [`kernel`] works; else executions only begin phase run.
#[unsafe(no_mangle)]
static KERNEL_WALKS: Global<u32> = Global::new(0);
/// Where `sched_process_exec` says where the program's name is; 0 if nobody wants to know.
#[unsafe(no_mangle)]
static EXEC_NAME: Global<u32> = Global::new(0);
/// Where `io_uring_complete` keeps the request and its result.
#[unsafe(no_mangle)]
static URING_REQUEST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static URING_RESULT: Global<u32> = Global::new(0);

/// Hashes of the missing names that were sent.
#[map]
static NAMES: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
#[map]
static NAME: PerCpuArray<NameEvent> = PerCpuArray::with_max_entries(1, 0);

const AT_FDCWD: i32 = -100;
const ENOENT: i64 = -2;
const EEXIST: i64 = -17;
const ENOTDIR: i64 = -20;

/// Leaving open(2) or creat(2).
#[tracepoint]
pub fn exit_open(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else {
        return Ok(());
    };
    let ret = result(&ctx)?;
    if ret >= 0 {
        opened(&ctx, ret, phase);
    } else if is_missing(ret) {
        missing(AT_FDCWD, kernel::first_argument()?, phase);
    }
    Ok(())
}

/// Leaving openat(2) or openat2(2).
#[tracepoint]
pub fn exit_openat(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else {
        return Ok(());
    };
    let ret = result(&ctx)?;
    if ret >= 0 {
        opened(&ctx, ret, phase);
    } else if is_missing(ret) {
        let (directory, name) = kernel::arguments()?;
        missing(directory as i32, name, phase);
    }
    Ok(())
}

/// Leaving open_by_handle_at(2).
#[tracepoint]
pub fn exit_open_by_handle(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else {
        return Ok(());
    };
    let ret = result(&ctx)?;
    if ret >= 0 {
        opened(&ctx, ret, phase);
    }
    Ok(())
}

/// Leaving execve(2), which failed.
#[tracepoint]
pub fn exit_execve(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else {
        return Ok(());
    };
    if is_missing(result(&ctx)?) {
        missing(AT_FDCWD, kernel::first_argument()?, phase);
    }
    Ok(())
}

/// Leaving execveat(2), which failed.
#[tracepoint]
pub fn exit_execveat(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else {
        return Ok(());
    };
    if is_missing(result(&ctx)?) {
        let (directory, name) = kernel::arguments()?;
        missing(directory as i32, name, phase);
    }
    Ok(())
}

/// A request of io_uring is done; the task that asked for it, or a kernel thread with its descriptors, is
/// the current one.
#[tracepoint]
pub fn uring_complete(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else {
        return Ok(());
    };
    // SAFETY: as in `filemap::field`.
    let (request, result): (u64, i32) = unsafe {
        (
            ctx.read_at(URING_REQUEST.load() as usize)?,
            ctx.read_at(URING_RESULT.load() as usize)?,
        )
    };
    if result >= 0 && kernel::uring_opens(request)? {
        opened(&ctx, i64::from(result), phase);
    }
    Ok(())
}

/// A program was executed: the task has its new address space.
#[tracepoint]
pub fn exec(ctx: TracePointContext) -> Result<(), i32> {
    let Some(mut phase) = watching_as_told() else {
        return Ok(());
    };
    if phase == phase::ARMED {
        let begun = phase_word().is_some_and(|w| w.replace(phase::ARMED, phase::RUN));
        phase = phase::RUN;
        if begun {
            emit(event(kind::RUN, phase, 0), counter::LOST_OPENS);
        }
    }
    if KERNEL_WALKS.load() != 0 {
        match kernel::program_inode() {
            Ok((device, inode)) => match Watched::find(device, inode) {
                Some(file) => file.record(kind::EXEC, phase),
                None => count(counter::OTHER_OPENS),
            },
            Err(error) => {
                count(counter::UNREADABLE_OPENS);
                debug!(
                    &ctx,
                    "the file of an executed program is unreadable: {}", error
                );
            }
        }
    }
    let place = EXEC_NAME.load();
    if place != 0 {
        // SAFETY: as in `filemap::field`. The low half is the offset of the name in the record.
        let name: u32 = unsafe { ctx.read_at(place as usize) }?;
        // SAFETY: the record is in the kernel's memory; only its address is computed here.
        let address = unsafe { ctx.as_ptr().byte_add((name & 0xffff) as usize) };
        send_name(Name::Executed, address as u64, phase);
    }
    Ok(())
}

#[inline(always)]
fn result(ctx: &TracePointContext) -> Result<i64, i32> {
    // SAFETY: as in `filemap::field`.
    unsafe { ctx.read_at(SYS_EXIT_RET.load() as usize) }
}

#[inline(always)]
fn is_missing(ret: i64) -> bool {
    ret == ENOENT || ret == ENOTDIR
}

#[inline(always)]
fn opened(ctx: &TracePointContext, fd: i64, phase: u32) {
    match kernel::descriptor_inode(fd as u32) {
        Ok((device, inode)) => match Watched::find(device, inode) {
            Some(file) => file.record(kind::OPEN, phase),
            None => count(counter::OTHER_OPENS),
        },
        Err(error) => {
            count(counter::UNREADABLE_OPENS);
            debug!(
                ctx,
                "the file of descriptor {} is unreadable: {}", fd, error
            );
        }
    }
}

/// Sends a missing name, once.
#[inline(always)]
fn missing(directory: i32, address: u64, phase: u32) {
    send_name(Name::Missing { directory }, address, phase);
}

/// What a name is the name of, and where it lies.
#[derive(Clone, Copy)]
enum Name {
    /// Of nothing; in the task's memory.
    Missing { directory: i32 },
    /// Of what was executed; in the kernel's memory.
    Executed,
}

/// Sends a name, once.
#[inline(always)]
fn send_name(what: Name, address: u64, phase: u32) {
    let Some(scratch) = NAME.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own element, and system calls' tracepoints do not interrupt each other.
    let scratch = unsafe { &mut *scratch };
    let (to, len) = (scratch.name.as_mut_ptr().cast(), scratch.name.len() as u32);
    let (kind, directory, seed) = match what {
        Name::Missing { directory } => (kind::MISSING, directory, 0),
        Name::Executed => (kind::EXEC_NAME, AT_FDCWD, 1 << 8),
    };
    // SAFETY: the helpers write at most as many bytes as the array has, and check the address.
    let read = unsafe {
        match what {
            Name::Missing { .. } => bpf_probe_read_user_str(to, len, address as *const _),
            Name::Executed => bpf_probe_read_kernel_str(to, len, address as *const _),
        }
    };
    // The count includes the terminating zero; a full buffer may have cut the name.
    if read <= 1 || read > NAME_BYTES as i64 {
        count(counter::UNREADABLE_NAMES);
        return;
    }
    let len = (read as usize - 1) & NAME_BYTES;
    let base = match (scratch.name[0], directory) {
        (b'/', _) => base::ROOT,
        (_, AT_FDCWD) => base::CWD,
        _ => base::DIRECTORY,
    };
    match NAMES.insert(
        &hash(&scratch.name, len, base | seed),
        &1,
        u64::from(BPF_NOEXIST),
    ) {
        Ok(()) => {}
        Err(error) if i64::from(error) == EEXIST => return,
        Err(_) => {
            count(counter::NAME_TABLE_FULL);
            return;
        }
    }
    scratch.event = Event {
        chunk: len as u32,
        ..event(kind, phase, base)
    };
    // SAFETY: `len` is below the array's length, and both parts lie one behind the other.
    let bytes = unsafe {
        core::slice::from_raw_parts((&raw const *scratch).cast::<u8>(), size_of::<Event>() + len)
    };
    if EVENTS.output::<[u8]>(bytes, wake_up()).is_err() {
        count(counter::LOST_NAMES);
    }
}

/// A hash of the first `len` bytes, eight at a time.
#[inline(always)]
fn hash(name: &[u8; NAME_BYTES + 1], len: usize, seed: u32) -> u64 {
    const WORDS: usize = (NAME_BYTES + 1) / 8;
    let mut hash = mix(u64::from(seed) ^ 0x9e37_79b9_7f4a_7c15, len as u64);
    let whole = len / 8;
    let mut word = 0;
    while word < WORDS && word < whole {
        // SAFETY: `word` is below the number of words; the address need not be aligned.
        hash = mix(hash, unsafe {
            name.as_ptr().add(word * 8).cast::<u64>().read_unaligned()
        });
        word += 1;
    }
    // SAFETY: `whole` is below the number of words, because `len` is below the array's length.
    let rest = unsafe {
        name.as_ptr()
            .add(whole % WORDS * 8)
            .cast::<u64>()
            .read_unaligned()
    };
    mix(hash, rest & !(u64::MAX << (len % 8 * 8)))
}

#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 32
}
