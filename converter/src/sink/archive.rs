//! Archives: a tar of an OCI image layout, and for Docker a `manifest.json` in it.
//!
//! The archive is written from front to back to a file without a name beside the destination. A blob
//! is written where it stays; its header follows when its size and digest are known. Members have
//! no times, owners or names of users, and stand in the order in which they are made, so the same
//! image gives the same bytes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::image::manifest::{CONTAINERD_NAME, to_json};
use crate::image::{BlobId, Digest, DockerName};
use crate::sink::index::{LAYOUT, extend_index};
use crate::sink::staged::{StagedBlob, give_name, unnamed_file};
use crate::sink::{ImageBlobs, SinkError, parent, sync_dir};
use crate::unfinished::{self, HiddenDirectory};

const BLOCK_BYTES: u64 = 512;

/// What reads the archive.
#[derive(Debug)]
pub(super) enum ArchiveKind {
    /// An OCI layout alone, with the image's tag.
    Oci { tag: Option<String> },
    /// With `manifest.json`, as `docker save` does since version 25.
    Docker { name: Option<DockerName> },
}

/// An archive that is being written.
#[derive(Debug)]
pub(super) struct ArchiveSink {
    path: PathBuf,
    kind: ArchiveKind,
    /// The directory of `path`.
    parent: PathBuf,
    out: Option<(Arc<File>, Option<tempfile::TempPath>)>,
    /// Where the next member begins.
    end_bytes: u64,
    digests: HashSet<Digest>,
}

impl ArchiveSink {
    /// Looks at the destination; changes nothing.
    pub(super) fn open(path: &Path, kind: ArchiveKind) -> Result<Self, SinkError> {
        let read_error = |source| SinkError::Write {
            operation: "reading",
            path: path.to_owned(),
            source,
        };
        let path = match std::fs::metadata(path) {
            Ok(metadata) => {
                let is_ours = metadata.is_file()
                    && (metadata.len() == 0 || is_tar(path).map_err(read_error)?);
                if !is_ours {
                    return Err(SinkError::NotAnArchive {
                        path: path.to_owned(),
                    });
                }
                // A link stays; what it points to is replaced.
                std::fs::canonicalize(path).map_err(read_error)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(source) => return Err(read_error(source)),
        };
        let parent = parent(&path);
        let is_dir = std::fs::metadata(&parent).and_then(|metadata| {
            if metadata.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        });
        is_dir.map_err(|source| SinkError::Write {
            operation: "writing to",
            path: parent.clone(),
            source,
        })?;
        Ok(Self {
            path,
            kind,
            parent,
            out: None,
            end_bytes: 0,
            digests: HashSet::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Docker archives name one configuration and its layers.
    pub(super) fn must_hold(&self, images: usize) -> Result<(), SinkError> {
        match self.kind {
            ArchiveKind::Docker { .. } if images != 1 => Err(SinkError::OneImage {
                path: self.path.clone(),
                images,
            }),
            _ => Ok(()),
        }
    }

    fn error(&self, operation: &'static str, source: io::Error) -> SinkError {
        SinkError::Write {
            operation,
            path: self.path.clone(),
            source,
        }
    }

    fn file(&mut self) -> Result<Arc<File>, SinkError> {
        if let Some((file, _)) = &self.out {
            return Ok(Arc::clone(file));
        }
        let (file, named) = unnamed_file(&self.parent).map_err(|source| SinkError::Write {
            operation: "creating an archive in",
            path: self.parent.clone(),
            source,
        })?;
        let file = Arc::new(file);
        self.out = Some((Arc::clone(&file), named));
        for dir in ["blobs/", "blobs/sha256/"] {
            self.write_header(dir, tar::EntryType::Directory, 0)?;
            self.end_bytes += BLOCK_BYTES;
        }
        Ok(file)
    }

    /// The place of the next blob. Only one is staged at a time; one that is not added is
    /// overwritten by the next.
    pub(super) fn stage(&mut self) -> Result<StagedBlob, SinkError> {
        let file = self.file()?;
        let start_bytes = self.end_bytes + BLOCK_BYTES;
        Ok(StagedBlob::in_archive(file, start_bytes))
    }

    pub(super) fn add(&mut self, id: BlobId, blob: &StagedBlob) -> Result<(), SinkError> {
        debug_assert_eq!(blob.start_bytes, self.end_bytes + BLOCK_BYTES);
        debug_assert_eq!(blob.len_bytes, id.size_bytes);
        if self.digests.insert(id.digest) {
            self.close_member(&blob_name(id.digest), id.size_bytes)?;
        }
        Ok(())
    }

    fn write_member(&mut self, name: &str, bytes: &[u8]) -> Result<(), SinkError> {
        let file = self.file()?;
        file.write_all_at(bytes, self.end_bytes + BLOCK_BYTES)
            .map_err(|source| self.error("writing", source))?;
        self.close_member(name, bytes.len() as u64)
    }

    /// Puts the header before contents that are written, and the padding behind.
    fn close_member(&mut self, name: &str, len_bytes: u64) -> Result<(), SinkError> {
        self.write_header(name, tar::EntryType::Regular, len_bytes)?;
        let contents_end = self.end_bytes + BLOCK_BYTES + len_bytes;
        let end = contents_end.next_multiple_of(BLOCK_BYTES);
        // Something that was not added may have been written there.
        let padding = [0; BLOCK_BYTES as usize];
        let padding = &padding[..usize::try_from(end - contents_end).unwrap_or(0)];
        let file = self.file()?;
        file.write_all_at(padding, contents_end)
            .map_err(|source| self.error("writing", source))?;
        self.end_bytes = end;
        Ok(())
    }

    fn write_header(
        &mut self,
        name: &str,
        kind: tar::EntryType,
        len_bytes: u64,
    ) -> Result<(), SinkError> {
        let header =
            header(name, kind, len_bytes).map_err(|source| self.error("writing", source))?;
        let file = self.file()?;
        file.write_all_at(header.as_bytes(), self.end_bytes)
            .map_err(|source| self.error("writing", source))
    }

    /// Writes the index, and gives the archive its name.
    pub(super) fn commit(
        mut self,
        mut descriptor: Map<String, Value>,
        images: &[ImageBlobs],
    ) -> Result<(), SinkError> {
        self.must_hold(images.len())?;
        let tag = match &self.kind {
            ArchiveKind::Oci { tag } => tag.clone(),
            ArchiveKind::Docker { name } => {
                if let Some(name) = name {
                    let annotations = descriptor.entry("annotations").or_insert_with(|| json!({}));
                    annotations[CONTAINERD_NAME] = json!(name.to_string());
                }
                let tag = name.as_ref().map(|name| name.tag().to_owned());
                let manifest = docker_manifest(name.as_ref(), images);
                self.write_member("manifest.json", &manifest)?;
                tag
            }
        };
        unfinished::remove_abandoned(&self.parent);
        self.write_member("oci-layout", LAYOUT)?;
        let index = to_json(&extend_index(None, descriptor, tag.as_deref()));
        self.write_member("index.json", &index)?;
        let file = self.file()?;
        let finish = || -> io::Result<()> {
            file.write_all_at(&[0; 2 * BLOCK_BYTES as usize], self.end_bytes)?;
            file.set_len(self.end_bytes + 2 * BLOCK_BYTES)?;
            file.sync_all()
        };
        finish().map_err(|source| self.error("writing", source))?;
        let named = self.out.take().and_then(|(_, named)| named);
        self.name(&file, named)
            .map_err(|source| self.error("renaming to", source))?;
        sync_dir(&self.parent).map_err(|source| SinkError::Write {
            operation: "syncing",
            path: self.parent.clone(),
            source,
        })
    }

    /// In one step, whether there is an old archive or not.
    fn name(&self, file: &File, named: Option<tempfile::TempPath>) -> io::Result<()> {
        if named.is_some() || !self.path.exists() {
            return give_name(file, named, &self.path);
        }
        // A file without a name cannot replace one; this directory hides it for a moment.
        let hidden = HiddenDirectory::new(&self.parent, "archive")?;
        let link = hidden.path().join("archive");
        give_name(file, None, &link)?;
        std::fs::rename(&link, &self.path)
    }
}

/// A size of 8 GiB or more is written in base 256, as GNU tar and Go do.
fn header(name: &str, kind: tar::EntryType, len_bytes: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(match kind {
        tar::EntryType::Directory => 0o755,
        _ => 0o644,
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len_bytes);
    header.set_cksum();
    Ok(header)
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn docker_manifest(name: Option<&DockerName>, images: &[ImageBlobs]) -> Vec<u8> {
    let image = |image: &ImageBlobs| {
        let layers = image.layers.iter().map(|layer| blob_name(layer.id.digest));
        json!({
            "Config": blob_name(image.config.digest),
            "RepoTags": name.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "Layers": layers.collect::<Vec<_>>(),
        })
    };
    let images: Vec<Value> = images.iter().map(image).collect();
    serde_json::to_vec(&images).expect("a JSON value can be written")
}

/// Whether the file begins with a tar header (POSIX ustar, GNU).
fn is_tar(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(BLOCK_BYTES).read_to_end(&mut head)?;
    Ok(head.get(257..262) == Some(b"ustar"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn sink(path: &Path) -> ArchiveSink {
        let kind = ArchiveKind::Oci { tag: None };
        ArchiveSink::open(path, kind).unwrap()
    }

    fn put(sink: &mut ArchiveSink, bytes: &[u8]) -> BlobId {
        let mut blob = sink.stage().unwrap();
        blob.write_all(bytes).unwrap();
        let id = BlobId::of(bytes);
        sink.add(id, &blob).unwrap();
        id
    }

    #[test]
    fn blobs_that_are_dropped_or_known_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let mut sink = sink(&path);
        let first = put(&mut sink, &[1; 700]);
        sink.stage().unwrap().write_all(&[0xff; 5000]).unwrap();
        put(&mut sink, &[1; 700]);
        let second = put(&mut sink, b"2");
        sink.stage().unwrap().write_all(&[0xff; 50_000]).unwrap();
        assert!(!path.exists());
        sink.commit(Map::new(), &[]).unwrap();

        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.contains(&0xff));
        let mut archive = tar::Archive::new(&*bytes);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        let expected = [
            "blobs/",
            "blobs/sha256/",
            &blob_name(first.digest),
            &blob_name(second.digest),
            "oci-layout",
            "index.json",
        ];
        assert_eq!(names, expected);
        assert_eq!(bytes.len() % 512, 0);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn nothing_is_left_of_an_archive_that_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(&dir.path().join("a.tar"));
        put(&mut sink, b"1");
        drop(sink);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn sizes_are_read_back_whatever_they_are() {
        for len_bytes in [0, 1, (8 << 30) - 1, 8 << 30, 100 << 30] {
            let header = header("blob", tar::EntryType::Regular, len_bytes).unwrap();
            assert_eq!(header.size().unwrap(), len_bytes);
        }
    }
}
