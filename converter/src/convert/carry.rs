//! Attestations and other manifests that are no images: copied byte for byte.

use std::io::{Read as _, Write as _};

use serde_json::{Map, Value, json};

use crate::cancel::Cancel;
use crate::convert::{ConvertedImage, ImageError};
use crate::image::manifest::REFERENCE_DIGEST;
use crate::image::{BlobId, Hasher};
use crate::sink::{Sink, SinkError};
use crate::source::{Carried, Source, SourceError};

/// Copies the manifest and its blobs, and checks them.
pub(super) fn copy(
    source: &Source,
    carried: &Carried,
    sink: &mut Sink,
    cancel: &Cancel,
) -> Result<(), ImageError> {
    for &id in &carried.blobs {
        let mut blob = source.open_blob(id)?;
        let mut staged = sink.stage()?;
        let mut hasher = Hasher::default();
        let mut block = vec![0; 1 << 20];
        let mut size_bytes = 0;
        loop {
            cancel.check()?;
            let read = blob.read(&mut block).map_err(|source| ImageError::Carry {
                digest: id.digest,
                source,
            })?;
            if read == 0 {
                break;
            }
            hasher.update(&block[..read]);
            size_bytes += read as u64;
            staged
                .write_all(&block[..read])
                .map_err(|source| SinkError::Write {
                    operation: "writing a blob in",
                    path: sink.place().to_owned(),
                    source,
                })?;
        }
        let found = BlobId {
            digest: hasher.finish(),
            size_bytes,
        };
        if found != id {
            return Err(ImageError::Source(SourceError::Damaged {
                what: "blob",
                digest: id.digest,
                expected_bytes: id.size_bytes,
                found,
            }));
        }
        sink.add(id, staged)?;
    }
    Ok(())
}

/// Its descriptor; that of an attestation follows the manifest that it describes.
pub(super) fn descriptor(carried: &Carried, images: &[ConvertedImage]) -> Map<String, Value> {
    let mut descriptor = carried.descriptor.clone();
    let described = carried.describes;
    let image = images.iter().find(|image| Some(image.source) == described);
    if let Some(image) = image
        && let Some(Value::Object(annotations)) = descriptor.get_mut("annotations")
    {
        annotations.insert(REFERENCE_DIGEST.to_owned(), json!(image.manifest.digest));
    }
    descriptor
}
