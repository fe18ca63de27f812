//! A container's life: create, start, wait, delete.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use tempfile::TempDir;

use crate::cancel::{Cancel, Cancelled};
use crate::runtime::names::{HOSTS, RESOLV_CONF};
use crate::runtime::output::{Copier, Streams};
use crate::runtime::spec::{Generated, spec};
use crate::runtime::{Cgroup, Process, RuntimeError, WorkloadOptions};

/// How long a workload may take to end after its stop signal.
const GRACE: Duration = Duration::from_secs(5);
/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(50);

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The workload exited by itself.
    Exit,
    /// The time was over.
    Period,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub ended: Ended,
    /// The exit code, 128 and the signal's number for a signal; `None` if it had to be stopped.
    pub exit_code: Option<i32>,
    /// From start to end.
    pub duration: Duration,
}

/// A container. Dropping it kills the workload and removes everything of it.
#[derive(Debug)]
pub struct Container {
    runtime: String,
    id: String,
    program: String,
    stop_signal: Signal,
    /// Bundle, the runtime's state, its log.
    work: TempDir,
    init: Option<Init>,
    stdout: Copier,
    stderr: Copier,
    deleted: bool,
}

/// The container's first process.
#[derive(Debug)]
struct Init {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Container {
    pub(super) fn create(
        process: &Process,
        options: &WorkloadOptions,
        rootfs: &Path,
        cgroup: &Cgroup,
        scratch: &Path,
    ) -> Result<Self, RuntimeError> {
        let work = tempfile::Builder::new()
            .prefix("esgz-run-")
            .tempdir_in(scratch)
            .map_err(|source| RuntimeError::io("creating a directory in", scratch, source))?;
        let id = format!("esgz-{}", random_suffix(work.path()));
        write_bundle(work.path(), process, rootfs, &cgroup.path_of(&id))?;
        // The container's first process becomes ours when the runtime's own process has ended.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| watch("adopting", errno))?;
        let (stdout, stdout_pipe) = copier("workload-stdout", options.streams)?;
        let (stderr, stderr_pipe) = copier("workload-stderr", Streams::AllToStderr)?;
        let mut container = Self {
            runtime: options.runtime.clone(),
            id,
            program: process.args[0].clone(),
            stop_signal: stop_signal(process.stop_signal.as_deref()),
            work,
            init: None,
            stdout,
            stderr,
            deleted: false,
        };
        let mut command = container.command();
        command
            .arg("create")
            .arg("--bundle")
            .arg(container.work.path())
            .arg("--pid-file")
            .arg(container.pid_file())
            .arg(&container.id)
            .stdin(Stdio::null())
            .stdout(stdout_pipe)
            .stderr(stderr_pipe);
        let status = command.status();
        // The command holds the pipes' other ends.
        drop(command);
        container.check("create", status)?;
        container.adopt()?;
        Ok(container)
    }

    /// Begins the workload's program.
    pub(super) fn start(&mut self) -> Result<(), RuntimeError> {
        // Before: the workload may print, and end, before the runtime's own process has.
        self.stdout.open();
        self.stderr.open();
        let mut command = self.command();
        command.arg("start").arg(&self.id);
        let output = command.stdin(Stdio::null()).output();
        self.check("start", output.map(|output| output.status))
    }

    /// Waits for the workload's end, at most `period`; then stops it.
    pub(super) fn wait(
        &mut self,
        period: Duration,
        cancel: &Cancel,
    ) -> Result<Outcome, RuntimeError> {
        let started = Instant::now();
        let Some(init) = &self.init else {
            return Err(Cancelled.into());
        };
        let ended = loop {
            if cancel.is_cancelled() {
                return Err(Cancelled.into());
            }
            let left = period.saturating_sub(started.elapsed());
            if init.exited_within(left.min(TICK))? {
                break Ended::Exit;
            }
            if left.is_zero() {
                break Ended::Period;
            }
        };
        let duration = started.elapsed();
        if ended == Ended::Period {
            self.stop(cancel)?;
        }
        let code = self.reap()?;
        self.stdout.finish();
        self.stderr.finish();
        let exit_code = (ended == Ended::Exit).then_some(code);
        Ok(Outcome {
            ended,
            exit_code,
            duration,
        })
    }

    /// The stop signal, then SIGKILL.
    fn stop(&self, cancel: &Cancel) -> Result<(), RuntimeError> {
        let Some(init) = &self.init else {
            return Ok(());
        };
        // The first process of a PID namespace does not see a signal for which it has no handler.
        if self.stop_signal != Signal::SIGKILL && init.catches(self.stop_signal) {
            init.signal(self.stop_signal)?;
            let deadline = Instant::now() + GRACE;
            while Instant::now() < deadline && !cancel.is_cancelled() {
                if init.exited_within(TICK)? {
                    return Ok(());
                }
            }
        }
        init.signal(Signal::SIGKILL)?;
        // SIGKILL to the first process takes the whole PID namespace with it.
        while !init.exited_within(Duration::from_secs(1))? {}
        Ok(())
    }

    /// Takes the first process's exit status.
    fn reap(&mut self) -> Result<i32, RuntimeError> {
        let Some(init) = self.init.take() else {
            return Ok(0);
        };
        let options = WaitIdOptions::EXITED;
        let status =
            waitid(WaitId::Pid(init.pid), options).map_err(|errno| watch("waiting for", errno))?;
        let status = status.as_ref();
        let code = status.and_then(rustix::process::WaitIdStatus::exit_status);
        let signal = status.and_then(rustix::process::WaitIdStatus::terminating_signal);
        Ok(code
            .or_else(|| signal.map(|signal| 128 + signal))
            .unwrap_or(0))
    }

    /// Removes the container.
    ///
    /// # Errors
    /// When the runtime cannot remove it.
    pub fn delete(mut self) -> Result<(), RuntimeError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), RuntimeError> {
        if std::mem::replace(&mut self.deleted, true) {
            return Ok(());
        }
        if let Some(init) = &self.init {
            let _ = init.signal(Signal::SIGKILL);
            let _ = self.reap();
        }
        let mut command = self.command();
        command.arg("delete").arg("--force").arg(&self.id);
        let output = command.stdin(Stdio::null()).output();
        self.check("delete", output.map(|output| output.status))
    }

    fn pid_file(&self) -> PathBuf {
        self.work.path().join("init.pid")
    }

    fn log_file(&self) -> PathBuf {
        self.work.path().join("runtime.log")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime);
        command
            .arg("--root")
            .arg(self.work.path().join("state"))
            .arg("--log")
            .arg(self.log_file())
            .args(["--log-format", "json"])
            // Ctrl-C at a terminal is for us alone: a runtime that it ends midway cannot clean up.
            .process_group(0);
        command
    }

    /// Makes an error of a failed step of the runtime.
    fn check(
        &self,
        step: &'static str,
        status: io::Result<std::process::ExitStatus>,
    ) -> Result<(), RuntimeError> {
        let runtime = self.runtime.clone();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let log = fs::read_to_string(self.log_file()).unwrap_or_default();
                let reason = last_error(&log)
                    .or_else(|| last_line(&self.stderr.held()))
                    .unwrap_or_else(|| status.to_string());
                if step != "delete" && is_about_program(&reason) {
                    let program = self.program.clone();
                    return Err(RuntimeError::NotExecutable { program, reason });
                }
                // runc says first which step it was, as our own message does.
                let said_twice = format!("{runtime} {step} failed: ");
                let reason = reason.strip_prefix(&said_twice).unwrap_or(&reason);
                Err(RuntimeError::Runtime {
                    reason: reason.to_owned(),
                    runtime,
                    step,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RuntimeError::RuntimeMissing { runtime })
            }
            Err(source) => Err(RuntimeError::RuntimeNotExecutable { runtime, source }),
        }
    }

    /// Finds the container's first process.
    fn adopt(&mut self) -> Result<(), RuntimeError> {
        let path = self.pid_file();
        let text = fs::read_to_string(&path)
            .map_err(|source| RuntimeError::io("reading", &path, source))?;
        let pid = text
            .trim()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| {
                RuntimeError::io("reading", &path, io::Error::other("it holds no process id"))
            })?;
        let pidfd =
            pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| watch("opening", errno))?;
        self.init = Some(Init { pid, pidfd });
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.release()
            && !matches!(error, RuntimeError::RuntimeMissing { .. })
        {
            tracing::debug!("{error}");
        }
    }
}

impl Init {
    fn exited_within(&self, timeout: Duration) -> Result<bool, RuntimeError> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(watch("waiting for", errno)),
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), RuntimeError> {
        let pid = nix::unistd::Pid::from_raw(self.pid.as_raw_nonzero().get());
        // It cannot be another process: it is our child and not reaped yet.
        match nix::sys::signal::kill(pid, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(RuntimeError::Watch {
                operation: "stopping",
                source: errno.into(),
            }),
        }
    }

    /// Whether it has a handler for `signal` (`SigCgt` of proc(5), status).
    fn catches(&self, signal: Signal) -> bool {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = fs::read_to_string(path).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (signal as i32 - 1)) != 0)
    }
}

fn watch(operation: &'static str, errno: rustix::io::Errno) -> RuntimeError {
    RuntimeError::Watch {
        operation,
        source: errno.into(),
    }
}

fn copier(name: &str, streams: Streams) -> Result<(Copier, OwnedFd), RuntimeError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| watch("making a pipe for", errno))?;
    let copier = match streams {
        Streams::Apart => Copier::start(name, read, io::stdout()),
        Streams::AllToStderr => Copier::start(name, read, io::stderr()),
    };
    let copier = copier.map_err(|source| RuntimeError::Watch {
        operation: "starting a thread for",
        source,
    })?;
    Ok((copier, write))
}

fn write_bundle(
    directory: &Path,
    process: &Process,
    rootfs: &Path,
    cgroups_path: &str,
) -> Result<(), RuntimeError> {
    let write = |name: &str, contents: &[u8]| -> Result<PathBuf, RuntimeError> {
        let path = directory.join(name);
        fs::write(&path, contents).map_err(|source| RuntimeError::io("writing", &path, source))?;
        Ok(path)
    };
    let hosts = write("hosts", HOSTS.as_bytes())?;
    let resolv_conf = write("resolv.conf", RESOLV_CONF.as_bytes())?;
    let generated = Generated {
        hosts: &hosts,
        resolv_conf: &resolv_conf,
    };
    let path = directory.join("config.json");
    let spec = spec(process, rootfs, cgroups_path, &generated)
        .map_err(|error| RuntimeError::io("writing", &path, io::Error::from(error)))?;
    let file = File::create(&path).map_err(|source| RuntimeError::io("creating", &path, source))?;
    serde_json::to_writer(file, &spec)
        .map_err(|error| RuntimeError::io("writing", &path, io::Error::from(error)))
}

/// What makes the temporary directory's name unique makes the container's unique too.
fn random_suffix(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let random = name.rsplit('-').next().unwrap_or_default();
    format!("{}-{random}", std::process::id())
}

/// By name with or without `SIG`, or by number; SIGTERM for what is none.
fn stop_signal(name: Option<&str>) -> Signal {
    let Some(name) = name else {
        return Signal::SIGTERM;
    };
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    let by_number = name
        .parse::<i32>()
        .ok()
        .and_then(|number| Signal::try_from(number).ok());
    by_number
        .or_else(|| full.parse().ok())
        .unwrap_or(Signal::SIGTERM)
}

/// The message of the last error in the runtime's JSON log.
fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_error = matches!(value["level"].as_str(), Some("error" | "fatal"));
        is_error
            .then(|| value["msg"].as_str().map(str::to_owned))
            .flatten()
    })
}

fn last_line(text: &str) -> Option<String> {
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}

/// Whether the runtime complains of the program itself, as runc, crun and youki word it.
fn is_about_program(reason: &str) -> bool {
    let words = [
        "executable file",
        "exec:",
        "exec format",
        "executable path",
        "executable not",
    ];
    words.iter().any(|word| reason.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_as_images_write_them() {
        let check = |name, signal| assert_eq!(stop_signal(name), signal, "{name:?}");
        check(None, Signal::SIGTERM);
        check(Some("SIGINT"), Signal::SIGINT);
        check(Some("quit"), Signal::SIGQUIT);
        check(Some("9"), Signal::SIGKILL);
        check(Some("nonsense"), Signal::SIGTERM);
    }

    #[test]
    fn the_last_error_is_taken_from_a_log() {
        let log = "{\"level\":\"error\",\"msg\":\"first\"}\nno json\n{\"level\":\"error\",\"msg\":\"second\"}\n{\"level\":\"info\",\"msg\":\"bye\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("second"));
        assert_eq!(last_error(""), None);
    }
}
