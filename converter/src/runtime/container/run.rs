//! A container's run: its start, what it waits for, and its end.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Container, Ended, Outcome};
use crate::cancel::{Cancel, Cancelled, EndOfRun};
use crate::runtime::RuntimeError;
use crate::runtime::commands::{Commands, Prepared};
use crate::runtime::init::Init;
use crate::runtime::oci::{Cgroups, Within};
use crate::runtime::output::Copier;
use crate::runtime::step::Limit;
use crate::runtime::until::{self, Requests};

/// How long a workload may take to end after its stop signal.
const GRACE: Duration = Duration::from_secs(5);
/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(50);

impl Container {
    /// Begins the workload's program.
    pub(in crate::runtime) fn start(&mut self, cancel: &Cancel) -> Result<(), RuntimeError> {
        if self
            .until
            .port
            .is_some_and(|port| self.is_listened_on(port))
        {
            let port = self.until.port.unwrap_or_default();
            return Err(RuntimeError::Malformed {
                what: "port",
                value: port.to_string(),
                reason: "is in use already, so nothing tells when the workload listens on it",
            });
        }
        // Before: the workload may print, and end, before the runtime's own process has.
        if let Some(stdout) = &self.stdout {
            stdout.open();
        }
        self.stderr.open();
        let mut command = self.runtime.command();
        command
            .args(["start", &self.id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // The next exec in the watched cgroup is taken for the workload's.
        let within = if self.bundle.has_late_hooks {
            Within::WatchedLater(&self.unwatched, &self.cgroup)
        } else {
            Within::Unwatched(&self.unwatched)
        };
        let started = self
            .runtime
            .step("start", &mut command, within, Limit::Cancel(cancel));
        started.map_err(|error| self.explained(error, cancel))
    }

    /// Waits for the workload's end, or for what ends the run; then stops it.
    pub(in crate::runtime) fn wait(&mut self, cancel: &Cancel) -> Result<Outcome, RuntimeError> {
        let started = Instant::now();
        let mut commands = Commands::new(self.prepare_commands()?);
        if let Some(signal) = &self.until.signal {
            signal.begin();
        }
        let ended = self.watch(started, &mut commands, cancel);
        if let Some(signal) = &self.until.signal {
            signal.over();
        }
        let ended = ended?;
        let duration = started.elapsed();
        let failed_commands = commands.finish();
        if ended != Ended::Exit {
            self.stop(cancel)?;
        }
        let code = self.init.take().map_or(Ok(0), Init::reap)?;
        // Nothing of the workload can write any more.
        self.stderr_pipe = None;
        self.stdin = None;
        if let Some(stdout) = &mut self.stdout {
            stdout.finish(cancel);
        }
        self.raw_mode = None;
        self.stderr.finish(cancel);
        let exit_code = (ended == Ended::Exit).then_some(code);
        Ok(Outcome {
            ended,
            exit_code,
            duration,
            failed_commands,
        })
    }

    fn watch(
        &self,
        started: Instant,
        commands: &mut Commands,
        cancel: &Cancel,
    ) -> Result<Ended, RuntimeError> {
        let Some(init) = &self.init else {
            return Err(Cancelled.into());
        };
        let until = &self.until;
        let requests = match &until.http {
            Some(url) => Some(Requests::start(&init.proc(), url)?),
            None => None,
        };
        let waits = until.line.is_some() || until.port.is_some() || until.http.is_some();
        let mut met = None;
        loop {
            cancel.check()?;
            let left = until
                .period
                .map(|period| period.saturating_sub(started.elapsed()));
            if init.exited_within(left.unwrap_or(TICK).min(TICK))? {
                return Ok(Ended::Exit);
            }
            if until.signal.as_ref().is_some_and(EndOfRun::is_asked) {
                return Ok(Ended::Signal);
            }
            if met.is_none() {
                met = self.condition_met(requests.as_ref());
            }
            if met.is_some() || !waits {
                let all_done = commands.advance().map_err(|source| RuntimeError::Watch {
                    operation: "running a command beside",
                    source,
                })?;
                if let (Some(met), true) = (met, all_done) {
                    return Ok(met);
                }
            }
            if left.is_some_and(|left| left.is_zero()) {
                if waits && met.is_none() {
                    tracing::warn!("the time is over, and what was waited for did not happen");
                }
                return Ok(Ended::Period);
            }
        }
    }

    fn condition_met(&self, requests: Option<&Requests>) -> Option<Ended> {
        if self.stdout.as_ref().is_some_and(Copier::has_found) {
            return Some(Ended::Line);
        }
        if self
            .until
            .port
            .is_some_and(|port| self.is_listened_on(port))
        {
            return Some(Ended::Port);
        }
        requests
            .is_some_and(Requests::are_answered)
            .then_some(Ended::Http)
    }

    fn is_listened_on(&self, port: u16) -> bool {
        let init = self.init.as_ref();
        init.is_some_and(|init| until::is_listened_on(&init.proc(), port))
    }

    fn prepare_commands(&self) -> Result<Vec<Prepared>, RuntimeError> {
        let prepare = |(words, file): (&Vec<String>, &PathBuf)| {
            let mut command = self.runtime.command();
            command.arg("exec").arg("--process").arg(file).arg(&self.id);
            command
                .stdin(Stdio::null())
                .stdout(self.duplicate_of_stderr()?)
                .stderr(self.duplicate_of_stderr()?);
            // Where the runtime leaves cgroups as they are, the command stays in this one.
            let cgroup = match self.runtime.cgroups {
                Cgroups::OfContainer => &self.unwatched,
                Cgroups::OfRuntime => &self.cgroup,
            };
            crate::sys::process::begin_in_cgroup(&mut command, cgroup.procs()?);
            Ok(Prepared {
                words: words.clone(),
                command,
            })
        };
        self.commands
            .iter()
            .zip(&self.bundle.commands)
            .map(prepare)
            .collect()
    }

    /// The stop signal, then SIGKILL.
    fn stop(&self, cancel: &Cancel) -> Result<(), RuntimeError> {
        let Some(init) = &self.init else {
            return Ok(());
        };
        // The first process of a PID namespace does not see a signal for which it has no handler.
        if self.stop_signal != Signal::KILL && init.catches(self.stop_signal) {
            init.signal(self.stop_signal)?;
            let deadline = Instant::now() + GRACE;
            while Instant::now() < deadline && !cancel.is_cancelled() {
                if init.exited_within(TICK)? {
                    return Ok(());
                }
            }
        }
        init.signal(Signal::KILL)?;
        // SIGKILL to the first process takes the whole PID namespace with it.
        while !init.exited_within(Duration::from_secs(1))? {}
        Ok(())
    }
}
