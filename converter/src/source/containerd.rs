//! Images in containerd.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::blob::Blob;
use crate::containerd::{Containerd, ContainerdError};
use crate::image::{BlobId, Digest};
use crate::source::SourceError;

/// A namespace, and what was opened of it. What it names stays until it is forgotten.
#[derive(Debug)]
pub(super) struct Namespace {
    containerd: Containerd,
    /// The image's name.
    name: String,
    opened: Mutex<HashMap<Digest, Blob>>,
}

impl Namespace {
    pub(super) fn new(containerd: Containerd, name: &str) -> Self {
        Self {
            containerd,
            name: name.to_owned(),
            opened: Mutex::default(),
        }
    }

    /// For messages: the image, with its transport.
    pub(super) fn place(&self) -> String {
        format!("containerd:{}", self.name)
    }

    /// The descriptor of what the image's name means.
    pub(super) fn find(&self) -> Result<Map<String, Value>, SourceError> {
        let target = self.containerd.image(&self.name)?.target;
        // By its labels it holds all below, until the lease ends.
        let digest = target.get("digest").and_then(Value::as_str);
        if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
            self.containerd.blob_info(digest)?;
        }
        Ok(target)
    }

    /// Whether blobs come as messages, and have to be kept in the scratch directory.
    pub(super) fn is_remote(&self) -> bool {
        !self.containerd.reads_files()
    }

    /// Begins to fetch blobs that will be needed, in this order, where they come as messages.
    pub(super) fn announce(&self, ids: &[BlobId]) -> Result<(), SourceError> {
        if self.is_remote() {
            for &id in ids {
                self.open_blob(id)?;
            }
        }
        Ok(())
    }

    /// Gives up a blob that is not needed again.
    pub(super) fn forget(&self, id: BlobId) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.remove(&id.digest);
    }

    /// `None` if the namespace has no such blob.
    pub(super) fn open_blob(&self, id: BlobId) -> Result<Option<Blob>, ContainerdError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = opened.get(&id.digest) {
            return Ok(Some(blob.clone()));
        }
        let blob = self.containerd.open_blob(id.digest)?;
        if let Some(blob) = &blob {
            opened.insert(id.digest, blob.clone());
        }
        Ok(blob)
    }
}
