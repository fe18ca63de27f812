//! What each collector sees, on a plain directory of this machine's own file system.

use esgz::profiler::{Exactness, ObservedFile, OpenSource, Opens, Phase, Tier};
use esgz::rootfs::MountedFile;

use super::bench::{Bench, PAGE, ranges_of, skipped};

/// Runs a test on a fresh bench for `tier`, or says why it cannot run.
fn on_tier(test: &str, tier: Tier, run: impl FnOnce(&Bench)) {
    match Bench::with_tier(test, tier) {
        Ok(bench) => run(&bench),
        Err(reason) => skipped(test, &reason),
    }
}

fn find<'a>(seen: &'a esgz::profiler::Observations, file: &MountedFile) -> &'a ObservedFile {
    let found = seen.files.iter().find(|found| found.file == file.file);
    found.unwrap_or_else(|| panic!("{file:?} not in {:?}", seen.files))
}

#[test]
fn page_cache_sees_every_page_that_is_read_in() {
    let test = "tiers::page_cache_sees_every_page_that_is_read_in";
    on_tier(test, Tier::PageCache, |bench| {
        let [a, b, c] = ["a", "b", "c"].map(|name| bench.file(name, 2000 * PAGE));
        // POSIX_FADV_RANDOM and MADV_RANDOM stand for a device without read-ahead.
        let script = "random a 40960 8192 4096000 1\nmmap b random 0 64 1999\nopen c\nmissing gone";
        bench.set_opens(OpenSource::SystemCalls);
        let seen = bench.observe(&[&a, &b, &c], Exactness::FaultAround, script);
        assert_eq!(seen.tier, Tier::PageCache);
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
        assert_eq!(
            ranges_of(find(&seen, &a)),
            [(10 * PAGE, 2 * PAGE), (1000 * PAGE, PAGE)]
        );
        let touched = [0, 64, 1999].map(|page| (page * PAGE, PAGE));
        assert_eq!(ranges_of(find(&seen, &b)), touched);
        assert!(find(&seen, &c).opened && find(&seen, &c).ranges.is_empty());
        assert_eq!(seen.missing.len(), 1, "{:?}", seen.missing);

        bench.set_opens(OpenSource::Fanotify);
        bench.evict("a");
        let script = "open c\nrandom a 40960 8192 4096000 1\nopen b";
        let seen = bench.observe(&[&a, &b, &c], Exactness::FaultAround, script);
        let names: Vec<_> = seen.files.iter().map(|found| found.file).collect();
        assert_eq!(names, [c.file, a.file, b.file]);
        assert!(seen.files.iter().all(|found| found.opened));
        assert_eq!(
            ranges_of(find(&seen, &a)),
            [(10 * PAGE, 2 * PAGE), (1000 * PAGE, PAGE)]
        );
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
    });
}

/// `open` and `fanotify`: opened files as a whole.
fn whole_files(test: &str, tier: Tier) {
    on_tier(test, tier, |bench| {
        let [a, b, c] = ["a", "b", "c"].map(|name| bench.file(name, 3 * PAGE + 1));
        let program = bench.copy_of("/bin/true", "program");
        let shell = bench.copy_of("/bin/sh", "shell");
        let script = bench.script("script", &format!("{}/shell", bench.path()));
        let rows = [&a, &b, &c, &program, &shell, &script];
        let mut profiler = bench.start(&rows, &[], Exactness::FaultAround, 1 << 20);
        bench.work("open b");
        profiler.begin_run().unwrap();
        bench.work("exec program\npread a 4096 1\nexec script\nmissing gone/x");
        let seen = profiler.finish().unwrap();
        assert_eq!((seen.tier, seen.granularity_bytes), (tier, 0));
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
        for file in [&a, &b, &program, &shell, &script] {
            let found = find(&seen, file);
            assert_eq!(ranges_of(found), [(0, file.size_bytes)]);
        }
        assert!(find(&seen, &a).opened && !find(&seen, &a).executed);
        assert_eq!(find(&seen, &b).phase, Phase::Setup);
        assert_eq!(find(&seen, &a).phase, Phase::Run);
        for file in [&program, &shell, &script] {
            assert!(find(&seen, file).executed, "{file:?} in {:?}", seen.files);
        }
        assert_eq!(seen.files.len(), 5, "{:?}", seen.files);
        let knows_missing = seen.opens == Opens::Tracked;
        assert_eq!(knows_missing, tier == Tier::Open);
        assert_eq!(!seen.missing.is_empty(), knows_missing);
        assert!(seen.run_began.is_some());
    });
}

#[test]
fn open_sees_opened_and_executed_files() {
    whole_files("tiers::open_sees_opened_and_executed_files", Tier::Open);
}

#[test]
fn fanotify_sees_opened_and_executed_files() {
    whole_files(
        "tiers::fanotify_sees_opened_and_executed_files",
        Tier::Fanotify,
    );
}

/// The dynamic linker of this machine's programs, which the kernel opens.
#[test]
fn open_knows_the_dynamic_linker() {
    let test = "tiers::open_knows_the_dynamic_linker";
    on_tier(test, Tier::Open, |bench| {
        let linker = bench.linker_of("/bin/true");
        let seen = bench.observe(&[&linker], Exactness::FaultAround, "exec-true");
        assert!(find(&seen, &linker).executed);
    });
}

#[test]
fn the_best_collector_that_works_is_chosen() {
    let test = "tiers::the_best_collector_that_works_is_chosen";
    on_tier(test, Tier::Fanotify, |_| {
        let chosen = esgz::profiler::choose(None).unwrap();
        let works = |&tier: &Tier| esgz::profiler::choose(Some(tier)).is_ok();
        assert_eq!(Some(chosen), Tier::ALL.into_iter().find(works));
    });
}

/// `cargo xtask kernels` runs this on an older kernel.
#[test]
fn filemap_is_refused_before_linux_6_12() {
    let test = "tiers::filemap_is_refused_before_linux_6_12";
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    match Bench::with_tier(test, Tier::Filemap) {
        Ok(_) => assert!(version >= (6, 12), "{release}"),
        Err(reason) if version >= (6, 12) => skipped(test, &reason),
        Err(reason) => assert!(
            reason.contains("has no tracepoint filemap:mm_filemap_get_pages")
                || reason == "not root",
            "{reason}"
        ),
    }
}
