//! OCI image layout directories (OCI image specification, image-layout.md).
//!
//! Blobs are written to files without a name (`O_TMPFILE`) in the destination's own file system
//! and get their names only at the end; the index is renamed into place last. A new layout is
//! made beside its place and renamed there as a whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde_json::{Map, Value, json};

use crate::image::BlobId;
use crate::image::manifest::{INDEX, MANIFEST, REF_NAME, to_json};
use crate::sink::SinkError;

/// A layout to which one image is being added.
#[derive(Debug)]
pub struct OciLayoutSink {
    dir: PathBuf,
    tag: Option<String>,
    /// The existing index, or none for a new layout.
    index: Option<Map<String, Value>>,
    /// An existing directory in the destination's file system.
    staging: PathBuf,
    blobs: Vec<(BlobId, StagedBlob)>,
}

/// A blob that has no name yet.
#[derive(Debug)]
pub struct StagedBlob {
    file: File,
    /// Where `O_TMPFILE` is missing: a file with a name, removed when dropped.
    named: Option<tempfile::TempPath>,
}

impl StagedBlob {
    /// The file, for reading back.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Write for &StagedBlob {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&self.file).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OciLayoutSink {
    /// Looks at the destination; changes nothing.
    ///
    /// # Errors
    /// When it is something else than a layout, or its parent directory does not exist.
    pub fn open(dir: &Path, tag: Option<&str>) -> Result<Self, SinkError> {
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
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// A file for a blob whose digest is not known yet.
    ///
    /// # Errors
    /// When none can be made in the destination's file system.
    pub fn stage(&self) -> Result<StagedBlob, SinkError> {
        let mode = Mode::from_raw_mode(0o644);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&self.staging, flags, mode) {
            Ok(fd) => Ok(StagedBlob {
                file: fd.into(),
                named: None,
            }),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => self.stage_named(),
            Err(error) => Err(self.error("creating a blob in", &self.staging, error.into())),
        }
    }

    fn stage_named(&self) -> Result<StagedBlob, SinkError> {
        let named = tempfile::Builder::new()
            .prefix(".esgz-blob-")
            .tempfile_in(&self.staging)
            .map_err(|source| self.error("creating a blob in", &self.staging, source))?;
        let (file, path) = named.into_parts();
        Ok(StagedBlob {
            file,
            named: Some(path),
        })
    }

    /// Takes over a completely written blob.
    ///
    /// # Errors
    /// When it cannot be synced to disk.
    pub fn add(&mut self, id: BlobId, blob: StagedBlob) -> Result<(), SinkError> {
        blob.file
            .sync_data()
            .map_err(|source| self.error("syncing a blob in", &self.staging, source))?;
        self.blobs.push((id, blob));
        Ok(())
    }

    /// Adds a small blob.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> Result<BlobId, SinkError> {
        let id = BlobId::of(bytes);
        let blob = self.stage()?;
        (&blob)
            .write_all(bytes)
            .map_err(|source| self.error("writing a blob in", &self.staging, source))?;
        self.add(id, blob)?;
        Ok(id)
    }

    /// Makes the image visible: names the blobs, then the index. Gives the path of the layout.
    ///
    /// # Errors
    /// When a step fails; the destination has its old index then, or does not exist.
    pub fn commit(mut self, manifest: &[u8], platform: &Value) -> Result<PathBuf, SinkError> {
        let id = self.add_bytes(manifest)?;
        let index = to_json(&extend_index(
            self.index.take(),
            id,
            self.tag.as_deref(),
            platform,
        ));
        if self.staging == self.dir {
            self.fill(&self.dir.clone(), &index)?;
            return Ok(self.dir);
        }
        let staging = tempfile::Builder::new()
            .prefix(".esgz-layout-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(&self.staging)
            .map_err(|source| self.error("creating a directory in", &self.staging, source))?;
        self.fill(staging.path(), &index)?;
        std::fs::rename(staging.path(), &self.dir)
            .map_err(|source| self.error("renaming to", &self.dir, source))?;
        let _moved = staging.keep();
        sync_dir(&self.staging).map_err(|source| self.error("syncing", &self.staging, source))?;
        Ok(self.dir)
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
            self.replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
            made.files.push(marker);
        }
        self.replace(&root.join("index.json"), index)?;
        made.keep();
        sync_dir(root).map_err(|source| self.error("syncing", root, source))
    }

    /// Writes a small file under a temporary name and renames it.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), SinkError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".esgz-")
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                .tempfile_in(parent(path))?;
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
    if let Some(named) = blob.named {
        return named.persist_noclobber(path).map_err(|error| error.error);
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(&blob.file);
    let from = format!("/proc/self/fd/{fd}");
    rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The directory that holds `path`.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
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

/// The index with the image added; an entry of the same name is replaced.
fn extend_index(
    index: Option<Map<String, Value>>,
    manifest: BlobId,
    tag: Option<&str>,
    platform: &Value,
) -> Map<String, Value> {
    let mut index = index.unwrap_or_else(|| {
        let mut index = Map::new();
        index.insert("schemaVersion".to_owned(), json!(2));
        index.insert("mediaType".to_owned(), json!(INDEX));
        index.insert("manifests".to_owned(), json!([]));
        index
    });
    let mut descriptor = json!({
        "mediaType": MANIFEST,
        "digest": manifest.digest,
        "size": manifest.size_bytes,
    });
    if !platform.is_null() {
        descriptor["platform"] = platform.clone();
    }
    if let Some(tag) = tag {
        descriptor["annotations"] = json!({ REF_NAME: tag });
    }
    if let Some(Value::Array(manifests)) = index.get_mut("manifests") {
        let name = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(str::to_owned);
        let digest = json!(manifest.digest);
        manifests.retain(|entry| match tag {
            Some(tag) => name(entry).as_deref() != Some(tag),
            // Without a name the image takes the place of the unnamed one, as skopeo has it.
            None => name(entry).is_some() && entry["digest"] != digest,
        });
        manifests.push(descriptor);
    }
    index
}
