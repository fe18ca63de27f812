//! Opens and executions as fanotify(7) tells them: beside the BPF programs, which see touches, and alone where BPF cannot
//! be used.
//!
//! The whole file system of the root is marked, which is the container's own, as a mark on a mount would
//! not hold for the container's copy of the mount. Who does not use it pays nothing. The queue has no limit; should an
//! event be lost all the same, that is counted. What is told is opens, reads and executions by file, kernel ones
//! included; not what is mapped.
//!
//! To disturb the workload little, events are gathered for some milliseconds, so that it seldom wakes us, and of a
//! file whose open is known the kernel need not tell again. As they are read late, a process may be gone by then; see
//! [`Counted`] for how it is known whose they were, and [`super::opens`] for when they happened.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::index::{FileIndex, FilesByInode};
use super::members::Counted;
use super::opens::OpenSign;
use super::{Losses, Phase, ProfilerError, Unattributed, monotonic_ns};

const THREAD: &str = "esgz-fanotify";
/// So long events are gathered once there is one.
const GATHER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

/// A group that has marks: events wait in it from now on.
#[derive(Debug)]
pub(super) struct Marked {
    group: Fanotify,
    pub(super) start_ns: u64,
    /// Files beside those of the root that could not be marked.
    unmarked: u64,
}

/// A group with marks, and the thread that reads its events. Dropping it ends both.
pub(super) struct FanotifyCollector {
    reader: Arc<Mutex<Reader>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    stop: OwnedFd,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// In the order in which they happened; of a file, the first, and the first of its executions.
    pub(super) opens: Vec<OpenSign>,
    pub(super) losses: Losses,
    pub(super) unattributed: Unattributed,
    /// When the container's own program began, CLOCK_MONOTONIC.
    pub(super) run_time_ns: Option<u64>,
}

struct Reader {
    group: Fanotify,
    files: FilesByInode,
    counted: Counted,
    armed: bool,
    phase: Phase,
    /// When the queue was last seen empty.
    empty_ns: u64,
    /// How to tell the kernel that it need not tell of a file; None if it refuses.
    silence: Option<MarkFlags>,
    /// Of each file that was told of, whether its execution was.
    known: HashMap<u32, bool>,
    told: Told,
}

/// Whether a group can be made here.
pub(super) fn check() -> Result<(), ProfilerError> {
    group().map(drop)
}

fn group() -> Result<Fanotify, ProfilerError> {
    let flags = InitFlags::FAN_CLASS_NOTIF
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_NONBLOCK
        | InitFlags::FAN_UNLIMITED_QUEUE
        | InitFlags::FAN_UNLIMITED_MARKS;
    // Nobody may wait for the other end of a FIFO.
    let opened = EventFFlags::O_RDONLY
        | EventFFlags::O_LARGEFILE
        | EventFFlags::O_CLOEXEC
        | EventFFlags::O_NONBLOCK
        | EventFFlags::O_NOATIME;
    Fanotify::init(flags, opened).map_err(failed("make a group"))
}

fn failed(operation: &'static str) -> impl Fn(Errno) -> ProfilerError {
    move |errno| ProfilerError::Fanotify {
        operation,
        source: errno.into(),
    }
}

/// Marks the file system of `root`, and the files of `also`. When this returns, every open is seen, and of the root
/// every one of `mask`.
pub(super) fn mark(
    root: &Path,
    also: &[PathBuf],
    mask: MaskFlags,
) -> Result<Marked, ProfilerError> {
    let group = group()?;
    let start_ns = monotonic_ns();
    let add = |flags, mask, path: &Path| {
        group.mark(
            MarkFlags::FAN_MARK_ADD | flags,
            mask,
            rustix::fs::CWD,
            Some(path),
        )
    };
    add(MarkFlags::FAN_MARK_FILESYSTEM, mask, root).map_err(failed("mark the root file system"))?;
    let mut unmarked = 0;
    for path in also {
        // Not their directories: the kernel would open what else is used in there for us, a FIFO or a device of the host.
        let mask = MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC;
        if let Err(errno) = add(MarkFlags::FAN_MARK_DONT_FOLLOW, mask, path) {
            tracing::debug!("opens of {} are not seen: {errno}", path.display());
            unmarked += 1;
        }
    }
    Ok(Marked {
        group,
        start_ns,
        unmarked,
    })
}

impl FanotifyCollector {
    /// Begins to read what a marked group tells.
    pub(super) fn start(
        marked: Marked,
        index: &FileIndex,
        counted: Counted,
    ) -> Result<Self, ProfilerError> {
        let failed_thread = |source| ProfilerError::Thread {
            operation: "start",
            thread: THREAD,
            source,
        };
        let Marked {
            group,
            start_ns,
            unmarked,
        } = marked;
        let waiting = group.as_fd().try_clone_to_owned().map_err(failed_thread)?;
        let mut told = Told::default();
        told.unattributed.unmarked_places = unmarked;
        let reader = Arc::new(Mutex::new(Reader {
            group,
            files: index.by_inode(),
            counted,
            armed: false,
            phase: Phase::Setup,
            empty_ns: start_ns,
            silence: Some(
                MarkFlags::FAN_MARK_ADD
                    | MarkFlags::FAN_MARK_IGNORED_MASK
                    | MarkFlags::FAN_MARK_IGNORED_SURV_MODIFY
                    | MarkFlags::FAN_MARK_EVICTABLE,
            ),
            known: HashMap::new(),
            told,
        }));
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed_thread(e.into()))?;
        let stopped = stop.try_clone().map_err(failed_thread)?;
        let shared = Arc::clone(&reader);
        let thread = std::thread::Builder::new()
            .name(THREAD.into())
            .spawn(move || read_until(&shared, &waiting, &stopped))
            .map_err(failed_thread)?;
        Ok(Self {
            reader,
            thread: Some(thread),
            stop,
        })
    }

    /// The next execution begins [`Phase::Run`]. What happened until now is read first.
    pub(super) fn begin_run(&self) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read();
        reader.armed = true;
    }

    /// Reads what waits, and ends.
    pub(super) fn finish(mut self) -> Result<Told, ProfilerError> {
        self.join().map_err(|source| ProfilerError::Thread {
            operation: "read events in",
            thread: THREAD,
            source,
        })?;
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read();
        Ok(std::mem::take(&mut reader.told))
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes())?;
        thread.join().map_err(|_| io::Error::other("it panicked"))?
    }
}

impl Drop for FanotifyCollector {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::warn!("the thread {THREAD} failed: {error}");
        }
    }
}

fn read_until(reader: &Mutex<Reader>, group: &OwnedFd, stop: &OwnedFd) -> io::Result<()> {
    // Whether `fds` had the last one of them ready.
    let wait = |fds: &mut [PollFd<'_>], timeout: Option<&Timespec>| match poll(fds, timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {
            Ok(fds.last().is_some_and(|fd| !fd.revents().is_empty()))
        }
        Err(error) => Err(io::Error::from(error)),
    };
    loop {
        let stop = || PollFd::new(stop, PollFlags::IN);
        let is_stopped = wait(&mut [PollFd::new(group, PollFlags::IN), stop()], None)?
            || wait(&mut [stop()], Some(&GATHER))?;
        if is_stopped {
            return Ok(());
        }
        reader.lock().unwrap_or_else(PoisonError::into_inner).read();
    }
}

impl Reader {
    /// Reads all events that wait.
    fn read(&mut self) {
        loop {
            // What comes later than this is in a later answer.
            let asked_ns = monotonic_ns();
            match self.group.read_events() {
                Ok(events) => events.iter().for_each(|event| self.add(event)),
                Err(Errno::EAGAIN) => {
                    self.empty_ns = asked_ns;
                    return;
                }
                Err(Errno::EINTR) => {}
                // The kernel could not open the file of one event, and dropped it.
                Err(errno) => {
                    tracing::debug!("an event of fanotify is lost: {errno}");
                    self.told.losses.overflows += 1;
                    if errno == Errno::EBADF || errno == Errno::EFAULT || errno == Errno::EINVAL {
                        return;
                    }
                }
            }
        }
    }

    fn add(&mut self, event: &FanotifyEvent) {
        let mask = event.mask();
        let Some(fd) = event.fd().filter(|_| event.check_version()) else {
            self.told.losses.overflows += 1;
            return;
        };
        if !self.counted.has(event.pid()) {
            return;
        }
        let read_ns = monotonic_ns();
        let executed = mask.contains(MaskFlags::FAN_OPEN_EXEC);
        if executed && self.armed && self.phase == Phase::Setup {
            self.phase = Phase::Run;
            self.told.run_time_ns = Some(read_ns);
        }
        self.silence(fd, executed);
        let number = rustix::fs::fstat(fd)
            .ok()
            .and_then(|stat| self.files.number(&stat));
        let Some(number) = number else {
            self.told.unattributed.opens += 1;
            return;
        };
        let was_executed = self.known.get(&number).copied();
        if was_executed.is_some_and(|was_executed| was_executed || !executed) {
            return;
        }
        self.known.insert(number, executed);
        self.told.opens.push(OpenSign {
            file: number,
            after_ns: self.empty_ns,
            before_ns: read_ns,
            phase: self.phase,
            opened: mask.intersects(MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC),
            executed,
        });
    }

    /// Tells the kernel that it need not tell of this file any more, or only of its execution.
    fn silence(&mut self, file: BorrowedFd<'_>, executed: bool) {
        let mut mask = MaskFlags::FAN_OPEN | MaskFlags::FAN_ACCESS;
        if executed {
            mask |= MaskFlags::FAN_OPEN_EXEC;
        }
        let none: Option<&Path> = None;
        while let Some(flags) = self.silence {
            match self.group.mark(flags, mask, file, none) {
                Ok(()) => return,
                // Before Linux 5.19 inodes with marks stay in memory.
                Err(Errno::EINVAL) if flags.contains(MarkFlags::FAN_MARK_EVICTABLE) => {
                    self.silence = Some(flags - MarkFlags::FAN_MARK_EVICTABLE);
                }
                Err(errno) => {
                    tracing::debug!("fanotify goes on telling of known files: {errno}");
                    self.silence = None;
                }
            }
        }
    }
}
