//! The `filemap` tracepoints (Linux 6.12): every look-up of a page in the page cache.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::macros::{map, tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::TracePointContext;
use esgz_ebpf_abi::{
    Event, FILE_MAPPED, LOADER_COMM, PAGES_PER_CHUNK, PAGES_PER_WINDOW, WORDS_PER_CHUNK, counter, kind,
};

use crate::atomic::Word;
use crate::record::{Watched, count, emit, event, watching};

/// Where each tracepoint keeps its fields.
macro_rules! offsets {
    ($($name:ident),* $(,)?) => { $(
        #[unsafe(no_mangle)]
        static $name: Global<u32> = Global::new(0);
    )* };
}
offsets!(
    GET_PAGES_DEVICE, GET_PAGES_INODE, GET_PAGES_FIRST, GET_PAGES_LAST,
    MAP_PAGES_DEVICE, MAP_PAGES_INODE, MAP_PAGES_FIRST, MAP_PAGES_LAST,
    FAULT_DEVICE, FAULT_INODE, FAULT_PAGE,
    FILL_DEVICE, FILL_INODE, FILL_PAGE, FILL_ORDER,
    // 1 where `last_index` of mm_filemap_get_pages is the page behind the last one, else 0.
    GET_PAGES_EXCLUSIVE,
    // Folios that enter the page cache count as touched from this order on.
    FILL_MIN_ORDER,
    // Flags that a file must have for that.
    FILL_NEEDS_FLAGS,
);

/// Chunks that one run can mark: 64 MiB. The kernel hands out at most 31 folios of at most 2 MiB
/// before it reports again.
const MAX_CHUNKS: u64 = 32;
/// A later touch within the marked pages is skipped if this many pages behind its first are marked.
const AHEAD_PAGES: u64 = (MAX_CHUNKS - 1) * PAGES_PER_CHUNK;

/// Read, readv, pread, splice, sendfile, io_uring, and the kernel's own reads.
#[tracepoint]
pub fn get_pages(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else { return Ok(()) };
    let Some(file) = find(&ctx, &GET_PAGES_DEVICE, &GET_PAGES_INODE)? else { return Ok(()) };
    let first: u64 = field(&ctx, &GET_PAGES_FIRST)?;
    let last: u64 = field(&ctx, &GET_PAGES_LAST)?;
    let last = last.saturating_sub(u64::from(GET_PAGES_EXCLUSIVE.load()));
    mark::<MAX_CHUNKS>(&file, first, last, phase);
    Ok(())
}

/// A fault that maps the cached pages around it.
#[tracepoint]
pub fn map_pages(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else { return Ok(()) };
    let Some(file) = find(&ctx, &MAP_PAGES_DEVICE, &MAP_PAGES_INODE)? else { return Ok(()) };
    let first: u64 = field(&ctx, &MAP_PAGES_FIRST)?;
    let last: u64 = field(&ctx, &MAP_PAGES_LAST)?;
    file.set(FILE_MAPPED);
    mark::<2>(&file, first, last, phase);
    Ok(())
}

/// A fault that no cached page could satisfy without the file system's help.
#[tracepoint]
pub fn fault(ctx: TracePointContext) -> Result<(), i32> {
    let Some(phase) = watching() else { return Ok(()) };
    let Some(file) = find(&ctx, &FAULT_DEVICE, &FAULT_INODE)? else { return Ok(()) };
    let page: u64 = field(&ctx, &FAULT_PAGE)?;
    file.set(FILE_MAPPED);
    if page < u64::from(file.size_pages()) {
        mark_in_word(&file, page, page, phase);
    } else {
        count(counter::TOUCHES_BEHIND_END);
    }
    Ok(())
}

/// A folio enters the page cache. Large ones are touched without any further event once mapped.
#[tracepoint]
pub fn fill(ctx: TracePointContext) -> Result<(), i32> {
    let order: u8 = field(&ctx, &FILL_ORDER)?;
    if u32::from(order) < FILL_MIN_ORDER.load() {
        return Ok(());
    }
    let Some(phase) = watching() else { return Ok(()) };
    let Some(file) = find(&ctx, &FILL_DEVICE, &FILL_INODE)? else { return Ok(()) };
    let needed = FILL_NEEDS_FLAGS.load();
    if file.flags().load() & needed != needed {
        return Ok(());
    }
    let first: u64 = field(&ctx, &FILL_PAGE)?;
    mark::<8>(&file, first, first.saturating_add((1 << (order & 31)) - 1), phase);
    Ok(())
}

/// How many pages behind the first the last one of the probe's read was, plus 1.
#[map]
static PROBE: Array<u64> = Array::with_max_entries(1, 0);

/// Attached for a moment before all else, while the loader reads a single page: before it was
/// corrected, `last_index` of mm_filemap_get_pages was the page behind the last one.
#[tracepoint]
pub fn probe(ctx: TracePointContext) -> Result<(), i32> {
    if bpf_get_current_comm()? == LOADER_COMM {
        let first: u64 = field(&ctx, &GET_PAGES_FIRST)?;
        let last: u64 = field(&ctx, &GET_PAGES_LAST)?;
        PROBE.set(0, last.wrapping_sub(first).wrapping_add(1), 0)?;
    }
    Ok(())
}

#[inline(always)]
fn field<T>(ctx: &TracePointContext, offset: &Global<u32>) -> Result<T, i32> {
    // SAFETY: the loader took the offset from the tracepoint's format and checked the width; the
    // helper checks the address.
    unsafe { ctx.read_at(offset.load() as usize) }
}

#[inline(always)]
fn find(
    ctx: &TracePointContext,
    device: &Global<u32>,
    inode: &Global<u32>,
) -> Result<Option<Watched>, i32> {
    let found = Watched::find(field(ctx, device)?, field(ctx, inode)?);
    if found.is_none() {
        count(counter::OTHER_TOUCHES);
    }
    Ok(found)
}

/// Marks pages `first..=last`, cut at the end of the file, and sends an event for every chunk with
/// windows that nobody touched before.
#[inline(always)]
fn mark<const CHUNKS: u64>(file: &Watched, first: u64, last: u64, phase: u32) {
    let size_pages = u64::from(file.size_pages());
    if first >= size_pages || last < first {
        count(counter::TOUCHES_BEHIND_END);
        return;
    }
    let last = if last < size_pages { last } else { size_pages - 1 };
    if first / 64 == last / 64 {
        mark_in_word(file, first, last, phase);
        return;
    }

    // A request longer than a chunk is reported again and again with a growing `first`.
    let long = last - first >= PAGES_PER_CHUNK;
    let marked = file.marked().load();
    if long {
        let ahead = first + AHEAD_PAGES;
        let needed = if last < ahead { last } else { ahead };
        if marked >> 32 <= first && needed <= marked & 0xffff_ffff {
            return;
        }
    }

    let first_chunk = first / PAGES_PER_CHUNK;
    let mut step = 0;
    while step < CHUNKS {
        // What is read from a map is unknown to the verifier.
        let (first, last) = (forget(first, marked), forget(last, marked));
        let chunk = first_chunk + step;
        if chunk * PAGES_PER_CHUNK > last {
            break;
        }
        mark_chunk(file, chunk, first, last, phase);
        step += 1;
    }
    let reach = (first_chunk + CHUNKS) * PAGES_PER_CHUNK - 1;
    if reach < last && CHUNKS < MAX_CHUNKS {
        count(counter::UNMARKED_TOUCHES);
    }
    if long {
        let last = if reach < last { reach } else { last };
        file.marked().store(first << 32 | last);
    }
}

/// Marks pages `first..=last`, which share a word of a bitmap: the most frequent case.
#[inline(always)]
fn mark_in_word(file: &Watched, first: u64, last: u64, phase: u32) {
    let chunk = first / PAGES_PER_CHUNK;
    let Some(bitmap) = file.bitmap(chunk as u32) else {
        count(counter::UNMARKED_TOUCHES);
        return;
    };
    let word = word_index(first / 64);
    // SAFETY: the index is below the bitmap's length; an array's element lives as long as the
    // program; everyone accesses the words atomically.
    let bits = unsafe { Word::new(bitmap.cast::<u64>().add(word as usize)) };
    let mask = (u64::MAX << (first & 63)) & (u64::MAX >> (63 - (last & 63)));
    if mask & !bits.load() == 0 {
        return;
    }
    let windows = touched_windows(mask) & !touched_windows(bits.fetch_or(mask));
    send(file, chunk, windows << (word * (64 / PAGES_PER_WINDOW)), phase);
}

/// Marks those of pages `first..=last` of the file that lie in `chunk`.
#[inline(always)]
fn mark_chunk(file: &Watched, chunk: u64, first: u64, last: u64, phase: u32) {
    let Some(bitmap) = file.bitmap(chunk as u32) else {
        count(counter::UNMARKED_TOUCHES);
        return;
    };
    let start = chunk * PAGES_PER_CHUNK;
    let (from, to) = (first.wrapping_sub(start) as i64, last.wrapping_sub(start) as i64);
    let mut windows = 0;
    // Without branches and with constant addresses: in a loop the verifier follows every
    // combination of branches.
    macro_rules! mark_words {
        ($($word:literal)*) => { $(
            let mask = pages_in_word(from - $word * 64, to - $word * 64);
            // SAFETY: as in `mark_in_word`.
            let bits = unsafe { Word::new(bitmap.cast::<u64>().add($word)) };
            let first = touched_windows(mask) & !touched_windows(bits.fetch_or(mask));
            windows |= first << ($word * (64 / PAGES_PER_WINDOW));
        )* };
    }
    const _: () = assert!(WORDS_PER_CHUNK == 8);
    mark_words!(0 1 2 3 4 5 6 7);
    send(file, chunk, windows, phase);
}

#[inline(always)]
fn send(file: &Watched, chunk: u64, windows: u64, phase: u32) {
    if windows != 0 {
        let event = event(kind::TOUCH, phase, file.file());
        emit(
            Event { chunk: chunk as u32, windows: windows as u32, ..event },
            counter::LOST_TOUCHES,
        );
    }
}

/// The bits from `from` to `to` of a word; either may lie outside of it.
#[inline(always)]
fn pages_in_word(from: i64, to: i64) -> u64 {
    let low = sign(from) | u64::MAX << (from & 63) & sign(from - 64);
    let high = sign(62 - to) | u64::MAX >> (63 - (to & 63)) & !sign(to);
    low & high
}

/// One bit for each of a word's four windows that has a page set.
#[inline(always)]
fn touched_windows(pages: u64) -> u64 {
    let mut bits = pages | pages >> 8;
    bits |= bits >> 4;
    bits |= bits >> 2;
    bits |= bits >> 1;
    bits & 1 | bits >> 15 & 2 | bits >> 30 & 4 | bits >> 45 & 8
}

/// All ones if `value` is negative, else 0: as one instruction, which the compiler cannot turn into
/// a branch.
#[inline(always)]
fn sign(mut value: i64) -> u64 {
    // SAFETY: touches its register only.
    unsafe {
        core::arch::asm!("{0} s>>= 63", inout(reg) value, options(pure, nomem, nostack));
    }
    value as u64
}

/// `word` modulo 8, in a way that the compiler cannot drop: the verifier needs to see it.
#[inline(always)]
fn word_index(mut word: u64) -> u64 {
    // SAFETY: as `sign`.
    unsafe {
        core::arch::asm!("{0} &= 7", inout(reg) word, options(pure, nomem, nostack));
    }
    word
}

/// `value`, of which the verifier no longer knows anything: else it follows every combination of
/// the comparisons before, and gives up.
#[inline(always)]
fn forget(mut value: u64, unknown: u64) -> u64 {
    // SAFETY: touches its two registers only.
    unsafe {
        core::arch::asm!(
            "{value} ^= {unknown}",
            "{value} ^= {unknown}",
            value = inout(reg) value,
            unknown = in(reg) unknown,
            options(pure, nomem, nostack),
        );
    }
    value
}
