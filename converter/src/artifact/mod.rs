//! Profiles that travel: as artifacts beside their images in registries (docs/registries.md, "Profiles").
//!
//! Enters: a profile and the image that it is of, or a name in a registry. Leaves: an artifact that refers to
//! the image, or the profiles that the name means. What an artifact looks like says [`document`].

mod document;
mod error;
mod find;
mod publish;

use std::path::PathBuf;

use crate::cancel::Cancel;
use crate::registry::RegistryOptions;

pub use document::{ARTIFACT_TYPE, PROFILE_TYPE};
pub use error::ArtifactError;
pub use find::{Found, find};
pub use publish::{Destination, Published, Subject};

/// How a registry with profiles is reached.
#[derive(Clone, Debug)]
pub struct ArtifactOptions {
    /// How registries are spoken to.
    pub registry: RegistryOptions,
    /// Directory for blobs on their way.
    pub scratch: PathBuf,
    /// Stops transfers.
    pub cancel: Cancel,
}
