//! What can go wrong between scanned layers and a mounted root file system.

use std::io;
use std::path::{Path, PathBuf};

use crate::cancel::Cancelled;

/// Why an entry cannot stand in a file tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// The name, or a hardlink's target, has a `..` component.
    #[error("leaves the root through \"..\"")]
    LeavesRoot,
    /// A component above 255 bytes, or a path above 4095.
    #[error("name longer than the kernel allows")]
    NameTooLong,
    /// A zero byte in a name or a link's target.
    #[error("zero byte in a name")]
    ZeroByte,
    /// A component of the parent path is a file of the same layer.
    #[error("lies below something that is not a directory")]
    ParentNotDirectory,
    /// More than 255 symlinks on the way to the parent.
    #[error("too many symlinks on the way to its parent")]
    TooManySymlinks,
    /// A symlink to nothing, or to more than 4095 bytes.
    #[error("symlink target of an impossible length")]
    SymlinkLength,
    /// A hardlink to a directory.
    #[error("hardlink to a directory")]
    HardlinkToDirectory,
    /// `.wh.` followed by nothing, `.` or `..`.
    #[error("whiteout of nothing")]
    EmptyWhiteout,
    /// A device number above 4095 (major) or 1048575 (minor).
    #[error("device number out of range")]
    DeviceNumber,
}

/// A layer's entries make no file tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// An entry that no extractor could create.
    #[error("entry \"{name}\": {problem}")]
    Entry {
        /// The entry's name as the archive gives it.
        name: String,
        /// What is wrong.
        problem: EntryProblem,
    },
    /// A hardlink whose target is not an earlier entry of the same layer. The target may lie in a
    /// lower layer; containerd cannot apply such a layer either.
    #[error("hardlink \"{name}\": no \"{target}\" earlier in the same layer")]
    HardlinkTarget {
        /// The link's name as the archive gives it.
        name: String,
        /// Its target as the archive gives it.
        target: String,
    },
}

/// A root file system could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A layer was scanned without a spool, and cannot be mounted.
    #[error("layer {layer} has no spool file")]
    NotSpooled {
        /// Its index, the base is 0.
        layer: usize,
    },
    /// A layer is unusable.
    #[error("layer {layer}")]
    Layer {
        /// 0-based, the base layer first.
        layer: usize,
        /// What is wrong with it.
        #[source]
        source: TreeError,
    },
    /// A layer's file is larger than an index can hold (2 TiB in all).
    #[error("layer {layer}: too large for an EROFS index: {size_bytes} bytes, at most 2 TiB")]
    LayerTooLarge {
        /// 0-based, the base layer first.
        layer: usize,
        /// What would have to be addressed.
        size_bytes: u64,
    },
    /// More layers than overlayfs stacks.
    #[error("{layers} layers: overlayfs stacks at most {limit}")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The kernel refused for lack of privilege (`CAP_SYS_ADMIN` in the initial user namespace).
    #[error("not privileged to {operation} {}", path.display())]
    NotPrivileged {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel does not give a loop device for a layer.
    #[error("cannot {operation} {}", path.display())]
    Loop {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel does not mount a file system.
    #[error("cannot mount {filesystem} on {}{}", path.display(), detail(messages))]
    Mount {
        /// `erofs` or `overlay`.
        filesystem: &'static str,
        /// The mount point.
        path: PathBuf,
        /// What the kernel logged for this mount; may be empty.
        messages: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Unpacked layers on tmpfs: page-cache events do not exist there.
    #[error("{} is on tmpfs, where the kernel reports no accesses", path.display())]
    Tmpfs {
        /// The scratch directory.
        path: PathBuf,
    },
    /// A file in scratch, or a spool, cannot be read or written.
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
    /// Somebody asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn detail(messages: &str) -> String {
    if messages.is_empty() {
        String::new()
    } else {
        format!(" ({messages})")
    }
}

/// The errno values by which the kernel says "not you".
fn is_privilege(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

impl RootfsError {
    /// For `map_err` on an access to `path`.
    pub(super) fn io<E: Into<io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |error| {
            let (path, source) = (path.to_path_buf(), error.into());
            if is_privilege(&source) {
                Self::NotPrivileged {
                    operation,
                    path,
                    source,
                }
            } else {
                Self::Io {
                    operation,
                    path,
                    source,
                }
            }
        }
    }

    /// For `map_err` on an operation on a loop device.
    pub(super) fn loop_device(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if is_privilege(&source) {
            Self::NotPrivileged {
                operation,
                path,
                source,
            }
        } else {
            Self::Loop {
                operation,
                path,
                source,
            }
        }
    }

    /// True if the other way to the same root file system may succeed. A device cgroup refuses
    /// loop devices alone as a lack of privilege does.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Loop { .. }
                | Self::NotPrivileged { .. }
                | Self::LayerTooLarge { .. }
                | Self::Mount {
                    filesystem: "erofs",
                    ..
                }
        )
    }
}
