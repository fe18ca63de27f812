//! Structures shared by the BPF programs and their loader.
//!
//! Everything here is `repr(C)`, has fixed-width fields and no implicit padding, so that both sides
//! see the same bytes and user space parses them without unsafe code. Byte order is the machine's.
#![no_std]
#![warn(missing_docs)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Pages in one window: the unit in which first touches are ordered (64 KiB at 4 KiB a page).
pub const PAGES_PER_WINDOW: u64 = 16;
/// Windows in one chunk; [`Event::windows`] has one bit for each.
pub const WINDOWS_PER_CHUNK: u64 = 32;
/// Pages in one chunk: the unit in which touched pages are stored (2 MiB at 4 KiB a page).
pub const PAGES_PER_CHUNK: u64 = PAGES_PER_WINDOW * WINDOWS_PER_CHUNK;
/// 64-bit words of one chunk's bitmap.
pub const WORDS_PER_CHUNK: usize = (PAGES_PER_CHUNK / 64) as usize;
/// Longest name kept of a failed look-up, in bytes, without the terminating zero.
pub const NAME_BYTES: usize = 511;

/// Bytes of a tracepoint's record that the programs read; every field they use must end there.
pub const RECORD_BYTES: usize = 48;
/// Name of the loader's thread, as the kernel stores it. The probe looks at this thread only.
pub const LOADER_COMM: [u8; 16] = *b"esgz-bpf-load\0\0\0";

/// Words of the table of devices: one bit for each of 1024 values of [`device_bit`].
pub const DEVICE_WORDS: usize = 16;

/// Where the table of devices has the bit of a device (`s_dev`). Different devices may share it.
#[inline(always)]
#[must_use]
pub const fn device_bit(device: u32) -> u32 {
    // Fibonacci hashing: minor numbers follow one another, and the major ones lie in the upper half.
    device.wrapping_mul(0x9e37_79b9) >> 22
}

/// Words of the table of ended processes, a bit for each id: the kernel has none above 2^22 (`PID_MAX_LIMIT`).
pub const PID_WORDS: u32 = (1 << 22) / 64;

/// One chunk's bitmap: bit `p % 64` of word `p / 64` is page `p` of the chunk.
pub type ChunkBitmap = [u64; WORDS_PER_CHUNK];

/// Key of the table of watched files.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FileKey {
    /// Inode number (`i_ino`).
    pub inode: u64,
    /// The super block's `s_dev`: `major << 20 | minor`.
    pub device: u32,
    /// Zero.
    pub padding: u32,
}

/// Value of the table of watched files.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WatchedFile {
    /// Pages `first << 32 | last` marked by the last long touch; written by the kernel side only.
    pub marked: u64,
    /// The loader's index of the file; several keys may share it.
    pub file: u32,
    /// Index of the file's first chunk in the table of bitmaps.
    pub first_chunk: u32,
    /// Size in pages, rounded up; touches behind it are not counted. 0 for a key that is looked up
    /// by opens only.
    pub size_pages: u32,
    /// `FILE_*` bits; written by the kernel side only.
    pub flags: u32,
}

/// The file was opened by a system call.
pub const FILE_OPENED: u32 = 1;
/// The file was executed.
pub const FILE_EXECUTED: u32 = 2;
/// A page of the file was faulted in through a mapping.
pub const FILE_MAPPED: u32 = 4;

/// What an event says, [`Event::kind`].
pub mod kind {
    /// First touch of windows of a file.
    pub const TOUCH: u16 = 1;
    /// First successful open of a file through one of its keys.
    pub const OPEN: u16 = 2;
    /// First execution of a file through one of its keys.
    pub const EXEC: u16 = 3;
    /// A name that was not found; the name's bytes follow the event.
    pub const MISSING: u16 = 4;
    /// The container's own program was executed: phase run begins.
    pub const RUN: u16 = 5;
    /// A name by which something was executed; the name's bytes follow the event.
    pub const EXEC_NAME: u16 = 6;
}

/// Values of the phase word.
pub mod phase {
    /// The runtime sets the container up.
    pub const SETUP: u32 = 0;
    /// As `SETUP`, but the next execution in the cgroup begins `RUN`.
    pub const ARMED: u32 = 1;
    /// The container's own program runs.
    pub const RUN: u32 = 2;
    /// Nothing is recorded any more.
    pub const STOPPED: u32 = 3;
}

/// What a relative name was relative to, [`Event::file`] of a `MISSING` event.
pub mod base {
    /// Nothing: the name is absolute.
    pub const ROOT: u32 = 0;
    /// The task's current directory.
    pub const CWD: u32 = 1;
    /// Another directory, given as a descriptor.
    pub const DIRECTORY: u32 = 2;
}

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// Position in the one order of all events; a gap means an event was lost.
    pub sequence: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// One of [`kind`].
    pub kind: u16,
    /// One of [`phase`].
    pub phase: u16,
    /// [`WatchedFile::file`]; of an event with a name one of [`base`].
    pub file: u32,
    /// `TOUCH`: which chunk of the file. With a name: its length in bytes.
    pub chunk: u32,
    /// `TOUCH`: the windows of the chunk touched for the first time. Else 0.
    pub windows: u32,
}

/// A `MISSING` event with room for its name.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NameEvent {
    /// The event.
    pub event: Event,
    /// The name; only the first [`Event::chunk`] bytes go into the ring.
    pub name: [u8; NAME_BYTES + 1],
}

/// Indices of the per-CPU counters. Those up to [`counter::LAST_LOSS`] count losses.
pub mod counter {
    /// `TOUCH` events that found the ring full.
    pub const LOST_TOUCHES: u32 = 0;
    /// `OPEN` and `EXEC` events that found the ring full.
    pub const LOST_OPENS: u32 = 1;
    /// `MISSING` events that found the ring full.
    pub const LOST_NAMES: u32 = 2;
    /// Missing names that the table of names had no room for.
    pub const NAME_TABLE_FULL: u32 = 3;
    /// Opens whose inode could not be read.
    pub const UNREADABLE_OPENS: u32 = 4;
    /// Touches longer than one program run can mark.
    pub const UNMARKED_TOUCHES: u32 = 5;
    /// Mappings of pages that nobody saw enter the page cache, though it was said to be cold.
    pub const WARM_MAPPINGS: u32 = 6;
    /// The last of the losses.
    pub const LAST_LOSS: u32 = WARM_MAPPINGS;
    /// Missing names that could not be read or are longer than [`NAME_BYTES`](super::NAME_BYTES).
    pub const UNREADABLE_NAMES: u32 = 7;
    /// Touches of files that are not watched.
    pub const OTHER_TOUCHES: u32 = 8;
    /// Touches wholly behind the end of a watched file.
    pub const TOUCHES_BEHIND_END: u32 = 9;
    /// Opens of files that are not watched.
    pub const OTHER_OPENS: u32 = 10;
    /// How many counters there are.
    pub const COUNT: u32 = 11;
}

const _: () = assert!(DEVICE_WORDS * 64 == 1 << 10);
const _: () = assert!(size_of::<FileKey>() == 16);
const _: () = assert!(size_of::<WatchedFile>() == 24);
const _: () = assert!(size_of::<Event>() == 32);
const _: () = assert!(size_of::<NameEvent>() == 32 + NAME_BYTES + 1);
const _: () = assert!(size_of::<ChunkBitmap>() == 64);
