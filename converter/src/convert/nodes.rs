//! What stands above the images: indexes, and manifests that are no images (attestations and other
//! artifacts), which are copied byte for byte.

use serde_json::{Map, Value, json};

use crate::cancel::Cancel;
use crate::convert::copy::pass_on;
use crate::convert::{ConvertedImage, ImageError};
use crate::image::BlobId;
use crate::image::manifest::{
    CONTAINERD_NAME, DocumentOptions, MANIFEST, REF_NAME, REFERENCE_DIGEST, REFERENCE_TYPE,
    rewrite_index, rewrite_index_descriptor, rewrite_manifest_descriptor,
};
use crate::progress::Progress;
use crate::sink::{PassedOn, Sink};
use crate::source::{Carried, IndexNode, Node, Source, SourceImage};

/// Writes what stands above the images.
pub(super) struct Writer<'a> {
    pub(super) source: &'a Source,
    pub(super) documents: &'a DocumentOptions,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a dyn Progress,
    pub(super) sink: &'a mut Sink,
    pub(super) images: &'a [ConvertedImage],
    pub(super) carried: usize,
}

impl Writer<'_> {
    /// The root's id, and its descriptor for the destination's index.
    pub(super) fn root(&mut self) -> Result<(BlobId, Map<String, Value>), ImageError> {
        let media_types = self.documents.media_types;
        let mut descriptor = Map::new();
        let (root, source) = match &self.source.root {
            Node::Image(number) => {
                let source = &self.source.images[*number];
                let manifest = self.images[*number].manifest;
                rewrite_manifest_descriptor(&mut descriptor, manifest, media_types);
                if let Some(platform) = config_platform(source) {
                    descriptor.insert("platform".to_owned(), platform);
                }
                (manifest, &source.descriptor)
            }
            Node::Index(node) => {
                let index = self.index(node, &self.documents.index_annotations)?;
                rewrite_index_descriptor(&mut descriptor, index, media_types);
                (index, &node.descriptor)
            }
            Node::Carried(_) => unreachable!("a source has an image"),
        };
        if let Some(annotations) = kept_annotations(source) {
            descriptor.insert("annotations".to_owned(), annotations);
        }
        Ok((root, descriptor))
    }

    fn index(
        &mut self,
        node: &IndexNode,
        annotations: &[(String, String)],
    ) -> Result<BlobId, ImageError> {
        let media_types = self.documents.media_types;
        let mut manifests = Vec::with_capacity(node.nodes.len());
        for node in &node.nodes {
            let descriptor = match node {
                Node::Image(number) => {
                    let mut descriptor = self.source.images[*number].descriptor.clone();
                    let manifest = self.images[*number].manifest;
                    rewrite_manifest_descriptor(&mut descriptor, manifest, media_types);
                    descriptor
                }
                Node::Index(node) => {
                    let index = self.index(node, &[])?;
                    let mut descriptor = node.descriptor.clone();
                    rewrite_index_descriptor(&mut descriptor, index, media_types);
                    descriptor
                }
                Node::Carried(carried) => {
                    let blobs = carried.blobs.iter().map(|&id| {
                        let supply = self.source.supply(id)?;
                        Ok::<_, ImageError>(PassedOn { id, supply })
                    });
                    let blobs = blobs.collect::<Result<_, _>>()?;
                    pass_on("blob", blobs, self.sink, self.cancel, self.progress)?;
                    let manifest = self.source.manifest(&carried.descriptor)?;
                    self.sink.add_manifest(&manifest, media_type(carried))?;
                    self.carried += 1;
                    carried_descriptor(carried, self.images)
                }
            };
            manifests.push(Value::Object(descriptor));
        }
        let index = rewrite_index(&node.raw, manifests, media_types, annotations);
        Ok(self.sink.add_manifest(&index, media_types.index())?)
    }
}

fn media_type(carried: &Carried) -> &str {
    let stated = carried.descriptor.get("mediaType");
    stated.and_then(Value::as_str).unwrap_or(MANIFEST)
}

/// The annotations of the source's entry, without its name and its part in an index.
fn kept_annotations(descriptor: &Map<String, Value>) -> Option<Value> {
    let mut annotations = descriptor.get("annotations")?.as_object()?.clone();
    for key in [REF_NAME, CONTAINERD_NAME, REFERENCE_TYPE, REFERENCE_DIGEST] {
        annotations.shift_remove(key);
    }
    (!annotations.is_empty()).then_some(Value::Object(annotations))
}

/// The descriptor of what was carried over; that of an attestation follows the manifest that it describes.
fn carried_descriptor(carried: &Carried, images: &[ConvertedImage]) -> Map<String, Value> {
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

/// The platform for the index, from the configuration.
fn config_platform(source: &SourceImage) -> Option<Value> {
    let mut platform = Map::new();
    for key in ["architecture", "os", "os.version", "os.features", "variant"] {
        if let Some(value) = source.config.raw.get(key) {
            platform.insert(key.to_owned(), json!(value));
        }
    }
    (!platform.is_empty()).then_some(Value::Object(platform))
}
