//! Sources: where images are read.
//!
//! Enters: an image reference. Leaves: a [`SourceImage`]: manifest and configuration, checked
//! against their digests, and the layers' blobs as files. Layers themselves are checked by `scan`.

mod oci_layout;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use oci_spec::image::{ImageConfiguration, ImageManifest};

use crate::image::{BlobId, Digest, DigestError, Document, ImageRef};

/// An image whose manifest and configuration have been read.
#[derive(Debug)]
pub struct SourceImage {
    /// How the user named it.
    pub reference: ImageRef,
    /// The platform's manifest.
    pub manifest: Document<ImageManifest>,
    /// The image's configuration.
    pub config: Document<ImageConfiguration>,
    /// The layers, base first.
    pub layers: Vec<SourceLayer>,
    store: oci_layout::Store,
}

/// A layer that has not been read yet.
#[derive(Clone, Debug)]
pub struct SourceLayer {
    /// The blob.
    pub blob: BlobId,
    /// Digest of its uncompressed tar, from the configuration.
    pub diff_id: Digest,
    /// Media type, from the manifest.
    pub media_type: String,
    /// The TOC digest that the manifest gives, if the layer is eStargz already.
    pub toc_digest: Option<String>,
}

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no OCI layout at the place.
    #[error("{} is not an OCI image layout", dir.display())]
    NoLayout {
        /// The directory that was named.
        dir: PathBuf,
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
    /// The index lists no image of this name.
    #[error("{} has no image tagged \"{tag}\"; it has {}", dir.display(), list(known))]
    UnknownTag {
        /// The layout.
        dir: PathBuf,
        /// What was asked for.
        tag: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Which image is meant is not clear.
    #[error("{} has {} images, name one of {}", dir.display(), known.len(), list(known))]
    Ambiguous {
        /// The layout.
        dir: PathBuf,
        /// What there is.
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

/// Opens an image: reads index, manifest and configuration.
///
/// # Errors
/// [`SourceError`] names the file or digest that is missing or wrong.
pub fn open(reference: &ImageRef) -> Result<SourceImage, SourceError> {
    let ImageRef::OciLayout { dir, tag } = reference;
    oci_layout::open(reference, dir, tag.as_deref())
}

impl SourceImage {
    /// Opens a layer's blob.
    ///
    /// # Errors
    /// When it is missing, or its size is not the descriptor's.
    pub fn open_layer(&self, layer: &SourceLayer) -> Result<File, SourceError> {
        self.store.open_blob("layer", layer.blob)
    }
}
