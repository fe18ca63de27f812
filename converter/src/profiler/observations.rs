//! What the profiler found out: values only.

use std::time::Duration;

use crate::layer::entry::FileId;

/// How the events were collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tier {
    /// The `filemap` tracepoints: every page, read or mapped. Linux 6.12.
    Filemap,
    /// The tracepoint of pages that enter the page cache: every page, once, if the cache was cold and
    /// there is no read-ahead; so the root file system must be mounted for it. Linux 5.15.
    PageCache,
    /// Opens and executions alone. Linux 5.15 with BTF.
    Open,
    /// What fanotify(7) tells of opens and executions: no BPF. Linux 5.1.
    Fanotify,
}

impl Tier {
    /// All, the one that knows most first.
    pub const ALL: [Self; 4] = [Self::Filemap, Self::PageCache, Self::Open, Self::Fanotify];

    /// The name in the profile document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filemap => "filemap",
            Self::PageCache => "page-cache",
            Self::Open => "open",
            Self::Fanotify => "fanotify",
        }
    }

    /// Whether it tells which pages of a file are touched. Else every file that was opened counts as a
    /// whole.
    pub fn knows_ranges(self) -> bool {
        matches!(self, Self::Filemap | Self::PageCache)
    }
}

/// When something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Before the container's own program was executed: runtime and hooks.
    Setup,
    /// From then on.
    Run,
}

/// Whether opens were watched, besides touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opens {
    /// All opens of watched files are known, and names that were looked up in vain.
    Tracked,
    /// All opens of watched files are known; nothing is known of names that were looked up in vain.
    WithoutMissing,
    /// No open, execution or missing name is known.
    Untracked {
        /// Why not: the kernel has no BTF, or one that cannot be understood.
        reason: String,
    },
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TouchedRange {
    /// First byte, a multiple of the page size.
    pub offset_bytes: u64,
    /// Length; a multiple of the page size except at the end of the file.
    pub len_bytes: u64,
}

/// A file that was opened or touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedFile {
    /// Which.
    pub file: FileId,
    /// Position of the first open, execution or touch in the order of all events.
    pub first_touch_seq: u64,
    /// When that was, since the profiler was attached.
    pub first_touch: Duration,
    /// In which phase. What the kernel reads for the execution that begins [`Phase::Run`] belongs to
    /// that.
    pub phase: Phase,
    /// It was opened: by a system call, a request of io_uring, or the kernel.
    pub opened: bool,
    /// The kernel read it in order to execute it: a program, a script, or the interpreter of either.
    pub executed: bool,
    /// Touched pages; ascending, disjoint, not adjacent. Empty if it was only opened; all of the file
    /// where the tier does not [know](Tier::knows_ranges).
    pub ranges: Vec<TouchedRange>,
}

/// What was lost. All zero: the observations are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Losses {
    /// Touch events that found the ring full: their order is unknown, their pages are not.
    pub touches: u64,
    /// Opens and executions that found the ring full.
    pub opens: u64,
    /// Missing names that found the ring full, or the table of names.
    pub names: u64,
    /// Opens and executions whose file could not be determined.
    pub unreadable_opens: u64,
    /// Touches whose pages could not be marked.
    pub unmarked_touches: u64,
    /// Mappings of pages that were cached before the profiler was attached, though the cache was said
    /// to be [cold](super::CacheAtStart::Cold): others like them may be unknown.
    pub warm_mappings: u64,
    /// Windows of 16 pages on which events and bitmaps disagree.
    pub unmatched_windows: u64,
    /// Records that could not be parsed.
    pub malformed_events: u64,
    /// Times that fanotify's queue overflowed, or its event came without a file.
    pub overflows: u64,
}

impl Losses {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.touches
            + self.opens
            + self.names
            + self.unreadable_opens
            + self.unmarked_touches
            + self.warm_mappings
            + self.unmatched_windows
            + self.malformed_events
            + self.overflows
    }
}

/// What was seen and belongs to no file of the image; no loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Unattributed {
    /// Touches of files that are not watched and lie on the devices of those that are, or, few, on others.
    pub touches: u64,
    /// Touches wholly behind the end of a watched file, as it was at the start.
    pub touches_behind_end: u64,
    /// Opens and executions of files that are not watched, directories and devices included.
    pub opens: u64,
    /// Missing names relative to a directory that is not known.
    pub relative_names: u64,
    /// Missing names of more than 511 bytes, empty ones, and unreadable ones.
    pub unreadable_names: u64,
    /// Rows of the input whose (device, inode) an earlier row gives to another file.
    pub conflicting_rows: u64,
    /// Files of bind mounts whose opens could not be watched.
    pub unmarked_places: u64,
}

/// Everything that was observed.
#[derive(Clone, Debug)]
pub struct Observations {
    /// How.
    pub tier: Tier,
    /// The kernel's release.
    pub kernel: String,
    /// Ranges are multiples of this: the page size; 0 for whole files.
    pub granularity_bytes: u32,
    /// Whether `opened`, `executed` and `missing` are known.
    pub opens: Opens,
    /// By first touch.
    pub files: Vec<ObservedFile>,
    /// Paths that were opened or executed in vain, by first attempt: below the image's root,
    /// without leading `/`, `.` and `..` resolved by name. Not looked at: stat(2) and access(2).
    pub missing: Vec<Box<[u8]>>,
    /// When the container's own program began, since the profiler was attached.
    pub run_began: Option<Duration>,
    /// How long was watched.
    pub watched: Duration,
    /// [`Losses::total`].
    pub lost_events: u64,
    /// What these were.
    pub losses: Losses,
    /// What belongs to no file.
    pub unattributed: Unattributed,
}
