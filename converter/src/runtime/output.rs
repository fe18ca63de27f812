//! The workload's stdout and stderr, passed on as they come.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cancel::Cancel;

/// Where the workload's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Streams {
    /// stdout to stdout, stderr to stderr.
    #[default]
    Apart,
    /// Both to stderr: stdout is needed for a result.
    AllToStderr,
}

/// Copies a pipe or terminal to its target. What the OCI runtime itself writes there before the workload
/// starts is held back.
#[derive(Debug)]
pub(super) struct Copier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    gate: Mutex<Gate>,
    /// All writers that matter are gone: what is there is still read, nothing is waited for.
    is_closing: AtomicBool,
    has_found: AtomicBool,
}

#[derive(Debug, Default)]
struct Gate {
    is_open: bool,
    held: Vec<u8>,
}

/// Only the end of what a failed runtime said is of use.
const MAX_HELD_BYTES: usize = 64 << 10;
/// How often it is looked whether the end has come.
const TICK: Duration = Duration::from_millis(20);

impl Copier {
    /// Starts a thread that copies `source` to `target`, and looks for `wanted` on the way.
    pub(super) fn start(
        name: &str,
        source: OwnedFd,
        target: impl Write + Send + 'static,
        wanted: Option<&str>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let inner = Arc::clone(&shared);
        let search = Search::new(wanted);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || copy(source, target, search, &inner))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The workload starts: from now on everything is passed on.
    pub(super) fn open(&self) {
        self.shared.gate().is_open = true;
    }

    /// Whether what was wanted has come by.
    pub(super) fn has_found(&self) -> bool {
        self.shared.has_found.load(Ordering::Acquire)
    }

    /// What was held back so far.
    pub(super) fn held(&self) -> String {
        String::from_utf8_lossy(&self.shared.gate().held).into_owned()
    }

    /// Waits until everything is passed on that was written so far. Writers that do not close their end are
    /// not waited for, nor is a target that takes nothing once the user interrupts.
    pub(super) fn finish(&mut self, cancel: &Cancel) {
        self.shared.is_closing.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() {
            if cancel.is_cancelled() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy(source: OwnedFd, mut target: impl Write, mut search: Search, shared: &Shared) {
    let mut source = File::from(source);
    let mut buffer = vec![0; 64 << 10];
    // When the end has come: what was written before it and is not read yet.
    let mut left_bytes = None;
    let tick = Timespec::try_from(TICK).ok();
    loop {
        if left_bytes.is_none() && shared.is_closing.load(Ordering::Acquire) {
            left_bytes = Some(rustix::io::ioctl_fionread(&source).unwrap_or(0));
        }
        if left_bytes == Some(0) {
            return;
        }
        match poll(&mut [PollFd::new(&source, PollFlags::IN)], tick.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        let len = match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal whose other side is closed says so with EIO.
            Err(_) => return,
        };
        let bytes = &buffer[..len];
        left_bytes = left_bytes.map(|left| left.saturating_sub(len as u64));
        {
            let mut gate = shared.gate();
            if !gate.is_open {
                gate.held.extend_from_slice(bytes);
                let excess = gate.held.len().saturating_sub(MAX_HELD_BYTES);
                gate.held.drain(..excess);
                continue;
            }
        }
        // A closed terminal must not end the workload: go on reading.
        let _ = target.write_all(bytes).and_then(|()| target.flush());
        if search.finds_in(bytes) {
            shared.has_found.store(true, Ordering::Release);
        }
    }
}

/// Looks for a text in a stream that comes in pieces.
#[derive(Debug)]
struct Search {
    /// Empty if nothing is looked for.
    wanted: Vec<u8>,
    /// The end of the stream so far, shorter than what is wanted.
    tail: Vec<u8>,
}

impl Search {
    fn new(wanted: Option<&str>) -> Self {
        Self {
            wanted: wanted.unwrap_or_default().as_bytes().to_vec(),
            tail: Vec::new(),
        }
    }

    /// Whether the text has come to an end in `bytes`.
    fn finds_in(&mut self, bytes: &[u8]) -> bool {
        let Some(overlap) = self.wanted.len().checked_sub(1) else {
            return false;
        };
        self.tail.extend_from_slice(bytes);
        let found = self
            .tail
            .windows(self.wanted.len())
            .any(|window| window == self.wanted);
        let excess = self.tail.len().saturating_sub(overlap);
        self.tail.drain(..excess);
        found
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_text_is_found_across_pieces() {
        let check = |wanted: &str, pieces: &[&str], expected: &[bool]| {
            let mut search = Search::new(Some(wanted));
            let found: Vec<_> = pieces
                .iter()
                .map(|piece| search.finds_in(piece.as_bytes()))
                .collect();
            assert_eq!(found, expected, "{wanted} in {pieces:?}");
        };
        check("ready", &["rea", "dy\n"], &[false, true]);
        check(
            "ready",
            &["r", "e", "a", "d", "x", "ready"],
            &[false, false, false, false, false, true],
        );
        check("aab", &["aa", "ab"], &[false, true]);
        check("x", &["abc", "x"], &[false, true]);
        check("", &["abc"], &[false]);
        assert!(!Search::new(None).finds_in(b"a"));
    }

    #[test]
    fn a_writer_that_stays_does_not_hold_it_up() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (copied, target) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut copier = Copier::start("test", read, File::from(target), Some("cd")).unwrap();
        rustix::io::write(&write, b"held").unwrap();
        while copier.held() != "held" {
            thread::sleep(Duration::from_millis(1));
        }
        copier.open();
        rustix::io::write(&write, b"abcd").unwrap();
        let started = Instant::now();
        copier.finish(&Cancel::default());
        assert!(started.elapsed() < Duration::from_secs(5));
        assert!(copier.has_found());
        let mut text = String::new();
        File::from(copied).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcd");
        drop(write);
    }
}
