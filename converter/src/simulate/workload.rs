//! The profile as a sequence of steps: think, look a file up, read of it.
//!
//! Enters: a profile and an image. Leaves: steps in the order of first touch. A profile knows when a file was first
//! touched, not when each of its ranges was: a step reads all of its file's ranges at once.

use std::ops::Range;

use crate::profile::{Ended, Profile};
use crate::simulate::Constants;
use crate::simulate::image::{ImageModel, Place};

/// What the workload does next.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// Its own time, before.
    pub(super) think_seconds: f64,
    /// What it reads; none where nothing has to be fetched.
    pub(super) read: Option<Access>,
}

/// A file of a lazily pulled layer that is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Access {
    pub(super) layer: u32,
    pub(super) file: u32,
    /// What is read of it, the kernel's read-around included; empty for a file that is only opened.
    pub(super) ranges: Vec<Range<u64>>,
}

/// All that the workload does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Steps {
    pub(super) steps: Vec<Step>,
    /// Its own time, after the last step.
    pub(super) last_seconds: f64,
    /// Names that it looks up in vain.
    pub(super) missing: u64,
    /// Files that the image does not have.
    pub(super) unknown_files: u64,
}

pub(super) fn steps(profile: &Profile, image: &ImageModel, constants: &Constants) -> Steps {
    let by_layer = !profile.image.by_path && profile.image.layers.len() == image.layers.len();
    let mut reached_ms = 0;
    let mut found = Steps {
        steps: Vec::with_capacity(profile.files.len()),
        last_seconds: 0.0,
        missing: profile.missing.len() as u64,
        unknown_files: 0,
    };
    let think = |ms: u64| ms as f64 / 1000.0 * constants.workload_share;
    for file in &profile.files {
        let layer = by_layer.then_some(file.layer);
        let place = image.find(&file.path, layer, file.size_bytes);
        let read = match place {
            Some(Place::File { layer, file: index }) => {
                let contents = image.layers[layer as usize].contents.as_ref();
                let size = contents.map_or(0, |contents| contents.files[index as usize].size_bytes);
                Some(Access {
                    layer,
                    file: index,
                    ranges: around(&file.ranges, size, constants.read_around_bytes),
                })
            }
            Some(Place::Nothing) => None,
            None => {
                found.unknown_files += 1;
                None
            }
        };
        // Merged profiles are in the order of ranks, not of times.
        let passed_ms = file.first_touch_ms.saturating_sub(reached_ms);
        reached_ms += passed_ms;
        found.steps.push(Step {
            think_seconds: think(passed_ms),
            read,
        });
    }
    // A run that was ended from outside was ready when it had touched its last file.
    let ends_ms = match profile.ended {
        Ended::Period | Ended::Signal => reached_ms,
        Ended::Exit | Ended::Line | Ended::Port | Ended::Http => profile.duration_ms,
    };
    found.last_seconds = think(ends_ms.saturating_sub(reached_ms));
    found
}

/// `ranges` (offset, length) with `margin` bytes on both sides, joined where they meet.
fn around(ranges: &[(u64, u64)], size_bytes: u64, margin: u64) -> Vec<Range<u64>> {
    let mut wide: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for &(offset, len) in ranges {
        let start = offset.saturating_sub(margin);
        let end = offset
            .saturating_add(len)
            .saturating_add(margin)
            .min(size_bytes);
        match wide.last_mut() {
            _ if start >= end => {}
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => wide.push(start..end),
        }
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_reads_around() {
        let check = |ranges: &[(u64, u64)], expected: &[(u64, u64)]| {
            let found = around(ranges, 1000, 10).into_iter();
            let found: Vec<_> = found.map(|range| (range.start, range.end)).collect();
            assert_eq!(found, expected, "{ranges:?}");
        };
        check(&[], &[]);
        check(&[(0, 5)], &[(0, 15)]);
        check(&[(100, 5), (125, 5), (400, 1)], &[(90, 140), (390, 411)]);
        check(&[(995, 5)], &[(985, 1000)]);
        // Of a file that is shorter in this image.
        check(&[(2000, 5)], &[]);
    }
}
