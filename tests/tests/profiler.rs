//! The profiler against a worker that knows what it touches. Needs root, cgroup v2 and Linux 6.12;
//! where they are missing, each test says so and passes.

mod profiler {
    pub(crate) mod bench;
    mod odd;
    pub(crate) mod scene;
    mod tiers;
    mod truth;
}

use esgz::profiler::{Exactness, OpenSource, Opens, Phase, Profiler};
use esgz::rootfs::{MountedFile, MountedRootfs};
use profiler::bench::{Bench, PAGE, ranges_of};

/// Runs a test on a fresh bench, or says why it cannot run.
fn on_bench(test: &str, run: impl FnOnce(&Bench)) {
    match Bench::new(test) {
        Ok(bench) => run(&bench),
        Err(reason) => profiler::bench::skipped(test, &reason),
    }
}

#[test]
fn reads_are_seen_exactly() {
    on_bench("reads_are_seen_exactly", |bench| {
        let script = [
            (
                "pread",
                100,
                "pread a 0 100\npread a 4096 4096\npread a 40960 8192",
                &[(0, 2), (10, 2)][..],
            ),
            ("unaligned", 100, "pread a 4095 2", &[(0, 2)]),
            (
                "behind the end",
                10,
                "pread a 36864 4096\npread a 40970 100",
                &[(9, 1)],
            ),
            ("sequential", 64, "read a 65536", &[(0, 16)]),
            ("sendfile", 100, "sendfile a 81920 8192", &[(20, 2)]),
            ("splice", 100, "splice a 122880 4096", &[(30, 1)]),
        ];
        for (name, pages, script, expected) in script {
            let file = bench.file("a", pages * PAGE + 10);
            let seen = bench.observe(&[&file], Exactness::FaultAround, script);
            assert_eq!(seen.lost_events, 0, "{name}: {:?}", seen.losses);
            assert_eq!(seen.files.len(), 1, "{name}");
            let truth: Vec<_> = expected
                .iter()
                .map(|&(first, n)| (first * PAGE, n * PAGE))
                .collect();
            assert_eq!(ranges_of(&seen.files[0]), truth, "{name}");
            assert!(seen.files[0].opened, "{name}");
            assert!(!seen.files[0].executed, "{name}");
        }
    });
}

#[test]
fn a_range_ends_with_the_file() {
    on_bench("a_range_ends_with_the_file", |bench| {
        let file = bench.file("a", 2 * PAGE + 10);
        let seen = bench.observe(&[&file], Exactness::FaultAround, "pread a 0 1000000");
        assert_eq!(ranges_of(&seen.files[0]), [(0, 2 * PAGE + 10)]);
    });
}

#[test]
fn a_long_read_is_seen_whole() {
    on_bench("a_long_read_is_seen_whole", |bench| {
        let bytes = 300 << 20;
        let file = bench.sparse_file("a", bytes);
        let seen = bench.observe(
            &[&file],
            Exactness::FaultAround,
            "pread a 1048576 400000000",
        );
        assert_eq!(ranges_of(&seen.files[0]), [(1 << 20, bytes - (1 << 20))]);
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
    });
}

/// Every 64th page or so of 2000.
fn scattered_pages() -> (Vec<u64>, String) {
    let touched: Vec<u64> = (0..30).map(|i| i * 64 + i % 7).collect();
    let script = touched.iter().map(|page| format!(" {page}")).collect();
    (touched, script)
}

/// Panics unless every one of `pages` lies in `ranges`.
fn assert_covered(pages: &[u64], ranges: &[(u64, u64)]) {
    for page in pages {
        let inside = |&(offset, len): &(u64, u64)| {
            offset <= page * PAGE && (page + 1) * PAGE <= offset + len
        };
        assert!(ranges.iter().any(inside), "page {page} not in {ranges:?}");
    }
}

#[test]
fn mapped_pages_are_all_seen() {
    on_bench("mapped_pages_are_all_seen", |bench| {
        let file = bench.file("a", 2000 * PAGE);
        let (touched, pages) = scattered_pages();
        let script = format!("mmap a normal{pages}");
        let seen = bench.observe(&[&file], Exactness::FaultAround, &script);
        assert_covered(&touched, &ranges_of(&seen.files[0]));
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
    });
}

#[test]
fn mapped_pages_are_seen_exactly_without_read_ahead() {
    on_bench(
        "mapped_pages_are_seen_exactly_without_read_ahead",
        |bench| {
            let file = bench.file("a", 2000 * PAGE);
            let (touched, pages) = scattered_pages();
            let script = format!("mmap a random{pages}");
            let seen = bench.observe(&[&file], Exactness::Exact, &script);
            let truth: Vec<_> = touched.iter().map(|page| (page * PAGE, PAGE)).collect();
            assert_eq!(ranges_of(&seen.files[0]), truth);
        },
    );
}

#[test]
fn huge_folios_hide_nothing() {
    on_bench("huge_folios_hide_nothing", |bench| {
        let file = bench.file("a", 2000 * PAGE);
        let (touched, pages) = scattered_pages();
        for exactness in [Exactness::FaultAround, Exactness::Exact] {
            bench.evict("a");
            let seen = bench.observe(&[&file], exactness, &format!("mmap a huge{pages}"));
            assert_covered(&touched, &ranges_of(&seen.files[0]));
        }
    });
}

/// Runs a test on a freshly mounted file of 2000 pages, whose path it gets; a read-ahead of 4 pages.
fn on_fresh_mount(test: &str, run: impl FnOnce(&Bench, &MountedRootfs, &str)) {
    on_bench(test, |bench| match bench.fresh_mount(2000, 16) {
        Some(rootfs) => {
            let path = rootfs.path().join("a");
            run(bench, &rootfs, path.to_str().unwrap());
        }
        None => profiler::bench::skipped(test, "no EROFS"),
    });
}

fn pages_in(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(_, len)| len / PAGE).sum()
}

#[test]
fn of_a_cold_file_only_cached_pages_around_a_fault_count() {
    let test = "of_a_cold_file_only_cached_pages_around_a_fault_count";
    on_fresh_mount(test, |bench, rootfs, path| {
        // Each touched page is read with its neighbours, and one of these is touched then.
        let touched: Vec<u64> = (0..30).flat_map(|i| [i * 64 + 20, i * 64 + 19]).collect();
        let pages: String = touched.iter().map(|page| format!(" {page}")).collect();
        let profiler = bench.start_cold(rootfs);
        bench.work(&format!("mmap {path} normal{pages}"));
        let seen = profiler.finish().unwrap();
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
        let ranges = ranges_of(&seen.files[0]);
        assert_covered(&touched, &ranges);
        assert!(pages_in(&ranges) <= 30 * 4, "{ranges:?}");
    });
}

#[test]
fn pages_that_a_bystander_read_are_known() {
    on_fresh_mount(
        "pages_that_a_bystander_read_are_known",
        |bench, rootfs, path| {
            let profiler = bench.start_cold(rootfs);
            bench.work_outside(&format!("pread {path} 409600 40960"));
            bench.work(&format!("mmap {path} normal 103 109"));
            let seen = profiler.finish().unwrap();
            assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
            let ranges = ranges_of(&seen.files[0]);
            assert_covered(&[103, 109], &ranges);
            assert!(pages_in(&ranges) <= 16, "{ranges:?}");
            assert_eq!(seen.files.len(), 1);
        },
    );
}

#[test]
fn a_cache_that_was_not_cold_is_reported() {
    on_fresh_mount(
        "a_cache_that_was_not_cold_is_reported",
        |bench, rootfs, path| {
            bench.work_outside(&format!("pread {path} 0 409600"));
            let profiler = bench.start_cold(rootfs);
            bench.work(&format!("mmap {path} normal 50"));
            let seen = profiler.finish().unwrap();
            assert!(seen.losses.warm_mappings > 0, "{:?}", seen.losses);
            assert_eq!(seen.lost_events, seen.losses.total());
            assert_covered(&[50], &ranges_of(&seen.files[0]));
        },
    );
}

#[test]
fn cold_reads_by_many_threads_are_all_seen() {
    on_fresh_mount(
        "cold_reads_by_many_threads_are_all_seen",
        |bench, rootfs, path| {
            let profiler = bench.start_cold(rootfs);
            // Reads that overtake each other find pages that are still being read.
            bench.work(&format!("race {path} 2000"));
            let seen = profiler.finish().unwrap();
            assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
            assert_eq!(ranges_of(&seen.files[0]), [(0, 2000 * PAGE)]);
        },
    );
}

#[test]
fn opens_executions_and_misses_are_told_apart() {
    on_bench("opens_executions_and_misses_are_told_apart", |bench| {
        let [a, b, c] = ["a", "b", "c"].map(|name| bench.file(name, PAGE));
        let program = bench.copy_of("/bin/true", "program");
        let script = "open b\npread a 0 1\nmissing gone/x\nmissing ./gone/../gone\nexec program";
        let observe = |source| {
            bench.set_opens(source);
            let seen = bench.observe(&[&a, &b, &c, &program], Exactness::FaultAround, script);
            let entries: Vec<_> = seen.files.iter().map(|f| f.file.entry).collect();
            assert_eq!(entries, [b.file.entry, a.file.entry, program.file.entry]);
            assert!(seen.files[0].opened && seen.files[0].ranges.is_empty());
            assert!(seen.files[2].executed && !seen.files[2].ranges.is_empty());
            let order: Vec<_> = seen.files.iter().map(|f| f.first_touch_seq).collect();
            assert!(order.is_sorted());
            assert!(seen.files.is_sorted_by_key(|f| f.first_touch));
            seen
        };
        let seen = observe(OpenSource::Fanotify);
        assert_eq!(seen.opens, Opens::WithoutMissing);
        assert_eq!(seen.missing, Vec::<Box<[u8]>>::new());
        let seen = observe(OpenSource::SystemCalls);
        assert_eq!(seen.opens, Opens::Tracked);
        let missing: Vec<_> = seen
            .missing
            .iter()
            .map(|m| String::from_utf8_lossy(m))
            .collect();
        let under = |name: &str| format!("{}/{name}", bench.path().trim_start_matches('/'));
        assert!(missing.contains(&under("gone/x").into()), "{missing:?}");
        assert!(missing.contains(&under("gone").into()), "{missing:?}");
    });
}

#[test]
fn an_open_is_found_under_its_other_device_and_inode() {
    on_bench(
        "an_open_is_found_under_its_other_device_and_inode",
        |bench| {
            let merged = bench.file("a", PAGE);
            let lower = MountedFile {
                device: 0xfff_ffff,
                ..merged
            };
            for source in [OpenSource::Fanotify, OpenSource::SystemCalls] {
                bench.set_opens(source);
                let seen = bench.observe_as(&[lower], &[merged], "", "pread a 0 1");
                assert!(seen.files[0].opened);
                assert_eq!(seen.files[0].ranges, []);
            }
        },
    );
}

#[test]
fn files_are_known_through_overlayfs() {
    on_bench("files_are_known_through_overlayfs", |bench| {
        for directory in ["lower", "up", "merged"] {
            std::fs::create_dir(format!("{}/{directory}", bench.path())).unwrap();
        }
        let lower = [
            bench.file("lower/a", 10 * PAGE),
            bench.file("lower/b", PAGE),
            bench.copy_of("/bin/true", "lower/program"),
            bench.file("lower/c", 20 * PAGE),
        ];
        // The mounts live and die with this thread.
        let seen = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                bench.mount_overlay("lower", "up", "merged");
                let merged = ["merged/a", "merged/b", "merged/program", "merged/c"];
                let merged: Vec<_> = merged
                    .iter()
                    .zip(&lower)
                    .map(|(name, lower)| MountedFile {
                        file: lower.file,
                        ..bench.row(name)
                    })
                    .collect();
                assert_ne!(merged[0].device, lower[0].device);
                let script =
                    "pread merged/a 8192 1\nopen merged/b\nexec merged/program\nappend merged/c";
                bench.observe_as(&lower, &merged, "merged", script)
            });
            thread.join().unwrap()
        });
        let found = |i: usize| seen.files.iter().find(|f| f.file == lower[i].file).unwrap();
        assert!(found(0).opened);
        assert_eq!(ranges_of(found(0)), [(2 * PAGE, PAGE)]);
        assert!(found(1).opened && found(1).ranges.is_empty());
        assert!(found(2).executed && !found(2).ranges.is_empty());
        // Copied up: all of it is read, and the open of the copy is known by the same inode.
        assert!(found(3).opened);
        assert_eq!(ranges_of(found(3)), [(0, 20 * PAGE)]);
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
    });
}

#[test]
fn the_first_execution_after_the_call_begins_the_run() {
    on_bench(
        "the_first_execution_after_the_call_begins_the_run",
        |bench| {
            let [a, b] = ["a", "b"].map(|name| bench.file(name, PAGE));
            let mut profiler = bench.start(&[&a, &b], &[], Exactness::FaultAround, 1 << 20);
            bench.work("pread a 0 1\nexec-true");
            profiler.begin_run().unwrap();
            bench.work("exec-true\npread b 0 1");
            let seen = profiler.finish().unwrap();
            assert_eq!(seen.files[0].phase, Phase::Setup);
            assert_eq!(seen.files[1].phase, Phase::Run);
            let began = seen.run_began.unwrap();
            assert!(seen.files[0].first_touch < began && began < seen.files[1].first_touch);
        },
    );
}

#[test]
fn nothing_outside_the_cgroup_is_seen() {
    on_bench("nothing_outside_the_cgroup_is_seen", |bench| {
        let file = bench.file("a", 10 * PAGE);
        for source in [OpenSource::Fanotify, OpenSource::SystemCalls] {
            bench.set_opens(source);
            let profiler = bench.start(&[&file], &[], Exactness::FaultAround, 1 << 20);
            bench.work_outside("pread a 0 100\nmmap a normal 5\nmissing gone");
            let seen = profiler.finish().unwrap();
            assert_eq!(seen.files, []);
            assert_eq!(seen.missing, Vec::<Box<[u8]>>::new());
            assert_eq!(seen.unattributed, esgz::profiler::Unattributed::default());
            assert_eq!(seen.lost_events, 0);
        }
    });
}

/// What somebody else opens first is not taken for known.
#[test]
fn an_open_after_that_of_a_bystander_is_seen() {
    on_bench("an_open_after_that_of_a_bystander_is_seen", |bench| {
        let file = bench.file("a", PAGE);
        let profiler = bench.start(&[&file], &[], Exactness::FaultAround, 1 << 20);
        bench.work_outside("open a");
        // Longer than events are gathered.
        std::thread::sleep(std::time::Duration::from_millis(50));
        bench.work("open a");
        let seen = profiler.finish().unwrap();
        assert_eq!(seen.files.len(), 1, "{:?}", seen.files);
        assert!(seen.files[0].opened);
    });
}

#[test]
fn a_nested_cgroup_is_seen() {
    on_bench("a_nested_cgroup_is_seen", |bench| {
        let file = bench.file("a", 10 * PAGE);
        let profiler = bench.start(&[&file], &[], Exactness::FaultAround, 1 << 20);
        bench.work_nested("pread a 8192 4096");
        let seen = profiler.finish().unwrap();
        assert_eq!(ranges_of(&seen.files[0]), [(2 * PAGE, PAGE)]);
    });
}

#[test]
fn an_empty_cgroup_gives_an_empty_result() {
    on_bench("an_empty_cgroup_gives_an_empty_result", |bench| {
        let profiler = bench.start(&[], &[], Exactness::FaultAround, 1 << 20);
        let seen = profiler.finish().unwrap();
        assert!(seen.files.is_empty() && seen.missing.is_empty());
        assert_eq!(seen.lost_events, 0);
        assert_eq!(u64::from(seen.granularity_bytes), PAGE);
    });
}

#[test]
fn a_ring_that_is_too_small_is_reported() {
    on_bench("a_ring_that_is_too_small_is_reported", |bench| {
        let files: Vec<_> = (0..500)
            .map(|i| bench.file(&format!("f{i}"), PAGE))
            .collect();
        let files: Vec<_> = files.iter().collect();
        bench.set_opens(OpenSource::SystemCalls);
        let profiler = bench.start(&files, &[], Exactness::FaultAround, 4096);
        bench.work("misses 20000\nstorm 8 500 4000");
        let seen = profiler.finish().unwrap();
        assert!(seen.losses.names > 0, "{:?}", seen.losses);
        assert_eq!(seen.lost_events, seen.losses.total());
        assert_eq!(seen.losses.unmatched_windows, 0, "{:?}", seen.losses);
        // The pages are complete all the same.
        assert_eq!(seen.files.len(), 500);
        assert!(seen.files.iter().all(|f| ranges_of(f) == [(0, PAGE)]));
    });
}

#[test]
fn many_threads_lose_nothing() {
    on_bench("many_threads_lose_nothing", |bench| {
        let files: Vec<_> = (0..500)
            .map(|i| bench.file(&format!("f{i}"), PAGE))
            .collect();
        let files: Vec<_> = files.iter().collect();
        let seen = bench.observe(&files, Exactness::FaultAround, "storm 8 500 20000");
        assert_eq!(seen.files.len(), 500);
        assert!(
            seen.files
                .iter()
                .all(|f| f.opened && ranges_of(f) == [(0, PAGE)])
        );
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
    });
}

#[test]
fn dropping_leaves_nothing() {
    on_bench("dropping_leaves_nothing", |bench| {
        // Whoever mounts something else meanwhile is not the profiler.
        let mounts = || -> Vec<String> {
            let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let lines = mountinfo.lines().map(str::to_owned);
            lines.filter(|line| line.contains(" - tracefs ")).collect()
        };
        let before = mounts();
        let profiler = bench.start(&[], &[], Exactness::FaultAround, 1 << 20);
        assert_eq!(mounts(), before);
        drop(profiler);
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let bpf = open
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .filter(|target| {
                let target = target.to_string_lossy();
                target.contains("bpf") || target.contains("perf_event")
            });
        assert_eq!(bpf.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
        assert_eq!(mounts(), before);
    });
}

/// Not a test: the process that the tests put into their cgroup. Does what ESGZ_WORK says.
#[test]
#[ignore = "started by the other tests"]
fn worker() {
    if let Ok(cgroup) = std::env::var("ESGZ_CGROUP") {
        std::fs::write(format!("{cgroup}/cgroup.procs"), "0").unwrap();
    }
    if let Ok(script) = std::env::var("ESGZ_WORK") {
        esgz_tests::touch::work(&script).unwrap();
    }
}

// `Profiler` must be usable from any thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Profiler>();
};
