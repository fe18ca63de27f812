//! Ctrl-C ends a benchmark in order: what is running is ended, what was measured stays.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long a signal may go unseen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longer than any conversion.
const LONGEST_PREPARATION: Duration = Duration::from_secs(24 * 3600);
/// What was asked to end has so long until it is killed.
const LONGEST_END: Duration = Duration::from_secs(30);

/// Set by SIGINT, SIGTERM and SIGHUP. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub(super) fn listen() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        Ok(interrupt)
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.is_set(), "interrupted");
        Ok(())
    }
}

/// A program in a process group of its own, which its drop ends.
pub(super) struct Running {
    child: Child,
    name: String,
}

impl Running {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self { child, name })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, for a signal, or for so long; the end is seen at once.
    pub(super) fn wait(&mut self, interrupt: &Interrupt, longest: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + longest;
        loop {
            interrupt.check()?;
            if let Some(status) = self.wait_a_little(LOOK_EVERY)? {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("{}: not ready after {} s", self.name, longest.as_secs());
            }
        }
    }

    /// Its end, if it comes within `longest`.
    pub(super) fn wait_a_little(&mut self, longest: Duration) -> Result<Option<ExitStatus>> {
        let pid = i32::try_from(self.child.id()).ok();
        let pid = pid
            .and_then(rustix::process::Pid::from_raw)
            .context("a process has an id")?;
        // A child that nobody has waited for keeps its id.
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = Timespec::try_from(longest)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(self.child.try_wait()?),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let Ok(group) = i32::try_from(self.child.id()) else {
            return;
        };
        let _ = killpg(Pid::from_raw(group), Signal::SIGTERM);
        if !matches!(self.wait_a_little(LONGEST_END), Ok(Some(_))) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its success, or to an interruption.
pub(super) fn finish(command: &mut Command, interrupt: &Interrupt) -> Result<()> {
    let status = Running::start(command)?.wait(interrupt, LONGEST_PREPARATION)?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
