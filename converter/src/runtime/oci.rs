//! The OCI runtime as a command, and what it says when it fails.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::cancel::Cancelled;
use crate::runtime::RuntimeError;
use crate::runtime::cgroup::ProgramCgroup;
use crate::runtime::mounts;
use crate::runtime::step::{self, End, Limit};

/// How long removing a container may take; a hook may hang.
pub(super) const REMOVAL: Duration = Duration::from_secs(10);

/// An OCI runtime with a directory for its state.
#[derive(Clone, Debug)]
pub(super) struct OciRuntime {
    program: String,
    state: PathBuf,
    /// Whose cgroup a container gets.
    pub(super) cgroups: Cgroups,
}

/// Whose cgroup a container gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// One of its own, which the runtime makes.
    OfContainer,
    /// The runtime's: crun up to 1.8 at least refuses v1 hierarchies beside a v2 one. It is shown the v2 one alone,
    /// and told to leave cgroups as they are.
    OfRuntime,
}

impl Cgroups {
    fn of(program: &str) -> Self {
        let has_legacy = || mounts::cgroup_mounts().is_ok_and(|mounts| !mounts.legacy.is_empty());
        if is_crun(program) && has_legacy() {
            Self::OfRuntime
        } else {
            Self::OfContainer
        }
    }
}

fn is_crun(program: &str) -> bool {
    let name = Path::new(program).file_name();
    name.is_some_and(|name| name == "crun")
}

/// In which cgroup a step runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Within<'a> {
    /// From its first instruction on: what it and its hooks touch is seen.
    Watched(&'a ProgramCgroup),
    /// In the first, and moved to the second once it runs: its own exec does not count as the workload's.
    WatchedLater(&'a ProgramCgroup, &'a ProgramCgroup),
    /// What it touches is not seen.
    Unwatched(&'a ProgramCgroup),
}

impl OciRuntime {
    /// `program` is a name or a path. `state` is made by the runtime.
    pub(super) fn new(program: &str, state: &Path) -> Self {
        Self {
            program: program.to_owned(),
            state: state.to_owned(),
            cgroups: Cgroups::of(program),
        }
    }

    /// Its command with the global options.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.state)
            .arg("--log")
            .arg(self.log())
            .args(["--log-format", "json"]);
        match self.cgroups {
            Cgroups::OfRuntime => {
                command.arg("--cgroup-manager=disabled");
                crate::sys::process::begin_with_one_cgroup_hierarchy(&mut command);
            }
            // Its packages may be built to ask systemd, which would put the container elsewhere.
            Cgroups::OfContainer if is_crun(&self.program) => {
                command.arg("--cgroup-manager=cgroupfs");
            }
            Cgroups::OfContainer => {}
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.state.with_extension("log")
    }

    /// Runs a step. On an interruption the runtime and its hooks are killed, and the caller has to delete
    /// the container.
    pub(super) fn step(
        &self,
        step: &'static str,
        command: &mut Command,
        within: Within<'_>,
        limit: Limit<'_>,
    ) -> Result<(), RuntimeError> {
        let runtime = || self.program.clone();
        let (Within::Watched(first) | Within::WatchedLater(first, _) | Within::Unwatched(first)) =
            within;
        crate::sys::process::begin_in_cgroup(command, first.procs()?);
        let mut adopted = Ok(());
        let started = |pid| {
            if let Within::WatchedLater(_, then) = within {
                adopted = then.adopt(pid);
            }
        };
        let end = step::run(command, limit, started);
        let kill_hooks = || {
            first.kill_all();
            if let Within::WatchedLater(_, then) = within {
                then.kill_all();
            }
        };
        match end {
            Ok(End::Exited(status)) if status.success() => adopted,
            Ok(End::Exited(status)) => Err(RuntimeError::Runtime {
                runtime: runtime(),
                step,
                reason: self.reason(step, status),
            }),
            Ok(End::Interrupted) => {
                kill_hooks();
                Err(Cancelled.into())
            }
            Ok(End::TooLong) => {
                kill_hooks();
                Err(RuntimeError::Runtime {
                    runtime: runtime(),
                    step,
                    reason: "it did not end".to_owned(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RuntimeError::RuntimeMissing { runtime: runtime() })
            }
            Err(source) => Err(RuntimeError::RuntimeNotExecutable {
                runtime: runtime(),
                source,
            }),
        }
    }

    /// Removes a container, whatever state it is in.
    pub(super) fn delete(&self, id: &str, within: Within<'_>) -> Result<(), RuntimeError> {
        let mut command = self.command();
        command
            .args(["delete", "--force", id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.errors());
        self.step("delete", &mut command, within, Limit::Time(REMOVAL))
    }

    /// As [`OciRuntime::delete`], for a container of a killed process: its hooks are run, the rest is done
    /// without the runtime as well.
    pub(super) fn delete_abandoned(&self, id: &str, cgroup: &ProgramCgroup) {
        if let Err(error) = self.delete(id, Within::Unwatched(cgroup)) {
            tracing::debug!("{error}");
        }
    }

    /// A file for what it prints; only where it ends before it can log is that of use.
    fn errors(&self) -> Stdio {
        File::create(self.state.with_extension("errors"))
            .map_or_else(|_| Stdio::null(), Stdio::from)
    }

    /// What the failed step said last.
    fn reason(&self, step: &str, status: ExitStatus) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let Some(reason) = last_error(&log) else {
            return status.to_string();
        };
        // runc says first which step it was, as our own message does.
        let said_twice = format!("{} {step} failed: ", self.program);
        reason
            .strip_prefix(&said_twice)
            .unwrap_or(&reason)
            .to_owned()
    }
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

/// Whether the runtime complains of the program itself, as runc, crun and youki word it.
pub(super) fn is_about_program(reason: &str) -> bool {
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
    fn the_last_error_is_taken_from_a_log() {
        let log = "{\"level\":\"error\",\"msg\":\"first\"}\nno json\n{\"level\":\"error\",\"msg\":\"second\"}\n{\"level\":\"info\",\"msg\":\"bye\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("second"));
        assert_eq!(last_error(""), None);
    }

    #[test]
    fn crun_is_told_not_to_ask_systemd() {
        let args = |program: &str, cgroups| -> Vec<String> {
            let runtime = OciRuntime {
                cgroups,
                ..OciRuntime::new(program, Path::new("/s"))
            };
            let command = runtime.command();
            command
                .get_args()
                .map(|arg| arg.to_string_lossy().into_owned())
                .collect()
        };
        let has = |args: Vec<String>, arg: &str| args.iter().any(|known| known == arg);
        let own = Cgroups::OfContainer;
        assert!(has(args("/usr/bin/crun", own), "--cgroup-manager=cgroupfs"));
        assert!(!has(args("runc", own), "--cgroup-manager=cgroupfs"));
        let shared = Cgroups::OfRuntime;
        assert!(has(args("crun", shared), "--cgroup-manager=disabled"));
    }
}
