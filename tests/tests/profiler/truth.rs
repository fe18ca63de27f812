//! The profiler against generators that know what they touch, on a freshly mounted image.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use esgz::layer::entry::EntryKind;
use esgz::profiler::{Exactness, ObservedFile};
use esgz_tests::layers;

use super::bench::{PAGE, ranges_of, skipped};
use super::scene::{Named, Pages, READ_AHEAD_KIB, on_scene};

const PAGES: u64 = 2000;
const PAGES_PER_WINDOW: u64 = 16;
/// The kernel maps at most these around a fault.
const FAULT_AROUND: u64 = 16;

/// Runs of pages that differ with `seed`, in no order; and their pages.
fn some_runs(seed: u64, longest: u64) -> (String, Pages) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut words = String::new();
    let mut pages = Pages::new();
    for _ in 0..40 {
        let (first, count) = (next(PAGES - longest), 1 + next(longest));
        words += &format!(" {first}:{count}");
        pages.extend(first..first + count);
    }
    (words, pages)
}

fn windows(pages: &Pages) -> Pages {
    pages.iter().map(|page| page / PAGES_PER_WINDOW).collect()
}

/// How much of `part` lies in `whole`.
fn share(part: &Pages, whole: &Pages) -> f64 {
    part.intersection(whole).count() as f64 / part.len() as f64
}

/// A program for x86-64 of `PAGES` pages that needs nothing: it reads a byte of each of `pages` and
/// exits.
fn program(pages: &Pages) -> Vec<u8> {
    let (headers, address, size) = (64 + 56_u64, 0x40_0000_u64, PAGES * PAGE);
    let mut code = Vec::new();
    for page in pages {
        // mov rax, address; mov al, [rax]
        code.extend(b"\x48\xb8");
        code.extend((address + page * PAGE).to_le_bytes());
        code.extend(b"\x8a\x00");
    }
    // exit(0)
    code.extend(b"\xb8\x3c\0\0\0\x31\xff\x0f\x05");
    assert!(
        headers + code.len() as u64 <= PAGE,
        "the code fits into the first page"
    );
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend((address + headers).to_le_bytes());
    elf.extend(64_u64.to_le_bytes());
    elf.extend([0; 12]);
    elf.extend(b"\x40\0\x38\0\x01\0\0\0\0\0\0\0");
    // One segment: the whole file, readable and executable.
    elf.extend(b"\x01\0\0\0\x05\0\0\0");
    for number in [0, address, address, size, size, 4096] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(code);
    elf.resize(size as usize, 0);
    elf
}

const READ_FAMILY: [&str; 5] = ["read", "pread", "readv", "sendfile", "splice"];
/// Mappings as they are, and such for which the kernel makes large folios or maps all at once.
const MAPPINGS: [&str; 4] = ["mmap-normal", "mmap-random", "mmap-huge", "mmap-populate"];

/// An image with a file for each way to touch one, a script that does, and the truth.
fn every_way() -> (Named, String, Vec<(&'static str, Pages)>) {
    let contents = vec![7; (PAGES * PAGE) as usize];
    let mut image = Named::default();
    let (mut script, mut truth) = (String::new(), Vec::new());
    for (seed, method) in READ_FAMILY.into_iter().chain(MAPPINGS).enumerate() {
        let longest = if method.starts_with("mmap") { 1 } else { 12 };
        let (runs, pages) = some_runs(seed as u64 + 1, longest);
        image = image.file(method, &contents);
        script += &format!("touch {method} @{method}{runs}\n");
        truth.push((method, pages));
    }
    if cfg!(target_arch = "x86_64") {
        let (_, mut pages) = some_runs(99, 1);
        image = image.program("execve", &program(&pages));
        script += "run @execve\n";
        pages.insert(0);
        truth.push(("execve", pages));
    }
    (image, script, truth)
}

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
    let body = vec![7; 3 * PAGE as usize];
    let files = [
        "copied-up",
        "deleted",
        "replaced",
        "renamed",
        "linked",
        "relative",
        "target",
        "nested",
        "late",
        "untouched",
        "mount-point/below",
    ];
    let mut image = Named::default().other(layers::dir("mount-point"));
    image = files
        .iter()
        .fold(image, |image, name| image.file(name, &body));
    image = (0..300).fold(image, |image, i| image.file(&format!("fork{i}"), b"x"));
    image = image.other(layers::link(EntryKind::Hardlink, "other-name", "linked"));
    image = image.other(layers::link(EntryKind::Symlink, "link", "target"));
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        let outside = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(outside.path().join("below"), "of the host").unwrap();
        let mark = outside.path().join("mark");
        let profiler = scene.bench.start_on(&scene.rootfs, Exactness::FaultAround);
        let root = scene.path("");
        scene.bench.work_nested(&format!("pread {root}nested 0 1"));
        scene.bench.work(&format!(
            "append {root}copied-up\ndelete-and-read {root}deleted\nreplace {root}replaced
             rename-and-read {root}renamed {root}new-name\npread {root}other-name 4096 1
             read-at {root} relative\npread {root}link 0 1\nforks 300 {root}fork
             outlive {root}late {mark}\nbind-and-read {outside} {root}mount-point below",
            mark = mark.display(),
            outside = outside.path().display(),
        ));
        wait_for(&mark);
        let seen = profiler.finish().unwrap();
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
        let found: BTreeSet<&str> = scene.names_in(&seen).into_iter().collect();
        let forks: Vec<String> = (0..300).map(|i| format!("fork{i}")).collect();
        let mut expected: BTreeSet<&str> = forks.iter().map(String::as_str).collect();
        expected.extend([
            "copied-up",
            "deleted",
            "renamed",
            "linked",
            "relative",
            "target",
            "nested",
            "late",
        ]);
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
        // What is under a bind mount is counted, and is not the image's.
        assert!(seen.unattributed.touches > 0, "{:?}", seen.unattributed);
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
        let seen = scene.observe(Exactness::FaultAround, script);
        assert_eq!(scene.names_in(&seen), ["opened", "read"]);
        assert!(
            seen.files.iter().all(|file| file.opened),
            "{:?}",
            seen.files
        );
        assert_eq!(scene.pages_of(&seen, "opened"), Pages::new());
        assert_eq!(scene.pages_of(&seen, "read"), Pages::from([20]));
    });
}

/// Kendall's rank correlation of a sequence of distinct ranks with the ascending order.
fn kendall_tau(ranks: &[usize]) -> f64 {
    let mut score = 0_i64;
    for (at, one) in ranks.iter().enumerate() {
        score += ranks[at + 1..]
            .iter()
            .map(|other| if other > one { 1 } else { -1 })
            .sum::<i64>();
    }
    let pairs = ranks.len() * (ranks.len() - 1) / 2;
    score as f64 / pairs as f64
}

#[test]
fn kendall_tau_is_one_for_the_same_order() {
    assert_eq!(kendall_tau(&[0, 1, 2, 3]), 1.0);
    assert_eq!(kendall_tau(&[3, 2, 1, 0]), -1.0);
    assert_eq!(kendall_tau(&[0, 2, 1]), 1.0 / 3.0);
}

#[test]
fn files_stand_in_the_order_of_their_first_touch() {
    let test = "truth::files_stand_in_the_order_of_their_first_touch";
    const FILES: usize = 400;
    let image = (0..FILES).fold(Named::default(), |image, i| {
        image.file(&format!("f{i}"), &[7; 5000])
    });
    on_scene(test, image, READ_AHEAD_KIB, |scene| {
        // 7 and 400 have no common divisor: every file once.
        let order: Vec<usize> = (0..FILES).map(|i| i * 7 % FILES).collect();
        let ways = ["pread", "mmap-normal", "sendfile"];
        let line = |(i, file): (usize, &usize)| format!("touch {} @f{file} 0:1\n", ways[i % 3]);
        let script: String = order.iter().enumerate().map(line).collect();
        let seen = scene.observe(Exactness::FaultAround, &script);
        let rank = |name: &str| {
            let file: usize = name[1..].parse().unwrap();
            order.iter().position(|touched| *touched == file).unwrap()
        };
        let ranks: Vec<usize> = scene.names_in(&seen).into_iter().map(rank).collect();
        assert_eq!(ranks.len(), FILES);
        let tau = kendall_tau(&ranks);
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
        let seen = scene.observe(Exactness::FaultAround, &script);
        assert_eq!(seen.files.len(), files);
        let whole = |file: &ObservedFile| file.opened && ranges_of(file) == [(0, 1)];
        assert!(seen.files.iter().all(whole));
    });
}
