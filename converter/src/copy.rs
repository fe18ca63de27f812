//! An image's way from a source to a sink as it is, to the byte.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::cancel::Cancel;
use crate::convert::{ImageError, pass_on};
use crate::image::manifest::{DOCKER_LIST, INDEX, MANIFEST};
use crate::image::{BlobId, Digest};
use crate::progress::Progress;
use crate::sink::{ImageBlobs, LayerBlob, PassedOn, Sink};
use crate::source::{Carried, Node, Source, SourceError, SourceImage};

/// What of an image is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which indexes.
    pub indexes: Indexes,
    /// Whether layers are.
    pub layers: Layers,
}

/// Which indexes are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexes {
    /// All above what was selected; they also list what was not, which is left out.
    Whole,
    /// None above the only image, if one was selected; else those that list nothing more than what was.
    Selected,
}

/// Whether layers are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// They are.
    Copied,
    /// They are left where they are.
    Left,
}

/// What was copied, for [`Sink::commit`].
#[derive(Clone, Debug)]
pub struct Copied {
    /// The descriptor of the whole.
    pub descriptor: Map<String, Value>,
    /// Its id.
    pub root: BlobId,
    /// The images below it.
    pub images: Vec<ImageBlobs>,
    /// Digests and media types of indexes, manifests and configurations, those first that name others.
    pub documents: Vec<(Digest, String)>,
}

/// Copies what was selected; nothing of it can be seen yet.
///
/// # Errors
/// When something cannot be read or written, or is not what its descriptor says.
pub fn copy(
    source: &Source,
    sink: &mut Sink,
    extent: Extent,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Copied, ImageError> {
    let mut selected = HashMap::new();
    collect(source, &source.root, &mut selected);
    let mut copier = Copier {
        source,
        sink,
        extent,
        cancel,
        progress,
        selected,
        images: Vec::new(),
        documents: Vec::new(),
    };
    let descriptor = match (&source.root, extent.indexes) {
        (Node::Image(number), Indexes::Selected) => &source.images[*number].descriptor,
        _ => &source.outermost,
    };
    let root = copier
        .copy(descriptor)?
        .ok_or_else(|| SourceError::Invalid {
            what: source.reference.to_string(),
            reason: "nothing of it was selected".to_owned(),
        })?;
    Ok(Copied {
        descriptor: descriptor.clone(),
        root,
        images: copier.images,
        documents: copier.documents,
    })
}

/// What a manifest is.
enum Selected<'a> {
    Image(&'a SourceImage),
    Carried(&'a Carried),
}

fn collect<'a>(source: &'a Source, node: &'a Node, selected: &mut HashMap<String, Selected<'a>>) {
    match node {
        Node::Image(number) => {
            let image = &source.images[*number];
            selected.insert(image.manifest.id.digest.to_string(), Selected::Image(image));
        }
        Node::Carried(carried) => {
            let digest = carried.descriptor.get("digest").and_then(Value::as_str);
            let digest = digest.unwrap_or_default().to_owned();
            selected.insert(digest, Selected::Carried(carried));
        }
        Node::Index(index) => {
            for node in &index.nodes {
                collect(source, node, selected);
            }
        }
    }
}

struct Copier<'a> {
    source: &'a Source,
    sink: &'a mut Sink,
    extent: Extent,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    /// By the digests of their manifests.
    selected: HashMap<String, Selected<'a>>,
    images: Vec<ImageBlobs>,
    documents: Vec<(Digest, String)>,
}

impl Copier<'_> {
    /// `None` if nothing was selected of it.
    fn copy(&mut self, descriptor: &Map<String, Value>) -> Result<Option<BlobId>, ImageError> {
        let text = |key: &str| descriptor.get(key).and_then(Value::as_str);
        let media_type = text("mediaType").unwrap_or(MANIFEST).to_owned();
        let digest = text("digest").unwrap_or_default();
        match self.selected.get(digest) {
            Some(Selected::Image(image)) => {
                let image = *image;
                let manifest = image.manifest.id.digest;
                self.documents.push((manifest, media_type.clone()));
                self.image(image)?;
            }
            Some(Selected::Carried(carried)) => {
                let carried = *carried;
                for &id in &carried.blobs {
                    self.blob("blob", id)?;
                }
            }
            None if media_type == INDEX || media_type == DOCKER_LIST => {
                return self.index(descriptor, &media_type);
            }
            None => return Ok(None),
        }
        let bytes = self.source.manifest(descriptor)?;
        Ok(Some(self.sink.add_manifest(&bytes, &media_type)?))
    }

    fn index(
        &mut self,
        descriptor: &Map<String, Value>,
        media_type: &str,
    ) -> Result<Option<BlobId>, ImageError> {
        let bytes = self.source.manifest(descriptor)?;
        let index: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let listed = index.get("manifests").and_then(Value::as_array);
        let documents = self.documents.len();
        let id = BlobId::of(&bytes);
        self.documents.push((id.digest, media_type.to_owned()));
        let (mut copied, mut left) = (0, 0);
        for entry in listed.into_iter().flatten().filter_map(Value::as_object) {
            match self.copy(entry)? {
                Some(_) => copied += 1,
                None => left += 1,
            }
        }
        if copied == 0 {
            self.documents.truncate(documents);
            return Ok(None);
        }
        if left > 0 && self.extent.indexes == Indexes::Selected {
            return Err(ImageError::Source(SourceError::SeveralPlatforms {
                reference: self.source.reference.to_string(),
                known: self
                    .source
                    .images
                    .iter()
                    .map(|image| image.platform.to_string())
                    .collect(),
            }));
        }
        Ok(Some(self.sink.add_manifest(&bytes, media_type)?))
    }

    fn image(&mut self, image: &SourceImage) -> Result<(), ImageError> {
        if self.extent.layers == Layers::Copied {
            let mut blobs = Vec::with_capacity(image.layers.len());
            for layer in &image.layers {
                blobs.push(PassedOn {
                    id: layer.blob,
                    supply: image.supply_layer(layer)?,
                });
            }
            pass_on("layer", blobs, self.sink, self.cancel, self.progress)?;
        }
        self.blob("configuration", image.config.id)?;
        let config = image.manifest.parsed.config().media_type().to_string();
        self.documents.push((image.config.id.digest, config));
        let layers = image.layers.iter().map(|layer| LayerBlob {
            id: layer.blob,
            diff_id: layer.diff_id,
            source: layer.blob.digest,
        });
        self.images.push(ImageBlobs {
            manifest: image.manifest.id,
            config: image.config.id,
            layers: layers.collect(),
            source_manifest: image.manifest.id.digest,
            source_config: image.config.id.digest,
        });
        Ok(())
    }

    fn blob(&mut self, what: &'static str, id: BlobId) -> Result<(), ImageError> {
        let supply = self.source.supply(id)?;
        let blobs = vec![PassedOn { id, supply }];
        pass_on(what, blobs, self.sink, self.cancel, self.progress)
    }
}
