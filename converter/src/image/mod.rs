//! Names and types of images: references, digests, descriptors, manifests, configurations.
//!
//! Pure values: nothing here reads a file or a socket.

mod digest;
mod reference;

pub use digest::{Digest, DigestError, Hasher};
pub use reference::{ImageRef, ReferenceError};
