//! Why containerd cannot be used.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::cancel::Cancelled;
use crate::image::{BlobId, Digest};

/// Why containerd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nothing answers.
    #[error("containerd cannot be reached at {}", address.display())]
    Unreachable {
        /// Its socket.
        address: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its connection was lost, and it did not come back in time.
    #[error("{operation} {what}: containerd at {} does not answer", address.display())]
    Lost {
        /// `reading`, `writing`, …
        operation: &'static str,
        /// Which blob, image, …
        what: String,
        /// Its socket.
        address: PathBuf,
        /// Why.
        #[source]
        source: Box<Status>,
    },
    /// It says no.
    #[error("{operation} {what}: containerd says \"{message}\"")]
    Refused {
        /// As above.
        operation: &'static str,
        /// As above.
        what: String,
        /// The kind of refusal.
        code: Code,
        /// Its words, shortened.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("{operation} {what}: {reason}")]
    Answer {
        /// As above.
        operation: &'static str,
        /// As above.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// No namespace can be called this.
    #[error("\"{namespace}\" cannot be the name of a namespace of containerd's")]
    Namespace {
        /// The name.
        namespace: String,
    },
    /// There is no image of this name.
    #[error("containerd has no image \"{name}\" in its namespace \"{namespace}\"")]
    NoImage {
        /// The image's name.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// There is no such blob.
    #[error("blob {digest} is not in containerd's namespace \"{namespace}\"")]
    MissingBlob {
        /// Which blob.
        digest: Digest,
        /// The namespace.
        namespace: String,
    },
    /// Other bytes than were asked for.
    #[error("containerd has {} bytes with the digest {} for blob {} of {} bytes", found.size_bytes, found.digest, expected.digest, expected.size_bytes)]
    Damaged {
        /// What was asked for.
        expected: BlobId,
        /// What came.
        found: BlobId,
    },
    /// What is to be written cannot be read.
    #[error("reading blob {digest}")]
    ReadBack {
        /// Which blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob cannot be put into the scratch directory.
    #[error("keeping blobs of containerd's in {}", scratch.display())]
    Scratch {
        /// The directory.
        scratch: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl ContainerdError {
    /// What it says no with, if it does.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same may succeed later: containerd is being restarted, or another process writes the same blob.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { code, .. } => *code == Code::Unavailable,
            _ => false,
        }
    }
}
