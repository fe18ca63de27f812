//! One image for one platform.

use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use serde_json::{Map, Value};

use crate::blob::{Blob, Supply};
use crate::image::manifest::{TOC_DIGEST, UNCOMPRESSED_SIZE};
use crate::image::{BlobId, Digest, Document, ImageRef, Platform};
use crate::source::SourceError;
use crate::source::store::{BlobKind, Store, blob_id};

/// An image whose manifest and configuration have been read.
#[derive(Debug)]
pub struct SourceImage {
    /// How the user named it.
    pub reference: ImageRef,
    /// What it runs on, by its configuration or else by the index that lists it.
    pub platform: Platform,
    /// The descriptor of its manifest, as the index has it.
    pub descriptor: Map<String, Value>,
    /// The platform's manifest.
    pub manifest: Document<ImageManifest>,
    /// The image's configuration.
    pub config: Document<ImageConfiguration>,
    /// The layers, base first.
    pub layers: Vec<SourceLayer>,
    store: Arc<Store>,
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
    /// The length of its tar that the manifest gives, if the layer is eStargz already.
    pub uncompressed_bytes: Option<u64>,
    /// Where a foreign layer is kept.
    pub url: Option<String>,
}

impl SourceImage {
    /// Reads manifest and configuration. `None` if the manifest is not that of an image.
    ///
    /// # Errors
    /// When one is missing, damaged, or of a kind that cannot be converted.
    pub(super) fn open(
        reference: &ImageRef,
        store: &Arc<Store>,
        raw: &Map<String, Value>,
        descriptor: &Descriptor,
    ) -> Result<Option<Self>, SourceError> {
        let manifest: Document<ImageManifest> = store.document(BlobKind::Manifest, descriptor)?;
        if !is_image(&manifest.parsed) {
            return Ok(None);
        }
        let config: Document<ImageConfiguration> =
            store.document(BlobKind::Configuration, manifest.parsed.config())?;
        let platform = Platform::of_object(&config.raw)
            .or_else(|| Platform::of_object(raw.get("platform")?.as_object()?))
            .unwrap_or_else(|| Platform::new("", "", ""));
        let layers = layers(&manifest, &config)?;
        Ok(Some(Self {
            reference: reference.clone(),
            platform,
            descriptor: raw.clone(),
            manifest,
            config,
            layers,
            store: Arc::clone(store),
        }))
    }

    /// Whether blobs have to be kept in the scratch directory.
    pub fn is_remote(&self) -> bool {
        self.store.is_remote()
    }

    /// Says which layers will be scanned next, and in which order: a source that is far away begins to
    /// fetch them, and leaves it to the scan to check them.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn announce(&self, layers: &[&SourceLayer]) -> Result<(), SourceError> {
        // What is kept elsewhere may not be here at all.
        let layers = layers.iter().filter(|layer| layer.url.is_none());
        let ids: Vec<BlobId> = layers.map(|layer| layer.blob).collect();
        self.store.announce(&ids)
    }

    /// Says that a layer will not be opened again: a source that is far away gives up what it has fetched.
    pub fn forget(&self, layer: &SourceLayer) {
        self.store.forget(layer.blob);
    }

    /// Opens a layer's blob.
    ///
    /// # Errors
    /// When it is missing.
    pub fn open_layer(&self, layer: &SourceLayer) -> Result<Blob, SourceError> {
        let opened = self.store.open_blob(BlobKind::Layer, layer.blob);
        self.or_foreign(layer, opened)
    }

    /// A layer's blob, to be passed on as it is. One that is far away is not asked for before it is read.
    ///
    /// # Errors
    /// When it is missing.
    pub fn supply_layer(&self, layer: &SourceLayer) -> Result<Arc<dyn Supply>, SourceError> {
        let supply = self.store.supply(BlobKind::Layer, layer.blob);
        self.or_foreign(layer, supply)
    }

    fn or_foreign<T>(
        &self,
        layer: &SourceLayer,
        opened: Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        match (opened, &layer.url) {
            (Err(SourceError::MissingBlob { digest, .. }), Some(url)) => {
                Err(SourceError::ForeignLayer {
                    digest,
                    url: url.chars().take(200).collect(),
                    place: self.store.place(),
                })
            }
            (opened, _) => opened,
        }
    }
}

/// Whether the manifest's configuration is that of an image.
pub(super) fn is_image(manifest: &ImageManifest) -> bool {
    let media_type = manifest.config().media_type().to_string();
    media_type.contains("image.config") || media_type.contains("container.image")
}

fn layers(
    manifest: &Document<ImageManifest>,
    config: &Document<ImageConfiguration>,
) -> Result<Vec<SourceLayer>, SourceError> {
    let descriptors = manifest.parsed.layers();
    let diff_ids = config.parsed.rootfs().diff_ids();
    let config_what = || format!("configuration {}", config.id.digest);
    if descriptors.len() != diff_ids.len() {
        return Err(SourceError::Invalid {
            what: config_what(),
            reason: format!(
                "it has {} DiffIDs for the manifest's {} layers",
                diff_ids.len(),
                descriptors.len()
            ),
        });
    }
    descriptors
        .iter()
        .zip(diff_ids)
        .map(|(descriptor, diff_id)| {
            let media_type = descriptor.media_type().to_string();
            let what = || format!("layer {}", descriptor.digest());
            if !is_layer(&media_type) {
                return Err(SourceError::MediaType {
                    what: what(),
                    media_type,
                });
            }
            Ok(SourceLayer {
                blob: blob_id(descriptor, what)?,
                diff_id: diff_id.parse().map_err(|source| SourceError::Digest {
                    what: config_what(),
                    source,
                })?,
                media_type,
                toc_digest: annotation(descriptor, TOC_DIGEST).cloned(),
                uncompressed_bytes: annotation(descriptor, UNCOMPRESSED_SIZE)
                    .and_then(|size| size.parse().ok()),
                url: descriptor
                    .urls()
                    .as_ref()
                    .and_then(|urls| urls.first())
                    .cloned(),
            })
        })
        .collect()
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a String> {
    descriptor.annotations().as_ref()?.get(key)
}

/// Tar layers in any compression. Encrypted ones cannot be converted; foreign ones can if their blob
/// is here.
fn is_layer(media_type: &str) -> bool {
    const BASES: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    BASES.iter().any(|base| {
        media_type
            .strip_prefix(base)
            .is_some_and(|suffix| matches!(suffix, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    })
}
