//! Other ways in which the same image could be shipped, as far as its own TOCs tell. Pure.
//!
//! They are estimates: a file's compressed size is that of its chunks in the image as it is.

use crate::profile::Profile;
use crate::simulate::{Contents, FileModel, ImageModel, Landmark, Member, Place, Row};

/// Chunks of other tools' images, and of esgz's by default.
const CHUNK_BYTES: u64 = 4 << 20;
/// A chunk that does not compress takes so much more, its gzip member and tar header included.
const OVERHEAD_BYTES: u64 = 1024;

/// The image as eStargz of which nothing is prefetched.
pub(super) fn unoptimized(image: &ImageModel) -> ImageModel {
    laid_out(image, &vec![Vec::new(); image.layers.len()])
}

/// The image as ctr-remote lays it out: every file that was opened, whole, in the order of the first touch.
pub(super) fn whole_files(image: &ImageModel, profile: &Profile) -> ImageModel {
    let mut first = vec![Vec::new(); image.layers.len()];
    let by_layer = !profile.image.by_path && profile.image.layers.len() == image.layers.len();
    for file in &profile.files {
        let layer = by_layer.then_some(file.layer);
        if let Some(Place::File { layer, file }) = image.find(&file.path, layer, file.size_bytes) {
            first[layer as usize].push(file);
        }
    }
    laid_out(image, &first)
}

/// With these files of each layer before its landmark.
fn laid_out(image: &ImageModel, first: &[Vec<u32>]) -> ImageModel {
    let mut other = image.clone();
    for (layer, first) in other.layers.iter_mut().zip(first) {
        if let Some(contents) = &mut layer.contents {
            let behind = layer.size_bytes.saturating_sub(contents.toc_offset_bytes);
            *contents = contents_with(contents, first);
            layer.size_bytes = contents.toc_offset_bytes + behind;
        }
    }
    other
}

fn contents_with(contents: &Contents, first: &[u32]) -> Contents {
    let mut other = contents.clone();
    other.rows.clear();
    other.members.clear();
    let mut offset_bytes = 0;
    let mut is_placed = vec![false; contents.files.len()];
    let mut place = |other: &mut Contents, index: u32, offset_bytes: &mut u64| {
        if !std::mem::replace(&mut is_placed[index as usize], true) {
            let compressed = compressed_bytes(contents, index);
            place_file(other, index, compressed, offset_bytes);
        }
    };
    for &index in first {
        place(&mut other, index, &mut offset_bytes);
    }
    other.landmark = if offset_bytes == 0 {
        Landmark::NoPrefetch
    } else {
        Landmark::Prefetch(offset_bytes)
    };
    for (index, _) in (0..).zip(&contents.files) {
        place(&mut other, index, &mut offset_bytes);
    }
    other.toc_offset_bytes = offset_bytes;
    other
}

/// Puts a file's chunks at `offset_bytes`, each in a member of its own.
fn place_file(other: &mut Contents, index: u32, compressed: u64, offset_bytes: &mut u64) {
    let file: &FileModel = &other.files[index as usize];
    let size_bytes = file.size_bytes;
    let (first_row, begin) = (other.rows.len(), *offset_bytes);
    let mut chunk_offset_bytes = 0;
    while chunk_offset_bytes < size_bytes {
        let chunk_bytes = CHUNK_BYTES.min(size_bytes - chunk_offset_bytes);
        let reached = chunk_offset_bytes + chunk_bytes;
        // Of a compressed size that is spread evenly.
        let share = u128::from(compressed) * u128::from(reached) / u128::from(size_bytes);
        let end_bytes = begin + u64::try_from(share).unwrap_or(u64::MAX);
        let row = u32::try_from(other.rows.len()).unwrap_or(u32::MAX);
        other.rows.push(Row {
            file: index,
            member: u32::try_from(other.members.len()).unwrap_or(u32::MAX),
            chunk_offset_bytes,
            chunk_bytes,
        });
        other.members.push(Member {
            offset_bytes: *offset_bytes,
            end_bytes: end_bytes.max(*offset_bytes + 1),
            rows: vec![row],
        });
        *offset_bytes = end_bytes.max(*offset_bytes + 1);
        chunk_offset_bytes = reached;
    }
    let file = &mut other.files[index as usize];
    file.first_row = u32::try_from(first_row).unwrap_or(u32::MAX);
    file.rows = u32::try_from(other.rows.len() - first_row).unwrap_or(u32::MAX);
    file.end_bytes = *offset_bytes;
}

/// What a file takes in the blob: of a member that several chunks share, each has its part. A member that the TOC
/// does not bound, as behind it lies what is also in a pack, is no longer than its chunk could be.
fn compressed_bytes(contents: &Contents, index: u32) -> u64 {
    let of_row = |row: u32| {
        let member = contents.member_of(row);
        let share = member.len_bytes() / member.rows.len().max(1) as u64;
        share.min(contents.rows[row as usize].chunk_bytes + OVERHEAD_BYTES)
    };
    contents.rows_of(index).map(of_row).sum()
}
