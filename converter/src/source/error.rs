//! Why a source cannot be read.

use std::io;
use std::path::PathBuf;

use crate::blob::NotArrived;
use crate::cancel::Cancelled;
use crate::containerd::ContainerdError;
use crate::image::{BlobId, Digest, DigestError};
use crate::registry::RegistryError;

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no OCI layout at the place.
    #[error("{} is not an OCI image layout", place.display())]
    NoLayout {
        /// The directory or archive that was named.
        place: PathBuf,
        /// What was missing.
        #[source]
        source: io::Error,
    },
    /// A file of the source cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A compressed archive cannot be unpacked.
    #[error("unpacking {} to {}", path.display(), scratch.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// The scratch directory.
        scratch: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An archive is no tar, or not a whole one.
    #[error("{} is not a valid archive: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong, and with which member or at which offset.
        reason: String,
    },
    /// An archive has no file of this name.
    #[error("\"{member}\" is missing in {}", path.display())]
    MissingMember {
        /// The archive.
        path: PathBuf,
        /// The member's name.
        member: String,
    },
    /// There is no image of this name.
    #[error("{} has no image tagged \"{tag}\"; it has {}", place.display(), list(known))]
    UnknownTag {
        /// The layout or archive.
        place: PathBuf,
        /// What was asked for.
        tag: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Which image is meant is not clear.
    #[error("{} has {count} images, name one of {}", place.display(), list(known))]
    Ambiguous {
        /// The layout or archive.
        place: PathBuf,
        /// How many images there are.
        count: usize,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The image has no manifest for the platform.
    #[error("{reference} has no image for {platform}; it has {}", list(known))]
    NoPlatform {
        /// The image.
        reference: String,
        /// What was asked for.
        platform: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The command works on one image, and several were selected.
    #[error(
        "{reference} has images for {}; choose one with --platform",
        list(known)
    )]
    SeveralPlatforms {
        /// The image.
        reference: String,
        /// What was selected.
        known: Vec<String>,
    },
    /// A blob is missing.
    #[error("{what} {digest} is missing: {}", path.display())]
    MissingBlob {
        /// `manifest`, `configuration`, `layer`.
        what: &'static str,
        /// Which blob.
        digest: Digest,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A layer is kept elsewhere, and its blob is not here.
    #[error("layer {digest} is a foreign layer, kept at {url}, and not in {}", place.display())]
    ForeignLayer {
        /// Which layer.
        digest: Digest,
        /// The first of the places that its descriptor names.
        url: String,
        /// The layout or archive.
        place: PathBuf,
    },
    /// A blob is not what its descriptor says.
    #[error("{what} {digest} is damaged: found {} bytes with digest {}, expected {expected_bytes} bytes", found.size_bytes, found.digest)]
    Damaged {
        /// `manifest`, `configuration`.
        what: &'static str,
        /// Which blob.
        digest: Digest,
        /// Size in its descriptor.
        expected_bytes: u64,
        /// What was read.
        found: BlobId,
    },
    /// A document is larger than any real one.
    #[error("{what} is {size_bytes} bytes long; at most {limit_bytes} are read")]
    TooLarge {
        /// Which document.
        what: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A document is not the JSON that the specification asks for.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// Which document, with path or digest.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A digest in a document cannot be used.
    #[error("{what}")]
    Digest {
        /// Which document, with path or digest.
        what: String,
        /// The digest.
        #[source]
        source: DigestError,
    },
    /// The manifest is of a kind that esgz cannot convert.
    #[error("{what} has the unsupported media type \"{media_type}\"")]
    MediaType {
        /// Which document or layer.
        what: String,
        /// Its media type.
        media_type: String,
    },
    /// A registry did not do what was asked.
    #[error(transparent)]
    Registry(RegistryError),
    /// containerd did not do what was asked.
    #[error(transparent)]
    Containerd(ContainerdError),
    /// A blob did not come.
    #[error("reading {place}")]
    NotArrived {
        /// The image.
        place: String,
        /// Why.
        #[source]
        source: NotArrived,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<RegistryError> for SourceError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Registry(error),
        }
    }
}

impl From<ContainerdError> for SourceError {
    fn from(error: ContainerdError) -> Self {
        match error {
            ContainerdError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Containerd(error),
        }
    }
}

/// For messages: names in quotes.
fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", "),
    }
}
