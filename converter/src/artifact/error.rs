//! Why a profile does not travel.

use crate::cancel::Cancelled;
use crate::image::Digest;
use crate::profile::ProfileError;
use crate::registry::RegistryError;

/// Why a profile cannot be found in a registry, or not be put there.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A registry did not do what was asked.
    #[error(transparent)]
    Registry(RegistryError),
    /// The image is there, and nobody has profiled it.
    #[error(
        "{reference} has no profile: nothing of the type {} refers to it",
        super::ARTIFACT_TYPE
    )]
    None {
        /// The image.
        reference: String,
    },
    /// The name means something that is neither a profile nor an image.
    #[error("{reference} is neither a profile nor an image: it is of the type \"{found}\"")]
    Type {
        /// What was asked for.
        reference: String,
        /// Its type.
        found: String,
    },
    /// Which profile is meant is not clear.
    #[error("{reference} has several profiles, none newer than the others: {}; name one by its digest", known.join(", "))]
    Ambiguous {
        /// The image.
        reference: String,
        /// Their digests, with what the registry says of them.
        known: Vec<String>,
    },
    /// The artifact's manifest is not as a profile's is.
    #[error("{reference} is no valid profile artifact: {reason}")]
    Malformed {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The profile is longer than any real one.
    #[error(
        "the profile in {reference} is {size_bytes} bytes long; at most {limit_bytes} are read"
    )]
    TooLarge {
        /// What was asked for.
        reference: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The profile did not come.
    #[error("reading the profile in {reference}")]
    Read {
        /// What was asked for.
        reference: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What came is no profile.
    #[error("the profile in {reference}")]
    Profile {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: ProfileError,
    },
    /// The tag is taken.
    #[error("{reference} is something else than the profiled image {subject}; it is left as it is")]
    Taken {
        /// Where the profile was to be put.
        reference: String,
        /// The image that was profiled.
        subject: Digest,
    },
    /// Nobody would find it.
    #[error("{reference}: {reason}; the profile needs a tag of its own")]
    Untagged {
        /// Where the profile was to be put.
        reference: String,
        /// Why not.
        reason: &'static str,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<RegistryError> for ArtifactError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Registry(error),
        }
    }
}
