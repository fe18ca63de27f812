//! Several profiles to one: of several runs, of several workloads, or of several images. Pure.

use std::collections::{HashMap, HashSet};

use crate::image::Digest;
use crate::profile::{BoundFile, Image, Phase, Profile, ProfiledFile};

/// Which files of two profiles are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameFile {
    /// Those of one path in one layer of the same image.
    InImage,
    /// Those of one path, whatever the image.
    ByPath,
}

/// Why profiles cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There is none.
    #[error("there is no profile to merge")]
    Nothing,
    /// They are of different images.
    #[error("the profiles are of different images: {first} and {other}")]
    Images {
        /// Manifest of the first one.
        first: Digest,
        /// Manifest of one that differs.
        other: Digest,
    },
    /// They contradict one another.
    #[error("the profiles differ in the size of \"{path}\": {first} and {other} bytes")]
    Sizes {
        /// Which file.
        path: String,
        /// In an earlier one.
        first: u64,
        /// In a later one.
        other: u64,
    },
}

/// Merges profiles. What is the union: ranges, missing names, what a collector could not know. What is added up:
/// runs and losses. What is taken of the first: image, workload, collector, why it ended. A file's place is the
/// median of its places in the profiles that have it; its other values are those of the earliest touch. The
/// result is complete if all are. Of partial and of whole ranges the result says so if any profile does. It
/// lasted as long as the longest, and its exit code is the first that is not 0.
///
/// With [`SameFile::ByPath`] profiles of different images are merged as well: see [`Image::by_path`]. A file has
/// the largest of its sizes then, and stands in the layer in which the first profile that has it found it.
///
/// # Errors
/// [`MergeError`].
pub fn merge(profiles: &[Profile], same: SameFile) -> Result<Profile, MergeError> {
    let (first, others) = profiles.split_first().ok_or(MergeError::Nothing)?;
    let different = |other: &&Profile| other.image.manifest != first.image.manifest;
    let one_image = !first.image.by_path && !others.iter().any(|other| other.image.by_path);
    let same = match (others.iter().find(different), same) {
        (Some(other), SameFile::InImage) => {
            return Err(MergeError::Images {
                first: first.image.manifest,
                other: other.image.manifest,
            });
        }
        (None, _) if one_image => SameFile::InImage,
        _ => SameFile::ByPath,
    };
    let mut merged = first.clone();
    if others.is_empty() {
        return Ok(merged);
    }
    for other in others {
        merged.complete &= other.complete;
        merged.lost_events = merged.lost_events.saturating_add(other.lost_events);
        merged.runs = merged.runs.saturating_add(other.runs);
        merged.duration_ms = merged.duration_ms.max(other.duration_ms);
        if merged.exit_code == Some(0) {
            merged.exit_code = other.exit_code;
        }
        add_collector(&mut merged, other);
    }
    let mut seen = HashSet::new();
    let missing = profiles.iter().flat_map(|profile| &profile.missing);
    merged.missing = missing.filter(|name| seen.insert(*name)).cloned().collect();
    merged.mounted = mounted(profiles);
    let (image, layer_of) = images(profiles, same);
    merged.image = image;
    merged.files = files(profiles, &layer_of, same)?;
    Ok(merged)
}

fn add_collector(merged: &mut Profile, other: &Profile) {
    let coarseness = |ranges: &Option<String>| match ranges.as_deref() {
        None => 0,
        Some("whole") => 2,
        Some(_) => 1,
    };
    let (known, new) = (&mut merged.collector, &other.collector);
    if coarseness(&new.ranges) > coarseness(&known.ranges) {
        known.ranges.clone_from(&new.ranges);
    }
    known.granularity_bytes = match (known.granularity_bytes, new.granularity_bytes) {
        (0, _) | (_, 0) => 0,
        (known, new) => known.max(new),
    };
    known.attached |= new.attached;
    for key in &new.not_known {
        if !known.not_known.contains(key) {
            known.not_known.push(key.clone());
        }
    }
}

/// The merged image, and for each profile the new numbers of its layers.
fn images(profiles: &[Profile], same: SameFile) -> (Image, Vec<Vec<u32>>) {
    let mut image = profiles[0].image.clone();
    if same == SameFile::InImage {
        let unchanged: Vec<u32> = (0..).zip(&image.layers).map(|(number, _)| number).collect();
        return (image, vec![unchanged; profiles.len()]);
    }
    image.by_path = true;
    let mut number_of = |digest: &Digest| {
        let known = image.layers.iter().position(|layer| layer == digest);
        let number = known.unwrap_or_else(|| {
            image.layers.push(*digest);
            image.layers.len() - 1
        });
        number as u32
    };
    let layers = profiles.iter().map(|profile| &profile.image.layers);
    let numbers = layers
        .map(|layers| layers.iter().map(&mut number_of).collect())
        .collect();
    (image, numbers)
}

/// Files of bind mounts, each once, as the first profile that has it says; and where it lies in that.
fn mounted(profiles: &[Profile]) -> Vec<BoundFile> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut all: Vec<BoundFile> = Vec::new();
    for file in profiles.iter().flat_map(|profile| &profile.mounted) {
        match known.get(&*file.path) {
            Some(&at) => {
                all[at].opened |= file.opened;
                all[at].executed |= file.executed;
            }
            None => {
                known.insert(&file.path, all.len());
                all.push(file.clone());
            }
        }
    }
    all
}

/// A file with its places in the profiles.
struct Placed {
    file: ProfiledFile,
    places: Vec<usize>,
}

fn files(
    profiles: &[Profile],
    layer_of: &[Vec<u32>],
    same: SameFile,
) -> Result<Vec<ProfiledFile>, MergeError> {
    let mut all: Vec<Placed> = Vec::new();
    let mut known: HashMap<(Option<u32>, &str), usize> = HashMap::new();
    for (profile, layer_of) in profiles.iter().zip(layer_of) {
        for (place, file) in profile.files.iter().enumerate() {
            let layer = (same == SameFile::InImage).then_some(file.layer);
            match known.get(&(layer, &*file.path)) {
                Some(&at) => {
                    let placed = &mut all[at];
                    placed.places.push(place);
                    add(&mut placed.file, file, same)?;
                }
                None => {
                    known.insert((layer, &file.path), all.len());
                    let mut file = file.clone();
                    file.layer = layer_of[file.layer as usize];
                    let places = vec![place];
                    all.push(Placed { file, places });
                }
            }
        }
    }
    // Twice the median, so that it is whole.
    let median = |places: &[usize]| {
        let middle = places.len() / 2;
        if places.len() % 2 == 1 {
            2 * places[middle]
        } else {
            places[middle - 1] + places[middle]
        }
    };
    let mut ordered: Vec<(usize, usize, ProfiledFile)> = Vec::new();
    for Placed { file, mut places } in all {
        places.sort_unstable();
        ordered.push((median(&places), places[0], file));
    }
    ordered.sort_by(
        |(median, first, file), (other_median, other_first, other)| {
            let key = (median, first, file.layer, &file.path);
            key.cmp(&(other_median, other_first, other.layer, &other.path))
        },
    );
    let numbered = (0..).zip(ordered).map(|(seq, (_, _, mut file))| {
        file.first_touch_seq = seq;
        file
    });
    let mut files: Vec<ProfiledFile> = numbered.collect();
    // The order is the median's; times must not contradict it.
    let mut latest = 0;
    for file in &mut files {
        latest = latest.max(file.first_touch_ms);
        file.first_touch_ms = latest;
    }
    Ok(files)
}

fn add(file: &mut ProfiledFile, other: &ProfiledFile, same: SameFile) -> Result<(), MergeError> {
    if file.size_bytes != other.size_bytes && same == SameFile::InImage {
        return Err(MergeError::Sizes {
            path: file.path.clone(),
            first: file.size_bytes,
            other: other.size_bytes,
        });
    }
    file.size_bytes = file.size_bytes.max(other.size_bytes);
    if other.phase == Phase::Setup {
        file.phase = Phase::Setup;
    }
    file.first_touch_ms = file.first_touch_ms.min(other.first_touch_ms);
    file.opened |= other.opened;
    file.executed |= other.executed;
    file.ranges = union(&file.ranges, &other.ranges);
    file.touched_bytes = file.ranges.iter().map(|(_, len)| len).sum();
    Ok(())
}

/// Of lists of (offset, length), each ascending and disjoint; so is the result.
fn union(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut all = [a, b].concat();
    all.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (offset, len) in all {
        match merged.last_mut() {
            Some((start, reached)) if offset <= *start + *reached => {
                *reached = (*reached).max(offset + len - *start);
            }
            _ => merged.push((offset, len)),
        }
    }
    merged
}

#[cfg(test)]
pub(in crate::profile) mod tests;
