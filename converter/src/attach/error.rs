//! Why a running container cannot be watched.

use std::io;
use std::path::{Path, PathBuf};

use crate::cancel::Cancelled;
use crate::runtime::RuntimeError;

/// Variants by what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No process has this number.
    #[error("there is no process {pid}")]
    NoProcess {
        /// The number.
        pid: u32,
    },
    /// The container ended before it could be watched.
    #[error("process {pid} has ended before it could be watched")]
    Ended {
        /// Its number.
        pid: u32,
    },
    /// The process sees no root mount: it is a kernel thread, or runs in a directory that is no mount.
    #[error("process {pid} is in no container: it has no root file system of its own")]
    NoRoot {
        /// Its number.
        pid: u32,
    },
    /// The process has this machine's own root file system.
    #[error("process {pid} is in no container: it has this machine's own root file system")]
    NotInContainer {
        /// Its number.
        pid: u32,
    },
    /// The root file system is no overlayfs, so it has no layers.
    #[error(
        "the root file system of process {pid} is {kind}; only layers under overlayfs can be told apart"
    )]
    NotStacked {
        /// Its number.
        pid: u32,
        /// Type of its file system.
        kind: String,
    },
    /// What overlayfs says of its directories cannot be understood.
    #[error("the container's root file system says nothing usable of its layers: {reason}")]
    Options {
        /// Why not.
        reason: &'static str,
    },
    /// A directory of a layer is not to be seen from here.
    #[error("the directory \"{directory}\" of a layer of the container cannot be found from here")]
    Unseen {
        /// As overlayfs says it.
        directory: String,
    },
    /// The cgroup does not exist, or is none.
    #[error("there is no cgroup {}", path.display())]
    NoCgroup {
        /// As it was given.
        path: PathBuf,
    },
    /// The cgroup is the root of a hierarchy.
    #[error("every process of the machine is in the cgroup {}", path.display())]
    WholeHierarchy {
        /// Its directory.
        path: PathBuf,
    },
    /// There is no process in the cgroup.
    #[error("no process is in the cgroup {}", path.display())]
    Empty {
        /// Its directory.
        path: PathBuf,
    },
    /// The process is in no v2 cgroup of its own, so that its accesses cannot be told from those of others.
    #[error("process {pid} is in the root of the cgroup v2 hierarchy, with everybody else")]
    NoOwnCgroup {
        /// Its number.
        pid: u32,
    },
    /// The cgroup holds processes of something else.
    #[error("the cgroup {} also holds process {other}, which is not of the container", path.display())]
    Shared {
        /// Its directory.
        path: PathBuf,
        /// One of the others.
        other: u32,
    },
    /// What is waited for is so already.
    #[error("the container listens on port {port} already, so nothing tells when to end")]
    Listens {
        /// The port.
        port: u16,
    },
    /// /proc, a cgroup or a directory cannot be read.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What is waited for cannot be watched.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Somebody asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl AttachError {
    /// For `map_err` on an access to `path`.
    pub(super) fn io<E: Into<io::Error>>(
        operation: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Io {
            operation,
            path: path.as_ref().to_owned(),
            source: error.into(),
        }
    }
}
