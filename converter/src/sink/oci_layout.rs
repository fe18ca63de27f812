//! OCI image layout directories (OCI image specification, image-layout.md).
//!
//! Blobs are written to files without a name (`O_TMPFILE`) in the destination's own file system
//! and get their names only at the end; the index is renamed into place last. A new layout is
//! made beside its place and renamed there as a whole.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::image::BlobId;
use crate::image::manifest::to_json;
use crate::sink::index::{LAYOUT, extend_index};
use crate::sink::staged::{StagedBlob, give_name, unnamed_file};
use crate::sink::{SinkError, parent, sync_dir};
use crate::unfinished::{self, HiddenDirectory};

/// A layout to which one image is being added.
#[derive(Debug)]
pub(super) struct OciLayoutSink {
    dir: PathBuf,
    tag: Option<String>,
    /// The existing index, or none for a new layout.
    index: Option<Map<String, Value>>,
    /// An existing directory in the destination's file system.
    staging: PathBuf,
    blobs: Vec<(BlobId, StagedBlob)>,
}

impl OciLayoutSink {
    /// Looks at the destination; changes nothing.
    ///
    /// # Errors
    /// When it is something else than a layout, or its parent directory does not exist.
    pub(super) fn open(dir: &Path, tag: Option<&str>) -> Result<Self, SinkError> {
        let index_path = dir.join("index.json");
        let index = match std::fs::read(&index_path) {
            Ok(bytes) => Some(parse_index(&index_path, &bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(SinkError::NotALayout {
                    path: dir.to_owned(),
                });
            }
            Err(source) => {
                return Err(SinkError::Write {
                    operation: "reading",
                    path: index_path,
                    source,
                });
            }
        };
        let is_new = match std::fs::read_dir(dir) {
            Ok(mut entries) => {
                if index.is_none() && entries.next().is_some() {
                    return Err(SinkError::NotALayout {
                        path: dir.to_owned(),
                    });
                }
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(source) => {
                return Err(SinkError::Write {
                    operation: "reading",
                    path: dir.to_owned(),
                    source,
                });
            }
        };
        let staging = if is_new { parent(dir) } else { dir.to_owned() };
        let metadata = std::fs::metadata(&staging).and_then(|metadata| {
            if metadata.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        metadata.map_err(|source| SinkError::Write {
            operation: "writing to",
            path: staging.clone(),
            source,
        })?;
        let tag = tag.map(str::to_owned);
        Ok(Self {
            dir: dir.to_owned(),
            tag,
            index,
            staging,
            blobs: Vec::new(),
        })
    }

    /// The layout's directory, which may not exist yet.
    pub(super) fn directory(&self) -> &Path {
        &self.dir
    }

    /// A file for a blob whose digest is not known yet.
    ///
    /// # Errors
    /// When none can be made in the destination's file system.
    pub(super) fn stage(&self) -> Result<StagedBlob, SinkError> {
        let (file, named) = unnamed_file(&self.staging)
            .map_err(|source| self.error("creating a blob in", &self.staging, source))?;
        Ok(StagedBlob::in_file(file, named))
    }

    /// Takes over a completely written blob.
    ///
    /// # Errors
    /// When the last of it cannot be written, or it cannot be synced to disk.
    pub(super) fn add(&mut self, id: BlobId, mut blob: StagedBlob) -> Result<(), SinkError> {
        blob.flush()
            .map_err(|source| self.error("writing a blob in", &self.staging, source))?;
        blob.file
            .sync_data()
            .map_err(|source| self.error("syncing a blob in", &self.staging, source))?;
        self.blobs.push((id, blob));
        Ok(())
    }

    /// Makes the image visible: names the blobs, then the index.
    ///
    /// # Errors
    /// When a step fails; the destination has its old index then, or does not exist.
    pub(super) fn commit(mut self, descriptor: Map<String, Value>) -> Result<(), SinkError> {
        let index = extend_index(self.index.take(), descriptor, self.tag.as_deref());
        let index = to_json(&index);
        unfinished::remove_abandoned(&parent(&self.dir));
        unfinished::remove_abandoned(&self.dir);
        if self.staging == self.dir {
            return self.fill(&self.dir.clone(), &index);
        }
        let staging = HiddenDirectory::new(&self.staging, "layout")
            .map_err(|source| self.error("creating a directory in", &self.staging, source))?;
        self.fill(staging.path(), &index)?;
        std::fs::rename(staging.path(), &self.dir)
            .map_err(|source| self.error("renaming to", &self.dir, source))?;
        staging.keep();
        sync_dir(&self.staging).map_err(|source| self.error("syncing", &self.staging, source))
    }

    /// Puts everything into the layout at `root`, the index last.
    fn fill(&mut self, root: &Path, index: &[u8]) -> Result<(), SinkError> {
        let mut made = MadeNames::default();
        for dir in ["blobs", "blobs/sha256"].map(|dir| root.join(dir)) {
            match std::fs::create_dir(&dir) {
                Ok(()) => made.directories.push(dir),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(self.error("creating", &dir, source)),
            }
        }
        let blobs_dir = root.join("blobs/sha256");
        for (id, blob) in std::mem::take(&mut self.blobs) {
            let path = blobs_dir.join(id.digest.hex());
            match name_blob(blob, &path) {
                Ok(()) => made.files.push(path),
                // A blob that is there already has the same contents.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(self.error("naming", &path, source)),
            }
        }
        sync_dir(&blobs_dir).map_err(|source| self.error("syncing", &blobs_dir, source))?;
        let marker = root.join("oci-layout");
        if !marker.exists() {
            self.replace(&marker, LAYOUT)?;
            made.files.push(marker);
        }
        self.replace(&root.join("index.json"), index)?;
        made.keep();
        sync_dir(root).map_err(|source| self.error("syncing", root, source))
    }

    /// Writes a small file under a temporary name and renames it.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), SinkError> {
        let write = || -> io::Result<()> {
            let mut file = unfinished::hidden_file(&parent(path), "index")?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|source| self.error("writing", path, source))
    }

    #[allow(
        clippy::unused_self,
        reason = "reads as a method of the sink at every call"
    )]
    fn error(&self, operation: &'static str, path: &Path, source: io::Error) -> SinkError {
        SinkError::Write {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// What an image added to a layout before the index names it; taken back when dropped.
#[derive(Debug, Default)]
struct MadeNames {
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl MadeNames {
    fn keep(&mut self) {
        self.files.clear();
        self.directories.clear();
    }
}

impl Drop for MadeNames {
    fn drop(&mut self) {
        // A failure is being reported already; what cannot be removed harms nobody.
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
        for directory in self.directories.iter().rev() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Gives a staged blob its name.
///
/// # Errors
/// `AlreadyExists` if the name is taken.
fn name_blob(blob: StagedBlob, path: &Path) -> io::Result<()> {
    // A file with a name would be renamed over it.
    if blob.named.is_some() && path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    give_name(&blob.file, blob.named, path)
}

fn parse_index(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, SinkError> {
    let invalid = |reason: String| SinkError::Index {
        path: path.to_owned(),
        reason,
    };
    let index: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    match index.get("manifests") {
        Some(Value::Array(_)) => Ok(index),
        _ => Err(invalid("it has no list of manifests".to_owned())),
    }
}
