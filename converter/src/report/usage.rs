//! What of an image was opened, touched and prefetched.
//!
//! Enters: what the TOCs say, and a profile. Leaves: figures of each layer, and of each file that plays a part. Pure.

use std::collections::BTreeMap;

use super::ranges::{Range, common, total, union};
use crate::image::Digest;
use crate::profile::Profile;
use crate::simulate::{Contents, ImageModel, Landmark, LayerModel, Place};

/// All figures. Bytes are of files, uncompressed, unless they are said to be compressed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Usage {
    pub(super) layers: Vec<LayerUsage>,
    /// Files that were opened, touched or prefetched, by layer and path.
    pub(super) files: Vec<FileUsage>,
    /// Files of the profile that the image does not have.
    pub(super) unknown_files: u64,
}

/// A layer in figures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerUsage {
    pub(super) digest: Digest,
    /// Of the blob, compressed.
    pub(super) blob_bytes: u64,
    /// Compressed bytes before the landmark.
    pub(super) prefetch_bytes: u64,
    /// False: it is pulled whole, and what it holds is not known.
    pub(super) is_lazy: bool,
    pub(super) files: u64,
    pub(super) file_bytes: u64,
}

/// A file in figures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FileUsage {
    pub(super) layer: u32,
    pub(super) path: String,
    pub(super) size_bytes: u64,
    pub(super) is_opened: bool,
    pub(super) is_executed: bool,
    /// When it was opened or touched first; none: it was not.
    pub(super) first_touch_ms: Option<u64>,
    pub(super) touched: Vec<Range>,
    pub(super) prefetched: Vec<Range>,
}

impl FileUsage {
    pub(super) fn touched_bytes(&self) -> u64 {
        total(&self.touched)
    }

    pub(super) fn prefetched_bytes(&self) -> u64 {
        total(&self.prefetched)
    }

    /// Prefetched and not touched.
    pub(super) fn wasted_bytes(&self) -> u64 {
        self.prefetched_bytes() - common(&self.touched, &self.prefetched)
    }

    /// Touched and not prefetched.
    pub(super) fn missed_bytes(&self) -> u64 {
        self.touched_bytes() - common(&self.touched, &self.prefetched)
    }
}

impl Usage {
    pub(super) fn of(image: &ImageModel, profile: &Profile) -> Self {
        let mut files = prefetched_files(image);
        let mut unknown_files = 0;
        let by_layer = !profile.image.by_path && profile.image.layers.len() == image.layers.len();
        for file in &profile.files {
            let layer = by_layer.then_some(file.layer);
            let place = image.find(&file.path, layer, file.size_bytes);
            let (key, prefetched) = match place {
                Some(Place::File { layer, file: index }) => {
                    let contents = image.layers[layer as usize].contents.as_ref();
                    let path = contents.map(|contents| &contents.files[index as usize].path);
                    ((layer, path.unwrap_or(&file.path).clone()), Vec::new())
                }
                // Without contents, or in a layer that is pulled whole.
                Some(Place::Nothing) if file.size_bytes == 0 => continue,
                Some(Place::Nothing) => {
                    let all = vec![(0, file.size_bytes)];
                    ((file.layer, file.path.clone()), all)
                }
                None => {
                    unknown_files += 1;
                    continue;
                }
            };
            let (layer, path) = key.clone();
            let found = files.entry(key).or_insert_with(|| FileUsage {
                layer,
                path,
                size_bytes: file.size_bytes,
                is_opened: false,
                is_executed: false,
                first_touch_ms: None,
                touched: Vec::new(),
                prefetched,
            });
            found.is_opened |= file.opened;
            found.is_executed |= file.executed;
            let before = found.first_touch_ms.unwrap_or(u64::MAX);
            found.first_touch_ms = Some(before.min(file.first_touch_ms));
            found.touched.extend(&file.ranges);
        }
        let mut files: Vec<FileUsage> = files.into_values().collect();
        for file in &mut files {
            file.touched = union(std::mem::take(&mut file.touched));
        }
        Self {
            layers: image.layers.iter().map(layer_usage).collect(),
            files,
            unknown_files,
        }
    }

    /// The files of a layer.
    pub(super) fn files_of(&self, layer: u32) -> impl Iterator<Item = &FileUsage> {
        self.files.iter().filter(move |file| file.layer == layer)
    }

    /// The sum of a figure over all files.
    pub(super) fn sum(&self, figure: impl Fn(&FileUsage) -> u64) -> u64 {
        self.files.iter().map(figure).sum()
    }

    /// How many files.
    pub(super) fn count(&self, is_meant: impl Fn(&FileUsage) -> bool) -> usize {
        self.files.iter().filter(|file| is_meant(file)).count()
    }
}

/// Where prefetch ends in a layer.
pub(super) fn prefetch_end(contents: &Contents) -> u64 {
    match contents.landmark {
        Landmark::Prefetch(end) => end,
        Landmark::NoPrefetch | Landmark::Missing => 0,
    }
}

fn layer_usage(layer: &LayerModel) -> LayerUsage {
    let files = layer
        .contents
        .as_ref()
        .map_or(&[][..], |contents| &contents.files);
    LayerUsage {
        digest: layer.digest,
        blob_bytes: layer.size_bytes,
        prefetch_bytes: layer.contents.as_ref().map_or(0, prefetch_end),
        is_lazy: layer.contents.is_some(),
        files: files.len() as u64,
        file_bytes: files.iter().map(|file| file.size_bytes).sum(),
    }
}

/// Files with chunks before the landmark.
fn prefetched_files(image: &ImageModel) -> BTreeMap<(u32, String), FileUsage> {
    let mut files = BTreeMap::new();
    for (layer, model) in (0..).zip(&image.layers) {
        let Some(contents) = &model.contents else {
            continue;
        };
        let end = prefetch_end(contents);
        for (index, file) in (0..).zip(&contents.files) {
            let rows = contents.rows_of(index);
            let is_before = |row: &u32| contents.offset_bytes(*row) < end;
            let range = |row: u32| {
                let row = contents.rows[row as usize];
                (row.chunk_offset_bytes, row.chunk_bytes)
            };
            let prefetched = union(rows.filter(is_before).map(range).collect());
            if prefetched.is_empty() {
                continue;
            }
            files.insert(
                (layer, file.path.clone()),
                FileUsage {
                    layer,
                    path: file.path.clone(),
                    size_bytes: file.size_bytes,
                    is_opened: false,
                    is_executed: false,
                    first_touch_ms: None,
                    touched: Vec::new(),
                    prefetched,
                },
            );
        }
    }
    files
}
