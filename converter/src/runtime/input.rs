//! Our stdin, passed on to the workload; and of a terminal, its size.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

/// How often it is looked whether the end has come, and whether the terminal has another size.
const TICK: Duration = Duration::from_millis(50);

/// Where stdin goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// The writing end of a pipe; closed when stdin ends.
    Pipe(OwnedFd),
    /// A terminal's master, which others hold as well. It gets our terminal's size.
    Terminal(OwnedFd),
}

/// A thread that copies stdin. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Forwarder {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    pub(super) fn start(sink: Sink) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let inner = Arc::clone(&is_over);
        if let Sink::Pipe(pipe) = &sink {
            // A workload that does not read must not keep the thread. Of a terminal the descriptor is shared
            // with the thread that reads; there poll alone has to do.
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let thread = thread::Builder::new()
            .name("workload-stdin".to_owned())
            .spawn(move || forward(&sink, &inner))?;
        Ok(Self {
            is_over,
            thread: Some(thread),
        })
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn forward(sink: &Sink, is_over: &AtomicBool) {
    let stdin = io::stdin();
    let mut buffer = [0; 4096];
    // What of the buffer is not written yet.
    let mut pending = 0..0;
    let mut has_ended = false;
    let mut size = None;
    let tick = Timespec::try_from(TICK).ok();
    while !is_over.load(Ordering::Acquire) {
        let target = match sink {
            Sink::Pipe(pipe) => pipe,
            Sink::Terminal(master) => {
                follow_size(master, &mut size);
                master
            }
        };
        if has_ended && pending.is_empty() {
            // Dropping a pipe tells the workload; a terminal stays.
            if matches!(sink, Sink::Pipe(_)) {
                return;
            }
            thread::sleep(TICK);
            continue;
        }
        let mut wait_for = if pending.is_empty() {
            [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)]
        } else {
            [PollFd::new(target, PollFlags::OUT)]
        };
        match poll(&mut wait_for, tick.as_ref()) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        if pending.is_empty() {
            // Past the buffer of the standard library: poll knows nothing of it.
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) => has_ended = true,
                Ok(len) => pending = 0..len,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => has_ended = true,
            }
        }
        if !pending.is_empty() {
            // A terminal takes a byte at least when it says that it is ready.
            let most = if matches!(sink, Sink::Pipe(_)) {
                pending.len()
            } else {
                1
            };
            match rustix::io::write(target, &buffer[pending.start..pending.start + most]) {
                Ok(len) => pending.start += len,
                Err(Errno::INTR | Errno::AGAIN) => {}
                // Nobody reads any more.
                Err(_) => return,
            }
        }
    }
}

/// Gives the container's terminal the size of ours, where that has changed.
pub(super) fn follow_size(master: &OwnedFd, known: &mut Option<Winsize>) {
    let Ok(now) = tcgetwinsize(io::stdin()) else {
        return;
    };
    let same = |known: &Winsize| (known.ws_row, known.ws_col) == (now.ws_row, now.ws_col);
    if !known.as_ref().is_some_and(same) && tcsetwinsize(master, now).is_ok() {
        *known = Some(now);
    }
}
