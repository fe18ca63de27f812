//! The profiler against generators that know what they touch, on a freshly mounted image.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use esgz::profile::kendall_tau;
use esgz::profiler::{Exactness, ObservedFile, OpenSource};
use esgz_tests::layers;
use esgz_tests::touch::cases::{
    Named, Pages, READ_FAMILY, every_way, in_order, odd_ways, share, windows,
};

use super::bench::{PAGE, ranges_of, skipped};
use super::scene::{READ_AHEAD_KIB, on_scene};

/// The kernel maps at most these around a fault.
const FAULT_AROUND: u64 = 16;

#[test]
fn ranges_are_those_that_the_generators_touched() {
    let test = "truth::ranges_are_those_that_the_generators_touched";
    let (image, script, truth) = every_way();
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let seen = scene.observe(Exactness::FaultAround, &script);
        let names: Vec<_> = truth.iter().map(|(method, _)| *method).collect();
        assert_eq!(scene.names_in(&seen), names);
        for (method, touched) in &truth {
            let found = scene.pages_of(&seen, method);
            let missed: Vec<_> = touched.difference(&found).collect();
            assert!(
                missed.is_empty(),
                "{method}: pages were missed: {missed:?} of {script}"
            );
            let (touched_windows, found_windows) = (windows(touched), windows(&found));
            if READ_FAMILY.contains(method) {
                let precision = share(&found_windows, &touched_windows);
                assert!(precision >= 0.95, "{method}: {precision}");
            } else if ["mmap-normal", "mmap-random", "execve"].contains(method) {
                let around =
                    |page: &u64| page.saturating_sub(FAULT_AROUND - 1)..page + FAULT_AROUND;
                let granted: Pages = touched.iter().flat_map(around).collect();
                let precision = share(&found_windows, &windows(&granted));
                assert!(precision >= 0.9, "{method}: {precision}");
            }
        }
    });
}

#[test]
fn exact_pages_equal_the_truth() {
    let test = "truth::exact_pages_equal_the_truth";
    let (image, script, truth) = every_way();
    on_scene(test, image, 0, |scene| {
        let seen = scene.observe(Exactness::Exact, &script);
        for (method, touched) in &truth {
            let found = scene.pages_of(&seen, method);
            // What these ask for is more than what is touched.
            if ["mmap-huge", "mmap-populate"].contains(method) {
                assert_eq!(share(touched, &found), 1.0, "{method}: pages were missed");
            } else {
                let missed: Vec<_> = touched.difference(&found).collect();
                let extra: Vec<_> = found.difference(touched).collect();
                assert!(
                    missed.is_empty() && extra.is_empty(),
                    "{method}: {missed:?}, {extra:?}"
                );
            }
        }
    });
}

/// Every file that is touched in some odd way, and no other, is in the profile.
#[test]
fn files_are_those_that_were_touched_however() {
    let test = "truth::files_are_those_that_were_touched_however";
    let (mut image, script, mut expected) = odd_ways();
    image = image.other(layers::dir("mount-point"));
    for name in ["nested", "late", "mount-point/below"] {
        image = image.file(name, b"of the image");
    }
    expected.extend(["nested".to_owned(), "late".to_owned()]);
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let outside = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(outside.path().join("below"), "of the host").unwrap();
        let mark = outside.path().join("mark");
        let profiler = scene.bench.start_on(&scene.rootfs, Exactness::FaultAround);
        let root = scene.path("");
        scene.bench.work_nested(&format!("pread {root}nested 0 1"));
        scene.bench.work(&script.replace('@', &root));
        scene.bench.work(&format!(
            "outlive {root}late {mark}\nbind-and-read {outside} {root}mount-point below",
            mark = mark.display(),
            outside = outside.path().display(),
        ));
        wait_for(&mark);
        let seen = profiler.finish().unwrap();
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
        let found: BTreeSet<&str> = scene.names_in(&seen).into_iter().collect();
        let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
        assert_eq!(found, expected);
        assert_eq!(scene.pages_of(&seen, "linked"), Pages::from([1]));
        // Changing the first byte or the name copies all of it.
        for name in ["copied-up", "renamed"] {
            assert_eq!(
                scene.pages_of(&seen, name),
                Pages::from([0, 1, 2]),
                "{name}"
            );
        }
    });
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} was not made", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn opens_through_io_uring_are_known() {
    let test = "truth::opens_through_io_uring_are_known";
    if let Err(error) = io_uring::IoUring::new(2) {
        return skipped(test, &format!("io_uring: {error}"));
    }
    let body = vec![7; 40 * PAGE as usize];
    let image = Named::default()
        .file("opened", &body)
        .file("read", &body)
        .file("not", &body);
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let script = "uring-open @opened\nuring-read @read 20";
        for source in [OpenSource::Fanotify, OpenSource::SystemCalls] {
            scene.bench.set_opens(source);
            let seen = scene.observe(Exactness::FaultAround, script);
            assert_eq!(scene.names_in(&seen), ["opened", "read"]);
            assert!(
                seen.files.iter().all(|file| file.opened),
                "{:?}",
                seen.files
            );
            assert_eq!(scene.pages_of(&seen, "opened"), Pages::new());
            assert_eq!(scene.pages_of(&seen, "read"), Pages::from([20]));
        }
    });
}

#[test]
fn files_stand_in_the_order_of_their_first_touch() {
    let test = "truth::files_stand_in_the_order_of_their_first_touch";
    let (image, script, order) = in_order(400);
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let seen = scene.observe(Exactness::FaultAround, &script);
        let rank = |name: &str| order.iter().position(|touched| touched == name).unwrap();
        let mut ranks: Vec<usize> = scene.names_in(&seen).into_iter().map(rank).collect();
        assert_eq!(ranks.len(), order.len());
        let tau = kendall_tau(&mut ranks).unwrap();
        assert!(tau >= 0.99, "{tau}");
    });
}

/// Opens and reads by eight threads, all in one burst.
#[test]
fn a_million_opens_lose_nothing() {
    let test = "truth::a_million_opens_lose_nothing";
    let (files, times) = (100_000, 1_000_000);
    let layer = (0..files).fold(Named::default(), |image, i| {
        image.file(&format!("f{i}"), b"x")
    });
    on_scene(test, layer, READ_AHEAD_KIB, |scene| {
        let script = format!("storm 8 {files} {times} @");
        for source in [OpenSource::Fanotify, OpenSource::SystemCalls] {
            scene.bench.set_opens(source);
            let seen = scene.observe(Exactness::FaultAround, &script);
            assert_eq!(seen.files.len(), files);
            let whole = |file: &ObservedFile| file.opened && ranges_of(file) == [(0, 1)];
            assert!(seen.files.iter().all(whole));
        }
    });
}
