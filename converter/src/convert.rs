//! An image's way from scanned layers to a written image, on one screen: layers, configuration,
//! manifest; and when all images are there, the indexes above them and what is carried over.

mod carry;
mod reuse;
mod scan;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::cancel::{Cancel, Cancelled};
use crate::image::manifest::{
    CONTAINERD_NAME, DocumentOptions, REF_NAME, REFERENCE_DIGEST, REFERENCE_TYPE, rewrite_config,
    rewrite_index, rewrite_index_descriptor, rewrite_manifest, rewrite_manifest_descriptor,
};
use crate::image::{BlobId, Digest, NewLayer, Platform};
use crate::layer::assemble::FinishedLayer;
use crate::layer::encode::{Check, Level};
use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::plan::{LayerPlan, PlanError, PlanOptions, Prefetch, plan_layer};
use crate::layer::scan::{ScanError, ScanOptions};
use crate::layer::verbatim::{copy_tar, verify_copy};
use crate::layer::verify::{VerifyError, check_toc};
use crate::layer::{ConvertError, ConvertOptions, Parallel, convert_layer};
use crate::profile::Prioritized;
use crate::scratch::ScratchError;
use crate::sink::{ImageBlobs, Sink, SinkError};
use crate::source::{IndexNode, Node, Source, SourceError, SourceImage, SourceLayer};

pub use scan::{Scanner, scan_image};

/// How an image is converted.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// How layers are read.
    pub scan: ScanOptions,
    /// How they are cut.
    pub plan: PlanOptions,
    /// How they are compressed.
    pub level: Level,
    /// Threads and memory.
    pub parallel: Parallel,
    /// What layers become.
    pub format: LayerFormat,
    /// Whether layers that are eStargz already may stay as they are.
    pub reuse: Reuse,
    /// Whether written layers are read back.
    pub verify: Verify,
    /// What configurations, manifests and indexes say.
    pub documents: DocumentOptions,
}

/// What layers become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerFormat {
    /// eStargz.
    Estargz,
    /// The source's tar, without compression.
    Tar,
}

/// Whether layers that are eStargz already may stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Every layer is converted.
    Never,
    /// Those that are valid, and prefetch nothing else than what is wanted.
    WhereValid,
}

/// Whether written layers are read back and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Every digest, TOC row and chunk.
    Full,
    /// Not at all.
    Skip,
}

/// A written image, or an index of several.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The manifest or index that the destination's name means.
    pub root: BlobId,
    /// The images, in the source's order.
    pub images: Vec<ConvertedImage>,
    /// Manifests that were carried over as they are.
    pub carried: usize,
    /// Time spent on indexes, on what is carried over, and on naming and syncing.
    pub commit: Duration,
}

/// A converted image.
#[derive(Clone, Debug)]
pub struct ConvertedImage {
    /// What it runs on.
    pub platform: Platform,
    /// Digest of the source's manifest.
    pub source: Digest,
    /// The new manifest.
    pub manifest: BlobId,
    /// The new configuration.
    pub config: BlobId,
    /// What became of each layer, base first.
    pub layers: Vec<ConvertedLayer>,
    /// Time spent making the layers, and checking them.
    pub encode: Duration,
}

/// What became of a layer.
#[derive(Clone, Debug)]
pub struct ConvertedLayer {
    /// The source blob.
    pub source: BlobId,
    /// Length of the source's tar.
    pub source_tar_bytes: u64,
    /// Entries of the source.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// The length of those.
    pub file_bytes: u64,
    /// The written blob.
    pub finished: FinishedLayer,
    /// What is before the landmark.
    pub prefetch: Prefetch,
    /// Whether the blob is the source's own.
    pub reused: bool,
}

/// Why an image could not be converted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each wraps a stage's error")]
pub enum ImageError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("writing to {}", place.display())]
    Write {
        place: PathBuf,
        #[source]
        source: ConvertError,
    },
    #[error("copying layer {layer} to {}", place.display())]
    Copy {
        layer: Digest,
        place: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("reading blob {digest}, which is carried over")]
    Carry {
        digest: Digest,
        #[source]
        source: std::io::Error,
    },
    #[error("the converted layer of {layer} is faulty")]
    Verify {
        layer: Digest,
        #[source]
        source: VerifyError,
    },
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A layer's blob, the TOC digest that its manifest gives, and the prioritised entries.
type LayerKey = (Digest, Option<String>, Vec<u32>);

/// A source on its way to a sink, image by image.
#[derive(Debug)]
pub struct Conversion<'a> {
    source: &'a Source,
    options: &'a ImageOptions,
    cancel: &'a Cancel,
    sink: Sink,
    images: Vec<Option<ConvertedImage>>,
    /// Layers that were converted, by all that decides what becomes of them.
    layers: HashMap<LayerKey, ConvertedLayer>,
}

impl<'a> Conversion<'a> {
    /// Begins the conversion; nothing is written yet.
    ///
    /// # Errors
    /// When the destination cannot hold what was selected.
    pub fn new(
        source: &'a Source,
        options: &'a ImageOptions,
        sink: Sink,
        cancel: &'a Cancel,
    ) -> Result<Self, ImageError> {
        sink.must_hold(source.images.len())?;
        Ok(Self {
            source,
            options,
            cancel,
            sink,
            images: source.images.iter().map(|_| None).collect(),
            layers: HashMap::new(),
        })
    }

    /// Converts the image with this index into [`Source::images`], and checks its layers.
    ///
    /// # Errors
    /// [`ImageError`]; the destination is as it was then.
    pub fn image(
        &mut self,
        image: usize,
        layers: &[ScannedLayer],
        prioritized: &Prioritized,
    ) -> Result<(), ImageError> {
        let source = &self.source.images[image];
        let mut encode = Duration::ZERO;
        let mut converted = Vec::with_capacity(layers.len());
        let sources = source.layers.iter().zip(layers);
        for ((source_layer, layer), prioritized) in sources.zip(&prioritized.layers) {
            let toc_digest = source_layer.toc_digest.clone();
            let key = (layer.digest, toc_digest, prioritized.clone());
            let started = Instant::now();
            let done = match self.layers.get(&key) {
                Some(done) => done.clone(),
                None => self.layer(source, source_layer, layer, prioritized)?,
            };
            encode += started.elapsed();
            self.layers.insert(key, done.clone());
            converted.push(done);
        }
        let new_layers: Vec<NewLayer> = converted.iter().map(new_layer).collect();
        let documents = &self.options.documents;
        let config = rewrite_config(&source.config, &new_layers, documents);
        let config = self.sink.add_bytes(&config)?;
        let manifest = rewrite_manifest(&source.manifest, config, &new_layers, documents);
        let manifest = self.sink.add_bytes(&manifest)?;
        self.images[image] = Some(ConvertedImage {
            platform: source.platform.clone(),
            source: source.manifest.id.digest,
            manifest,
            config,
            layers: converted,
            encode,
        });
        Ok(())
    }

    fn layer(
        &mut self,
        source: &SourceImage,
        source_layer: &SourceLayer,
        layer: &ScannedLayer,
        prioritized: &[u32],
    ) -> Result<ConvertedLayer, ImageError> {
        let options = self.options;
        let convert_options = ConvertOptions {
            level: options.level,
            check: match options.verify {
                Verify::Full => Check::Inflate,
                Verify::Skip => Check::Skip,
            },
            parallel: options.parallel,
        };
        let plan = plan_layer(layer, prioritized, options.plan)?;
        if options.reuse == Reuse::WhereValid {
            let reused = reuse::find(source, source_layer, layer, &plan, options, self.cancel)?;
            if let Some(reused) = reused {
                return reuse::copy(reused, source, source_layer, layer, &mut self.sink);
            }
        }
        let mut blob = self.sink.stage()?;
        let made = match options.format {
            LayerFormat::Estargz => {
                convert_layer(layer, &plan, convert_options, &mut blob, self.cancel)
            }
            LayerFormat::Tar => copy_tar(layer, &mut blob, self.cancel),
        };
        let finished = made.map_err(|source| match source {
            ConvertError::Write { .. } => ImageError::Write {
                place: self.sink.place().to_owned(),
                source,
            },
            other => other.into(),
        })?;
        if options.verify == Verify::Full {
            // The members have been inflated and compared before they were written.
            let found = match finished.toc_digest {
                Some(toc_digest) => check_toc(&blob.blob(), toc_digest),
                None => verify_copy(&blob.blob(), layer.diff_id, self.cancel),
            };
            found.map_err(|source| ImageError::Verify {
                layer: layer.digest,
                source,
            })?;
        }
        self.sink.add(blob_id(&finished), blob)?;
        Ok(report(layer, &plan, finished))
    }

    /// Writes indexes and what is carried over, and makes the whole visible. Every image must have
    /// been converted.
    ///
    /// # Errors
    /// [`ImageError`]; the destination is as it was then.
    pub fn finish(mut self) -> Result<Converted, ImageError> {
        let started = Instant::now();
        let images: Vec<ConvertedImage> = std::mem::take(&mut self.images)
            .into_iter()
            .flatten()
            .collect();
        debug_assert_eq!(images.len(), self.source.images.len());
        let mut writer = NodeWriter {
            source: self.source,
            documents: &self.options.documents,
            cancel: self.cancel,
            sink: &mut self.sink,
            images: &images,
            carried: 0,
        };
        let (root, descriptor) = writer.root()?;
        let carried = writer.carried;
        let blobs: Vec<ImageBlobs> = images.iter().map(image_blobs).collect();
        self.cancel.check()?;
        self.sink.commit(descriptor, &blobs)?;
        Ok(Converted {
            root,
            images,
            carried,
            commit: started.elapsed(),
        })
    }
}

/// Writes what stands above the images.
struct NodeWriter<'a> {
    source: &'a Source,
    documents: &'a DocumentOptions,
    cancel: &'a Cancel,
    sink: &'a mut Sink,
    images: &'a [ConvertedImage],
    carried: usize,
}

impl NodeWriter<'_> {
    /// The root's id, and its descriptor for the destination's index.
    fn root(&mut self) -> Result<(BlobId, Map<String, Value>), ImageError> {
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
                    carry::copy(self.source, carried, self.sink, self.cancel)?;
                    self.carried += 1;
                    carry::descriptor(carried, self.images)
                }
            };
            manifests.push(Value::Object(descriptor));
        }
        let index = rewrite_index(&node.raw, manifests, media_types, annotations);
        Ok(self.sink.add_bytes(&index)?)
    }
}

/// The annotations of the source's entry, without its name and its part in an index.
fn kept_annotations(descriptor: &Map<String, Value>) -> Option<Value> {
    let mut annotations = descriptor.get("annotations")?.as_object()?.clone();
    for key in [REF_NAME, CONTAINERD_NAME, REFERENCE_TYPE, REFERENCE_DIGEST] {
        annotations.shift_remove(key);
    }
    (!annotations.is_empty()).then_some(Value::Object(annotations))
}

fn report(layer: &ScannedLayer, plan: &LayerPlan, finished: FinishedLayer) -> ConvertedLayer {
    use crate::blob::ReadAt as _;
    let files = layer.entries.iter();
    let files = files.filter(|entry| entry.kind == EntryKind::Regular);
    ConvertedLayer {
        source: BlobId {
            digest: layer.digest,
            size_bytes: layer.size_bytes,
        },
        source_tar_bytes: layer.spool.len_bytes(),
        entries: layer.entries.len() as u64,
        files: files.clone().count() as u64,
        file_bytes: files.map(|entry| entry.size_bytes).sum(),
        // A plain tar has no landmark, and so nothing before it.
        prefetch: finished
            .toc_digest
            .map_or_else(Prefetch::default, |_| plan.prefetch),
        finished,
        reused: false,
    }
}

fn blob_id(finished: &FinishedLayer) -> BlobId {
    BlobId {
        digest: finished.digest,
        size_bytes: finished.size_bytes,
    }
}

fn image_blobs(image: &ConvertedImage) -> ImageBlobs {
    let layers = image.layers.iter();
    ImageBlobs {
        config: image.config,
        layers: layers.map(|layer| blob_id(&layer.finished)).collect(),
    }
}

fn new_layer(layer: &ConvertedLayer) -> NewLayer {
    let finished = &layer.finished;
    NewLayer {
        blob: blob_id(finished),
        diff_id: finished.diff_id,
        toc_digest: finished.toc_digest,
        uncompressed_bytes: finished.uncompressed_bytes,
    }
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
