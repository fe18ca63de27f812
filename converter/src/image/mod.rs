//! Names and types of images: references, platforms, digests, descriptors, manifests,
//! configurations.
//!
//! Pure values: nothing here reads a file or a socket.

mod digest;
mod docker_name;
pub mod manifest;
mod platform;
mod reference;
mod registry_name;
mod sha256;

pub use digest::{Digest, DigestError, Hasher};
pub use docker_name::{DockerName, DockerNameError};
pub use manifest::{BlobId, Document, NewLayer};
pub use platform::{Platform, PlatformError};
pub use reference::{ArchiveName, ImageRef, ReferenceError};
pub use registry_name::RegistryName;
