//! From bitmaps and events to observations. Pure.

use std::time::Duration;

use esgz_ebpf_abi::{ChunkBitmap, PAGES_PER_CHUNK, PAGES_PER_WINDOW};

use super::drain::{EventLog, FirstSign};
use super::index::{FileIndex, IndexedFile};
use super::{Losses, ObservedFile, Phase, TouchedRange, names};

/// What the clocks and the kernel said.
pub(super) struct Context<'a> {
    /// 0 where a file that was opened counts as a whole.
    pub(super) page_bytes: u64,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) cwd: &'a [u8],
}

/// The parts of [`Observations`](super::Observations) that are computed here.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) files: Vec<ObservedFile>,
    pub(super) missing: Vec<Box<[u8]>>,
    pub(super) unresolved_names: u64,
    pub(super) run_began: Option<Duration>,
}

/// Puts everything together. `pages` has one bitmap for every chunk of `index`; adds to `losses`
/// whatever events and bitmaps disagree about.
pub(super) fn observe(
    index: &FileIndex,
    log: EventLog,
    pages: &[ChunkBitmap],
    context: &Context<'_>,
    losses: &mut Losses,
) -> Observed {
    losses.malformed_events += log.malformed;
    losses.unmatched_windows += unmatched_windows(index, &log, pages, losses.touches == 0);

    let since_start = |time_ns: u64| Duration::from_nanos(time_ns.saturating_sub(context.start_ns));
    let mut unsigned = log
        .signs
        .values()
        .map(|s| s.sequence + 1)
        .max()
        .unwrap_or(0);
    let mut files = Vec::new();
    for (number, indexed) in index.files.iter().enumerate() {
        let ranges = match (context.page_bytes, log.signs.get(&(number as u32))) {
            (0, None) => Vec::new(),
            (0, Some(_)) => whole_file(indexed.size_bytes),
            (page_bytes, _) => {
                touched_ranges(chunks_of(indexed, pages), indexed.size_bytes, page_bytes)
            }
        };
        let sign = match log.signs.get(&(number as u32)) {
            Some(sign) => *sign,
            None if ranges.is_empty() => continue,
            // Its event was lost: behind all that are known.
            None => {
                unsigned += 1;
                FirstSign {
                    sequence: unsigned - 1,
                    time_ns: context.end_ns,
                    phase: Phase::Run,
                    opened: false,
                    executed: false,
                }
            }
        };
        files.push(ObservedFile {
            file: indexed.file,
            first_touch_seq: sign.sequence,
            first_touch: since_start(sign.time_ns),
            phase: sign.phase,
            opened: sign.opened,
            executed: sign.executed,
            ranges,
        });
    }
    files.sort_unstable_by_key(|file| (file.first_touch_seq, file.file));

    let mut names = log.names;
    names.sort_unstable_by_key(|name| name.sequence);
    let mut missing: Vec<Box<[u8]>> = Vec::with_capacity(names.len());
    let mut seen = std::collections::HashSet::with_capacity(names.len());
    let mut unresolved_names = 0;
    for name in &names {
        match names::resolve(name.base, &name.name, context.cwd) {
            Some(path) => {
                if seen.insert(path.clone()) {
                    missing.push(path);
                }
            }
            None => unresolved_names += 1,
        }
    }
    Observed {
        files,
        missing,
        unresolved_names,
        run_began: log.run_time_ns.map(since_start),
    }
}

fn whole_file(size_bytes: u64) -> Vec<TouchedRange> {
    let whole = TouchedRange {
        offset_bytes: 0,
        len_bytes: size_bytes,
    };
    Vec::from_iter((size_bytes > 0).then_some(whole))
}

fn chunks_of<'a>(file: &IndexedFile, pages: &'a [ChunkBitmap]) -> &'a [ChunkBitmap] {
    let first = file.first_chunk as usize;
    pages
        .get(first..first + file.chunks as usize)
        .unwrap_or(&[])
}

/// The set bits of consecutive chunks as byte ranges of a file of `size_bytes`: ascending, disjoint,
/// not adjacent, page-aligned except at the file's end.
pub(super) fn touched_ranges(
    chunks: &[ChunkBitmap],
    size_bytes: u64,
    page_bytes: u64,
) -> Vec<TouchedRange> {
    let mut ranges = Vec::new();
    let mut open: Option<u64> = None;
    let mut close = |first: u64, end: u64| {
        let offset_bytes = first * page_bytes;
        let end_bytes = (end * page_bytes).min(size_bytes);
        if end_bytes > offset_bytes {
            ranges.push(TouchedRange {
                offset_bytes,
                len_bytes: end_bytes - offset_bytes,
            });
        }
    };
    let words = chunks.iter().flatten();
    for (word, base) in words.zip((0_u64..).step_by(64)) {
        let mut bit = 0;
        // Runs of equal bits, so that an untouched or fully touched word is one step.
        while bit < 64 {
            let rest = word >> bit;
            let (run, set) = match rest & 1 {
                0 => (rest.trailing_zeros().min(64 - bit), false),
                _ => (rest.trailing_ones().min(64 - bit), true),
            };
            match (set, open) {
                (true, None) => open = Some(base + u64::from(bit)),
                (false, Some(first)) => {
                    close(first, base + u64::from(bit));
                    open = None;
                }
                _ => {}
            }
            bit += run;
        }
    }
    if let Some(first) = open {
        close(first, chunks.len() as u64 * PAGES_PER_CHUNK);
    }
    ranges
}

/// One bit for every window of a chunk that has a touched page.
fn windows_of(chunk: &ChunkBitmap) -> u32 {
    let mask = (1_u64 << PAGES_PER_WINDOW) - 1;
    let lanes = chunk.iter().flat_map(|word| {
        (0..64)
            .step_by(PAGES_PER_WINDOW as usize)
            .map(move |s| word >> s & mask)
    });
    lanes.zip(0_u32..).fold(0, |windows, (lane, bit)| {
        windows | u32::from(lane != 0) << bit
    })
}

/// Windows that an event names and the bitmaps lack, and, if no event was lost, the reverse.
fn unmatched_windows(
    index: &FileIndex,
    log: &EventLog,
    pages: &[ChunkBitmap],
    all_events_arrived: bool,
) -> u64 {
    let mut named = vec![0_u32; pages.len()];
    let mut unmatched = 0;
    for touch in &log.touches {
        let file = index.files.get(touch.file as usize);
        let chunk = file.filter(|file| touch.chunk < file.chunks);
        let chunk = chunk.and_then(|file| named.get_mut((file.first_chunk + touch.chunk) as usize));
        match chunk {
            Some(windows) => *windows |= touch.windows,
            None => unmatched += u64::from(touch.windows.count_ones()),
        }
    }
    for (named, chunk) in named.iter().zip(pages) {
        let present = windows_of(chunk);
        unmatched += u64::from((named & !present).count_ones());
        if all_events_arrived {
            unmatched += u64::from((present & !named).count_ones());
        }
    }
    unmatched
}

#[cfg(test)]
mod tests {
    use super::super::drain::{SeenName, TouchedWindows};
    use super::*;
    use crate::layer::entry::FileId;
    use crate::rootfs::MountedFile;

    fn chunk(pages: &[u64]) -> ChunkBitmap {
        let mut chunk = [0; 8];
        for page in pages {
            chunk[(page / 64) as usize] |= 1 << (page % 64);
        }
        chunk
    }

    #[test]
    fn set_bits_become_ranges() {
        let check = |chunks: &[ChunkBitmap], size_bytes, expected: &[(u64, u64)]| {
            let ranges = touched_ranges(chunks, size_bytes, 4096);
            let found = ranges.iter().map(|r| (r.offset_bytes, r.len_bytes));
            assert_eq!(found.collect::<Vec<_>>(), expected);
        };
        check(&[], 0, &[]);
        check(&[[0; 8]], 1 << 21, &[]);
        check(&[[u64::MAX; 8]], 1 << 21, &[(0, 1 << 21)]);
        check(&[[u64::MAX; 8]; 2], (1 << 21) + 5, &[(0, (1 << 21) + 5)]);
        check(
            &[chunk(&[0, 2, 3, 63, 64])],
            65 * 4096,
            &[(0, 4096), (8192, 8192), (63 * 4096, 8192)],
        );
        check(&[chunk(&[0])], 7, &[(0, 7)]);
        check(
            &[chunk(&[511]), chunk(&[0])],
            1 << 22,
            &[(511 * 4096, 8192)],
        );
        // Behind the end: nothing.
        check(&[chunk(&[1])], 4096, &[]);
    }

    fn one_file(size_bytes: u64) -> FileIndex {
        let file = FileId { layer: 0, entry: 0 };
        FileIndex::new(
            &[MountedFile {
                device: 1,
                inode: 1,
                file,
                size_bytes,
            }],
            &[],
            4096,
        )
        .unwrap()
    }

    #[test]
    fn events_and_bitmaps_are_compared() {
        let index = one_file(1 << 21);
        let pages = [chunk(&[0, 16, 17, 500])];
        let check = |touches: &[(u32, u32, u32)], complete, expected| {
            let touches = touches.iter();
            let touches = touches
                .map(|&(file, chunk, windows)| TouchedWindows {
                    file,
                    chunk,
                    windows,
                })
                .collect();
            let log = EventLog {
                touches,
                ..EventLog::default()
            };
            assert_eq!(unmatched_windows(&index, &log, &pages, complete), expected);
        };
        check(&[(0, 0, 1), (0, 0, 2), (0, 0, 1 << 31)], true, 0);
        check(&[(0, 0, 1)], true, 2);
        check(&[(0, 0, 1)], false, 0);
        check(&[(0, 0, 1 | 4)], false, 1);
        check(&[(0, 1, 1), (7, 0, 3)], false, 3);
    }

    #[test]
    fn a_file_without_event_comes_last_and_names_are_resolved_once() {
        let row = |inode, entry| MountedFile {
            device: 1,
            inode,
            file: FileId { layer: 0, entry },
            size_bytes: 4096,
        };
        let index = FileIndex::new(&[row(1, 0), row(2, 1), row(3, 2)], &[], 4096).unwrap();
        let mut log = EventLog::default();
        let sign = FirstSign {
            sequence: 5,
            time_ns: 1500,
            phase: Phase::Setup,
            opened: true,
            executed: false,
        };
        log.signs.insert(1, sign);
        let name = |sequence, base, name: &[u8]| SeenName {
            sequence,
            time_ns: sequence,
            base,
            name: name.into(),
        };
        log.names = vec![
            name(3, 1, b"b"),
            name(2, 0, b"/w/b"),
            name(1, 0, b"/a"),
            name(4, 2, b"x"),
        ];
        let context = Context {
            page_bytes: 4096,
            start_ns: 1000,
            end_ns: 2000,
            cwd: b"/w",
        };
        let mut losses = Losses {
            touches: 1,
            ..Losses::default()
        };
        let observed = observe(
            &index,
            log,
            &[chunk(&[0]), [0; 8], [0; 8]],
            &context,
            &mut losses,
        );
        let files = observed
            .files
            .iter()
            .map(|f| (f.file.entry, f.first_touch_seq, f.opened));
        assert_eq!(files.collect::<Vec<_>>(), [(1, 5, true), (0, 6, false)]);
        assert_eq!(observed.files[0].first_touch, Duration::from_nanos(500));
        assert_eq!(
            observed.missing,
            [(*b"a").into(), Box::<[u8]>::from(*b"w/b")]
        );
        assert_eq!(observed.unresolved_names, 1);
        assert_eq!(losses.unmatched_windows, 0);
    }

    proptest::proptest! {
        #[test]
        fn ranges_cover_exactly_the_set_pages(words: [u64; 16], size_pages in 1_u64..1024) {
            let (chunks, _) = words.as_chunks::<8>();
            let ranges = touched_ranges(chunks, size_pages * 4096, 4096);
            let expected = (0..size_pages).filter(|p| words[(p / 64) as usize] >> (p % 64) & 1 != 0);
            let found = ranges.iter().flat_map(|r| r.offset_bytes / 4096..(r.offset_bytes + r.len_bytes) / 4096);
            proptest::prop_assert!(found.eq(expected));
        }
    }
}
