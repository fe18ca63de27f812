//! The container's first process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::runtime::RuntimeError;
use crate::sys::process::{FIRST_REAL_TIME, signal};

/// Our child, as we are a subreaper, and not reaped yet.
#[derive(Debug)]
pub(super) struct Init {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Init {
    /// The process whose id stands in the file `pid_file`.
    pub(super) fn find(pid_file: &Path) -> Result<Self, RuntimeError> {
        let text = fs::read_to_string(pid_file)
            .map_err(|source| RuntimeError::io("reading", pid_file, source))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| {
            RuntimeError::io(
                "reading",
                pid_file,
                io::Error::other("it holds no process id"),
            )
        })?;
        let pidfd =
            pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| watch("opening", errno))?;
        Ok(Self { pid, pidfd })
    }

    /// Its directory in /proc.
    pub(super) fn proc(&self) -> std::path::PathBuf {
        format!("/proc/{}", self.pid.as_raw_nonzero()).into()
    }

    pub(super) fn exited_within(&self, timeout: Duration) -> Result<bool, RuntimeError> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(watch("waiting for", errno)),
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), RuntimeError> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(watch("stopping", errno)),
        }
    }

    /// Whether it has a handler for `signal` (`SigCgt` of proc(5), status).
    pub(super) fn catches(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(self.proc().join("status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
    }

    /// Takes the exit status: the exit code, or 128 and the signal's number. Waits for the end.
    pub(super) fn reap(self) -> Result<i32, RuntimeError> {
        let status = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED)
            .map_err(|errno| watch("waiting for", errno))?;
        let status = status.as_ref();
        let code = status.and_then(rustix::process::WaitIdStatus::exit_status);
        let signal = status.and_then(rustix::process::WaitIdStatus::terminating_signal);
        Ok(code
            .or_else(|| signal.map(|signal| 128 + signal))
            .unwrap_or(0))
    }
}

pub(super) fn watch(operation: &'static str, errno: rustix::io::Errno) -> RuntimeError {
    RuntimeError::Watch {
        operation,
        source: errno.into(),
    }
}

/// An image's stop signal: by name with or without `SIG`, `RTMIN+N` and `RTMAX-N` too, or by number;
/// SIGTERM for what is none.
pub(super) fn stop_signal(name: Option<&str>) -> Signal {
    name.and_then(signal_called).unwrap_or(Signal::TERM)
}

fn signal_called(name: &str) -> Option<Signal> {
    /// The last real-time signal.
    const LAST: i32 = 64;
    if let Ok(number) = name.parse() {
        return signal(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match short {
        "RTMIN" => FIRST_REAL_TIME,
        "RTMAX" => LAST,
        _ => {
            let distance = |prefix: &str| short.strip_prefix(prefix)?.parse::<u8>().ok();
            if let Some(above) = distance("RTMIN+") {
                FIRST_REAL_TIME + i32::from(above)
            } else if let Some(below) = distance("RTMAX-") {
                let number = LAST - i32::from(below);
                return (number >= FIRST_REAL_TIME)
                    .then(|| signal(number))
                    .flatten();
            } else {
                let known: nix::sys::signal::Signal = format!("SIG{short}").parse().ok()?;
                known as i32
            }
        }
    };
    signal(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_as_images_write_them() {
        let check = |name, number| assert_eq!(stop_signal(name).as_raw(), number, "{name:?}");
        check(None, 15);
        check(Some("SIGINT"), 2);
        check(Some("quit"), 3);
        check(Some("9"), 9);
        check(Some("SIGRTMIN+3"), 37);
        check(Some("RTMIN"), 34);
        check(Some("sigrtmax-1"), 63);
        check(Some("37"), 37);
        for nonsense in [
            "nonsense",
            "SIGRTMIN+31",
            "RTMIN+x",
            "RTMAX-60",
            "33",
            "0",
            "",
        ] {
            check(Some(nonsense), 15);
        }
    }
}
