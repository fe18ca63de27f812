//! Docker archives: what `docker save` writes (Docker image specification v1.2, "Combined Image
//! JSON + Filesystem Changeset Format").
//!
//! `manifest.json` names a configuration and layers by their place in the archive. Since version 25
//! the archive is an OCI layout as well; then the image's OCI manifest is used, which says more. An
//! archive without one gets a manifest, as skopeo makes it.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::PathBuf;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::blob::{Blob, ReadAt as _};
use crate::cancel::Cancel;
use crate::image::manifest::{
    DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, docker_manifest,
};
use crate::image::{ArchiveName, BlobId, Digest, DockerName, Hasher};
use crate::source::SourceError;
use crate::source::archive::{Archive, Compression};
use crate::source::store::{BlobKind, Files, Store, blob_name, parse, read_document};
use crate::source::tree::{MAX_DESCRIPTORS, MAX_INDEX_DEPTH};

/// An image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The archive's blobs, and the descriptor of the image's manifest.
///
/// # Errors
/// When there is no such image, or something of it is missing.
pub(super) fn open(
    archive: Archive,
    name: Option<&ArchiveName>,
    cancel: &Cancel,
) -> Result<(Store, Map<String, Value>), SourceError> {
    let place = archive.path().to_owned();
    let Some(blob) = archive.member("manifest.json") else {
        return Err(missing(&place, "manifest.json"));
    };
    let path = place.join("manifest.json");
    let what = || path.display().to_string();
    let bytes = read_document(blob, path.clone(), what)?;
    let listed: Vec<Listed> = parse(&bytes, what)?;
    let image = choose(&place, &listed, name)?;

    let made = made_manifest(&archive, image, cancel);
    let files = Files::Archive(archive);
    let index = layout_index(&files)?;
    let store = Store::new(files);
    if let Some(index) = index
        && let Some(descriptor) = oci_manifest(&store, &index, image)
    {
        return Ok((store, descriptor));
    }
    let (manifest, mut blobs) = made?;
    let id = BlobId::of(&manifest);
    blobs.insert(id.digest, Blob::of_bytes(manifest));
    let descriptor = object(&json!({
        "mediaType": DOCKER_MANIFEST,
        "digest": id.digest,
        "size": id.size_bytes,
    }));
    Ok((store.with(blobs), descriptor))
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn missing(place: &std::path::Path, member: &str) -> SourceError {
    SourceError::MissingMember {
        path: place.to_owned(),
        member: member.chars().take(200).collect(),
    }
}

fn choose<'a>(
    place: &std::path::Path,
    listed: &'a [Listed],
    name: Option<&ArchiveName>,
) -> Result<&'a Listed, SourceError> {
    let known = || {
        listed
            .iter()
            .flat_map(|image| image.repo_tags.iter().flatten().cloned())
            .collect()
    };
    let unknown = |name: &ArchiveName| SourceError::UnknownTag {
        place: place.to_owned(),
        tag: name.to_string(),
        known: known(),
    };
    match name {
        Some(name @ ArchiveName::Index(number)) => listed.get(*number).ok_or_else(|| unknown(name)),
        Some(name @ ArchiveName::Tagged(wanted)) => listed
            .iter()
            .find(|image| {
                let tags = image.repo_tags.iter().flatten();
                tags.filter_map(|tag| tag.parse::<DockerName>().ok())
                    .any(|tag| tag == *wanted)
            })
            .ok_or_else(|| unknown(name)),
        None => match listed {
            [only] => Ok(only),
            [] => Err(SourceError::Invalid {
                what: place.join("manifest.json").display().to_string(),
                reason: "it lists no image".to_owned(),
            }),
            several => Err(SourceError::Ambiguous {
                place: place.to_owned(),
                count: several.len(),
                known: known(),
            }),
        },
    }
}

/// The index of an archive that is a layout, too.
fn layout_index(files: &Files) -> Result<Option<Map<String, Value>>, SourceError> {
    let Ok(index) = files.open("index.json") else {
        return Ok(None);
    };
    let path = files.path("index.json");
    let what = || path.display().to_string();
    let bytes = read_document(index, path.clone(), what)?;
    parse(&bytes, what).map(Some)
}

/// The manifest with the image's configuration and layers, if the layout's index leads to it.
fn oci_manifest(
    store: &Store,
    index: &Map<String, Value>,
    image: &Listed,
) -> Option<Map<String, Value>> {
    let mut open: Vec<(Map<String, Value>, usize)> = Vec::new();
    push_manifests(&mut open, index, 0);
    for _ in 0..MAX_DESCRIPTORS {
        let Some((raw, depth)) = open.pop() else {
            break;
        };
        let Ok(descriptor) = serde_json::from_value::<Descriptor>(raw.clone().into()) else {
            continue;
        };
        match descriptor.media_type().to_string().as_str() {
            MANIFEST | DOCKER_MANIFEST => {
                // An archive of one platform lists the manifests of the others, too.
                let Ok(manifest) = store.document::<ImageManifest>(BlobKind::Manifest, &descriptor)
                else {
                    continue;
                };
                let name = |of: &Descriptor| {
                    let digest: Digest = of.digest().to_string().parse().ok()?;
                    Some(blob_name(digest))
                };
                let layers = manifest.parsed.layers().iter().map(name);
                let wanted = image.layers.iter().flatten().cloned().map(Some);
                if name(manifest.parsed.config()).as_ref() == Some(&image.config)
                    && layers.eq(wanted)
                {
                    return Some(raw);
                }
            }
            INDEX | DOCKER_LIST if depth < MAX_INDEX_DEPTH => {
                let Ok(nested) = store.document::<ImageIndex>(BlobKind::Index, &descriptor) else {
                    continue;
                };
                push_manifests(&mut open, &nested.raw, depth + 1);
            }
            _ => {}
        }
    }
    None
}

/// Puts an index's manifests on the stack, the first on top.
fn push_manifests(
    open: &mut Vec<(Map<String, Value>, usize)>,
    index: &Map<String, Value>,
    depth: usize,
) {
    let manifests = index.get("manifests").and_then(Value::as_array);
    let manifests = manifests.into_iter().flatten().rev();
    open.extend(manifests.filter_map(|entry| Some((entry.as_object()?.clone(), depth))));
}

/// A manifest for the image, and the blobs that it names.
fn made_manifest(
    archive: &Archive,
    image: &Listed,
    cancel: &Cancel,
) -> Result<(Vec<u8>, HashMap<Digest, Blob>), SourceError> {
    let place = archive.path();
    let config_path: PathBuf = place.join(&image.config);
    let what = || config_path.display().to_string();
    let blob = archive
        .member(&image.config)
        .ok_or_else(|| missing(place, &image.config))?;
    let config = read_document(blob, config_path.clone(), what)?;
    let parsed: ImageConfiguration = parse(&config, what)?;
    let diff_ids = parsed.rootfs().diff_ids();
    let members: Vec<&String> = image.layers.iter().flatten().collect();
    if diff_ids.len() != members.len() {
        return Err(SourceError::Invalid {
            what: what(),
            reason: format!(
                "it has {} DiffIDs for the {} layers of manifest.json",
                diff_ids.len(),
                members.len()
            ),
        });
    }
    let mut blobs = HashMap::new();
    let mut layers = Vec::new();
    for (member, diff_id) in members.into_iter().zip(diff_ids) {
        let blob = archive
            .member(member)
            .ok_or_else(|| missing(place, member))?;
        let diff_id: Digest = diff_id.parse().map_err(|source| SourceError::Digest {
            what: what(),
            source,
        })?;
        let read_error = |source| SourceError::Read {
            path: place.join(member),
            source,
        };
        let mut head = Vec::new();
        let mut start = blob.clone().take(8);
        start.read_to_end(&mut head).map_err(read_error)?;
        let (media_type, digest) = match Compression::of(&head) {
            Compression::None | Compression::Other(_) => (DOCKER_LAYER, diff_id),
            compression => {
                let media_type = match compression {
                    Compression::Zstd => DOCKER_LAYER_ZSTD,
                    _ => DOCKER_LAYER_GZIP,
                };
                let digest = match named_digest(member) {
                    Some(digest) => digest,
                    None => hash(blob.clone(), cancel).map_err(read_error)?,
                };
                cancel.check()?;
                (media_type, digest)
            }
        };
        let id = BlobId {
            digest,
            size_bytes: blob.len_bytes(),
        };
        layers.push((id, media_type));
        blobs.insert(digest, blob);
    }
    let config_id = BlobId::of(&config);
    blobs.insert(config_id.digest, Blob::of_bytes(config));
    Ok((docker_manifest(config_id, &layers), blobs))
}

/// No specification has it; skopeo writes it.
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// The digest that a member is named after in a layout.
fn named_digest(member: &str) -> Option<Digest> {
    let hex = member.strip_prefix("blobs/sha256/")?;
    format!("sha256:{hex}").parse().ok()
}

fn hash(mut blob: Blob, cancel: &Cancel) -> std::io::Result<Digest> {
    let mut hasher = Hasher::default();
    let mut block = vec![0; 1 << 20];
    loop {
        match blob.read(&mut block)? {
            0 => return Ok(hasher.finish()),
            _ if cancel.is_cancelled() => return Ok(hasher.finish()),
            read => hasher.update(&block[..read]),
        }
    }
}
