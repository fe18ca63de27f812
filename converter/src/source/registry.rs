//! Images in registries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use crate::blob::{Arriving, Blob, Supply};
use crate::image::{BlobId, Digest};
use crate::registry::{Check, PulledManifest, Registry, RegistryError};
use crate::source::SourceError;
use crate::source::store::BlobKind;

/// A repository, and what was fetched of it. Blobs stay in the scratch directory until they are forgotten.
#[derive(Debug)]
pub(super) struct Repository {
    registry: Registry,
    /// Manifests and indexes.
    documents: Mutex<HashMap<Digest, Blob>>,
    /// All other blobs, some of which are on their way.
    arriving: Mutex<HashMap<Digest, Arc<Arriving>>>,
}

impl Repository {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry,
            documents: Mutex::default(),
            arriving: Mutex::default(),
        }
    }

    /// For messages: the image, with its transport.
    pub(super) fn place(&self) -> String {
        format!("docker://{}", self.registry.name())
    }

    /// The descriptor of what the image's name means.
    pub(super) fn find(&self) -> Result<Map<String, Value>, SourceError> {
        let name = self.registry.name();
        let reference = match name.digest() {
            Some(digest) => digest.to_string(),
            None => name.tag().unwrap_or("latest").to_owned(),
        };
        let manifest = self.manifest(&reference)?;
        let mut descriptor = Map::new();
        descriptor.insert("mediaType".to_owned(), json!(manifest.media_type));
        descriptor.insert("digest".to_owned(), json!(manifest.id.digest));
        descriptor.insert("size".to_owned(), json!(manifest.id.size_bytes));
        Ok(descriptor)
    }

    fn manifest(&self, reference: &str) -> Result<PulledManifest, RegistryError> {
        let manifest = self.registry.manifest(reference)?;
        let blob = Blob::of_bytes(manifest.bytes.clone());
        lock(&self.documents).insert(manifest.id.digest, blob);
        Ok(manifest)
    }

    /// Begins to fetch blobs that will be needed, in this order, by readers who check them.
    pub(super) fn announce(&self, ids: &[BlobId]) -> Result<(), SourceError> {
        for &id in ids {
            self.arriving(id, Check::ByReader)?;
        }
        Ok(())
    }

    /// Gives up a blob that is not needed again.
    pub(super) fn forget(&self, id: BlobId) {
        lock(&self.arriving).remove(&id.digest);
    }

    /// `None` if the repository has no such blob.
    pub(super) fn open_blob(
        &self,
        kind: BlobKind,
        id: BlobId,
    ) -> Result<Option<Blob>, SourceError> {
        if let Some(blob) = lock(&self.documents).get(&id.digest) {
            return Ok(Some(blob.clone()));
        }
        if matches!(kind, BlobKind::Index | BlobKind::Manifest) {
            return match self.manifest(&id.digest.to_string()) {
                Ok(manifest) => Ok(Some(Blob::of_bytes(manifest.bytes))),
                Err(RegistryError::Missing { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        let arriving = self.arriving(id, Check::Here)?;
        match arriving.wait_for_begin() {
            Ok(()) => Ok(Some(Blob::arriving(arriving))),
            Err(failure) => match failure.get().downcast_ref() {
                Some(RegistryError::Missing { .. }) => Ok(None),
                Some(RegistryError::Cancelled(cancelled)) => Err((*cancelled).into()),
                _ => Err(SourceError::NotArrived {
                    place: self.place(),
                    source: failure,
                }),
            },
        }
    }

    /// A blob that is passed on: fetched when it is read, and not kept, unless it is here already.
    pub(super) fn supply(&self, id: BlobId) -> Arc<dyn Supply> {
        if let Some(blob) = lock(&self.documents).get(&id.digest) {
            return Arc::new(blob.clone());
        }
        let known = lock(&self.arriving).get(&id.digest).cloned();
        match known.filter(|known| known.len_bytes() == id.size_bytes) {
            Some(arriving) => Arc::new(Blob::arriving(arriving)),
            None => Arc::new(self.registry.remote(id)),
        }
    }

    fn arriving(&self, id: BlobId, check: Check) -> Result<Arc<Arriving>, RegistryError> {
        let mut arriving = lock(&self.arriving);
        if let Some(known) = arriving.get(&id.digest)
            && known.len_bytes() == id.size_bytes
        {
            return Ok(Arc::clone(known));
        }
        let new = self.registry.blob(id, check)?;
        arriving.insert(id.digest, Arc::clone(&new));
        Ok(new)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
