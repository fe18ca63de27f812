//! Opens and executions as fanotify(7) tells them: where BPF cannot be used.
//!
//! The whole file system of the root is marked, which is the container's own, as a mark on a mount would
//! not hold for the container's copy of the mount. So whoever uses that file system counts, whatever
//! its cgroup, but for this process. The queue has no limit; should an event be lost all the same, that is
//! counted. What is told is opens, reads and executions by file, kernel ones included; not what is
//! mapped, so that every opened file counts as a whole.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::drain::{EventLog, FirstSign};
use super::index::{FileIndex, FilesByInode};
use super::{Losses, Phase, ProfilerError, Unattributed, monotonic_ns};

const THREAD: &str = "esgz-fanotify";

/// A group with a mark, and the thread that reads its events. Dropping it ends both.
#[derive(Debug)]
pub(super) struct FanotifyCollector {
    reader: Arc<Mutex<Reader>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    stop: OwnedFd,
    pub(super) start_ns: u64,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) log: EventLog,
    pub(super) losses: Losses,
    pub(super) unattributed: Unattributed,
}

#[derive(Debug)]
struct Reader {
    group: Fanotify,
    files: FilesByInode,
    armed: bool,
    phase: Phase,
    sequence: u64,
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

impl FanotifyCollector {
    /// Marks the file system of `root`; when this returns, every open is seen.
    pub(super) fn start(root: &Path, index: &FileIndex) -> Result<Self, ProfilerError> {
        let failed_thread = |source| ProfilerError::Thread {
            operation: "start",
            thread: THREAD,
            source,
        };
        let group = group()?;
        let waiting = group.as_fd().try_clone_to_owned().map_err(failed_thread)?;
        let start_ns = monotonic_ns();
        group
            .mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_OPEN | MaskFlags::FAN_ACCESS | MaskFlags::FAN_OPEN_EXEC,
                rustix::fs::CWD,
                Some(root),
            )
            .map_err(failed("mark the root file system"))?;
        let reader = Arc::new(Mutex::new(Reader {
            group,
            files: index.by_inode(),
            armed: false,
            phase: Phase::Setup,
            sequence: 0,
            told: Told::default(),
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
            start_ns,
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
    loop {
        let mut fds = [
            PollFd::new(group, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        reader.lock().unwrap_or_else(PoisonError::into_inner).read();
    }
}

impl Reader {
    /// Reads all events that wait.
    fn read(&mut self) {
        loop {
            match self.group.read_events() {
                Ok(events) => events.iter().for_each(|event| self.add(event)),
                Err(Errno::EAGAIN) => return,
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
        if event.pid() == std::process::id().cast_signed() {
            return;
        }
        let executed = mask.contains(MaskFlags::FAN_OPEN_EXEC);
        if executed && self.armed && self.phase == Phase::Setup {
            self.phase = Phase::Run;
            self.told.log.run_time_ns = Some(monotonic_ns());
        }
        let number = rustix::fs::fstat(fd)
            .ok()
            .and_then(|stat| self.files.number(&stat));
        let Some(number) = number else {
            self.told.unattributed.opens += 1;
            return;
        };
        let sign = FirstSign {
            sequence: self.sequence,
            time_ns: monotonic_ns(),
            phase: self.phase,
            opened: mask.intersects(MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC),
            executed,
        };
        self.sequence += 1;
        self.told.log.note(number, sign);
    }
}
