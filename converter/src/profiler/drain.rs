//! The thread that empties the ring buffer.
//!
//! It sleeps until the kernel side finds an eighth of the ring full, so that the workload is not
//! disturbed by a wake-up for every event; what waits at the end is read then.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use aya::maps::{MapData, RingBuf};
use esgz_ebpf_abi::{Event, kind, phase};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use zerocopy::FromBytes;

use super::{Phase, ProfilerError};

const THREAD: &str = "esgz-events";

/// The first sign of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstSign {
    pub(super) sequence: u64,
    pub(super) time_ns: u64,
    pub(super) phase: Phase,
    pub(super) opened: bool,
    pub(super) executed: bool,
}

/// Windows of a chunk that an event named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TouchedWindows {
    pub(super) file: u32,
    pub(super) chunk: u32,
    pub(super) windows: u32,
}

/// A name that was looked up in vain, or executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenName {
    pub(super) sequence: u64,
    pub(super) time_ns: u64,
    pub(super) base: u32,
    pub(super) name: Box<[u8]>,
}

/// Everything that the ring delivered.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    pub(super) signs: HashMap<u32, FirstSign>,
    pub(super) touches: Vec<TouchedWindows>,
    /// Looked up in vain.
    pub(super) names: Vec<SeenName>,
    /// Executed.
    pub(super) executed_names: Vec<SeenName>,
    /// When the container's own program began, CLOCK_MONOTONIC.
    pub(super) run_time_ns: Option<u64>,
    /// Records that no program of ours writes.
    pub(super) malformed: u64,
}

impl EventLog {
    /// Adds one record of the ring.
    pub(super) fn add(&mut self, record: &[u8]) {
        let Ok((event, rest)) = Event::read_from_prefix(record) else {
            self.malformed += 1;
            return;
        };
        match event.kind {
            kind::TOUCH => {
                let Event {
                    file,
                    chunk,
                    windows,
                    ..
                } = event;
                self.touches.push(TouchedWindows {
                    file,
                    chunk,
                    windows,
                });
                self.sign(&event);
            }
            kind::OPEN | kind::EXEC => self.sign(&event),
            kind::RUN => self.run_time_ns = Some(event.time_ns),
            kind::MISSING | kind::EXEC_NAME => match rest.get(..event.chunk as usize) {
                Some(name) => {
                    let names = match event.kind {
                        kind::MISSING => &mut self.names,
                        _ => &mut self.executed_names,
                    };
                    names.push(SeenName {
                        sequence: event.sequence,
                        time_ns: event.time_ns,
                        base: event.file,
                        name: name.into(),
                    });
                }
                None => self.malformed += 1,
            },
            _ => self.malformed += 1,
        }
    }

    fn sign(&mut self, event: &Event) {
        let run = u32::from(event.phase) == phase::RUN;
        let new = FirstSign {
            sequence: event.sequence,
            time_ns: event.time_ns,
            phase: if run { Phase::Run } else { Phase::Setup },
            opened: event.kind == kind::OPEN,
            executed: event.kind == kind::EXEC,
        };
        self.note(event.file, new);
    }

    /// Adds a sign of file number `file`: the earliest one counts, and what any of them says.
    pub(super) fn note(&mut self, file: u32, new: FirstSign) {
        let known = self.signs.entry(file).or_insert(new);
        // CPUs reserve records in another order than they number them.
        if new.sequence < known.sequence {
            *known = FirstSign {
                opened: known.opened,
                executed: known.executed,
                ..new
            };
        }
        known.opened |= new.opened;
        known.executed |= new.executed;
    }
}

/// The running thread. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub(super) struct Drain {
    thread: Option<JoinHandle<io::Result<EventLog>>>,
    stop: OwnedFd,
}

impl Drain {
    /// Starts to empty `ring`.
    pub(super) fn start(ring: RingBuf<MapData>) -> Result<Self, ProfilerError> {
        let failed = |operation| {
            move |source| ProfilerError::Thread {
                operation,
                thread: THREAD,
                source,
            }
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed("start")(e.into()))?;
        let stopped = stop.try_clone().map_err(failed("start"))?;
        let thread = std::thread::Builder::new()
            .name(THREAD.into())
            .spawn(move || drain(ring, &stopped))
            .map_err(failed("start"))?;
        Ok(Self {
            thread: Some(thread),
            stop,
        })
    }

    /// Reads what waits in the ring and ends the thread. The programs must be detached.
    pub(super) fn finish(mut self) -> Result<EventLog, ProfilerError> {
        let log = self.join().map_err(|source| ProfilerError::Thread {
            operation: "read events in",
            thread: THREAD,
            source,
        })?;
        Ok(log.unwrap_or_default())
    }

    fn join(&mut self) -> io::Result<Option<EventLog>> {
        let Some(thread) = self.thread.take() else {
            return Ok(None);
        };
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes())?;
        match thread.join() {
            Ok(log) => log.map(Some),
            Err(_) => Err(io::Error::other("it panicked")),
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::warn!("the thread {THREAD} failed: {error}");
        }
    }
}

fn drain(mut ring: RingBuf<MapData>, stop: &OwnedFd) -> io::Result<EventLog> {
    let mut log = EventLog::default();
    loop {
        let stopped = {
            let ring_fd = ring.as_fd();
            let mut fds = [
                PollFd::from_borrowed_fd(ring_fd, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            !fds[1].revents().is_empty()
        };
        while let Some(record) = ring.next() {
            log.add(&record);
        }
        if stopped {
            return Ok(log);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn event(kind: u16, sequence: u64, file: u32) -> Event {
        let (time_ns, phase) = (sequence * 10, phase::RUN as u16);
        Event {
            sequence,
            time_ns,
            kind,
            phase,
            file,
            chunk: 3,
            windows: 5,
        }
    }

    #[test]
    fn records_become_signs_touches_and_names() {
        let mut log = EventLog::default();
        log.add(event(kind::TOUCH, 7, 1).as_bytes());
        log.add(event(kind::OPEN, 6, 1).as_bytes());
        log.add(event(kind::EXEC, 8, 2).as_bytes());
        log.add(event(kind::RUN, 9, 0).as_bytes());
        log.add(&[event(kind::MISSING, 10, 1).as_bytes(), b"abcd"].concat());
        let first = &log.signs[&1];
        assert_eq!(
            (first.sequence, first.opened, first.executed),
            (6, true, false)
        );
        assert!(log.signs[&2].executed);
        assert_eq!(
            log.touches,
            [TouchedWindows {
                file: 1,
                chunk: 3,
                windows: 5
            }]
        );
        assert_eq!(log.run_time_ns, Some(90));
        assert_eq!(&*log.names[0].name, b"abc");
        assert_eq!(log.malformed, 0);
    }

    #[test]
    fn foreign_records_are_counted() {
        let mut log = EventLog::default();
        log.add(b"short");
        log.add(event(99, 1, 1).as_bytes());
        log.add(&[event(kind::MISSING, 10, 1).as_bytes(), b"ab"].concat());
        assert_eq!(log.malformed, 3);
    }
}
