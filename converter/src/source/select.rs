//! What is selected of an image: platforms, and what belongs to them.

use std::collections::HashSet;
use std::sync::Arc;

use oci_spec::image::Descriptor;
use serde_json::{Map, Value};

use crate::image::manifest::{ARTIFACT_MANIFEST, DOCKER_MANIFEST, MANIFEST};
use crate::image::{Document, ImageRef, Platform};
use crate::source::store::{BlobKind, Store, blob_id};
use crate::source::tree::{Carried, Found, From, IndexNode, Kind, Leaf, Node, Reader};
use crate::source::{SourceError, SourceImage};

/// Which platforms of an image are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// This machine's; of an image that no index lists, the one that it has.
    ThisMachine,
    /// These, all of which must be there.
    These(Vec<Platform>),
    /// All.
    All,
}

/// Reads what `selection` wants of the image that `raw` describes.
pub(super) fn open(
    reference: &ImageRef,
    store: &Arc<Store>,
    raw: Map<String, Value>,
    selection: &Selection,
) -> Result<(Vec<SourceImage>, Node), SourceError> {
    let mut reader = Reader {
        reference,
        store,
        descriptors: 0,
    };
    let found = reader.find(raw, 0)?;
    let is_index = matches!(found, Found::Index { .. });
    let mut leaves = Vec::new();
    collect(&found, &mut leaves);
    let wanted = if is_index {
        select(reference, &leaves, selection)?
    } else {
        leaves.iter().map(|leaf| leaf.digest()).collect()
    };
    let mut selected = Selected {
        reader,
        selection,
        wanted,
        images: Vec::new(),
    };
    let node = selected.node(found)?;
    let images = selected.images;
    let Some(node) = node.filter(|_| !images.is_empty()) else {
        return Err(SourceError::Invalid {
            what: reference.to_string(),
            reason: "it holds no image".to_owned(),
        });
    };
    if !is_index {
        must_be_selected(reference, &images, selection)?;
    }
    let node = match selection {
        Selection::All => node,
        _ => only_image(&node).map_or(node, Node::Image),
    };
    Ok((images, node))
}

/// An image that no index lists has one platform; asking for another is an error.
fn must_be_selected(
    reference: &ImageRef,
    images: &[SourceImage],
    selection: &Selection,
) -> Result<(), SourceError> {
    let Selection::These(wanted) = selection else {
        return Ok(());
    };
    for platform in wanted {
        if !images.iter().any(|image| image.platform == *platform) {
            return Err(SourceError::NoPlatform {
                reference: reference.to_string(),
                platform: platform.to_string(),
                known: images.iter().map(|i| i.platform.to_string()).collect(),
            });
        }
    }
    Ok(())
}

/// The image, if there is nothing else below the node.
fn only_image(node: &Node) -> Option<usize> {
    match node {
        Node::Image(image) => Some(*image),
        Node::Index(index) => match index.nodes.as_slice() {
            [only] => only_image(only),
            _ => None,
        },
        Node::Carried(_) => None,
    }
}

fn collect<'a>(found: &'a Found, leaves: &mut Vec<&'a Leaf>) {
    match found {
        Found::Manifest(leaf) => leaves.push(leaf),
        Found::Index { found, .. } => {
            for found in found {
                collect(found, leaves);
            }
        }
    }
}

struct Selected<'a> {
    reader: Reader<'a>,
    selection: &'a Selection,
    /// Digests of images.
    wanted: HashSet<String>,
    images: Vec<SourceImage>,
}

impl Selected<'_> {
    /// Reads what was selected below `found`; `None` if that is nothing.
    fn node(&mut self, found: Found) -> Result<Option<Node>, SourceError> {
        match found {
            Found::Index {
                descriptor,
                raw,
                found,
            } => {
                let mut nodes = Vec::new();
                for found in found {
                    nodes.extend(self.node(found)?);
                }
                Ok((!nodes.is_empty()).then_some(Node::Index(IndexNode {
                    descriptor,
                    raw,
                    nodes,
                })))
            }
            Found::Manifest(leaf) => match &leaf.kind {
                Kind::Image { .. } => self.image(&leaf),
                Kind::Attestation { of } if !self.wanted.contains(of) => Ok(None),
                Kind::Attestation { .. } | Kind::Artifact => self.carried(&leaf),
            },
        }
    }

    fn image(&mut self, leaf: &Leaf) -> Result<Option<Node>, SourceError> {
        if !self.wanted.contains(&leaf.digest()) {
            return Ok(None);
        }
        let reader = &self.reader;
        let image = SourceImage::open(reader.reference, reader.store, &leaf.raw, &leaf.descriptor)?;
        match image {
            Some(image) => {
                self.images.push(image);
                Ok(Some(Node::Image(self.images.len() - 1)))
            }
            // Something else for a platform; alone it is nothing that can be converted.
            None if *self.selection == Selection::All => self.carried(leaf),
            None => Err(SourceError::MediaType {
                what: format!("manifest {}", leaf.descriptor.digest()),
                media_type: "that of another artifact than an image".to_owned(),
            }),
        }
    }

    fn carried(&self, leaf: &Leaf) -> Result<Option<Node>, SourceError> {
        match (carried(self.reader.store, leaf)?, self.selection) {
            (Some(carried), _) => Ok(Some(Node::Carried(carried))),
            // A client that pulls one platform leaves out what it does not need.
            (None, Selection::ThisMachine | Selection::These(_)) => {
                tracing::warn!(
                    "{} is not in {} and is left out of the index",
                    leaf.descriptor.digest(),
                    self.reader.reference
                );
                Ok(None)
            }
            (None, Selection::All) => {
                let what = || format!("manifest {}", leaf.descriptor.digest());
                let id = blob_id(&leaf.descriptor, what)?;
                self.reader.store.open_blob(BlobKind::Manifest, id)?;
                Ok(None)
            }
        }
    }
}

/// The digests of the images that are wanted.
fn select(
    reference: &ImageRef,
    leaves: &[&Leaf],
    selection: &Selection,
) -> Result<HashSet<String>, SourceError> {
    let images: Vec<(&Leaf, Option<&Platform>, From)> = leaves
        .iter()
        .filter_map(|leaf| match &leaf.kind {
            Kind::Image { platform, from } => Some((*leaf, platform.as_ref(), *from)),
            _ => None,
        })
        .collect();
    let no_platform = |wanted: &Platform| SourceError::NoPlatform {
        reference: reference.to_string(),
        platform: wanted.to_string(),
        known: images
            .iter()
            .filter_map(|(_, platform, _)| platform.map(Platform::to_string))
            .collect(),
    };
    let chosen: Vec<&Leaf> = match selection {
        Selection::All => images.iter().map(|(leaf, ..)| *leaf).collect(),
        Selection::These(wanted) => {
            for wanted in wanted {
                if !images.iter().any(|(_, found, _)| *found == Some(wanted)) {
                    return Err(no_platform(wanted));
                }
            }
            let is_wanted =
                |found: Option<&Platform>| found.is_some_and(|found| wanted.contains(found));
            let images = images.iter().filter(|(_, found, _)| is_wanted(*found));
            images.map(|(leaf, ..)| *leaf).collect()
        }
        Selection::ThisMachine => {
            let here = Platform::of_this_machine();
            let exact = images.iter().find(|(_, found, _)| *found == Some(&here));
            let near = || {
                let mut images = images.iter();
                images.find(|(_, found, _)| found.is_some_and(|p| p.has_machine_of(&here)))
            };
            // An index of one image without a platform means that image.
            let only = || match images.as_slice() {
                [only] if only.2 == From::Config => Some(only),
                _ => None,
            };
            let found = exact.or_else(near).or_else(only);
            vec![found.ok_or_else(|| no_platform(&here))?.0]
        }
    };
    Ok(chosen.into_iter().map(Leaf::digest).collect())
}

/// What the manifest and its blobs are; `None` if the manifest is not here.
fn carried(store: &Store, leaf: &Leaf) -> Result<Option<Carried>, SourceError> {
    let what = || format!("manifest {}", leaf.descriptor.digest());
    let id = blob_id(&leaf.descriptor, what)?;
    match store.open_blob(BlobKind::Manifest, id) {
        Ok(_) => {}
        Err(SourceError::MissingBlob { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut blobs = Vec::new();
    let media_type = leaf.descriptor.media_type().to_string();
    if [MANIFEST, DOCKER_MANIFEST, ARTIFACT_MANIFEST].contains(&media_type.as_str()) {
        let manifest: Document<Value> = store.document(BlobKind::Manifest, &leaf.descriptor)?;
        for key in ["config", "layers", "blobs"] {
            let named = match manifest.raw.get(key) {
                Some(Value::Array(several)) => several.as_slice(),
                Some(Value::Null) | None => &[],
                Some(one) => std::slice::from_ref(one),
            };
            for value in named {
                let descriptor: Descriptor =
                    serde_json::from_value(value.clone()).map_err(|error| {
                        SourceError::Invalid {
                            what: what(),
                            reason: format!("its {key}: {error}"),
                        }
                    })?;
                let what = || format!("blob {}", descriptor.digest());
                blobs.push(blob_id(&descriptor, what)?);
            }
        }
    }
    let describes = match &leaf.kind {
        Kind::Attestation { of } => of.parse().ok(),
        _ => None,
    };
    Ok(Some(Carried {
        descriptor: leaf.raw.clone(),
        blobs,
        describes,
    }))
}
