//! Names and types of images: references, digests, descriptors, manifests, configurations.
//!
//! Pure values: nothing here reads a file or a socket.

mod digest;
pub mod manifest;
mod reference;
mod sha256;

pub use digest::{Digest, DigestError, Hasher};
pub use manifest::{BlobId, Document, NewLayer};
pub use reference::{ImageRef, ReferenceError};
