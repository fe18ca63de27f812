//! Media types, annotations, and the rewriting of manifest and configuration. Pure.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use serde_json::{Map, Value, json};

use crate::image::{Digest, DigestError};

/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Manifest of an artifact, of OCI 1.1 before its release.
pub const ARTIFACT_MANIFEST: &str = "application/vnd.oci.artifact.manifest.v1+json";
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
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, tar without compression.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, tar with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Digest of a layer's TOC (eStargz specification, "TOC digest").
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Decimal size of a layer's whole uncompressed stream.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// The name under which an index lists an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name under which containerd and Docker import an image of an index.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What a manifest in an index is, if it is no image (BuildKit, attestation-storage.md).
pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// The digest of the manifest that such a manifest describes.
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// The [`REFERENCE_TYPE`] of attestations.
pub const ATTESTATION: &str = "attestation-manifest";

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

/// Whose media types a written image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MediaTypes {
    /// OCI image specification; the only ones whose annotations every tool keeps.
    #[default]
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

impl MediaTypes {
    /// Of an image's manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Oci => MANIFEST,
            Self::Docker => DOCKER_MANIFEST,
        }
    }

    /// Of an index.
    pub fn index(self) -> &'static str {
        match self {
            Self::Oci => INDEX,
            Self::Docker => DOCKER_LIST,
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => CONFIG,
            Self::Docker => DOCKER_CONFIG,
        }
    }

    fn layer_gzip(self) -> &'static str {
        match self {
            Self::Oci => LAYER_GZIP,
            Self::Docker => DOCKER_LAYER_GZIP,
        }
    }

    fn layer_tar(self) -> &'static str {
        match self {
            Self::Oci => LAYER_TAR,
            Self::Docker => DOCKER_LAYER,
        }
    }
}

/// What is said of a written image beside its layers.
#[derive(Clone, Debug, Default)]
pub struct DocumentOptions {
    /// Its media types.
    pub media_types: MediaTypes,
    /// Annotations to set on every manifest.
    pub annotations: Vec<(String, String)>,
    /// Annotations to set on the index, if one is written.
    pub index_annotations: Vec<(String, String)>,
    /// The configuration's `created`, in RFC 3339; the source's if there is none.
    pub created: Option<String>,
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

/// The configuration for the new layers: DiffIDs replaced, the build cache's `Image` dropped,
/// `created` set if wanted, all else as it was.
pub fn rewrite_config(
    config: &Document<ImageConfiguration>,
    layers: &[NewLayer],
    options: &DocumentOptions,
) -> Vec<u8> {
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
    if let Some(created) = &options.created {
        raw.insert("created".to_owned(), json!(created));
    }
    to_json(&raw)
}

/// The manifest for the new configuration and layers: media types and annotations as wanted, all
/// else as it was.
pub fn rewrite_manifest(
    manifest: &Document<ImageManifest>,
    config: BlobId,
    layers: &[NewLayer],
    options: &DocumentOptions,
) -> Vec<u8> {
    let media_types = options.media_types;
    let mut raw = manifest.raw.clone();
    raw.insert("mediaType".to_owned(), json!(media_types.manifest()));
    if let Some(Value::Object(descriptor)) = raw.get_mut("config") {
        descriptor.insert("mediaType".to_owned(), json!(media_types.config()));
        set_blob(descriptor, config);
    }
    if let Some(Value::Array(descriptors)) = raw.get_mut("layers") {
        for (descriptor, layer) in descriptors.iter_mut().zip(layers) {
            if let Value::Object(descriptor) = descriptor {
                rewrite_layer(descriptor, layer, media_types);
            }
        }
    }
    annotate(&mut raw, &options.annotations);
    to_json(&raw)
}

fn rewrite_layer(descriptor: &mut Map<String, Value>, layer: &NewLayer, media_types: MediaTypes) {
    let media_type = match layer.toc_digest {
        Some(_) => media_types.layer_gzip(),
        None => media_types.layer_tar(),
    };
    descriptor.insert("mediaType".to_owned(), json!(media_type));
    set_blob(descriptor, layer.blob);
    // Where a foreign layer could be fetched from; the new blob is nowhere else.
    descriptor.shift_remove("urls");
    let annotations = descriptor.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
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

/// The descriptor of a converted manifest, from the one that the source's index had for it.
pub fn rewrite_manifest_descriptor(
    descriptor: &mut Map<String, Value>,
    manifest: BlobId,
    media_types: MediaTypes,
) {
    descriptor.insert("mediaType".to_owned(), json!(media_types.manifest()));
    set_blob(descriptor, manifest);
}

/// As [`rewrite_manifest_descriptor`], for an index.
pub fn rewrite_index_descriptor(
    descriptor: &mut Map<String, Value>,
    index: BlobId,
    media_types: MediaTypes,
) {
    descriptor.insert("mediaType".to_owned(), json!(media_types.index()));
    set_blob(descriptor, index);
}

/// The index with these descriptors: media type as wanted, all else as it was.
pub fn rewrite_index(
    index: &Map<String, Value>,
    manifests: Vec<Value>,
    media_types: MediaTypes,
    annotations: &[(String, String)],
) -> Vec<u8> {
    let mut raw = index.clone();
    raw.insert("mediaType".to_owned(), json!(media_types.index()));
    raw.insert("manifests".to_owned(), Value::Array(manifests));
    annotate(&mut raw, annotations);
    to_json(&raw)
}

/// The manifest of an image that has none: one in a Docker archive. Layers are blobs with their
/// media types.
pub fn docker_manifest(config: BlobId, layers: &[(BlobId, &str)]) -> Vec<u8> {
    let descriptor = |id: &BlobId, media_type: &str| json!({ "mediaType": media_type, "size": id.size_bytes, "digest": id.digest });
    let layers: Vec<Value> = layers
        .iter()
        .map(|(id, media_type)| descriptor(id, media_type))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor(&config, DOCKER_CONFIG),
        "layers": layers,
    });
    serde_json::to_vec(&manifest).expect("a JSON value can be written")
}

fn annotate(document: &mut Map<String, Value>, wanted: &[(String, String)]) {
    if wanted.is_empty() {
        return;
    }
    let annotations = document.entry("annotations").or_insert_with(|| json!({}));
    // `"annotations": null` is written by some.
    if !annotations.is_object() {
        *annotations = json!({});
    }
    if let Value::Object(annotations) = annotations {
        for (key, value) in wanted {
            annotations.insert(key.clone(), json!(value));
        }
    }
}

/// `data` is a copy of the old blob.
fn set_blob(descriptor: &mut Map<String, Value>, blob: BlobId) {
    descriptor.insert("digest".to_owned(), json!(blob.digest));
    descriptor.insert("size".to_owned(), json!(blob.size_bytes));
    descriptor.shift_remove("data");
}

/// Compact JSON, keys in the map's order.
pub fn to_json(value: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value can be written")
}
