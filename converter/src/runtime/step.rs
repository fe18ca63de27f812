//! Runs another program to its end, or kills it with all that it has started.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::cancel::Cancel;

/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(25);

/// How long a program may take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit<'a> {
    /// Until the user interrupts.
    Cancel(&'a Cancel),
    /// Cleaning up is not interrupted, but does not take for ever either.
    Time(Duration),
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Killed: the user interrupted.
    Interrupted,
    /// Killed: its time was over.
    TooLong,
}

/// Runs `command` in a process group of its own, as Ctrl-C at a terminal is for us alone: a runtime that it
/// ends midway cannot clean up. `started` is called with the process's id.
pub(super) fn run(
    command: &mut Command,
    limit: Limit<'_>,
    started: impl FnOnce(u32),
) -> io::Result<End> {
    let begun = Instant::now();
    let mut child = command.process_group(0).spawn()?;
    started(child.id());
    loop {
        let is_over = match limit {
            Limit::Cancel(cancel) if cancel.is_cancelled() => Some(End::Interrupted),
            Limit::Time(time) if begun.elapsed() >= time => Some(End::TooLong),
            _ => None,
        };
        if let Some(end) = is_over {
            kill(&mut child)?;
            return Ok(end);
        }
        if let Some(status) = wait_for(&mut child, TICK)? {
            return Ok(End::Exited(status));
        }
    }
}

/// Waits at most `timeout` for the child's end.
fn wait_for(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
    {
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    child.try_wait()
}

/// Kills the child's process group and takes its exit status.
pub(super) fn kill(child: &mut Child) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It is not waited for yet, so its group still exists.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_ends_by_itself_or_is_killed() {
        let cancel = Cancel::default();
        let end = run(&mut shell("exit 3"), Limit::Cancel(&cancel), |_| {}).unwrap();
        assert!(
            matches!(end, End::Exited(status) if status.code() == Some(3)),
            "{end:?}"
        );
        let time = Duration::from_millis(100);
        let started = Instant::now();
        let end = run(&mut shell("sleep 60 & sleep 60"), Limit::Time(time), |_| {}).unwrap();
        assert!(matches!(end, End::TooLong), "{end:?}");
        cancel.cancel();
        let end = run(&mut shell("sleep 60"), Limit::Cancel(&cancel), |_| {}).unwrap();
        assert!(matches!(end, End::Interrupted), "{end:?}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
