//! A container's life: create, start, wait, delete.

mod run;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::cancel::{Cancel, Cancelled};
use crate::runtime::bundle::{self, Bundle, Contents};
use crate::runtime::cgroup::ProgramCgroup;
use crate::runtime::claim::OCI_STATE;
use crate::runtime::commands::FailedCommand;
use crate::runtime::console::{ConsoleSocket, RawMode};
use crate::runtime::init::{Init, stop_signal, watch};
use crate::runtime::input::{self, Forwarder, Sink};
use crate::runtime::network::ConnectedNetwork;
use crate::runtime::oci::{self, OciRuntime, Within};
use crate::runtime::options::{Input, Network, Until, WorkloadOptions};
use crate::runtime::output::{Copier, Streams};
use crate::runtime::step::Limit;
use crate::runtime::{Cgroup, Claim, Process, RuntimeError, program};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The workload exited by itself.
    Exit,
    /// The time was over.
    Period,
    /// The awaited text was printed.
    Line,
    /// The awaited port is listened on.
    Port,
    /// The awaited request was answered.
    Http,
    /// The user asked for the end.
    Signal,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub ended: Ended,
    /// The exit code, 128 and the signal's number for a signal; `None` if it had to be stopped.
    pub exit_code: Option<i32>,
    /// From start to end.
    pub duration: Duration,
    /// Those of the commands in the container that failed.
    pub failed_commands: Vec<FailedCommand>,
}

/// A container. Dropping it kills the workload and removes everything of it.
#[derive(Debug)]
pub struct Container {
    runtime: OciRuntime,
    id: String,
    program: String,
    stop_signal: Signal,
    cgroup: ProgramCgroup,
    unwatched: ProgramCgroup,
    /// With bundle, the runtime's state, its log.
    directory: PathBuf,
    bundle: Bundle,
    init: Option<Init>,
    stdout: Option<Copier>,
    stderr: Copier,
    /// For the output of commands that are run later.
    stderr_pipe: Option<OwnedFd>,
    /// Restores our terminal when it goes.
    raw_mode: Option<RawMode>,
    stdin: Option<Forwarder>,
    commands: Vec<Vec<String>>,
    until: Until,
    is_deleted: bool,
    /// Dropped last: the container is in it.
    network: Option<ConnectedNetwork>,
}

impl Container {
    pub(super) fn create(
        process: &Process,
        options: &WorkloadOptions,
        rootfs: &Path,
        cgroup: &Cgroup,
        claim: &Claim,
        cancel: &Cancel,
    ) -> Result<Self, RuntimeError> {
        cancel.check()?;
        program::check(process, rootfs, &options.mounts)?;
        let id = claim.name().to_owned();
        let network = match &options.network {
            Network::Cni(cni) => {
                let within = cgroup.unwatched();
                let network = ConnectedNetwork::set_up(cni, &id, claim.state(), within, cancel)?;
                Some(network)
            }
            Network::Isolated | Network::Host => None,
        };
        let contents = Contents {
            process,
            options,
            rootfs,
            cgroups_path: &cgroup.path_of(&id),
            network_namespace: network.as_ref().map(ConnectedNetwork::namespace),
        };
        let bundle = bundle::write(claim.scratch(), &contents)?;
        // The container's first process becomes ours when the runtime's own process has ended.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| watch("adopting", errno))?;
        let (stderr, stderr_pipe) = copier("workload-stderr", Streams::AllToStderr, None)?;
        let mut container = Self {
            runtime: OciRuntime::new(&options.runtime, &claim.scratch().join(OCI_STATE)),
            id,
            program: process.args[0].clone(),
            stop_signal: stop_signal(process.stop_signal.as_deref()),
            cgroup: cgroup.of_runtime(),
            unwatched: cgroup.unwatched(),
            directory: claim.scratch().to_owned(),
            bundle,
            init: None,
            stdout: None,
            stderr,
            stderr_pipe: Some(stderr_pipe),
            raw_mode: None,
            stdin: None,
            commands: options.commands.clone(),
            until: options.until.clone(),
            is_deleted: false,
            network,
        };
        container.create_with(options, claim.state(), cancel)?;
        Ok(container)
    }

    /// Lets the runtime create it, with its stdin, stdout and stderr.
    fn create_with(
        &mut self,
        options: &WorkloadOptions,
        state: &Path,
        cancel: &Cancel,
    ) -> Result<(), RuntimeError> {
        let wanted = self.until.line.clone();
        let wanted = wanted.as_deref();
        let mut command = self.runtime.command();
        let pid_file = self.directory.join("init.pid");
        command
            .arg("create")
            .arg("--bundle")
            .arg(&self.directory)
            .arg("--pid-file")
            .arg(&pid_file);
        let mut console = None;
        let mut stdin_pipe = None;
        let mut stdin = Stdio::null();
        let stdout = match options.input {
            Input::Terminal => {
                let socket = ConsoleSocket::bind(state)?;
                command.arg("--console-socket").arg(socket.path());
                console = Some(socket);
                self.duplicate_of_stderr()?
            }
            Input::Nothing | Input::Stdin => {
                if options.input == Input::Stdin {
                    let (read, write) = pipe()?;
                    stdin = read.into();
                    stdin_pipe = Some(write);
                }
                let (copier, pipe) = copier("workload-stdout", options.streams, wanted)?;
                self.stdout = Some(copier);
                pipe
            }
        };
        command
            .arg(&self.id)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(self.duplicate_of_stderr()?);
        let within = Within::Watched(&self.cgroup);
        let created = self
            .runtime
            .step("create", &mut command, within, Limit::Cancel(cancel));
        // The command holds the pipes' other ends.
        drop(command);
        created.map_err(|error| self.explained(error, cancel))?;
        self.init = Some(Init::find(&pid_file)?);
        if let Some(console) = console {
            let master = console.receive()?;
            input::follow_size(&master, &mut None);
            let failed = |source| thread_failed(source);
            let reading = master.try_clone().map_err(failed)?;
            let copier = match options.streams {
                Streams::Apart => Copier::start("terminal", reading, io::stdout(), wanted),
                Streams::AllToStderr => Copier::start("terminal", reading, io::stderr(), wanted),
            };
            self.stdout = Some(copier.map_err(failed)?);
            self.raw_mode = Some(RawMode::enter()?);
            self.stdin = Some(Forwarder::start(Sink::Terminal(master)).map_err(failed)?);
        } else if let Some(pipe) = stdin_pipe {
            self.stdin = Some(Forwarder::start(Sink::Pipe(pipe)).map_err(thread_failed)?);
        }
        Ok(())
    }

    /// Removes the container, and then its network.
    ///
    /// # Errors
    /// When the runtime, or a network plugin, cannot remove it.
    pub fn delete(mut self) -> Result<(), RuntimeError> {
        let deleted = self.release();
        let network = self.network.as_mut();
        deleted.and(network.map_or(Ok(()), ConnectedNetwork::release))
    }

    fn release(&mut self) -> Result<(), RuntimeError> {
        if std::mem::replace(&mut self.is_deleted, true) {
            return Ok(());
        }
        self.raw_mode = None;
        self.stdin = None;
        if let Some(init) = self.init.take() {
            let _ = init.signal(Signal::KILL);
            let _ = init.reap();
        }
        let deleted = self.runtime.delete(&self.id, Within::Watched(&self.cgroup));
        self.cgroup.kill_all();
        deleted
    }

    /// An error of the runtime, with the workload's program to blame where that is so.
    fn explained(&mut self, error: RuntimeError, cancel: &Cancel) -> RuntimeError {
        let RuntimeError::Runtime {
            runtime,
            step,
            mut reason,
        } = error
        else {
            return error;
        };
        // It prints before it can log.
        if reason.starts_with("exit status") {
            self.stderr_pipe = None;
            self.stderr.finish(cancel);
            let held = self.stderr.held();
            let last = held
                .lines()
                .rev()
                .map(str::trim)
                .find(|line| !line.is_empty());
            if let Some(last) = last {
                reason = last.to_owned();
            }
        }
        if oci::is_about_program(&reason) {
            let program = self.program.clone();
            return RuntimeError::NotExecutable { program, reason };
        }
        RuntimeError::Runtime {
            runtime,
            step,
            reason,
        }
    }

    fn duplicate_of_stderr(&self) -> Result<OwnedFd, RuntimeError> {
        let pipe = self.stderr_pipe.as_ref().ok_or(Cancelled)?;
        pipe.as_fd().try_clone_to_owned().map_err(thread_failed)
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

fn pipe() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| watch("making a pipe for", errno))
}

fn copier(
    name: &str,
    streams: Streams,
    wanted: Option<&str>,
) -> Result<(Copier, OwnedFd), RuntimeError> {
    let (read, write) = pipe()?;
    let copier = match streams {
        Streams::Apart => Copier::start(name, read, io::stdout(), wanted),
        Streams::AllToStderr => Copier::start(name, read, io::stderr(), wanted),
    };
    Ok((copier.map_err(thread_failed)?, write))
}

fn thread_failed(source: io::Error) -> RuntimeError {
    RuntimeError::Watch {
        operation: "starting a thread for",
        source,
    }
}
