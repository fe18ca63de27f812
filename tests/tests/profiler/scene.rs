//! A freshly mounted image on a bench, in which files have names.

use esgz::profiler::{Exactness, Observations, ObservedFile};
use esgz::rootfs::MountedRootfs;
pub(crate) use esgz_tests::touch::cases::{Named, Pages};

use super::bench::{Bench, PAGE, ranges_of, skipped};

/// As `esgz` mounts without `--exact`.
pub(crate) const READ_AHEAD_KIB: u32 = 24;

/// A bench with a mounted image.
pub(crate) struct Scene<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) rootfs: MountedRootfs,
    names: Vec<String>,
}

impl Scene<'_> {
    pub(crate) fn path(&self, name: &str) -> String {
        self.rootfs.path().join(name).display().to_string()
    }

    /// Watches while `script` runs; `@` in front of a name stands for the root.
    pub(crate) fn observe(&self, exactness: Exactness, script: &str) -> Observations {
        let profiler = self.bench.start_on(&self.rootfs, exactness);
        self.bench.work(&script.replace('@', &self.path("")));
        let seen = profiler.finish().unwrap();
        assert_eq!(seen.lost_events, 0, "{:?}", seen.losses);
        seen
    }

    pub(crate) fn name(&self, file: &ObservedFile) -> &str {
        &self.names[file.file.entry as usize]
    }

    pub(crate) fn names_in<'a>(&'a self, seen: &'a Observations) -> Vec<&'a str> {
        seen.files.iter().map(|file| self.name(file)).collect()
    }

    pub(crate) fn pages_of(&self, seen: &Observations, name: &str) -> Pages {
        let file = seen.files.iter().find(|file| self.name(file) == name);
        let ranges = ranges_of(file.unwrap_or_else(|| panic!("{name} was not seen")));
        let pages = |(at, len): (u64, u64)| at / PAGE..(at + len).div_ceil(PAGE);
        ranges.into_iter().flat_map(pages).collect()
    }
}

pub(crate) fn on_scene(
    test: &str,
    layer: Named,
    read_ahead_kib: u32,
    run: impl FnOnce(&Scene<'_>),
) {
    let bench = match Bench::new(test) {
        Ok(bench) => bench,
        Err(reason) => return skipped(test, &reason),
    };
    let Some(rootfs) = bench.mount_layer(layer.layer, read_ahead_kib) else {
        return skipped(test, "no EROFS");
    };
    let scene = Scene {
        bench: &bench,
        rootfs,
        names: layer.names,
    };
    run(&scene);
}
