//! The workload's stdout and stderr, passed on as they come.

use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Where the workload's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Streams {
    /// stdout to stdout, stderr to stderr.
    #[default]
    Apart,
    /// Both to stderr: stdout is needed for a result.
    AllToStderr,
}

/// Copies a pipe to its target. What the OCI runtime itself writes there before the workload
/// starts is held back.
#[derive(Debug)]
pub(super) struct Copier {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    held: Vec<u8>,
}

/// Only the end of what a failed runtime said is of use.
const MAX_HELD_BYTES: usize = 64 << 10;

impl Copier {
    /// Starts a thread that copies `pipe` to `target`.
    pub(super) fn start(
        name: &str,
        pipe: OwnedFd,
        target: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let gate = Arc::new(Gate::default());
        let inner = Arc::clone(&gate);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || copy(pipe, target, &inner))?;
        Ok(Self {
            gate,
            thread: Some(thread),
        })
    }

    /// The workload starts: from now on everything is passed on.
    pub(super) fn open(&self) {
        let mut state = self
            .gate
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.open = true;
        self.gate.opened.notify_all();
    }

    /// What was held back so far.
    pub(super) fn held(&self) -> String {
        let state = self
            .gate
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.held).into_owned()
    }

    /// Waits until all writers have closed the pipe and everything is passed on.
    pub(super) fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn copy(pipe: OwnedFd, mut target: impl Write, gate: &Gate) {
    let mut pipe = std::fs::File::from(pipe);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        {
            let mut state = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.open {
                state.held.extend_from_slice(&buffer[..len]);
                let excess = state.held.len().saturating_sub(MAX_HELD_BYTES);
                state.held.drain(..excess);
                continue;
            }
        }
        // A closed terminal must not end the workload: go on reading.
        let _ = target
            .write_all(&buffer[..len])
            .and_then(|()| target.flush());
    }
}
