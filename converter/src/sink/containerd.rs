//! An image in containerd. Blobs are staged in the scratch directory and ingested as soon as they are complete,
//! while later ones are made; then manifests and indexes, those that others name first; the image's name last.
//! Until then a lease holds them.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::containerd::labels::{UNCOMPRESSED, add_origin, gc_labels, kept_labels};
use crate::containerd::{Containerd, ContainerdError, Ingests};
use crate::image::{BlobId, Digest, RegistryName};
use crate::sink::staged::{StagedBlob, unnamed_file};
use crate::sink::{ImageBlobs, SinkError};

/// An image that is being written.
#[derive(Debug)]
pub(super) struct ContainerdSink {
    ingests: Ingests,
    name: String,
    place: PathBuf,
    scratch: PathBuf,
    /// The repository that has all blobs, if they are copies.
    origin: Option<RegistryName>,
    manifests: Vec<(Digest, Vec<u8>)>,
}

impl ContainerdSink {
    pub(super) fn new(
        containerd: Containerd,
        name: &str,
        scratch: PathBuf,
        origin: Option<RegistryName>,
    ) -> Self {
        Self {
            ingests: Ingests::new(containerd),
            name: name.to_owned(),
            place: format!("containerd:{name}").into(),
            scratch,
            origin,
            manifests: Vec::new(),
        }
    }

    pub(super) fn place(&self) -> &PathBuf {
        &self.place
    }

    pub(super) fn stage(&self) -> Result<StagedBlob, SinkError> {
        let file = unnamed_file(&self.scratch);
        let (file, named) = file.map_err(|source| SinkError::Write {
            operation: "creating a blob in",
            path: self.scratch.clone(),
            source,
        })?;
        Ok(StagedBlob::in_cache(file, named))
    }

    pub(super) fn has(&self, id: BlobId) -> Result<bool, SinkError> {
        let info = self.ingests.containerd().blob_info(id.digest)?;
        Ok(info.is_some_and(|info| info.size_bytes == id.size_bytes))
    }

    pub(super) fn add(&mut self, id: BlobId, mut blob: StagedBlob) -> Result<(), SinkError> {
        let read_back = blob.blob().map_err(|source| SinkError::Write {
            operation: "writing a blob in",
            path: self.scratch.clone(),
            source,
        })?;
        Ok(self.ingests.write(id, read_back)?)
    }

    pub(super) fn add_manifest(&mut self, id: BlobId, bytes: &[u8]) {
        self.manifests.push((id.digest, bytes.to_vec()));
    }

    pub(super) fn commit(
        mut self,
        descriptor: &Map<String, Value>,
        images: &[ImageBlobs],
        image_labels: &HashMap<String, String>,
    ) -> Result<(), SinkError> {
        self.ingests.finish()?;
        let is_copy = |image: &ImageBlobs| image.manifest.digest == image.source_manifest;
        if !images.iter().all(is_copy) {
            self.origin = None;
        }
        let containerd = self.ingests.containerd();
        let mut made_from = HashMap::new();
        for image in images {
            for layer in &image.layers {
                // One that a snapshotter gets by itself is not here.
                if containerd.blob_info(layer.id.digest)?.is_some() {
                    let mut labels = self.labels_of(layer.id.digest, layer.source)?;
                    labels.insert(UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
                    containerd.set_labels(layer.id.digest, &labels)?;
                }
            }
            let config = image.config.digest;
            let labels = self.labels_of(config, image.source_config)?;
            containerd.set_labels(config, &labels)?;
            made_from.insert(image.manifest.digest, image.source_manifest);
        }
        for (digest, bytes) in &self.manifests {
            let source = made_from.get(digest).unwrap_or(digest);
            let mut labels = self.labels_of(*digest, *source)?;
            labels.extend(gc_labels(bytes));
            self.ingests.write_labelled(bytes, &labels)?;
        }
        containerd.put_image(&self.name, descriptor, image_labels)?;
        self.ingests.release();
        Ok(())
    }

    /// The labels of what was made of a source's blob: that blob's own which are true of it, too, if it is
    /// in the same namespace; and of a copy where else it can be had.
    fn labels_of(
        &self,
        digest: Digest,
        source: Digest,
    ) -> Result<HashMap<String, String>, ContainerdError> {
        let info = self.ingests.containerd().blob_info(source)?;
        let mut labels = info
            .map(|info| kept_labels(info.labels))
            .unwrap_or_default();
        if digest == source
            && let Some(origin) = &self.origin
        {
            add_origin(&mut labels, origin);
        }
        Ok(labels)
    }
}
