//! Where a source's blobs are, and the documents among them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::Descriptor;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::blob::{Blob, ReadAt as _, Supply};
use crate::image::{BlobId, Digest, Document};
use crate::source::SourceError;
use crate::source::archive::Archive;
use crate::source::containerd::Namespace;
use crate::source::registry::Repository;

/// Indexes, manifests and configurations larger than this are refused; registries refuse
/// manifests of more than 4 MiB.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// What a blob is wanted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobKind {
    Index,
    Manifest,
    Configuration,
    Layer,
    Other,
}

impl BlobKind {
    /// For messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Configuration => "configuration",
            Self::Layer => "layer",
            Self::Other => "blob",
        }
    }
}

/// The files of a source, which are named as in an OCI image layout.
#[derive(Debug)]
pub(super) enum Files {
    /// A directory.
    Directory(PathBuf),
    /// An archive of one.
    Archive(Archive),
}

impl Files {
    /// The directory or archive itself.
    pub(super) fn place(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.clone(),
            Self::Archive(archive) => archive.path().to_owned(),
        }
    }

    /// For messages: a file in it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place().join(name)
    }

    /// # Errors
    /// When the file cannot be opened, `NotFound` if there is none.
    pub(super) fn open(&self, name: &str) -> io::Result<Blob> {
        match self {
            Self::Directory(dir) => Blob::of_file(File::open(dir.join(name))?),
            Self::Archive(archive) => archive
                .member(name)
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }

    /// Reads a document that is found by its name.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let path = self.path(name);
        let blob = self.open(name).map_err(|source| SourceError::Read {
            path: path.clone(),
            source,
        })?;
        let what = || self.path(name).display().to_string();
        read_document(blob, path, what)
    }
}

/// Where the blobs of a source are.
#[derive(Debug)]
enum Place {
    Files(Files),
    Registry(Repository),
    Containerd(Namespace),
}

/// The blobs of a source, by digest.
#[derive(Debug)]
pub(super) struct Store {
    place: Place,
    /// Blobs that no layout holds under their digest.
    apart: HashMap<Digest, Blob>,
}

impl Store {
    pub(super) fn new(files: Files) -> Self {
        Self {
            place: Place::Files(files),
            apart: HashMap::new(),
        }
    }

    pub(super) fn of_registry(repository: Repository) -> Self {
        Self {
            place: Place::Registry(repository),
            apart: HashMap::new(),
        }
    }

    pub(super) fn of_containerd(namespace: Namespace) -> Self {
        Self {
            place: Place::Containerd(namespace),
            apart: HashMap::new(),
        }
    }

    /// With blobs that are found elsewhere.
    pub(super) fn with(self, apart: HashMap<Digest, Blob>) -> Self {
        Self { apart, ..self }
    }

    pub(super) fn place(&self) -> PathBuf {
        match &self.place {
            Place::Files(files) => files.place(),
            Place::Registry(repository) => repository.place().into(),
            Place::Containerd(namespace) => namespace.place().into(),
        }
    }

    /// Whether blobs have to be kept in the scratch directory.
    pub(super) fn is_remote(&self) -> bool {
        match &self.place {
            Place::Files(_) => false,
            Place::Registry(_) => true,
            Place::Containerd(namespace) => namespace.is_remote(),
        }
    }

    /// Says which blobs will be opened next, and read to their ends and checked.
    ///
    /// # Errors
    /// When there is no room for them.
    pub(super) fn announce(&self, ids: &[BlobId]) -> Result<(), SourceError> {
        match &self.place {
            Place::Files(_) => Ok(()),
            Place::Registry(repository) => repository.announce(ids),
            Place::Containerd(namespace) => namespace.announce(ids),
        }
    }

    /// Says that a blob will not be opened again, and need not be kept in the scratch directory.
    pub(super) fn forget(&self, id: BlobId) {
        match &self.place {
            Place::Registry(repository) => repository.forget(id),
            Place::Containerd(namespace) => namespace.forget(id),
            Place::Files(_) => {}
        }
    }

    /// Where a blob lies, for messages.
    fn path(&self, digest: Digest) -> PathBuf {
        match &self.place {
            Place::Files(files) => files.path(&blob_name(digest)),
            Place::Registry(repository) => repository.place().into(),
            Place::Containerd(namespace) => namespace.place().into(),
        }
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub(super) fn open_blob(&self, kind: BlobKind, id: BlobId) -> Result<Blob, SourceError> {
        if let Some(blob) = self.apart.get(&id.digest) {
            return Ok(blob.clone());
        }
        let found = match &self.place {
            Place::Files(files) => match files.open(&blob_name(id.digest)) {
                Ok(blob) => Some(blob),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(source) => {
                    let path = self.path(id.digest);
                    return Err(SourceError::Read { path, source });
                }
            },
            Place::Registry(repository) => repository.open_blob(kind, id)?,
            Place::Containerd(namespace) => namespace.open_blob(id)?,
        };
        found.ok_or_else(|| SourceError::MissingBlob {
            what: kind.name(),
            digest: id.digest,
            path: self.path(id.digest),
        })
    }

    /// A blob that is passed on as it is. One that is far away is not asked for before it is read.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub(super) fn supply(
        &self,
        kind: BlobKind,
        id: BlobId,
    ) -> Result<Arc<dyn Supply>, SourceError> {
        match &self.place {
            Place::Registry(repository) if !self.apart.contains_key(&id.digest) => {
                Ok(repository.supply(id))
            }
            _ => Ok(Arc::new(self.open_blob(kind, id)?)),
        }
    }

    /// Reads, checks and parses a JSON blob.
    ///
    /// # Errors
    /// When it is missing, not what `descriptor` says, or not valid.
    pub(super) fn document<T: DeserializeOwned>(
        &self,
        kind: BlobKind,
        descriptor: &Descriptor,
    ) -> Result<Document<T>, SourceError> {
        let what = kind.name();
        let name = || format!("{what} {}", descriptor.digest());
        let id = blob_id(descriptor, name)?;
        let bytes = self.checked(kind, id)?;
        Ok(Document {
            raw: parse::<Map<String, Value>>(&bytes, name)?,
            parsed: parse(&bytes, name)?,
            id,
        })
    }
}

impl Store {
    /// Reads a manifest of any kind.
    ///
    /// # Errors
    /// When it is missing, or not what `descriptor` says.
    pub(super) fn manifest(&self, descriptor: &Map<String, Value>) -> Result<Vec<u8>, SourceError> {
        let what = || "a carried manifest's descriptor".to_owned();
        let descriptor: Descriptor =
            serde_json::from_value(descriptor.clone().into()).map_err(|error| {
                SourceError::Invalid {
                    what: what(),
                    reason: error.to_string(),
                }
            })?;
        self.checked(BlobKind::Manifest, blob_id(&descriptor, what)?)
    }

    /// Reads a document, and checks its digest.
    fn checked(&self, kind: BlobKind, id: BlobId) -> Result<Vec<u8>, SourceError> {
        let what = kind.name();
        let name = || format!("{what} {}", id.digest);
        if id.size_bytes > MAX_DOCUMENT_BYTES {
            return Err(too_large(name(), id.size_bytes));
        }
        let path = self.path(id.digest);
        let bytes = read_document(self.open_blob(kind, id)?, path, name)?;
        let found = BlobId::of(&bytes);
        if found != id {
            return Err(SourceError::Damaged {
                what,
                digest: id.digest,
                expected_bytes: id.size_bytes,
                found,
            });
        }
        Ok(bytes)
    }
}

/// Where a layout keeps the blob.
pub(super) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(super) fn blob_id(
    descriptor: &Descriptor,
    what: impl FnOnce() -> String,
) -> Result<BlobId, SourceError> {
    BlobId::from_descriptor(descriptor).map_err(|source| SourceError::Digest {
        what: what(),
        source,
    })
}

/// Reads a whole document. `path` is where it lies.
pub(super) fn read_document(
    blob: Blob,
    path: PathBuf,
    what: impl FnOnce() -> String,
) -> Result<Vec<u8>, SourceError> {
    if blob.len_bytes() > MAX_DOCUMENT_BYTES {
        return Err(too_large(what(), blob.len_bytes()));
    }
    let mut bytes = Vec::new();
    blob.take(MAX_DOCUMENT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| SourceError::Read { path, source })?;
    Ok(bytes)
}

fn too_large(what: String, size_bytes: u64) -> SourceError {
    SourceError::TooLarge {
        what,
        size_bytes,
        limit_bytes: MAX_DOCUMENT_BYTES,
    }
}

/// Parses a document. Deeply nested JSON is an error: the parser stops at 128 levels.
pub(super) fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    what: impl FnOnce() -> String,
) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| SourceError::Invalid {
        what: what(),
        reason: error.to_string(),
    })
}
