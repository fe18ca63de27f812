//! The scan of an image's layers, in parallel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::convert::ImageError;
use crate::convert::layer::Job;
use crate::image::{BlobId, Digest};
use crate::layer::entry::ScannedLayer;
use crate::layer::scan::{Expected, ScanOptions, scan_layer};
use crate::progress::{Metered, Progress, Silent, Stage, Step};
use crate::scratch::{self, Needed};
use crate::source::{Source, SourceImage, SourceLayer};

/// Two layers are the same if all that is checked of them is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    digest: Digest,
    size_bytes: u64,
    diff_id: Digest,
}

impl Key {
    fn of(layer: &SourceLayer) -> Self {
        let BlobId { digest, size_bytes } = layer.blob;
        Self {
            digest,
            size_bytes,
            diff_id: layer.diff_id,
        }
    }
}

/// Scans image after image; a layer that several of them have is scanned once.
#[derive(Debug)]
pub struct Scanner<'a> {
    options: &'a ScanOptions,
    threads: usize,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    /// In how many images that have not been scanned a layer occurs.
    uses: HashMap<Key, usize>,
    /// Layers that will be needed again.
    kept: HashMap<Key, ScannedLayer>,
    elapsed: Duration,
}

impl<'a> Scanner<'a> {
    /// For the images of `source`, each of which is scanned once.
    pub fn new(
        source: &Source,
        options: &'a ScanOptions,
        threads: usize,
        cancel: &'a Cancel,
    ) -> Self {
        let mut uses = HashMap::new();
        for image in &source.images {
            for key in unique(&image.layers) {
                *uses.entry(key.0).or_insert(0) += 1;
            }
        }
        Self {
            options,
            threads,
            cancel,
            progress: &Silent,
            uses,
            kept: HashMap::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// With its steps shown by `progress`.
    #[must_use]
    pub fn shown(self, progress: &'a dyn Progress) -> Self {
        Self { progress, ..self }
    }

    /// The time spent so far.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Reads all layers of `image`, base first.
    ///
    /// # Errors
    /// As [`scan_image`].
    pub fn scan(&mut self, image: &SourceImage) -> Result<Vec<ScannedLayer>, ImageError> {
        let started = Instant::now();
        let wanted = unique(&image.layers);
        let (known, new): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|(key, _)| self.kept.contains_key(key));
        let layers: Vec<&SourceLayer> = new.iter().map(|(_, layer)| *layer).collect();
        let watch = Watch {
            cancel: self.cancel,
            progress: self.progress,
        };
        let scanned = scan_layers(image, &layers, self.options, self.threads, watch)?;
        let mut scanned: HashMap<Key, ScannedLayer> =
            new.iter().map(|(key, _)| *key).zip(scanned).collect();
        for (key, _) in known.into_iter().chain(new) {
            let left = self.uses.get_mut(&key).map_or(0, |uses| {
                *uses = uses.saturating_sub(1);
                *uses
            });
            match scanned.get(&key) {
                // The last image takes it.
                None if left == 0 => scanned.extend(self.kept.remove_entry(&key)),
                None => scanned.extend(self.kept.get(&key).map(|kept| (key, kept.clone()))),
                Some(_) if left == 0 => {}
                Some(layer) => {
                    self.kept.insert(key, layer.clone());
                }
            }
        }
        self.elapsed += started.elapsed();
        Ok(in_place(&image.layers, scanned))
    }
}

/// Reads all layers of `image`, in parallel, the largest first. Gives them base first.
///
/// # Errors
/// That of the layer which failed first; the others are cancelled and joined.
pub fn scan_image(
    image: &SourceImage,
    options: &ScanOptions,
    threads: usize,
    cancel: &Cancel,
) -> Result<Vec<ScannedLayer>, ImageError> {
    let (keys, layers): (Vec<Key>, Vec<&SourceLayer>) = unique(&image.layers).into_iter().unzip();
    let watch = Watch {
        cancel,
        progress: &Silent,
    };
    let scanned = scan_layers(image, &layers, options, threads, watch)?;
    Ok(in_place(
        &image.layers,
        keys.into_iter().zip(scanned).collect(),
    ))
}

/// Each layer once, in the image's order.
fn unique(layers: &[SourceLayer]) -> Vec<(Key, &SourceLayer)> {
    let mut unique: Vec<(Key, &SourceLayer)> = Vec::new();
    for layer in layers {
        let key = Key::of(layer);
        if !unique.iter().any(|(known, _)| *known == key) {
            unique.push((key, layer));
        }
    }
    unique
}

/// A layer that occurs again is a clone, and shares the spool.
fn in_place(layers: &[SourceLayer], mut scanned: HashMap<Key, ScannedLayer>) -> Vec<ScannedLayer> {
    let keys: Vec<Key> = layers.iter().map(Key::of).collect();
    let mut placed = Vec::with_capacity(keys.len());
    for (index, key) in keys.iter().enumerate() {
        if keys[index + 1..].contains(key) {
            placed.extend(scanned.get(key).cloned());
        } else {
            placed.extend(scanned.remove(key));
        }
    }
    placed
}

/// Who may stop the work, and who watches it.
#[derive(Clone, Copy)]
struct Watch<'a> {
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
}

fn scan_layers(
    image: &SourceImage,
    layers: &[&SourceLayer],
    options: &ScanOptions,
    threads: usize,
    Watch { cancel, progress }: Watch<'_>,
) -> Result<Vec<ScannedLayer>, ImageError> {
    let options = &ScanOptions {
        decode: options.decode.shared_by(layers.len()),
        ..options.clone()
    };
    let needed = Needed::of_layers(image, layers, options.keep);
    scratch::check(&options.scratch, needed)?;
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(layers[index].blob.size_bytes));
    let announced: Vec<&SourceLayer> = order.iter().map(|&index| layers[index]).collect();
    image.announce(&announced)?;
    let next = AtomicUsize::new(0);
    let scanned: Mutex<Vec<Option<ScannedLayer>>> =
        Mutex::new(layers.iter().map(|_| None).collect());
    let failure: Mutex<Option<ImageError>> = Mutex::new(None);
    // Apart from the caller's: a failure here cancels only the other layers.
    let stop = Cancel::default();
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, layers.len().max(1)) {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match scan(image, layers[index], options, &[cancel, &stop], progress) {
                        Ok(layer) => lock(&scanned)[index] = Some(layer),
                        Err(error) => {
                            lock(&failure).get_or_insert(error);
                            stop.cancel();
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    cancel.check()?;
    let scanned = scanned.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(scanned.into_iter().flatten().collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the blob of `layer` must be.
pub(super) fn expected(layer: &SourceLayer) -> Expected {
    Expected {
        digest: layer.blob.digest,
        size_bytes: layer.blob.size_bytes,
        diff_id: layer.diff_id,
    }
}

/// One layer, alone.
pub(super) fn scan_one(job: &Job<'_>) -> Result<ScannedLayer, ImageError> {
    let options = &job.options.scan;
    let needed = Needed::of_layers(job.image, &[job.source], options.keep);
    scratch::check(&options.scratch, needed)?;
    scan(job.image, job.source, options, &[job.cancel], job.progress)
}

fn scan(
    image: &SourceImage,
    layer: &SourceLayer,
    options: &ScanOptions,
    cancels: &[&Cancel],
    progress: &dyn Progress,
) -> Result<ScannedLayer, ImageError> {
    for cancel in cancels {
        cancel.check()?;
    }
    let blob = image.open_layer(layer)?;
    let expected = expected(layer);
    let started = Instant::now();
    let meter = progress.begin(Step::of(Stage::Scan, expected.digest, expected.size_bytes));
    let metered = Metered::new(blob.clone(), &*meter);
    let scanned = scan_layer(metered, Some(&blob), &expected, options, cancels)?;
    meter.finish();
    tracing::debug!(layer = %scanned.digest, entries = scanned.entries.len(), elapsed = ?started.elapsed(), "scanned");
    Ok(scanned)
}
