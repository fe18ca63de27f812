//! An image may be one manifest, or an index of manifests and further indexes. Enters: the descriptor
//! that a name means. Leaves: what its indexes list, with platforms; of manifests only those are read
//! whose platform no index tells.

use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::{Map, Value};

use crate::image::manifest::{
    ATTESTATION, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, REFERENCE_DIGEST, REFERENCE_TYPE,
};
use crate::image::{BlobId, Digest, Document, ImageRef, Platform};
use crate::source::SourceError;
use crate::source::image::is_image;
use crate::source::store::{BlobKind, Store};

/// An index may point to an index; more steps than this are a loop or a joke.
pub(super) const MAX_INDEX_DEPTH: usize = 8;
/// More descriptors than this, over all indexes, are an attack.
pub(super) const MAX_DESCRIPTORS: usize = 10_000;

/// What was selected, in the source's shape.
#[derive(Debug)]
pub enum Node {
    /// An index, with at least one node.
    Index(IndexNode),
    /// One of [`super::Source::images`].
    Image(usize),
    /// A manifest that is no image.
    Carried(Carried),
}

/// An index with what was selected of it.
#[derive(Debug)]
pub struct IndexNode {
    /// Its descriptor, as the index above has it.
    pub descriptor: Map<String, Value>,
    /// Every key of it.
    pub raw: Map<String, Value>,
    /// What was selected, in the source's order.
    pub nodes: Vec<Node>,
}

/// An attestation or an unknown artifact: copied byte for byte.
#[derive(Clone, Debug)]
pub struct Carried {
    /// Its descriptor, as the index has it.
    pub descriptor: Map<String, Value>,
    /// All blobs that its manifest names.
    pub blobs: Vec<BlobId>,
    /// The manifest of the image that it describes.
    pub describes: Option<Digest>,
}

/// The tree before anything was selected.
pub(super) enum Found {
    Index {
        descriptor: Map<String, Value>,
        raw: Map<String, Value>,
        found: Vec<Found>,
    },
    Manifest(Box<Leaf>),
}

pub(super) struct Leaf {
    pub(super) raw: Map<String, Value>,
    pub(super) descriptor: Descriptor,
    pub(super) kind: Kind,
}

impl Leaf {
    /// The manifest's digest, of whatever algorithm.
    pub(super) fn digest(&self) -> String {
        self.descriptor.digest().to_string()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Image {
        platform: Option<Platform>,
        from: From,
    },
    Attestation {
        /// The digest of an image's manifest.
        of: String,
    },
    Artifact,
}

/// Where a platform was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Descriptor,
    Config,
}

/// Reads indexes.
pub(super) struct Reader<'a> {
    pub(super) reference: &'a ImageRef,
    pub(super) store: &'a Arc<Store>,
    /// How many were read so far.
    pub(super) descriptors: usize,
}

impl Reader<'_> {
    pub(super) fn invalid(&self, reason: String) -> SourceError {
        SourceError::Invalid {
            what: self.reference.to_string(),
            reason,
        }
    }

    /// Reads indexes, and of manifests without a platform the configuration.
    pub(super) fn find(
        &mut self,
        raw: Map<String, Value>,
        depth: usize,
    ) -> Result<Found, SourceError> {
        self.descriptors += 1;
        if depth > MAX_INDEX_DEPTH {
            let reason = format!("indexes are nested more than {MAX_INDEX_DEPTH} deep");
            return Err(self.invalid(reason));
        }
        if self.descriptors > MAX_DESCRIPTORS {
            let reason = format!("its indexes list more than {MAX_DESCRIPTORS} manifests");
            return Err(self.invalid(reason));
        }
        let descriptor: Descriptor = serde_json::from_value(raw.clone().into())
            .map_err(|error| self.invalid(format!("a descriptor is not valid: {error}")))?;
        let media_type = descriptor.media_type().to_string();
        match media_type.as_str() {
            INDEX | DOCKER_LIST => {
                let index: Document<ImageIndex> =
                    self.store.document(BlobKind::Index, &descriptor)?;
                let mut found = Vec::new();
                let listed = index.raw.get("manifests").and_then(Value::as_array);
                for entry in listed.into_iter().flatten() {
                    let entry = entry.as_object().cloned().unwrap_or_default();
                    found.push(self.find(entry, depth + 1)?);
                }
                Ok(Found::Index {
                    descriptor: raw,
                    raw: index.raw,
                    found,
                })
            }
            MANIFEST | DOCKER_MANIFEST => {
                let kind = self.kind(&raw, &descriptor, depth)?;
                Ok(Found::Manifest(Box::new(Leaf {
                    raw,
                    descriptor,
                    kind,
                })))
            }
            _ if depth > 0 => Ok(Found::Manifest(Box::new(Leaf {
                raw,
                descriptor,
                kind: Kind::Artifact,
            }))),
            _ => Err(SourceError::MediaType {
                what: format!("{} {}", self.reference, descriptor.digest()),
                media_type,
            }),
        }
    }

    fn kind(
        &self,
        raw: &Map<String, Value>,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Kind, SourceError> {
        let annotation = |key: &str| descriptor.annotations().as_ref()?.get(key).cloned();
        if annotation(REFERENCE_TYPE).as_deref() == Some(ATTESTATION)
            && let Some(of) = annotation(REFERENCE_DIGEST)
        {
            return Ok(Kind::Attestation { of });
        }
        let platform = raw.get("platform").and_then(Value::as_object);
        let platform = platform.and_then(Platform::of_object);
        if platform.as_ref().is_some_and(Platform::is_unknown) {
            return Ok(Kind::Artifact);
        }
        if platform.is_some() || depth == 0 {
            return Ok(Kind::Image {
                platform,
                from: From::Descriptor,
            });
        }
        let manifest: Document<ImageManifest> =
            self.store.document(BlobKind::Manifest, descriptor)?;
        if !is_image(&manifest.parsed) {
            return Ok(Kind::Artifact);
        }
        let config: Document<Value> = self
            .store
            .document(BlobKind::Configuration, manifest.parsed.config())?;
        Ok(Kind::Image {
            platform: Platform::of_object(&config.raw),
            from: From::Config,
        })
    }
}
