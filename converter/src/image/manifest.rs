//! Media types, annotations, and the rewriting of manifest and configuration. Pure.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use serde_json::{Map, Value, json};

use crate::image::{Digest, DigestError};

/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, tar without compression.
pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, tar with gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Digest of a layer's TOC (eStargz specification, "TOC digest").
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Decimal size of a layer's whole uncompressed stream.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// The name under which an index lists an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Annotations that describe another lazy format's blob and would be wrong on ours.
const STALE_ANNOTATIONS: [&str; 3] = [
    "io.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-position",
    "io.github.containers.zstd-chunked.tarsplit-position",
];

/// A blob by digest and size, as a descriptor names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobId {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl BlobId {
    /// The id of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            digest: Digest::of(bytes),
            size_bytes: bytes.len() as u64,
        }
    }

    /// What `descriptor` names.
    ///
    /// # Errors
    /// When its digest is not a SHA-256.
    pub fn from_descriptor(descriptor: &Descriptor) -> Result<Self, DigestError> {
        Ok(Self {
            digest: descriptor.digest().to_string().parse()?,
            size_bytes: descriptor.size(),
        })
    }
}

/// A manifest or configuration as it was found, and as it was understood.
#[derive(Clone, Debug)]
pub struct Document<T> {
    /// Every key, in source order.
    pub raw: Map<String, Value>,
    /// The keys that esgz knows.
    pub parsed: T,
    /// The id of the bytes it was read from.
    pub id: BlobId,
}

/// A layer's new descriptor fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLayer {
    /// The written blob.
    pub blob: BlobId,
    /// Its DiffID.
    pub diff_id: Digest,
    /// Digest of its TOC; `None` for a plain tar.
    pub toc_digest: Option<Digest>,
    /// Length of its uncompressed stream.
    pub uncompressed_bytes: u64,
}

/// The configuration for the new layers: DiffIDs replaced, the build cache's `Image` dropped, all
/// else as it was.
pub fn rewrite_config(config: &Document<ImageConfiguration>, layers: &[NewLayer]) -> Vec<u8> {
    let mut raw = config.raw.clone();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let rootfs = raw
        .entry("rootfs")
        .or_insert_with(|| json!({ "type": "layers" }));
    if let Value::Object(rootfs) = rootfs {
        rootfs.insert("diff_ids".to_owned(), json!(diff_ids));
    }
    if let Some(Value::Object(config)) = raw.get_mut("config") {
        config.shift_remove("Image");
    }
    to_json(&raw)
}

/// The manifest for the new configuration and layers; OCI media types, all else as it was.
pub fn rewrite_manifest(
    manifest: &Document<ImageManifest>,
    config: BlobId,
    layers: &[NewLayer],
) -> Vec<u8> {
    let mut raw = manifest.raw.clone();
    raw.insert("mediaType".to_owned(), json!(MANIFEST));
    if let Some(Value::Object(descriptor)) = raw.get_mut("config") {
        if descriptor
            .get("mediaType")
            .and_then(Value::as_str)
            .is_none_or(is_docker)
        {
            descriptor.insert("mediaType".to_owned(), json!(CONFIG));
        }
        set_blob(descriptor, config);
        descriptor.shift_remove("data");
    }
    if let Some(Value::Array(descriptors)) = raw.get_mut("layers") {
        for (descriptor, layer) in descriptors.iter_mut().zip(layers) {
            if let Value::Object(descriptor) = descriptor {
                rewrite_layer(descriptor, layer);
            }
        }
    }
    to_json(&raw)
}

fn rewrite_layer(descriptor: &mut Map<String, Value>, layer: &NewLayer) {
    let media_type = match layer.toc_digest {
        Some(_) => LAYER_GZIP,
        None => LAYER_TAR,
    };
    descriptor.insert("mediaType".to_owned(), json!(media_type));
    set_blob(descriptor, layer.blob);
    descriptor.shift_remove("data");
    let annotations = descriptor.entry("annotations").or_insert_with(|| json!({}));
    if let Value::Object(annotations) = annotations {
        for stale in STALE_ANNOTATIONS {
            annotations.shift_remove(stale);
        }
        if let Some(toc_digest) = layer.toc_digest {
            annotations.insert(TOC_DIGEST.to_owned(), json!(toc_digest));
            let size = layer.uncompressed_bytes.to_string();
            annotations.insert(UNCOMPRESSED_SIZE.to_owned(), json!(size));
        } else {
            annotations.shift_remove(TOC_DIGEST);
            annotations.shift_remove(UNCOMPRESSED_SIZE);
        }
        if annotations.is_empty() {
            descriptor.shift_remove("annotations");
        }
    }
}

fn set_blob(descriptor: &mut Map<String, Value>, blob: BlobId) {
    descriptor.insert("digest".to_owned(), json!(blob.digest));
    descriptor.insert("size".to_owned(), json!(blob.size_bytes));
}

fn is_docker(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.")
}

/// Compact JSON, keys in the map's order.
pub fn to_json(value: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value can be written")
}
