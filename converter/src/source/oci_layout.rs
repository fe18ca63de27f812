//! OCI image layout directories (OCI image specification, image-layout.md).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::image::manifest::{DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, REF_NAME, TOC_DIGEST};
use crate::image::{BlobId, Document, ImageRef};
use crate::source::{SourceError, SourceImage, SourceLayer};

/// Indexes, manifests and configurations larger than this are refused; registries refuse
/// manifests of more than 4 MiB.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// An index may point to an index; more steps than this are a loop or a joke.
const MAX_INDEX_DEPTH: usize = 8;

/// The layout's blobs.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

pub(super) fn open(
    reference: &ImageRef,
    dir: &Path,
    tag: Option<&str>,
) -> Result<SourceImage, SourceError> {
    let marker = dir.join("oci-layout");
    if let Err(source) = std::fs::metadata(&marker) {
        return Err(SourceError::NoLayout {
            dir: dir.to_owned(),
            source,
        });
    }
    let index_path = dir.join("index.json");
    let what = || index_path.display().to_string();
    let file = File::open(&index_path).map_err(|source| SourceError::Read {
        path: index_path.clone(),
        source,
    })?;
    let bytes = read_document(file, &index_path, what)?;
    let index: ImageIndex = parse(&bytes, what)?;
    let store = Store {
        dir: dir.to_owned(),
    };
    let descriptor = choose(&index, dir, tag)?;
    let descriptor = store.resolve(reference, descriptor)?;
    let manifest: Document<ImageManifest> = store.document("manifest", &descriptor)?;
    let config_type = manifest.parsed.config().media_type().to_string();
    if !config_type.contains("image.config") && !config_type.contains("container.image") {
        let what = format!("manifest {}", manifest.id.digest);
        return Err(SourceError::MediaType {
            what,
            media_type: config_type,
        });
    }
    let config: Document<ImageConfiguration> =
        store.document("configuration", manifest.parsed.config())?;
    let layers = layers(&manifest, &config)?;
    Ok(SourceImage {
        reference: reference.clone(),
        manifest,
        config,
        layers,
        store,
    })
}

/// The descriptor that `tag` names, or the only one.
fn choose<'a>(
    index: &'a ImageIndex,
    dir: &Path,
    tag: Option<&str>,
) -> Result<&'a Descriptor, SourceError> {
    let name = |descriptor: &Descriptor| {
        descriptor
            .annotations()
            .as_ref()
            .and_then(|all| all.get(REF_NAME))
            .cloned()
    };
    let known = || {
        index
            .manifests()
            .iter()
            .filter_map(name)
            .collect::<Vec<_>>()
    };
    match tag {
        Some(tag) => index
            .manifests()
            .iter()
            .find(|descriptor| name(descriptor).as_deref() == Some(tag))
            .ok_or_else(|| SourceError::UnknownTag {
                dir: dir.to_owned(),
                tag: tag.to_owned(),
                known: known(),
            }),
        None => match index.manifests().as_slice() {
            [only] => Ok(only),
            [] => Err(SourceError::Invalid {
                what: dir.join("index.json").display().to_string(),
                reason: "it lists no image".to_owned(),
            }),
            _ => Err(SourceError::Ambiguous {
                dir: dir.to_owned(),
                known: known(),
            }),
        },
    }
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
                toc_digest: descriptor
                    .annotations()
                    .as_ref()
                    .and_then(|all| all.get(TOC_DIGEST))
                    .cloned(),
            })
        })
        .collect()
}

/// Tar layers in any compression; encrypted ones, and layers that are stored elsewhere
/// (`foreign`), cannot be converted.
fn is_layer(media_type: &str) -> bool {
    const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
    const OCI_NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    [OCI, OCI_NONDISTRIBUTABLE, DOCKER].iter().any(|base| {
        media_type
            .strip_prefix(base)
            .is_some_and(|suffix| matches!(suffix, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    })
}

fn blob_id(descriptor: &Descriptor, what: impl FnOnce() -> String) -> Result<BlobId, SourceError> {
    BlobId::from_descriptor(descriptor).map_err(|source| SourceError::Digest {
        what: what(),
        source,
    })
}

impl Store {
    fn blob_path(&self, id: BlobId) -> PathBuf {
        self.dir.join("blobs/sha256").join(id.digest.hex())
    }

    /// Follows indexes to the manifest of this machine's platform.
    fn resolve(
        &self,
        reference: &ImageRef,
        descriptor: &Descriptor,
    ) -> Result<Descriptor, SourceError> {
        let mut descriptor = descriptor.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let media_type = descriptor.media_type().to_string();
            match media_type.as_str() {
                MANIFEST | DOCKER_MANIFEST => return Ok(descriptor),
                INDEX | DOCKER_LIST => {
                    let index: Document<ImageIndex> = self.document("index", &descriptor)?;
                    descriptor = choose_platform(reference, &index.parsed)?.clone();
                }
                _ => {
                    let what = format!("{} {}", reference, descriptor.digest());
                    return Err(SourceError::MediaType { what, media_type });
                }
            }
        }
        Err(SourceError::Invalid {
            what: reference.to_string(),
            reason: format!("indexes are nested more than {MAX_INDEX_DEPTH} deep"),
        })
    }

    /// Reads, checks and parses a JSON blob.
    fn document<T: DeserializeOwned>(
        &self,
        what: &'static str,
        descriptor: &Descriptor,
    ) -> Result<Document<T>, SourceError> {
        let name = || format!("{what} {}", descriptor.digest());
        let id = blob_id(descriptor, name)?;
        if id.size_bytes > MAX_DOCUMENT_BYTES {
            return Err(SourceError::TooLarge {
                what: name(),
                size_bytes: id.size_bytes,
                limit_bytes: MAX_DOCUMENT_BYTES,
            });
        }
        let path = self.blob_path(id);
        let file = self.open(what, id)?;
        let bytes = read_document(file, &path, name)?;
        let found = BlobId::of(&bytes);
        if found != id {
            let expected_bytes = id.size_bytes;
            return Err(SourceError::Damaged {
                what,
                digest: id.digest,
                expected_bytes,
                found,
            });
        }
        Ok(Document {
            raw: parse::<Map<String, Value>>(&bytes, name)?,
            parsed: parse(&bytes, name)?,
            id,
        })
    }

    fn open(&self, what: &'static str, id: BlobId) -> Result<File, SourceError> {
        let path = self.blob_path(id);
        File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SourceError::MissingBlob {
                what,
                digest: id.digest,
                path,
            },
            _ => SourceError::Read { path, source },
        })
    }

    pub(super) fn open_blob(&self, what: &'static str, id: BlobId) -> Result<File, SourceError> {
        self.open(what, id)
    }
}

fn choose_platform<'a>(
    reference: &ImageRef,
    index: &'a ImageIndex,
) -> Result<&'a Descriptor, SourceError> {
    let wanted = (std::env::consts::OS, architecture());
    let platform = |descriptor: &Descriptor| {
        descriptor.platform().as_ref().map(|platform| {
            (
                platform.os().to_string(),
                platform.architecture().to_string(),
            )
        })
    };
    let matches = |descriptor: &&Descriptor| {
        platform(descriptor).is_some_and(|(os, arch)| (os.as_str(), arch.as_str()) == wanted)
    };
    let found = index.manifests().iter().find(matches);
    match (found, index.manifests().as_slice()) {
        (Some(descriptor), _) => Ok(descriptor),
        // An index of one image without a platform means that image.
        (None, [only]) if only.platform().is_none() => Ok(only),
        _ => Err(SourceError::NoPlatform {
            reference: reference.to_string(),
            platform: format!("{}/{}", wanted.0, wanted.1),
            known: index
                .manifests()
                .iter()
                .filter_map(platform)
                .map(|(os, arch)| format!("{os}/{arch}"))
                .collect(),
        }),
    }
}

/// This machine's architecture as Go, and so OCI, names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn read_document(
    file: File,
    path: &Path,
    what: impl FnOnce() -> String,
) -> Result<Vec<u8>, SourceError> {
    let read_error = |source| SourceError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(SourceError::TooLarge {
            what: what(),
            size_bytes: bytes.len() as u64,
            limit_bytes: MAX_DOCUMENT_BYTES,
        });
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    what: impl FnOnce() -> String,
) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| SourceError::Invalid {
        what: what(),
        reason: error.to_string(),
    })
}
