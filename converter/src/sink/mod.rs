//! Sinks: where images are written, whole or not at all.
//!
//! Enters: blobs as they are made, then the manifest. Leaves: an image under its name. Until
//! [`OciLayoutSink::commit`] nothing of it can be seen, and nothing is left if the process ends in
//! any way before.

mod oci_layout;

use std::io;
use std::path::PathBuf;

pub use oci_layout::{OciLayoutSink, StagedBlob};

/// Why a destination cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A file or directory of the destination cannot be made, written or renamed.
    #[error("{operation} {}", path.display())]
    Write {
        /// `creating`, `writing`, `syncing`, `renaming`, …
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination exists and is something else.
    #[error("{} exists and is not an OCI image layout; it is left as it is", path.display())]
    NotALayout {
        /// The destination.
        path: PathBuf,
    },
    /// The destination's index cannot be extended.
    #[error("{} is not valid: {reason}; it is left as it is", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}
