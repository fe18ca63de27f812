//! Why a workload could not be run.

use std::io;
use std::path::PathBuf;

use crate::cancel::Cancelled;

/// Variants by what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The OCI runtime is not installed.
    #[error(
        "the OCI runtime \"{runtime}\" is not installed; install runc, or name another with --runtime"
    )]
    RuntimeMissing {
        /// Name or path.
        runtime: String,
    },
    /// The OCI runtime could not be executed.
    #[error("executing the OCI runtime \"{runtime}\"")]
    RuntimeNotExecutable {
        /// Name or path.
        runtime: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The OCI runtime failed.
    #[error("{runtime} {step} failed: {reason}")]
    Runtime {
        /// Name or path.
        runtime: String,
        /// `create`, `start`, …
        step: &'static str,
        /// The last error that it logged.
        reason: String,
    },
    /// The workload's program could not be executed.
    #[error("the workload's program \"{program}\" cannot be executed: {reason}")]
    NotExecutable {
        /// The first argument.
        program: String,
        /// As the runtime says it.
        reason: String,
    },
    /// Neither image nor user name a program.
    #[error(
        "nothing to run: the image has neither entrypoint nor command; give --entrypoint or --args"
    )]
    NothingToRun,
    /// The user or group is not in the image.
    #[error("unknown {what} \"{name}\": not in the image's {file}")]
    UnknownUser {
        /// `user` or `group`.
        what: &'static str,
        /// As it was given.
        name: String,
        /// `/etc/passwd` or `/etc/group`.
        file: &'static str,
    },
    /// An environment entry or directory is malformed.
    #[error("{what} \"{value}\" {reason}")]
    Malformed {
        /// What.
        what: &'static str,
        /// As it was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No specification describes the device.
    #[error("no device \"{name}\": nothing in {directories} describes it")]
    UnknownDevice {
        /// As it was given, or made of it.
        name: String,
        /// Where specifications are looked for.
        directories: String,
    },
    /// A CNI plugin failed.
    #[error("the network plugin \"{plugin}\" failed ({command}): {reason}")]
    Network {
        /// Its type.
        plugin: String,
        /// `ADD` or `DEL`.
        command: &'static str,
        /// As it says it.
        reason: String,
    },
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted; events cannot be told apart by container")]
    NoCgroupV2,
    /// The caller may not do this.
    #[error("{operation} {}: running a container needs root", path.display())]
    NotPrivileged {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
    },
    /// A file or directory could not be handled.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The container's process could not be watched.
    #[error("{operation} the container's process")]
    Watch {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl RuntimeError {
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        let (path, source) = (path.into(), source.into());
        if source.kind() == io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root() {
            return Self::NotPrivileged { operation, path };
        }
        Self::Io {
            operation,
            path,
            source,
        }
    }
}
