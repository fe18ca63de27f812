//! The `filemap` tracepoints (Linux 6.12): every look-up of a page in the page cache.

use aya_ebpf::Global;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use esgz_ebpf_abi::{
    Event, FILE_MAPPED, PAGES_PER_CHUNK, PAGES_PER_WINDOW, WORDS_PER_CHUNK, counter, kind,
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

/// Chunks that one run can mark: 128 MiB. The kernel hands out at most 31 folios, so at most
/// 62 MiB, before it reports again.
const MAX_CHUNKS: u64 = 64;
/// A later touch within the marked pages is skipped if this many pages behind its first are marked.
const AHEAD_PAGES: u64 = MAX_CHUNKS / 2 * PAGES_PER_CHUNK;

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
    mark::<1>(&file, page, page, phase);
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
    let mut last = if last < size_pages { last } else { size_pages - 1 };

    // A request longer than a chunk is reported again and again with a growing `first`.
    let long = last - first >= PAGES_PER_CHUNK;
    if long {
        let marked = file.marked().load();
        let ahead = first + AHEAD_PAGES;
        let needed = if last < ahead { last } else { ahead };
        if marked >> 32 <= first && needed <= marked & 0xffff_ffff && marked != 0 {
            return;
        }
    }

    let first_chunk = first / PAGES_PER_CHUNK;
    let mut done = false;
    let mut step = 0;
    while step < CHUNKS {
        let chunk = first_chunk + step;
        let chunk_start = chunk * PAGES_PER_CHUNK;
        if chunk_start > last {
            done = true;
            break;
        }
        let from = if first > chunk_start { first - chunk_start } else { 0 };
        let to = last - chunk_start;
        let to = if to < PAGES_PER_CHUNK { to } else { PAGES_PER_CHUNK - 1 };
        let windows = mark_chunk(file, chunk as u32, from, to);
        if windows != 0 {
            emit(
                Event { chunk: chunk as u32, windows, ..event(kind::TOUCH, phase, file.file()) },
                counter::LOST_TOUCHES,
            );
        }
        step += 1;
    }
    let reach = (first_chunk + CHUNKS) * PAGES_PER_CHUNK - 1;
    if !done && reach < last {
        if CHUNKS < MAX_CHUNKS {
            count(counter::UNMARKED_TOUCHES);
        }
        last = reach;
    }
    if long {
        file.marked().store(first << 32 | last);
    }
}

/// Marks pages `from..=to` of one chunk; the result has a bit for every window touched first.
#[inline(always)]
fn mark_chunk(file: &Watched, chunk: u32, from: u64, to: u64) -> u32 {
    let Some(bitmap) = file.bitmap(chunk) else {
        count(counter::UNMARKED_TOUCHES);
        return 0;
    };
    let mut windows = 0;
    let mut word = from / 64;
    let last_word = to / 64;
    while word < WORDS_PER_CHUNK as u64 && word <= last_word {
        let low = if word == from / 64 { u64::MAX << (from & 63) } else { u64::MAX };
        let high = if word == last_word { u64::MAX >> (63 - (to & 63)) } else { u64::MAX };
        let mask = low & high;
        // SAFETY: `word` is below the bitmap's length; an array's element lives as long as the
        // program; everyone accesses the words atomically.
        let bits = unsafe { Word::new(bitmap.cast::<u64>().add(word as usize & 7)) };
        if mask & !bits.load() != 0 {
            let before = bits.fetch_or(mask);
            let first = touched_windows(mask) & !touched_windows(before);
            windows |= first << (word * (64 / PAGES_PER_WINDOW));
        }
        word += 1;
    }
    windows
}

/// One bit for each of a word's four windows that has a page set.
#[inline(always)]
fn touched_windows(pages: u64) -> u32 {
    let mut bits = pages | pages >> 8;
    bits |= bits >> 4;
    bits |= bits >> 2;
    bits |= bits >> 1;
    (bits & 1 | bits >> 15 & 2 | bits >> 30 & 4 | bits >> 45 & 8) as u32
}
