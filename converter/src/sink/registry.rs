//! A tag in a registry. Blobs are staged in the scratch directory and sent as soon as they are complete, or
//! even as they are made, while later ones are made; then manifests and indexes, those that others name
//! first; the tag last.

use std::path::PathBuf;
use std::sync::Arc;

use crate::blob::Supply;
use crate::image::{BlobId, Digest, RegistryName};
use crate::registry::{Early, Uploads};
use crate::sink::SinkError;
use crate::sink::staged::{StagedBlob, unnamed_file};

/// An image that is being pushed.
#[derive(Debug)]
pub(super) struct RegistrySink {
    uploads: Uploads,
    place: PathBuf,
    scratch: PathBuf,
    tag: String,
    /// A repository of the same registry that has the source's blobs.
    mount_from: Option<String>,
    early: Early,
    /// Whether blobs are sent as they are made, once that is known.
    is_early: Option<bool>,
    manifests: Vec<(Digest, Vec<u8>, String)>,
}

impl RegistrySink {
    pub(super) fn new(
        uploads: Uploads,
        name: &RegistryName,
        scratch: PathBuf,
        mount_from: Option<String>,
        early: Early,
    ) -> Result<Self, SinkError> {
        let place = format!("docker://{name}");
        let tag = match (name.tag(), name.digest()) {
            (Some(tag), None) => tag.to_owned(),
            _ => return Err(SinkError::Digest { reference: place }),
        };
        Ok(Self {
            uploads,
            place: place.into(),
            scratch,
            tag,
            mount_from,
            early,
            is_early: None,
            manifests: Vec::new(),
        })
    }

    pub(super) fn place(&self) -> &PathBuf {
        &self.place
    }

    pub(super) fn stage(&mut self) -> Result<StagedBlob, SinkError> {
        let file = unnamed_file(&self.scratch);
        let (file, named) = file.map_err(|source| SinkError::Write {
            operation: "creating a blob in",
            path: self.scratch.clone(),
            source,
        })?;
        let mut blob = StagedBlob::in_cache(file, named);
        let (uploads, early) = (&self.uploads, self.early);
        if *self
            .is_early
            .get_or_insert_with(|| uploads.are_early(early))
        {
            blob.early = Some(self.uploads.begin_early(Arc::clone(&blob.file))?);
        }
        Ok(blob)
    }

    pub(super) fn has(&self, id: BlobId) -> Result<bool, SinkError> {
        Ok(self.uploads.has(id, self.mount_from.as_deref())?)
    }

    pub(super) fn add(&mut self, id: BlobId, mut blob: StagedBlob) -> Result<(), SinkError> {
        if let Some(early) = blob.early.take() {
            early.finish(id);
            return Ok(());
        }
        let read_back = blob.blob().map_err(|source| SinkError::Write {
            operation: "writing a blob in",
            path: self.scratch.clone(),
            source,
        })?;
        Ok(self.uploads.push(id, read_back)?)
    }

    pub(super) fn pass_on(&mut self, id: BlobId, supply: Arc<dyn Supply>) -> Result<(), SinkError> {
        Ok(self.uploads.pass_on(id, supply)?)
    }

    pub(super) fn add_manifest(&mut self, id: BlobId, bytes: &[u8], media_type: &str) {
        let media_type = media_type.to_owned();
        self.manifests.push((id.digest, bytes.to_vec(), media_type));
    }

    pub(super) fn commit(mut self) -> Result<(), SinkError> {
        self.uploads.finish()?;
        let root = self.manifests.pop();
        for (_, bytes, media_type) in &self.manifests {
            self.uploads.put_manifest(bytes, media_type, None)?;
        }
        if let Some((digest, bytes, media_type)) = root {
            tracing::debug!("{digest} becomes {}", self.place.display());
            self.uploads
                .put_manifest(&bytes, &media_type, Some(&self.tag))?;
        }
        Ok(())
    }
}
