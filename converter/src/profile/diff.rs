//! What two profiles differ in. Pure.

use std::collections::HashMap;

use crate::profile::{Profile, ProfiledFile};

/// The difference between two profiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference<'a> {
    /// Files of the first profile alone, in its order.
    pub removed: Vec<&'a ProfiledFile>,
    /// Files of the second profile alone, in its order.
    pub added: Vec<&'a ProfiledFile>,
    /// Files of both in which different bytes were touched, in the second's order.
    pub changed: Vec<ChangedFile<'a>>,
    /// How many files are in both.
    pub common: usize,
    /// Kendall's τ of the order in which the common files were touched first, from 1 (the same) to -1 (the
    /// reverse). None where there are less than two.
    pub order: Option<f64>,
}

/// A file of which two profiles say different things.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChangedFile<'a> {
    /// As it was.
    pub before: &'a ProfiledFile,
    /// As it is.
    pub after: &'a ProfiledFile,
    /// Bytes touched after and not before.
    pub gained_bytes: u64,
    /// Bytes touched before and not after.
    pub lost_bytes: u64,
}

impl Difference<'_> {
    /// Whether the same bytes of the same files were touched; the order does not count.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty() && self.changed.is_empty()
    }
}

/// Compares two profiles. In profiles of the same layers, a file is one of the same layer and path; between others
/// the path alone counts.
pub fn diff<'a>(before: &'a Profile, after: &'a Profile) -> Difference<'a> {
    let one_image =
        before.image.layers == after.image.layers && !before.image.by_path && !after.image.by_path;
    let key = |file: &'a ProfiledFile| (one_image.then_some(file.layer), &*file.path);
    let mut places: HashMap<_, usize> = HashMap::with_capacity(before.files.len());
    for (place, file) in before.files.iter().enumerate() {
        places.entry(key(file)).or_insert(place);
    }
    let mut is_common = vec![false; before.files.len()];
    let mut order = Vec::new();
    let (mut added, mut changed) = (Vec::new(), Vec::new());
    for file in &after.files {
        let Some(&place) = places.get(&key(file)) else {
            added.push(file);
            continue;
        };
        if std::mem::replace(&mut is_common[place], true) {
            continue;
        }
        order.push(place);
        let known = &before.files[place];
        let both = overlap_bytes(&known.ranges, &file.ranges);
        let (gained_bytes, lost_bytes) = (sum(&file.ranges) - both, sum(&known.ranges) - both);
        if gained_bytes + lost_bytes > 0 {
            changed.push(ChangedFile {
                before: known,
                after: file,
                gained_bytes,
                lost_bytes,
            });
        }
    }
    let removed = before.files.iter().zip(&is_common);
    Difference {
        removed: removed
            .filter(|&(_, &common)| !common)
            .map(|(file, _)| file)
            .collect(),
        added,
        changed,
        common: order.len(),
        order: kendall_tau(&mut order),
    }
}

fn sum(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(_, len)| len).sum()
}

/// Of lists of (offset, length), each ascending and disjoint.
fn overlap_bytes(a: &[(u64, u64)], b: &[(u64, u64)]) -> u64 {
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    let mut bytes = 0;
    while let (Some(&(a_start, a_len)), Some(&(b_start, b_len))) = (a.peek(), b.peek()) {
        let (a_end, b_end) = (a_start + a_len, b_start + b_len);
        bytes += a_end.min(b_end).saturating_sub(a_start.max(b_start));
        if a_end <= b_end {
            a.next();
        } else {
            b.next();
        }
    }
    bytes
}

/// τ of a permutation against the ascending order: 1 - 2 × inversions / pairs. Sorts it; None for fewer than
/// two.
pub fn kendall_tau(ranks: &mut [usize]) -> Option<f64> {
    let n = ranks.len() as u64;
    let pairs = n * n.saturating_sub(1) / 2;
    let inversions = sort_counting(ranks, &mut Vec::with_capacity(ranks.len()));
    (pairs > 0).then(|| 1.0 - 2.0 * inversions as f64 / pairs as f64)
}

/// A merge sort that tells how many pairs stood in the wrong order.
fn sort_counting(ranks: &mut [usize], spare: &mut Vec<usize>) -> u64 {
    if ranks.len() < 2 {
        return 0;
    }
    let (low, high) = ranks.split_at_mut(ranks.len() / 2);
    let mut inversions = sort_counting(low, spare) + sort_counting(high, spare);
    spare.clear();
    let (mut left, mut right) = (low.iter().peekable(), high.iter().peekable());
    while let Some(&&low) = left.peek() {
        if let Some(&high) = right.next_if(|&&high| high < low) {
            inversions += left.len() as u64;
            spare.push(high);
        } else {
            spare.push(low);
            left.next();
        }
    }
    spare.extend(right);
    ranks.copy_from_slice(spare);
    inversions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::merge::tests::profile;

    #[test]
    fn overlaps_are_counted() {
        let check = |a: &[(u64, u64)], b: &[(u64, u64)], expected| {
            assert_eq!(overlap_bytes(a, b), expected);
            assert_eq!(overlap_bytes(b, a), expected);
        };
        check(&[], &[(0, 9)], 0);
        check(&[(0, 4), (8, 4)], &[(2, 8)], 4);
        check(&[(0, 4)], &[(4, 4)], 0);
        check(&[(0, 100)], &[(1, 1), (3, 1), (99, 5)], 3);
    }

    #[test]
    fn files_and_bytes_are_told_apart() {
        let a = profile(&[("x", &[(0, 8192)]), ("y", &[(0, 4096)]), ("gone", &[])]);
        let b = profile(&[("new", &[]), ("y", &[(0, 4096)]), ("x", &[(4096, 8192)])]);
        let found = diff(&a, &b);
        assert_eq!((found.common, found.order), (2, Some(-1.0)));
        assert_eq!(
            (found.removed[0].path.as_str(), found.added[0].path.as_str()),
            ("gone", "new")
        );
        let [changed] = found.changed[..] else {
            panic!("{found:?}");
        };
        assert_eq!(changed.after.path, "x");
        assert_eq!((changed.gained_bytes, changed.lost_bytes), (4096, 4096));
        let same = diff(&a, &a);
        assert!(same.is_empty() && same.order == Some(1.0) && same.common == 3);
        let empty = profile(&[]);
        assert_eq!(diff(&empty, &empty).order, None);
    }

    #[test]
    fn other_images_are_compared_by_path() {
        let a = profile(&[("x", &[(0, 4096)])]);
        let mut b = a.clone();
        b.files[0].layer = 1;
        b.image.layers.push(crate::image::Digest::of(b"more"));
        assert!(diff(&a, &b).is_empty());
        let mut c = b.clone();
        c.files[0].layer = 0;
        assert_eq!(diff(&b, &c).added.len(), 1);
    }

    proptest! {
        #[test]
        fn tau_counts_the_pairs(ranks in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let pairs = (0..12).flat_map(|i| (i + 1..12).map(move |j| (i, j)));
            let wrong = pairs.filter(|&(i, j)| ranks[i] > ranks[j]).count();
            let tau = kendall_tau(&mut ranks.clone()).unwrap();
            prop_assert!((tau - (1.0 - wrong as f64 / 33.0)).abs() < 1e-9);
        }
    }
}
