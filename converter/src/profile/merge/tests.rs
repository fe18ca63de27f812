use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::json;

use super::*;

pub(in crate::profile) fn profile(files: &[(&str, &[(u64, u64)])]) -> Profile {
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
    let merged = merge(&[a.clone(), b, c], SameFile::InImage).unwrap();
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
    assert_eq!(
        merge(std::slice::from_ref(&a), SameFile::InImage).unwrap(),
        a
    );
    Profile::parse(&merged.to_json()).unwrap();

    let mut other = a.clone();
    other.image.manifest = Digest::of(b"other");
    assert!(matches!(
        merge(&[a.clone(), other], SameFile::InImage),
        Err(MergeError::Images { .. })
    ));
    let mut larger = a.clone();
    larger.files[0].size_bytes += 1;
    assert!(matches!(
        merge(&[a, larger], SameFile::InImage),
        Err(MergeError::Sizes { .. })
    ));
    assert!(matches!(
        merge(&[], SameFile::InImage),
        Err(MergeError::Nothing)
    ));
}

#[test]
fn images_are_merged_by_path() {
    let (base, top) = (Digest::of(b"base"), Digest::of(b"top"));
    let mut a = profile(&[("app", &[(0, 4096)]), ("lib", &[])]);
    a.image.layers = vec![base, Digest::of(b"a")];
    a.files[0].layer = 1;
    let mut b = profile(&[
        ("lib", &[(4096, 4096)]),
        ("app", &[(8192, 4096)]),
        ("new", &[]),
    ]);
    b.image.manifest = Digest::of(b"b");
    b.image.layers = vec![base, top];
    b.files[1].layer = 1;
    b.files[1].size_bytes = 200_000;
    b.files[2].layer = 1;
    let merged = merge(&[a.clone(), b.clone()], SameFile::ByPath).unwrap();
    assert!(merged.image.by_path);
    assert_eq!(merged.image.layers, [base, Digest::of(b"a"), top]);
    let rows = merged.files.iter();
    let rows: Vec<_> = rows.map(|f| (&*f.path, f.layer, f.size_bytes)).collect();
    // Medians: lib 0.5, app 0.5, new 2; both were first once, and the lower layer goes first.
    assert_eq!(
        rows,
        [
            ("lib", 0, 100_000),
            ("app", 1, 200_000),
            ("new", 2, 100_000)
        ]
    );
    assert_eq!(merged.files[1].ranges, [(0, 4096), (8192, 4096)]);
    Profile::parse(&merged.to_json()).unwrap();
    // Again with another, and with one of the same image: still by path.
    let again = merge(&[merged.clone(), a.clone()], SameFile::ByPath).unwrap();
    assert!(again.image.by_path && again.image.layers == merged.image.layers);
    let same = merge(&[a.clone(), a], SameFile::ByPath).unwrap();
    assert!(!same.image.by_path);
}

#[test]
fn what_is_known_least_counts() {
    let (mut a, mut b) = (profile(&[]), profile(&[]));
    a.collector.ranges = Some("partial".to_owned());
    b.collector.ranges = Some("whole".to_owned());
    b.collector.granularity_bytes = 0;
    b.collector.not_known = vec!["missing".to_owned()];
    for pair in [[a.clone(), b.clone()], [b, a]] {
        let collector = merge(&pair, SameFile::InImage).unwrap().collector;
        assert_eq!(collector.ranges.as_deref(), Some("whole"));
        assert_eq!(
            (collector.granularity_bytes, &*collector.not_known[0]),
            (0, "missing")
        );
    }
}

#[test]
fn files_of_mounts_are_united() {
    let mounted = |path: &str, opened: bool| -> BoundFile {
        let row = json!({"path": path, "mount": "/v", "size_bytes": 1, "phase": "run", "first_touch_seq": 4,
            "first_touch_ms": 1, "opened": opened, "executed": !opened});
        serde_json::from_value(row).unwrap()
    };
    let (mut a, mut b) = (profile(&[]), profile(&[]));
    a.mounted = vec![mounted("v/1", true)];
    a.collector.attached = true;
    b.mounted = vec![mounted("v/2", true), mounted("v/1", false)];
    let merged = merge(&[b, a], SameFile::InImage).unwrap();
    let rows = merged.mounted.iter();
    let rows: Vec<_> = rows.map(|f| (&*f.path, f.opened, f.executed)).collect();
    assert_eq!(rows, [("v/2", true, false), ("v/1", true, true)]);
    assert!(merged.collector.attached);
    assert_eq!(Profile::parse(&merged.to_json()).unwrap(), merged);
}

/// A profile with some of eight files, in any order, each with some pages touched.
fn any_profile() -> impl Strategy<Value = Profile> {
    let pages = vec((0..20_u64, 1..4_u64), 0..4);
    let files = btree_map(
        prop::sample::select(vec!["a", "b", "c", "d", "e", "f", "g", "h"]),
        pages,
        0..8,
    );
    files
        .prop_map(|files| files.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
        .prop_map(|files| {
            let ranges: Vec<Vec<(u64, u64)>> = files
                .iter()
                .map(|(_, pages)| {
                    let pages = pages.iter().map(|(at, len)| (at * 4096, len * 4096));
                    pages.fold(Vec::new(), |all, range| union(&all, &[range]))
                })
                .collect();
            let rows: Vec<(&str, &[(u64, u64)])> = files
                .iter()
                .zip(&ranges)
                .map(|((path, _), ranges)| (*path, &**ranges))
                .collect();
            profile(&rows)
        })
}

/// What was touched, by path.
fn touched(profile: &Profile) -> std::collections::BTreeMap<&str, &[(u64, u64)]> {
    let files = profile.files.iter();
    files.map(|file| (&*file.path, &*file.ranges)).collect()
}

proptest! {
    #[test]
    fn merging_a_profile_with_itself_changes_nothing(one in any_profile(), times in 1..4_usize) {
        let merged = merge(&vec![one.clone(); times], SameFile::InImage).unwrap();
        prop_assert_eq!(&merged.files, &one.files);
        prop_assert_eq!(merged.runs as usize, times);
    }

    #[test]
    fn the_order_of_profiles_does_not_matter(
        profiles in vec(any_profile(), 1..5).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
    ) {
        let (one, other) = profiles;
        let (one, other) = (merge(&one, SameFile::InImage).unwrap(), merge(&other, SameFile::InImage).unwrap());
        prop_assert_eq!(one.files, other.files);
    }

    #[test]
    fn merged_ranges_are_the_union_page_by_page(profiles in vec(any_profile(), 1..5)) {
        let merged = merge(&profiles, SameFile::InImage).unwrap();
        Profile::parse(&merged.to_json()).unwrap();
        let pages = |ranges: &[(u64, u64)]| -> std::collections::BTreeSet<u64> {
            ranges.iter().flat_map(|(at, len)| *at / 4096..(at + len) / 4096).collect()
        };
        let known = touched(&merged);
        for (path, ranges) in &known {
            let of_all = profiles.iter().flat_map(|p| touched(p).get(path).map(|r| pages(r)).unwrap_or_default());
            prop_assert_eq!(pages(ranges), of_all.collect());
        }
        let count = profiles.iter().flat_map(|p| touched(p).into_keys()).collect::<std::collections::BTreeSet<_>>().len();
        prop_assert_eq!(known.len(), count);
    }

    #[test]
    fn files_stand_in_the_order_of_their_median_ranks(profiles in vec(any_profile(), 1..6)) {
        let merged = merge(&profiles, SameFile::InImage).unwrap();
        let median = |path: &str| {
            let place = |p: &Profile| p.files.iter().position(|file| file.path == path);
            let mut places: Vec<usize> = profiles.iter().filter_map(place).collect();
            places.sort_unstable();
            let (low, high) = ((places.len() - 1) / 2, places.len() / 2);
            places[low] + places[high]
        };
        prop_assert!(merged.files.is_sorted_by_key(|file| median(&file.path)));
        prop_assert!(merged.files.is_sorted_by_key(|file| file.first_touch_ms));
        prop_assert!(merged.files.iter().zip(0..).all(|(file, seq)| file.first_touch_seq == seq));
    }
}
