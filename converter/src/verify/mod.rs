//! Verify an image: each layer's blob against itself, the layers against manifest and configuration,
//! and, if asked, the file systems against those of the image it was made from.
//!
//! Enters: opened images. Leaves: the layers' figures, or the first fault. Holds one layer's TOC and
//! entries at a time, two when images are compared; all layers' only if their numbers differ.

mod difference;
mod tree;

use crate::blob::ReadAt as _;
use crate::cancel::{Cancel, Cancelled};
use crate::image::Digest;
use crate::image::manifest::UNCOMPRESSED_SIZE;
use crate::layer::contents::{ContentsError, content_digests};
use crate::layer::scan::{Expected, ScanError, ScanOptions, scan_layer};
use crate::layer::verify::{VerifiedLayer, VerifyError, VerifyOptions, must_equal, verify_entries};
use crate::progress::{Metered, Progress, Stage, Step};
use crate::source::{SourceError, SourceImage, SourceLayer};

use tree::Tree;

pub use difference::{Difference, Differences};

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// A layer is faulty, or not what manifest and configuration say.
    #[error("layer {layer}")]
    Layer {
        /// The layer's digest.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: VerifyError,
    },
    /// The configuration's history is about another number of layers.
    #[error("configuration {config} has a history of {found} layers, expected {expected}")]
    History {
        /// The configuration's digest.
        config: Digest,
        /// Entries of the history that made a layer.
        found: usize,
        /// Layers of the image.
        expected: usize,
    },
    /// The file systems of the two images differ.
    #[error("{} from {source_image}: {differences}", plural(differences.count))]
    Different {
        /// The image that it was compared with.
        source_image: String,
        /// In what.
        differences: Differences,
    },
    /// A blob cannot be opened.
    #[error(transparent)]
    Open(#[from] SourceError),
    /// A layer of the source cannot be read.
    #[error("reading {source_image}")]
    Source {
        /// The source.
        source_image: String,
        /// What is wrong with it.
        #[source]
        source: Box<ScanError>,
    },
    /// A file of the source cannot be read.
    #[error("reading {source_image}")]
    Contents {
        /// The source.
        source_image: String,
        /// Which, and why.
        #[source]
        source: ContentsError,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn plural(count: u64) -> String {
    match count {
        1 => "1 difference".to_owned(),
        count => format!("{count} differences"),
    }
}

/// Checks an image in itself.
///
/// # Errors
/// [`ImageFault`] names the layer and the fault.
pub fn verify_image(
    image: &SourceImage,
    options: VerifyOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<VerifiedLayer>, ImageFault> {
    check_history(image)?;
    (0..image.layers.len())
        .map(|layer| verify_one(image, layer, options, cancel, progress, None))
        .collect()
}

/// Checks an image in itself, and that its file systems are those of `source`: layer by layer, so that
/// the merged ones are equal, too; merged alone where the numbers of layers differ.
///
/// # Errors
/// [`ImageFault`] names the layer and the fault, or the first differences.
pub fn compare_images(
    image: &SourceImage,
    source: &SourceImage,
    options: VerifyOptions,
    scan: &ScanOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<VerifiedLayer>, ImageFault> {
    check_history(image)?;
    let mut differences = Differences::default();
    let mut verified = Vec::with_capacity(image.layers.len());
    if image.layers.len() == source.layers.len() {
        for layer in 0..image.layers.len() {
            let expected = source_tree(source, layer, options, scan, cancel, progress)?;
            let mut found = Tree::default();
            verified.push(verify_one(
                image,
                layer,
                options,
                cancel,
                progress,
                Some(&mut found),
            )?);
            differences.compare(Some(layer), &found, &expected);
        }
    } else {
        let mut expected = Tree::default();
        for layer in 0..source.layers.len() {
            expected.lay_over(source_tree(source, layer, options, scan, cancel, progress)?);
        }
        let mut found = Tree::default();
        for layer in 0..image.layers.len() {
            let mut upper = Tree::default();
            verified.push(verify_one(
                image,
                layer,
                options,
                cancel,
                progress,
                Some(&mut upper),
            )?);
            found.lay_over(upper);
        }
        differences.compare(None, &found, &expected);
    }
    if differences.count == 0 {
        return Ok(verified);
    }
    Err(ImageFault::Different {
        source_image: source.reference.to_string(),
        differences,
    })
}

/// A history is optional; one that is there tells for each layer how it was made.
fn check_history(image: &SourceImage) -> Result<(), ImageFault> {
    let history = image.config.parsed.history().as_deref().unwrap_or(&[]);
    let made_layers = |entry: &&oci_spec::image::History| entry.empty_layer() != Some(true);
    let found = history.iter().filter(made_layers).count();
    if history.is_empty() || found == image.layers.len() {
        return Ok(());
    }
    Err(ImageFault::History {
        config: image.config.id.digest,
        found,
        expected: image.layers.len(),
    })
}

/// Checks one layer; its file system goes to `tree`.
fn verify_one(
    image: &SourceImage,
    index: usize,
    options: VerifyOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
    mut tree: Option<&mut Tree>,
) -> Result<VerifiedLayer, ImageFault> {
    cancel.check()?;
    let layer = &image.layers[index];
    let blob = image.open_layer(layer)?;
    let mut verify = || {
        // A blob of another size is another blob: said first, as most else follows from it.
        must_equal("size", &blob.len_bytes(), &layer.blob.size_bytes)?;
        let step = Step::of(Stage::Verify, layer.blob.digest, layer.blob.size_bytes);
        let meter = progress.begin(step);
        let metered = Metered::new(&blob, &*meter);
        let found = verify_entries(&metered, options, cancel, |verified| {
            if let Some(tree) = &mut tree {
                tree.extract(verified.entry, verified.digest);
            }
        })?;
        must_equal_described(image, index, layer, &found)?;
        meter.finish();
        Ok(found)
    };
    verify().map_err(|source| match source {
        VerifyError::Cancelled(cancelled) => cancelled.into(),
        source => ImageFault::Layer {
            layer: layer.blob.digest,
            source,
        },
    })
}

/// Compares a blob with what manifest and configuration say of it.
fn must_equal_described(
    image: &SourceImage,
    index: usize,
    layer: &SourceLayer,
    found: &VerifiedLayer,
) -> Result<(), VerifyError> {
    must_equal("digest", &found.digest, &layer.blob.digest)?;
    must_equal("DiffID", &found.diff_id, &layer.diff_id)?;
    let none = || "none".to_owned();
    let annotated = layer.toc_digest.clone().unwrap_or_else(none);
    must_equal("TOC digest", &found.toc_digest.to_string(), &annotated)?;
    let descriptor = image.manifest.parsed.layers().get(index);
    let annotations = descriptor.and_then(|descriptor| descriptor.annotations().as_ref());
    // Older writers left the size out.
    match annotations.and_then(|all| all.get(UNCOMPRESSED_SIZE)) {
        Some(size) => must_equal(
            "uncompressed size",
            &found.uncompressed_bytes.to_string(),
            size,
        ),
        None => Ok(()),
    }
}

/// The file system of a layer in any format, read through a spool.
fn source_tree(
    source: &SourceImage,
    index: usize,
    options: VerifyOptions,
    scan: &ScanOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Tree, ImageFault> {
    cancel.check()?;
    let layer = &source.layers[index];
    let expected = Expected {
        digest: layer.blob.digest,
        size_bytes: layer.blob.size_bytes,
        diff_id: layer.diff_id,
    };
    let source_image = || source.reference.to_string();
    let meter = progress.begin(Step::of(Stage::Scan, expected.digest, expected.size_bytes));
    let blob = source.open_layer(layer)?;
    let metered = Metered::new(blob.clone(), &*meter);
    let scanned = scan_layer(metered, Some(&blob), &expected, scan, &[cancel]).map_err(
        |error| match error {
            ScanError::Cancelled(cancelled) => cancelled.into(),
            error => ImageFault::Source {
                source_image: source_image(),
                source: Box::new(error),
            },
        },
    )?;
    meter.finish();
    let digests =
        content_digests(&scanned, options.parallel, cancel).map_err(|error| match error {
            ContentsError::Cancelled(cancelled) => cancelled.into(),
            error @ ContentsError::Read { .. } => ImageFault::Contents {
                source_image: source_image(),
                source: error,
            },
        })?;
    let mut tree = Tree::default();
    for (entry, digest) in scanned.entries.iter().zip(digests) {
        tree.extract(entry, digest);
    }
    Ok(tree)
}
