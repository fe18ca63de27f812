//! Several profiles of one image to one: of several runs, or of several workloads. Pure.

use std::collections::HashMap;

use crate::image::Digest;
use crate::profile::{Phase, Profile, ProfiledFile};

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

/// Merges profiles of the same image. What is the union: ranges, missing names, what
/// a collector could not know. What is added up: runs and
/// losses. What is taken of the first: image, workload, collector, why it ended. A file's place is the median of
/// its places in the profiles that have it; its other values are those of the earliest touch. The result is
/// complete if all are, and one of partial ranges makes it so. It lasted as long as the longest, and its exit
/// code is the first that is not 0.
///
/// # Errors
/// [`MergeError`].
pub fn merge(profiles: &[Profile]) -> Result<Profile, MergeError> {
    let (first, others) = profiles.split_first().ok_or(MergeError::Nothing)?;
    if let Some(other) = others
        .iter()
        .find(|other| other.image.manifest != first.image.manifest)
    {
        return Err(MergeError::Images {
            first: first.image.manifest,
            other: other.image.manifest,
        });
    }
    let mut merged = first.clone();
    if others.is_empty() {
        return Ok(merged);
    }
    for other in others {
        merged.complete &= other.complete;
        merged.lost_events += other.lost_events;
        merged.runs += other.runs;
        merged.duration_ms = merged.duration_ms.max(other.duration_ms);
        if merged.exit_code == Some(0) {
            merged.exit_code = other.exit_code;
        }
        if merged.collector.ranges.is_none() {
            merged.collector.ranges.clone_from(&other.collector.ranges);
        }
        for key in &other.collector.not_known {
            if !merged.collector.not_known.contains(key) {
                merged.collector.not_known.push(key.clone());
            }
        }
        for name in &other.missing {
            if !merged.missing.contains(name) {
                merged.missing.push(name.clone());
            }
        }
    }
    merged.files = files(profiles)?;
    Ok(merged)
}

/// A file with its places in the profiles.
struct Placed {
    file: ProfiledFile,
    places: Vec<usize>,
}

fn files(profiles: &[Profile]) -> Result<Vec<ProfiledFile>, MergeError> {
    let mut all: Vec<Placed> = Vec::new();
    let mut known: HashMap<(u32, &str), usize> = HashMap::new();
    for profile in profiles {
        for (place, file) in profile.files.iter().enumerate() {
            match known.get(&(file.layer, &*file.path)) {
                Some(&at) => {
                    let placed = &mut all[at];
                    placed.places.push(place);
                    add(&mut placed.file, file)?;
                }
                None => {
                    known.insert((file.layer, &file.path), all.len());
                    all.push(Placed {
                        file: file.clone(),
                        places: vec![place],
                    });
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
    ordered.sort_by(|a, b| {
        let key = |(median, first, file): &(usize, usize, ProfiledFile)| {
            (*median, *first, file.layer, file.path.clone())
        };
        key(a).cmp(&key(b))
    });
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

fn add(file: &mut ProfiledFile, other: &ProfiledFile) -> Result<(), MergeError> {
    if file.size_bytes != other.size_bytes {
        return Err(MergeError::Sizes {
            path: file.path.clone(),
            first: file.size_bytes,
            other: other.size_bytes,
        });
    }
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
mod tests {
    use serde_json::json;

    use super::*;

    fn profile(files: &[(&str, &[(u64, u64)])]) -> Profile {
        let digest = Digest::of(b"image");
        let rows: Vec<_> = files
            .iter()
            .zip(0..)
            .map(|((path, ranges), seq)| {
                json!({"path": path, "layer": 0, "size_bytes": 100_000, "phase": "run",
                    "first_touch_seq": seq, "first_touch_ms": seq * 10, "opened": true, "executed": false,
                    "touched_bytes": ranges.iter().map(|(_, len)| len).sum::<u64>(), "ranges": ranges})
            })
            .collect();
        let document = json!({"esgz_profile": 1, "image": {"reference": "r", "manifest": digest,
            "platform": "linux/amd64", "layers": [digest]}, "workload": {"args": ["a"], "env": [],
            "user": "", "cwd": "/"}, "collector": {"tier": "filemap", "kernel": "6", "granularity_bytes": 4096},
            "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 5, "runs": 1,
            "files": rows, "missing": ["m"]});
        Profile::parse(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn ranges_are_united() {
        let check = |a: &[(u64, u64)], b: &[(u64, u64)], expected: &[(u64, u64)]| {
            assert_eq!(union(a, b), expected);
            assert_eq!(union(b, a), expected);
        };
        check(&[], &[], &[]);
        check(&[(0, 4)], &[], &[(0, 4)]);
        check(&[(0, 4), (8, 4)], &[(4, 4)], &[(0, 12)]);
        check(&[(0, 10)], &[(2, 3), (20, 1)], &[(0, 10), (20, 1)]);
    }

    #[test]
    fn files_stand_at_their_median_place() {
        let a = profile(&[("x", &[(0, 4096)]), ("y", &[]), ("z", &[])]);
        let b = profile(&[("y", &[(0, 4096)]), ("z", &[]), ("x", &[(8192, 4096)])]);
        let mut c = profile(&[("y", &[]), ("x", &[]), ("only", &[])]);
        c.complete = false;
        c.lost_events = 3;
        c.missing.push("n".to_owned());
        let merged = merge(&[a.clone(), b, c]).unwrap();
        let paths: Vec<_> = merged.files.iter().map(|file| &*file.path).collect();
        // Medians: y 0, x 1, z 1.5, only 2.
        assert_eq!(paths, ["y", "x", "z", "only"]);
        assert_eq!(merged.files[1].ranges, [(0, 4096), (8192, 4096)]);
        assert_eq!(merged.files[1].touched_bytes, 8192);
        assert!(merged.files.is_sorted_by_key(|file| file.first_touch_ms));
        assert_eq!(
            (merged.runs, merged.complete, merged.lost_events),
            (3, false, 3)
        );
        assert_eq!(merged.missing, ["m", "n"]);
        assert_eq!(merge(std::slice::from_ref(&a)).unwrap(), a);
        Profile::parse(&merged.to_json()).unwrap();

        let mut other = a.clone();
        other.image.manifest = Digest::of(b"other");
        assert!(matches!(
            merge(&[a.clone(), other]),
            Err(MergeError::Images { .. })
        ));
        let mut larger = a.clone();
        larger.files[0].size_bytes += 1;
        assert!(matches!(merge(&[a, larger]), Err(MergeError::Sizes { .. })));
        assert!(matches!(merge(&[]), Err(MergeError::Nothing)));
    }
}
