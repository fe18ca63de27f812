//! Whole runs on hand-made images, with figures computed by hand.

use proptest::prelude::*;

use super::image::tests::{Short, layer};
use super::*;
use crate::image::Digest;
use crate::profile::Profile;

/// 100 bytes a second, a second there and back.
const LINK: Link = Link {
    bytes_per_second: 100.0,
    round_trip_seconds: 1.0,
};
/// What a pull of one layer takes over it: three documents on a new connection, then on another one two bytes of the
/// blob, its length, and its last unit with footer and TOC.
const PULL_SECONDS: f64 = 4.0 + 2.02 + 1.0 + 2.0;

/// Units of 100 bytes, reads of 1000; a core inflates 100 bytes a second, all else takes no time.
fn constants() -> Constants {
    Constants {
        unit_bytes: 100,
        peek_bytes: 1000,
        read_around_bytes: 0,
        response_header_bytes: 0,
        cores: 1,
        inflate_bytes_per_second: 100.0,
        unpack_bytes_per_second: 100.0,
        unpack_file_seconds: 0.5,
        toc_bytes_per_second: f64::INFINITY,
        pull_seconds: 0.0,
        create_seconds: 0.0,
        open_seconds: 0.0,
        missing_seconds: 0.0,
        read_seconds: 0.0,
        workload_share: 1.0,
        ..Constants::measured()
    }
}

/// Path, size, milliseconds until its first touch, ranges.
type Touched<'a> = (&'a str, u64, u64, &'a [(u64, u64)]);

/// A run that ended by itself.
fn profile(files: &[Touched<'_>], duration_ms: u64) -> Profile {
    let digest = Digest::of(b"").to_string();
    let files: Vec<serde_json::Value> = (0..)
        .zip(files)
        .map(|(seq, (path, size_bytes, ms, ranges))| {
            serde_json::json!({"path": path, "layer": 0, "size_bytes": size_bytes, "phase": "run",
                "first_touch_seq": seq, "first_touch_ms": ms, "opened": true, "executed": false,
                "touched_bytes": ranges.iter().map(|(_, len)| len).sum::<u64>(), "ranges": ranges})
        })
        .collect();
    let document = serde_json::json!({"esgz_profile": 1, "image": {"reference": "oci:a", "manifest": digest,
            "platform": "linux/amd64", "layers": [digest]},
        "workload": {"args": ["a"], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": duration_ms,
        "runs": 1, "files": files, "missing": ["none"]});
    Profile::parse(document.to_string().as_bytes()).unwrap()
}

fn image(layers: Vec<LayerModel>) -> ImageModel {
    ImageModel {
        document_bytes: 0,
        layers,
    }
}

/// Seconds, bytes and requests.
fn check(image: &ImageModel, profile: &Profile, expected: (f64, u64, u64)) -> Prediction {
    let found = simulate(image, profile, LINK, Pulling::Lazy, &constants());
    assert!(
        (found.seconds - expected.0).abs() < 1e-6,
        "{} s, not {}: {found:#?}",
        found.seconds,
        expected.0
    );
    let figures = (found.bytes, found.requests);
    assert_eq!(figures, (expected.1, expected.2), "{found:#?}");
    found
}

const NO_PREFETCH: Short<'_> = (".no.prefetch.landmark", "reg", 1, 5, 0, 0, 0);
const A: Short<'_> = ("a", "reg", 50, 10, 0, 0, 0);
const A_TOUCHED: Touched<'_> = ("a", 50, 0, &[(0, 1)]);

#[test]
fn a_miss_is_a_round_trip_its_bytes_and_its_inflating() {
    let b = ("b", "reg", 50, 250, 0, 0, 0);
    let plain = image(vec![layer(&[NO_PREFETCH, A, b], 800, 900)]);
    // Nothing is read.
    check(&plain, &profile(&[], 0), (PULL_SECONDS, 102, 6));
    check(&plain, &profile(&[], 1500), (PULL_SECONDS + 1.5, 102, 6));
    // Opened, not read.
    let opened = profile(&[("a", 50, 0, &[])], 0);
    check(&plain, &opened, (PULL_SECONDS, 102, 6));
    // From 10 to 250 are three units.
    let touched = profile(&[A_TOUCHED], 0);
    let found = check(&plain, &touched, (PULL_SECONDS + 4.0 + 0.5, 402, 7));
    assert_eq!(found.missed.len(), 1);
    let layer_0 = &found.layers[0];
    assert_eq!((layer_0.missed_chunks, layer_0.missed_bytes), (1, 300));
    assert!((found.network_wait_seconds - 4.0).abs() < 1e-6);
    assert!((found.inflate_wait_seconds - 0.5).abs() < 1e-6);
    // b's first unit came with it; what the workload thinks meanwhile counts once.
    let both = profile(&[A_TOUCHED, ("b", 50, 2000, &[(49, 1)])], 3000);
    let b_seconds = 1.0 + 5.0 + 0.5;
    let seconds = PULL_SECONDS + 4.5 + 2.0 + b_seconds + 1.0;
    check(&plain, &both, (seconds, 402 + 500, 8));
    // Files that the image does not have, or has with another size in another layer.
    let other = profile(&[("x", 50, 0, &[(0, 1)]), ("a", 7, 0, &[(0, 1)])], 0);
    let found = check(&plain, &other, (PULL_SECONDS + 4.5, 402, 7));
    assert_eq!(found.unknown_files, 1);
}

#[test]
fn a_toc_outside_the_last_unit_is_a_request_of_its_own() {
    let rows = [NO_PREFETCH, A];
    let none = profile(&[], 0);
    let near = image(vec![layer(&rows, 800, 900)]);
    check(&near, &none, (PULL_SECONDS, 102, 6));
    let far = image(vec![layer(&rows, 699, 900)]);
    check(&far, &none, (PULL_SECONDS + 3.0, 302, 7));
    // The footer itself lies in two units.
    let cut = image(vec![layer(&rows, 840, 940)]);
    let seconds = 4.0 + 2.02 + 1.0 + (1.0 + 1.4);
    check(&cut, &none, (seconds, 142, 6));
    let slow = Constants {
        toc_bytes_per_second: 500.0,
        pull_seconds: 3.0,
        create_seconds: 4.0,
        missing_seconds: 5.0,
        ..constants()
    };
    let found = simulate(&near, &none, LINK, Pulling::Lazy, &slow);
    // 1000 bytes of JSON; one name is looked up in vain.
    assert!((found.seconds - (PULL_SECONDS + 2.0 + 3.0 + 4.0 + 5.0)).abs() < 1e-6);
    assert!((found.pull_seconds - (PULL_SECONDS + 2.0 + 3.0)).abs() < 1e-6);
}

#[test]
fn creation_waits_for_the_prefetch() {
    let landmark = (".prefetch.landmark", "reg", 1, 250, 0, 0, 0);
    let cold = ("cold", "reg", 60, 400, 0, 0, 0);
    let unread = ("unread", "reg", 30, 100, 0, 0, 0);
    let rows = [A, unread, landmark, cold];
    let hot = image(vec![layer(&rows, 800, 900)]);
    let touched = profile(&[A_TOUCHED], 0);
    let seconds = PULL_SECONDS + 4.0 + 0.8;
    let found = check(&hot, &touched, (seconds, 402, 7));
    assert!((found.prefetch_wait_seconds - 4.8).abs() < 1e-6);
    assert_eq!(found.missed, []);
    let unused: Vec<_> = found
        .unused
        .iter()
        .map(|file| (&*file.path, file.unused_bytes, file.compressed_bytes))
        .collect();
    assert_eq!(unused, [("unread", 30, 150)]);
    let layer_0 = &found.layers[0];
    assert_eq!((layer_0.prefetch_bytes, layer_0.unused_bytes), (250, 150));
    // What lies behind is missed: units 4 to 7, without the last one, which holds the footer.
    let cold = profile(&[("cold", 60, 0, &[(0, 1)])], 0);
    check(&hot, &cold, (seconds + 1.0 + 4.0 + 0.6, 802, 8));
}

#[test]
fn patience_ends_after_ten_seconds_and_a_request_after_thirty() {
    let late = ("late", "reg", 50, 1500, 0, 0, 0);
    let later = ("later", "reg", 50, 1600, 0, 0, 0);
    let prefetched = |landmark: u64| {
        let landmark = (".prefetch.landmark", "reg", 1, landmark, 0, 0, 0);
        image(vec![layer(
            &[A, ("b", "reg", 1, 250, 0, 0, 0), late, later, landmark],
            6000,
            6100,
        )])
    };
    let started = PULL_SECONDS + 10.0;
    // 900 bytes are there after ten seconds, and a's are among them.
    let touched = profile(&[A_TOUCHED], 0);
    let found = check(&prefetched(2000), &touched, (started + 0.5, 102 + 950, 7));
    assert_eq!(found.layers[0].prefetched_after_seconds, None);
    // late's are not: a new connection takes two seconds, then two share the link.
    let touched = profile(&[("late", 50, 0, &[(0, 1)])], 0);
    let bytes = 102 + 900 + 200 + 100 + 50 + 100;
    check(&prefetched(2000), &touched, (started + 4.5, bytes, 8));
    // After 30 seconds 2900 bytes of 4000 have arrived, and nothing is inflated: late is then, when it is read.
    let touched = profile(&[("late", 50, 25_000, &[(0, 1)])], 25_000);
    let found = check(&prefetched(4000), &touched, (started + 25.5, 102 + 2900, 7));
    assert_eq!(found.layers[0].prefetched_after_seconds, None);
}

#[test]
fn a_node_inflates_on_all_cores() {
    let landmark = (".prefetch.landmark", "reg", 1, 300, 0, 0, 0);
    let rows = [
        ("a", "reg", 100, 10, 0, 0, 0),
        ("b", "reg", 100, 100, 0, 0, 0),
        ("c", "reg", 100, 200, 0, 0, 0),
        landmark,
    ];
    let hot = image(vec![layer(&rows, 800, 900)]);
    let none = profile(&[], 0);
    for (cores, seconds) in [(1, 3.0), (2, 2.0), (4, 1.0)] {
        let constants = Constants {
            cores,
            ..constants()
        };
        let found = simulate(&hot, &none, LINK, Pulling::Lazy, &constants);
        assert!((found.seconds - (PULL_SECONDS + 4.0 + seconds)).abs() < 1e-6);
    }
}

#[test]
fn layers_that_are_no_estargz_are_downloaded_and_unpacked() {
    let blob = |name: &str, size_bytes| LayerModel {
        digest: Digest::of(name.as_bytes()),
        size_bytes,
        contents: None,
    };
    let plain = image(vec![blob("0", 300), blob("1", 200)]);
    let none = profile(&[A_TOUCHED], 1000);
    // Both begin after 6 s. The upper one is there after 10 s, the lower one after 11 s; unpacking takes 3 s and 2 s.
    check(&plain, &none, (16.0 + 1.0, 500, 5));
    // One that comes twice is pulled once.
    let twice = image(vec![blob("0", 300), blob("0", 300)]);
    check(&twice, &none, (4.0 + 5.0 + 3.0 + 1.0, 300, 4));
    // Among others: whether it is eStargz is asked first.
    let lazy = layer(&[NO_PREFETCH, A], 800, 900);
    let mixed = image(vec![lazy.clone(), blob("1", 200)]);
    let found = simulate(&mixed, &none, LINK, Pulling::Lazy, &constants());
    let lazily: Vec<bool> = found.layers.iter().map(|layer| layer.lazy).collect();
    assert_eq!(lazily, [true, false]);
    assert_eq!(found.layers[1].requests, 4);
    // And eStargz is unpacked as any other layer where nobody pulls lazily; its file takes half a second.
    let eager = image(vec![lazy]);
    let found = simulate(&eager, &none, LINK, Pulling::Eager, &constants());
    assert!((found.seconds - (4.0 + 11.0 + 9.5 + 1.0)).abs() < 1e-6);
    assert_eq!((found.bytes, found.requests), (900, 4));
}

/// A layer of files with chunks, one after the other; how many of them are prefetched.
fn random_layer() -> impl Strategy<Value = (LayerModel, Vec<(String, u64)>)> {
    let file = prop::collection::vec((1_u64..400, 1_u64..3000), 1..4);
    (prop::collection::vec(file, 1..8), 0_usize..9, any::<u8>()).prop_map(
        |(files, prefetched, seed)| {
            let mut at = 3_u64;
            let (mut rows, mut names) = (Vec::new(), Vec::new());
            for (number, chunks) in files.iter().enumerate() {
                if number == prefetched {
                    rows.push((".prefetch.landmark".to_owned(), "reg", 1, at, 0, 1));
                    at += 40;
                }
                let name = format!("f{number}");
                let size: u64 = chunks.iter().map(|(_, bytes)| bytes).sum();
                let mut reached = 0;
                for (index, &(compressed, bytes)) in chunks.iter().enumerate() {
                    let kind = if index == 0 { "reg" } else { "chunk" };
                    rows.push((name.clone(), kind, size, at, reached, bytes));
                    reached += bytes;
                    at += compressed;
                }
                names.push((name, size));
            }
            let rows: Vec<Short<'_>> = rows
                .iter()
                .map(|(name, kind, size, offset, chunk_offset, chunk)| {
                    (&**name, *kind, *size, *offset, 0, *chunk_offset, *chunk)
                })
                .collect();
            let mut layer = layer(&rows, at, at + 100 + u64::from(seed));
            layer.digest = Digest::of(&[seed, prefetched as u8]);
            (layer, names)
        },
    )
}

fn random_run() -> impl Strategy<Value = (ImageModel, Profile)> {
    let touches = prop::collection::vec(
        (any::<prop::sample::Index>(), 0_u64..3000, 1_u64..500),
        0..12,
    );
    (random_layer(), touches).prop_map(|((layer, names), touches)| {
        let mut files = Vec::new();
        for (ms, (index, offset, len)) in (0..).zip(touches) {
            let (name, size) = index.get(&names);
            let start = offset.min(size - 1);
            let ranges = [(start, len.min(size - start))];
            files.push((name.clone(), *size, ms * 7, ranges));
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        files.dedup_by(|a, b| a.0 == b.0);
        files.sort_by_key(|file| file.2);
        let touched: Vec<Touched<'_>> = files
            .iter()
            .map(|(name, size, ms, ranges)| (&**name, *size, *ms, &ranges[..]))
            .collect();
        (image(vec![layer]), profile(&touched, 100))
    })
}

proptest! {
    #[test]
    fn nothing_is_received_without_time_or_need((image, profile) in random_run(), eager: bool) {
        let pulling = if eager { Pulling::Eager } else { Pulling::Lazy };
        let found = simulate(&image, &profile, LINK, pulling, &constants());
        prop_assert_eq!(&found, &simulate(&image, &profile, LINK, pulling, &constants()));
        prop_assert!(found.seconds.is_finite());
        prop_assert!(found.seconds + 1e-6 >= found.bytes as f64 / LINK.bytes_per_second);
        prop_assert!(found.seconds + 1e-6 >= found.pull_seconds + found.prefetch_wait_seconds
            + found.network_wait_seconds + found.inflate_wait_seconds + 0.1);
        // A unit may come twice: with the prefetch, and for a reader who does not wait for that.
        let size = image.layers[0].size_bytes;
        let prefetched = found.layers[0].prefetch_bytes.next_multiple_of(100).min(size);
        prop_assert!(found.bytes <= size + prefetched + 2);
        prop_assert!(found.layers[0].unused_bytes <= prefetched);
        prop_assert_eq!(found.unknown_files, 0);
    }

    /// Where nothing goes on beside the workload. With a prefetch beside it a faster link may be later by what
    /// the workload and the prefetch then take from each other.
    #[test]
    fn a_better_link_is_never_slower(
        (mut image, profile) in random_run(),
        wider in 1.0_f64..20.0,
        nearer in 0.0_f64..1.0,
    ) {
        let contents = image.layers[0].contents.as_mut().unwrap();
        contents.landmark = Landmark::NoPrefetch;
        let better = Link {
            bytes_per_second: LINK.bytes_per_second * wider,
            round_trip_seconds: LINK.round_trip_seconds * nearer,
        };
        let seconds = |link| simulate(&image, &profile, link, Pulling::Lazy, &constants()).seconds;
        prop_assert!(seconds(better) <= seconds(LINK) + 1e-6);
    }

    /// What was prefetched before the container is created is not waited for.
    #[test]
    fn what_is_prefetched_is_not_missed((mut image, profile) in random_run()) {
        let contents = image.layers[0].contents.as_mut().unwrap();
        contents.landmark = Landmark::Prefetch(contents.toc_offset_bytes);
        let fast = Link { bytes_per_second: 1e9, round_trip_seconds: 0.0 };
        let all_cores = Constants { inflate_bytes_per_second: 1e9, ..constants() };
        let found = simulate(&image, &profile, fast, Pulling::Lazy, &all_cores);
        prop_assert_eq!(found.missed, []);
        prop_assert_eq!(found.network_wait_seconds, 0.0);
        prop_assert_eq!(found.inflate_wait_seconds, 0.0);
    }
}
