//! An image's way from scanned layers to a written image, on one screen: layers, configuration,
//! manifest; and when all images are there, the indexes above them and what is carried over.

mod copy;
mod layer;
mod nodes;
mod reuse;
mod scan;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Cancelled};
use crate::image::manifest::{DocumentOptions, rewrite_config, rewrite_manifest};
use crate::image::{BlobId, Digest, NewLayer, Platform};
use crate::layer::assemble::FinishedLayer;
use crate::layer::choice::Choice;
use crate::layer::entry::ScannedLayer;
use crate::layer::placement::Placement;
use crate::layer::plan::{PlanError, PlanOptions, Prefetch};
use crate::layer::scan::{ScanError, ScanOptions};
use crate::layer::verify::VerifyError;
use crate::layer::{ConvertError, Parallel};
use crate::planner::{Placements, PlannerOptions};
use crate::progress::{Progress, Silent};
use crate::scratch::ScratchError;
use crate::sink::{ImageBlobs, LayerBlob, Sink, SinkError};
use crate::source::{Source, SourceError, SourceImage, SourceLayer};

use reuse::Before;

pub use crate::layer::choice::Compression;
pub(crate) use copy::pass_on;
pub use scan::{Scanner, scan_image};

/// How an image is converted.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// How layers are read.
    pub scan: ScanOptions,
    /// By what it is decided what is prefetched.
    pub planner: PlannerOptions,
    /// How layers are cut.
    pub plan: PlanOptions,
    /// How they are compressed.
    pub compression: Compression,
    /// Threads, and the memory of the whole conversion.
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
    /// Time spent making the layers, and checking them; and reading them, where that is one pass.
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
    /// How it was compressed, and why; none for a blob that is the source's own, or a plain tar.
    pub choice: Option<Choice>,
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
    #[error("copying blob {digest} to {}", place.display())]
    Copy {
        digest: Digest,
        place: PathBuf,
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

/// What a process takes that does nothing yet, and what its allocator leaves unused.
const PROCESS_BYTES: u64 = 64 << 20;
/// What is under way for a thread needs no more: it waits for the slowest member, which does not take longer
/// for it.
const MOST_BYTES_A_THREAD: u64 = 128 << 20;

/// All that a converted layer depends on, beside the options.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LayerKey {
    source: Digest,
    /// A layer with the wrong one is refused, whoever else has it.
    diff_id: Digest,
    /// What the manifest says decides whether a layer is reused.
    annotated_toc: Option<String>,
    placement: Placement,
}

impl LayerKey {
    fn of(layer: &SourceLayer, placement: &Placement) -> Self {
        Self {
            source: layer.blob.digest,
            diff_id: layer.diff_id,
            annotated_toc: layer.toc_digest.clone(),
            placement: placement.clone(),
        }
    }
}

/// A source on its way to a sink, image by image.
#[derive(Debug)]
pub struct Conversion<'a> {
    source: &'a Source,
    options: &'a ImageOptions,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    sink: Sink,
    images: Vec<Option<ConvertedImage>>,
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
            progress: &Silent,
            sink,
            images: source.images.iter().map(|_| None).collect(),
            layers: HashMap::new(),
        })
    }

    /// With its steps shown by `progress`.
    #[must_use]
    pub fn shown(self, progress: &'a dyn Progress) -> Self {
        Self { progress, ..self }
    }

    /// Converts the image with this index into [`Source::images`], and checks its layers.
    ///
    /// # Errors
    /// [`ImageError`]; the destination is as it was then.
    pub fn image(
        &mut self,
        image: usize,
        layers: &[ScannedLayer],
        placements: &Placements,
    ) -> Result<(), ImageError> {
        let source = &self.source.images[image];
        let started = Instant::now();
        let mut converted = Vec::with_capacity(layers.len());
        let parallel = self.parallel_beside(layers);
        let layers = source.layers.iter().zip(layers);
        for ((source_layer, layer), placement) in layers.zip(&placements.layers) {
            let job = self.job(source, source_layer, parallel);
            let key = LayerKey::of(source_layer, placement);
            let done = match self.layers.remove(&key) {
                Some(done) => done,
                None => layer::convert(&job, layer, placement, &mut self.sink)?,
            };
            converted.push(done.clone());
            self.layers.insert(key, done);
        }
        self.documents(image, converted, started)
    }

    /// Whether an image of which nothing is to be prefetched can be converted by
    /// [`Conversion::image_in_one_pass`]; otherwise it is scanned first, as any other.
    pub fn can_go_in_one_pass(&self) -> bool {
        layer::can_go_in_one_pass(self.options, self.parallel_beside(&[]))
    }

    /// Scans and converts the image with this index into [`Source::images`], of which nothing is to be
    /// prefetched, layer by layer: each is encoded while it is scanned.
    ///
    /// # Errors
    /// [`ImageError`]; the destination is as it was then.
    pub fn image_in_one_pass(&mut self, image: usize) -> Result<(), ImageError> {
        let source = &self.source.images[image];
        let started = Instant::now();
        let mut converted = Vec::with_capacity(source.layers.len());
        let parallel = self.parallel_beside(&[]);
        let unknown = self.pass_layers_on(source, parallel)?;
        let is_left = |layer: &&SourceLayer| {
            !self
                .layers
                .contains_key(&LayerKey::of(layer, &Placement::default()))
        };
        let announced: Vec<&SourceLayer> = source.layers.iter().filter(is_left).collect();
        source.announce(&announced)?;
        for source_layer in &source.layers {
            let job = self.job(source, source_layer, parallel);
            let key = LayerKey::of(source_layer, &Placement::default());
            let done = match self.layers.remove(&key) {
                Some(done) => done,
                None if unknown.contains(&key) => {
                    let layer = scan::scan_one(&job)?;
                    layer::convert(&job, &layer, &Placement::default(), &mut self.sink)?
                }
                None => layer::scan_and_convert(&job, &mut self.sink)?,
            };
            if !self.is_wanted_later(image, source_layer) {
                source.forget(source_layer);
            }
            converted.push(done.clone());
            self.layers.insert(key, done);
        }
        self.documents(image, converted, started)
    }

    /// Whether an image after this one has the same blob.
    fn is_wanted_later(&self, image: usize, layer: &SourceLayer) -> bool {
        let later = self.source.images.iter().skip(image + 1);
        let mut layers = later.flat_map(|image| &image.layers);
        layers.any(|other| other.blob.digest == layer.blob.digest)
    }

    /// Passes on those layers that can stay as they are, as far as that is known before they are scanned.
    /// Gives those of which it is not known.
    fn pass_layers_on(
        &mut self,
        source: &'a SourceImage,
        parallel: Parallel,
    ) -> Result<HashSet<LayerKey>, ImageError> {
        let mut unknown = HashSet::new();
        let mut blobs = Vec::new();
        for source_layer in &source.layers {
            let key = LayerKey::of(source_layer, &Placement::default());
            if self.layers.contains_key(&key) {
                continue;
            }
            self.cancel.check()?;
            match reuse::before_scan(&self.job(source, source_layer, parallel))? {
                Before::Reused(converted, blob) => {
                    self.layers.insert(key, *converted);
                    blobs.push(blob);
                }
                Before::Unknown => drop(unknown.insert(key)),
                Before::Converted => {}
            }
        }
        copy::pass_on("layer", blobs, &mut self.sink, self.cancel, self.progress)?;
        Ok(unknown)
    }

    fn job(
        &self,
        image: &'a SourceImage,
        source: &'a SourceLayer,
        parallel: Parallel,
    ) -> layer::Job<'a> {
        layer::Job {
            image,
            source,
            options: self.options,
            parallel,
            cancel: self.cancel,
            progress: self.progress,
        }
    }

    /// Writes configuration and manifest of an image whose layers are `converted`.
    fn documents(
        &mut self,
        image: usize,
        converted: Vec<ConvertedLayer>,
        started: Instant,
    ) -> Result<(), ImageError> {
        let source = &self.source.images[image];
        let encode = started.elapsed();
        let new_layers: Vec<NewLayer> = converted.iter().map(new_layer).collect();
        let documents = &self.options.documents;
        let config = rewrite_config(&source.config, &new_layers, documents);
        let config = self.sink.add_bytes(&config)?;
        let manifest = rewrite_manifest(&source.manifest, config, &new_layers, documents);
        let media_type = documents.media_types.manifest();
        let manifest = self.sink.add_manifest(&manifest, media_type)?;
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

    /// The memory that is left for a layer beside what is held of all `layers`.
    fn parallel_beside(&self, layers: &[ScannedLayer]) -> Parallel {
        let Parallel {
            threads,
            memory_bytes,
        } = self.options.parallel;
        let indexes = layers.iter().filter_map(|layer| layer.deflate.as_ref());
        let index_bytes: u64 = indexes.map(|index| index.memory_bytes()).sum();
        let held_bytes = self.options.scan.entry_memory.used_bytes()
            + index_bytes
            + PROCESS_BYTES.min(memory_bytes / 8);
        let most_bytes = (threads as u64).saturating_mul(MOST_BYTES_A_THREAD);
        Parallel {
            threads,
            memory_bytes: memory_bytes.saturating_sub(held_bytes).min(most_bytes),
        }
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
        let mut writer = nodes::Writer {
            source: self.source,
            documents: &self.options.documents,
            cancel: self.cancel,
            progress: self.progress,
            sink: &mut self.sink,
            images: &images,
            carried: 0,
        };
        let (root, descriptor) = writer.root()?;
        let carried = writer.carried;
        let sources = self.source.images.iter().zip(&images);
        let blobs: Vec<ImageBlobs> = sources.map(|(from, to)| image_blobs(from, to)).collect();
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

fn blob_id(finished: &FinishedLayer) -> BlobId {
    BlobId {
        digest: finished.digest,
        size_bytes: finished.size_bytes,
    }
}

fn image_blobs(source: &SourceImage, image: &ConvertedImage) -> ImageBlobs {
    let layers = image.layers.iter().map(|layer| LayerBlob {
        id: blob_id(&layer.finished),
        diff_id: layer.finished.diff_id,
        source: layer.source.digest,
    });
    ImageBlobs {
        manifest: image.manifest,
        config: image.config,
        layers: layers.collect(),
        source_manifest: image.source,
        source_config: source.config.id.digest,
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
