//! The `filemap` tracepoints: every look-up of a page in the page cache (Linux 6.12), and every page that
//! enters it (all kernels; with a cold cache and no read-ahead, these are the touched ones).
//!
//! The first run for every cached read and every fault of the machine, so they get their arguments as the kernel passes
//! them, without a record that somebody has to fill and copy; and they ask first what excludes most: the device.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::macros::{btf_tracepoint, map, tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use esgz_ebpf_abi::{
    ChunkBitmap, Event, FILE_EXECUTED, FILE_MAPPED, LOADER_COMM, PAGES_PER_CHUNK, PAGES_PER_WINDOW,
    RECORD_BYTES, WORDS_PER_CHUNK, counter, kind,
};

use crate::atomic::Word;
use crate::kernel::{self, Mapping};
use crate::record::{
    CACHED, CACHED_LARGE, PAGES, Watched, count, emit, event, is_of_watched_device, recording,
    watching,
};

/// Where each tracepoint keeps its fields.
macro_rules! offsets {
    ($($name:ident),* $(,)?) => { $(
        #[unsafe(no_mangle)]
        static $name: Global<u32> = Global::new(0);
    )* };
}
offsets!(
    FILL_DEVICE,
    FILL_INODE,
    FILL_PAGE,
    FILL_ORDER,
    // 1 where `last_index` of mm_filemap_get_pages is the page behind the last one, else 0.
    GET_PAGES_EXCLUSIVE,
    // Folios that enter the page cache count as touched from this order on.
    FILL_MIN_ORDER,
    // Flags that a file must have for that.
    FILL_NEEDS_FLAGS,
    // 1 if no page of a watched file was cached when `cached` was attached, else 0.
    COLD_CACHE,
);

/// Chunks that one run can mark: 64 MiB. The kernel hands out at most 31 folios of at most 2 MiB
/// before it reports again.
const MAX_CHUNKS: u64 = 32;
/// A later touch within the marked pages is skipped if this many pages behind its first are marked.
const AHEAD_PAGES: u64 = (MAX_CHUNKS - 1) * PAGES_PER_CHUNK;

/// Read, readv, pread, splice, sendfile, io_uring, and the kernel's own reads.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn get_pages(ctx: BtfTracePointContext) -> i32 {
    let Some((file, phase)) = touched(&ctx) else {
        return 0;
    };
    let (first, last): (u64, u64) = (ctx.arg(1), ctx.arg(2));
    let last = last.saturating_sub(u64::from(GET_PAGES_EXCLUSIVE.load()));
    if COLD_CACHE.load() != 0 && first > 0 && first < u64::from(file.size_pages()) {
        mark_silent(&file, first, phase);
    }
    if first == 0 {
        executed(&file, phase);
    }
    mark::<MAX_CHUNKS>(&file, first, last, phase);
    0
}

/// A fault that maps the cached pages around it: at least one, else there is no event.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
pub fn map_pages(ctx: BtfTracePointContext) -> i32 {
    let Some((file, phase)) = touched(&ctx) else {
        return 0;
    };
    let (first, last) = (ctx.arg(1), ctx.arg(2));
    file.set(FILE_MAPPED);
    if COLD_CACHE.load() == 0 {
        mark::<2>(&file, first, last, phase);
    } else {
        mark_cached(&file, first, last, phase);
    }
    0
}

/// A fault that no cached page could satisfy without the file system's help.
#[btf_tracepoint(function = "mm_filemap_fault")]
pub fn fault(ctx: BtfTracePointContext) -> i32 {
    let Some((file, phase)) = touched(&ctx) else {
        return 0;
    };
    let page: u64 = ctx.arg(1);
    file.set(FILE_MAPPED);
    if page < u64::from(file.size_pages()) {
        let mut pages = 1 << (page & 63);
        if COLD_CACHE.load() != 0 {
            pages = with_folios(&file, page / 64, pages);
        }
        mark_in_word(&file, page / 64, pages, phase);
    } else {
        count(counter::TOUCHES_BEHIND_END);
    }
    0
}

/// The file whose mapping is the tracepoint's first argument, and the phase, if the current task is watched.
#[inline(always)]
fn touched(ctx: &BtfTracePointContext) -> Option<(Watched, u32)> {
    // SAFETY: the first argument of these tracepoints is a `struct address_space`.
    let host = unsafe { Mapping::new(ctx.arg(0)) }.host();
    let device = host.device();
    if !is_of_watched_device(device) {
        return None;
    }
    let phase = watching()?;
    Some((find(device, host.inode())?, phase))
}

/// A folio enters the page cache. Large ones are touched without any further event once mapped.
#[tracepoint]
pub fn fill(ctx: TracePointContext) -> Result<(), i32> {
    // SAFETY: the helper checks the address.
    let order: u8 = unsafe { ctx.read_at(FILL_ORDER.load() as usize) }?;
    if u32::from(order) < FILL_MIN_ORDER.load() {
        return Ok(());
    }
    let record = Record::read(&ctx)?;
    let device = record.field(&FILL_DEVICE);
    if !is_of_watched_device(device) {
        return Ok(());
    }
    let Some(phase) = watching() else {
        return Ok(());
    };
    let Some(file) = find(device, record.field(&FILL_INODE)) else {
        return Ok(());
    };
    let needed = FILL_NEEDS_FLAGS.load();
    if file.flags().load() & needed != needed {
        return Ok(());
    }
    let first: u64 = record.field(&FILL_PAGE);
    if first == 0 {
        executed(&file, phase);
    }
    mark::<8>(
        &file,
        first,
        first.saturating_add((1 << (order & 31)) - 1),
        phase,
    );
    Ok(())
}

/// The first page of a file was read. If the kernel did so in order to execute something, it is that, or
/// the interpreter: of a script, which no later event names, or the dynamic linker.
#[inline(always)]
fn executed(file: &Watched, phase: u32) {
    if file.flags().load() & FILE_EXECUTED == 0 && kernel::executing() {
        file.record(kind::EXEC, phase);
    }
}

/// Pages of the largest folio: the page cache has none above order 11 (`MAX_XAS_ORDER`).
const MAX_FOLIO_WORDS: u64 = (1 << 11) / 64;

/// A folio enters the page cache, whoever reads it: what a fault maps later. Runs for every folio
/// of the machine, so it does as little as possible, and counts nothing.
///
/// Attached before `map_pages`. The kernel maps a page once it is read, which begins after this has
/// run; so at the mapping its bit is set.
#[tracepoint]
pub fn cached(ctx: TracePointContext) -> Result<(), i32> {
    let record = Record::read(&ctx)?;
    let device = record.field(&FILL_DEVICE);
    if !is_of_watched_device(device) || recording().is_none() {
        return Ok(());
    }
    let Some(file) = Watched::find(device, record.field(&FILL_INODE)) else {
        return Ok(());
    };
    let order: u8 = record.field(&FILL_ORDER);
    let first: u64 = record.field(&FILL_PAGE);
    let size_pages = u64::from(file.size_pages());
    if first >= size_pages {
        return Ok(());
    }
    // Folios are aligned to their size: up to 64 pages share a word.
    let (order, word) = (u64::from(order & 15), first / 64);
    if order < 6 {
        let pages = (u64::MAX >> (64 - (1 << order))) << (first & 63);
        set_in_word(&file, &CACHED, word, pages);
        if order > 0 {
            set_in_word(&file, &CACHED_LARGE, word, pages);
        }
        return Ok(());
    }
    let words = 1 << (order - 6);
    let mut step = 0;
    while step < MAX_FOLIO_WORDS && step < words && (word + step) * 64 < size_pages {
        set_in_word(&file, &CACHED, word + step, u64::MAX);
        step += 1;
    }
    Ok(())
}

/// How many pages behind the first the last one of the probe's read was, plus 1.
#[map]
static PROBE: Array<u64> = Array::with_max_entries(1, 0);

/// Attached for a moment before all else, while the loader reads a single page: before it was
/// corrected, `last_index` of mm_filemap_get_pages was the page behind the last one.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
pub fn probe(ctx: BtfTracePointContext) -> i32 {
    if bpf_get_current_comm().is_ok_and(|name| name == LOADER_COMM) {
        let (first, last): (u64, u64) = (ctx.arg(1), ctx.arg(2));
        let pages = last.wrapping_sub(first).wrapping_add(1);
        // The array has this element.
        let _ = PROBE.set(0, pages, 0);
    }
    0
}

/// A tracepoint's record, copied at once: every call of the helper that copies costs as much as the
/// rest of the program.
struct Record([u64; RECORD_BYTES / 8]);

impl Record {
    #[inline(always)]
    fn read(ctx: &TracePointContext) -> Result<Self, i32> {
        // SAFETY: the helper checks the address.
        unsafe { ctx.read_at(0) }.map(Self)
    }

    /// The field at `offset`.
    #[inline(always)]
    fn field<T: Copy>(&self, offset: &Global<u32>) -> T {
        // SAFETY: the loader took the offset from the tracepoint's format, and checked that the
        // field is of this size, aligned, and ends within the record.
        unsafe {
            self.0
                .as_ptr()
                .cast::<u8>()
                .add(offset.load() as usize)
                .cast::<T>()
                .read()
        }
    }
}

#[inline(always)]
fn find(device: u32, inode: u64) -> Option<Watched> {
    let found = Watched::find(device, inode);
    if found.is_none() {
        count(counter::OTHER_TOUCHES);
    }
    found
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
    let last = if last < size_pages {
        last
    } else {
        size_pages - 1
    };
    if first / 64 == last / 64 {
        mark_in_word(file, first / 64, span(first, last), phase);
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

/// Marks cached pages right before page `first`, of which a read is reported.
///
/// A read that finds a batch of cached pages of which the last is still being read copies the others,
/// without an event, and comes back for that one. So if the page before is cached, it and all cached
/// pages before it count: up to 64, and a batch has 31 folios. Also where the page before was touched
/// by another read already: those before it may not have been.
#[inline(always)]
fn mark_silent(file: &Watched, first: u64, phase: u32) {
    let before = first - 1;
    let (high, bit) = (before / 64, before & 63);
    let cached = word_of(file, &CACHED, high);
    if cached >> bit & 1 == 0 {
        return;
    }
    // The word's pages up to `before`, in the topmost bits; below them those of the word before.
    let mut gaps = !(cached << (63 - bit));
    if high > 0 && bit < 63 {
        gaps &= !(word_of(file, &CACHED, high - 1) >> (bit + 1));
    }
    gaps |= gaps >> 1;
    gaps |= gaps >> 2;
    gaps |= gaps >> 4;
    gaps |= gaps >> 8;
    gaps |= gaps >> 16;
    gaps |= gaps >> 32;
    mark_in_word(file, high, !gaps >> (63 - bit), phase);
    if high > 0 && bit < 63 {
        mark_in_word(file, high - 1, !gaps << (bit + 1), phase);
    }
}

/// Marks those of pages `first..=last` that the page cache has: those that the kernel maps.
#[inline(always)]
fn mark_cached(file: &Watched, first: u64, last: u64, phase: u32) {
    let size_pages = u64::from(file.size_pages());
    if first >= size_pages || last < first {
        count(counter::TOUCHES_BEHIND_END);
        return;
    }
    let last = if last < size_pages {
        last
    } else {
        size_pages - 1
    };
    let (low, high) = (first / 64, last / 64);
    if high - low > 1 {
        // Somebody raised fault_around_bytes from 64 KiB to more than 256.
        mark::<2>(file, first, last, phase);
        return;
    }
    let (low_pages, high_pages) = if low == high {
        (span(first, last), 0)
    } else {
        (span(first, 63), span(0, last))
    };
    let cached_low = low_pages & word_of(file, &CACHED, low);
    let cached_high = high_pages & word_of(file, &CACHED, high);
    if cached_low | cached_high == 0 {
        // The kernel did map something: the cache was not cold.
        count(counter::WARM_MAPPINGS);
        mark_in_word(file, low, low_pages, phase);
        mark_in_word(file, high, high_pages, phase);
        return;
    }
    mark_in_word(file, low, with_folios(file, low, cached_low), phase);
    if cached_high != 0 {
        mark_in_word(file, high, with_folios(file, high, cached_high), phase);
    }
}

/// `pages` of word `word`, and all other pages of their folios of 2 to 16 pages, which the kernel may
/// map with them (since Linux 6.18). Neighbouring folios may be taken for one.
#[inline(always)]
fn with_folios(file: &Watched, word: u64, pages: u64) -> u64 {
    let large = word_of(file, &CACHED_LARGE, word);
    let windows = touched_windows(pages & large);
    let spread = windows & 1 | (windows & 2) << 15 | (windows & 4) << 30 | (windows & 8) << 45;
    pages | spread.wrapping_mul(0xffff) & large
}

/// Pages `first` to `last` of one word; bits above the lowest six do not matter.
#[inline(always)]
fn span(first: u64, last: u64) -> u64 {
    (u64::MAX << (first & 63)) & (u64::MAX >> (63 - (last & 63)))
}

/// Where the bits of pages `64 * word` and the 63 after it are.
#[inline(always)]
fn bits_of(file: &Watched, map: &Array<ChunkBitmap>, word: u64) -> Option<Word<u64>> {
    const WORDS: u64 = WORDS_PER_CHUNK as u64;
    let bitmap = file.bitmap(map, (word / WORDS) as u32)?;
    // SAFETY: the index is below the bitmap's length; an array's element lives as long as the
    // program; everyone accesses the words atomically.
    Some(unsafe { Word::new(bitmap.cast::<u64>().add(word_index(word) as usize)) })
}

/// Those bits; none where there is no bitmap.
#[inline(always)]
fn word_of(file: &Watched, map: &Array<ChunkBitmap>, word: u64) -> u64 {
    bits_of(file, map, word).map_or(0, Word::load)
}

#[inline(always)]
fn set_in_word(file: &Watched, map: &Array<ChunkBitmap>, word: u64, pages: u64) {
    if let Some(bits) = bits_of(file, map, word)
        && pages & !bits.load() != 0
    {
        bits.fetch_or(pages);
    }
}

/// Marks `pages` of word `word`: the most frequent case.
#[inline(always)]
fn mark_in_word(file: &Watched, word: u64, pages: u64, phase: u32) {
    let Some(bits) = bits_of(file, &PAGES, word) else {
        count(counter::UNMARKED_TOUCHES);
        return;
    };
    if pages & !bits.load() == 0 {
        return;
    }
    let windows = touched_windows(pages) & !touched_windows(bits.fetch_or(pages));
    send(
        file,
        word / WORDS_PER_CHUNK as u64,
        windows << (word_index(word) * (64 / PAGES_PER_WINDOW)),
        phase,
    );
}

/// Marks those of pages `first..=last` of the file that lie in `chunk`.
#[inline(always)]
fn mark_chunk(file: &Watched, chunk: u64, first: u64, last: u64, phase: u32) {
    let Some(bitmap) = file.bitmap(&PAGES, chunk as u32) else {
        count(counter::UNMARKED_TOUCHES);
        return;
    };
    let start = chunk * PAGES_PER_CHUNK;
    let (from, to) = (
        first.wrapping_sub(start) as i64,
        last.wrapping_sub(start) as i64,
    );
    let mut windows = 0;
    // Without branches and with constant addresses: in a loop the verifier follows every
    // combination of branches.
    macro_rules! mark_words {
        ($($word:literal)*) => { $(
            let mask = pages_in_word(from - $word * 64, to - $word * 64);
            // SAFETY: as in `bits_of`.
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
            Event {
                chunk: chunk as u32,
                windows: windows as u32,
                ..event
            },
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
