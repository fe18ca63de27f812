//! A cgroup, a directory on a real file system, and a profiler that watches both.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use esgz::cancel::Cancel;
use esgz::layer::entry::FileId;
use esgz::profiler::{
    self, CacheAtStart, CgroupFilter, Exactness, Observations, ObservedFile, OpenSource, Profiler,
    ProfilerConfig, ProfilerError, Tier,
};
use esgz::rootfs::{self, Backend, MountedFile, MountedRootfs, RootfsMode, RootfsOptions};
use esgz_tests::layers::{self, LayerBuilder};

pub(crate) const PAGE: u64 = 4096;

/// One test at a time: each loads two cores, and one looks at the descriptors of the process.
static TURN: Mutex<()> = Mutex::new(());

/// Whether each of [`Tier::ALL`] can be used on this machine, or why not.
static POSSIBLE: [OnceLock<Result<(), String>>; 4] = [const { OnceLock::new() }; 4];

/// Everything a test needs; all of it is gone when this is dropped.
pub(crate) struct Bench {
    directory: tempfile::TempDir,
    cgroup: PathBuf,
    filter: CgroupFilter,
    tier: Tier,
    opens: Mutex<OpenSource>,
    _turn: MutexGuard<'static, ()>,
}

/// Says that a test did not run, past the test harness, which would hide it.
pub(crate) fn skipped(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {test}: {reason}").unwrap();
}

/// Offsets and lengths of the touched ranges, in bytes.
pub(crate) fn ranges_of(file: &ObservedFile) -> Vec<(u64, u64)> {
    file.ranges
        .iter()
        .map(|range| (range.offset_bytes, range.len_bytes))
        .collect()
}

impl Bench {
    /// `Err` with the reason if profiling is impossible here.
    pub(crate) fn new(test: &str) -> Result<Self, String> {
        Self::with_tier(test, Tier::Filemap)
    }

    /// As `new`, for another collector.
    pub(crate) fn with_tier(test: &str, tier: Tier) -> Result<Self, String> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if !nix::unistd::geteuid().is_root() {
            return Err("not root".into());
        }
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .find(|path| Path::new(path).join("cgroup.controllers").exists())
            .ok_or("no cgroup v2 mount")?;
        let directory = tempfile::tempdir_in("/var/tmp").map_err(|e| e.to_string())?;
        let magic = nix::sys::statfs::statfs(directory.path()).map_err(|e| e.to_string())?;
        if magic.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
            return Err("/var/tmp is on tmpfs".into());
        }
        let possible = POSSIBLE[tier as usize].get_or_init(|| match profiler::choose(Some(tier)) {
            Ok(_) => Ok(()),
            Err(ProfilerError::Collector { source, .. })
                if matches!(
                    *source,
                    ProfilerError::NotPermitted { .. } | ProfilerError::MissingTracepoint { .. }
                ) =>
            {
                Err(source.to_string())
            }
            Err(error) => panic!("{error:?}"),
        });
        possible.clone()?;
        let name = test.replace(':', "-");
        let cgroup = Path::new(root).join(format!("esgz-test-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).map_err(|e| format!("cannot make a cgroup: {e}"))?;
        let filter = CgroupFilter::from_directory(&cgroup).unwrap();
        Ok(Self {
            directory,
            cgroup,
            filter,
            tier,
            opens: Mutex::new(OpenSource::Fanotify),
            _turn: turn,
        })
    }

    /// Profilers that are started from now on know of opens in this way.
    pub(crate) fn set_opens(&self, source: OpenSource) {
        *self.opens.lock().unwrap() = source;
    }

    pub(crate) fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// A file of `bytes` bytes, written and out of the cache.
    pub(crate) fn file(&self, name: &str, bytes: u64) -> MountedFile {
        let path = self.directory.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![7; bytes as usize]).unwrap();
        self.row(name)
    }

    /// As `file`, but without blocks.
    pub(crate) fn sparse_file(&self, name: &str, bytes: u64) -> MountedFile {
        File::create(self.directory.path().join(name))
            .unwrap()
            .set_len(bytes)
            .unwrap();
        self.row(name)
    }

    pub(crate) fn copy_of(&self, original: &str, name: &str) -> MountedFile {
        fs::copy(original, self.directory.path().join(name)).unwrap();
        self.row(name)
    }

    /// A script for `interpreter`.
    pub(crate) fn script(&self, name: &str, interpreter: &str) -> MountedFile {
        let path = self.directory.path().join(name);
        fs::write(&path, format!("#!{interpreter}\n:\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.row(name)
    }

    /// The row of the dynamic linker that a program of this machine names.
    pub(crate) fn linker_of(&self, program: &str) -> MountedFile {
        let output = Command::new("ldd").arg(program).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let names = text.unwrap_or_default();
        let named = names
            .split_whitespace()
            .find(|word| word.starts_with('/') && word.contains("/ld-"));
        // Without ldd, as in the test machine of `cargo xtask kernels`.
        self.row(named.unwrap_or("/lib64/ld-linux-x86-64.so.2"))
    }

    /// Drops a file's pages from the cache.
    pub(crate) fn evict(&self, name: &str) {
        evict(&File::open(self.directory.path().join(name)).unwrap());
    }

    /// The row of a file that exists.
    pub(crate) fn row(&self, name: &str) -> MountedFile {
        let file = File::open(self.directory.path().join(name)).unwrap();
        file.sync_all().unwrap();
        evict(&file);
        let meta = file.metadata().unwrap();
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        MountedFile {
            device: major << 20 | minor,
            inode: meta.ino(),
            file: FileId {
                layer: 0,
                entry: meta.ino() as u32,
            },
            size_bytes: meta.len(),
        }
    }

    /// Stacks overlayfs over `lower`, with changes on a tmpfs at `up`, for this thread alone.
    pub(crate) fn mount_overlay(&self, lower: &str, up: &str, merged: &str) {
        use nix::mount::{MsFlags, mount};
        let none: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let [lower, up, merged] = [lower, up, merged].map(|name| self.directory.path().join(name));
        mount(none, &up, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let [upper, work] = ["upper", "work"].map(|name| up.join(name));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let [lower, upper, work] = [&lower, &upper, &work].map(|path| path.display());
        let options = format!("xino=on,lowerdir={lower},upperdir={upper},workdir={work}");
        mount(
            none,
            &merged,
            Some("overlay"),
            MsFlags::empty(),
            Some(&*options),
        )
        .unwrap();
    }

    fn config<'a>(
        &'a self,
        files: &'a [MountedFile],
        opened_as: &'a [MountedFile],
        exactness: Exactness,
        cache: CacheAtStart,
        ring_bytes: u32,
    ) -> ProfilerConfig<'a> {
        let cwd = self.path().as_bytes();
        ProfilerConfig {
            tier: self.tier,
            cgroup: &self.filter,
            files,
            opened_as,
            opens: *self.opens.lock().unwrap(),
            also_opened: &[],
            // fanotify watches a file system; names are looked up from the root.
            root: match self.tier {
                Tier::Open => Path::new("/"),
                _ => self.directory.path(),
            },
            cwd,
            ring_bytes,
            exactness,
            cache,
        }
    }

    pub(crate) fn start(
        &self,
        files: &[&MountedFile],
        opened_as: &[&MountedFile],
        exactness: Exactness,
        ring_bytes: u32,
    ) -> Profiler {
        let owned = |rows: &[&MountedFile]| rows.iter().map(|&&row| row).collect::<Vec<_>>();
        let (files, opened_as) = (owned(files), owned(opened_as));
        Profiler::start(&self.config(
            &files,
            &opened_as,
            exactness,
            CacheAtStart::Unknown,
            ring_bytes,
        ))
        .unwrap()
    }

    /// A root file system of one file, `a`, of `pages` pages: freshly mounted, read ahead by
    /// `read_ahead_kib`. None where the kernel cannot.
    pub(crate) fn fresh_mount(&self, pages: u64, read_ahead_kib: u32) -> Option<MountedRootfs> {
        let contents = vec![7; (pages * PAGE) as usize];
        let layer = LayerBuilder::default().add(layers::file("a"), &contents);
        self.mount_layer(layer, read_ahead_kib)
    }

    /// As `fresh_mount`, for any layer.
    pub(crate) fn mount_layer(
        &self,
        layer: LayerBuilder,
        read_ahead_kib: u32,
    ) -> Option<MountedRootfs> {
        let layer = layer.finish(self.directory.path()).unwrap();
        let options = RootfsOptions {
            mode: RootfsMode::Auto,
            scratch: self.directory.path().to_path_buf(),
            read_ahead_kib,
        };
        let rootfs = rootfs::mount(&[&layer], &options, &Cancel::default()).unwrap();
        (rootfs.backend() == Backend::Erofs).then_some(rootfs)
    }

    /// Watches a root file system of which nothing should be cached.
    pub(crate) fn start_cold(&self, rootfs: &MountedRootfs) -> Profiler {
        self.start_on(rootfs, Exactness::FaultAround)
    }

    pub(crate) fn start_on(&self, rootfs: &MountedRootfs, exactness: Exactness) -> Profiler {
        Profiler::start(&ProfilerConfig {
            root: rootfs.path(),
            ..self.config(
                rootfs.files(),
                rootfs.opened_as(),
                exactness,
                CacheAtStart::Cold,
                4 << 20,
            )
        })
        .unwrap()
    }

    /// Runs `script` in the cgroup and tells what was seen.
    pub(crate) fn observe(
        &self,
        files: &[&MountedFile],
        exactness: Exactness,
        script: &str,
    ) -> Observations {
        let profiler = self.start(files, &[], exactness, 4 << 20);
        self.work(script);
        profiler.finish().unwrap()
    }

    /// As `observe`, with rows for opens of their own, below `root`.
    pub(crate) fn observe_as(
        &self,
        files: &[MountedFile],
        opened_as: &[MountedFile],
        root: &str,
        script: &str,
    ) -> Observations {
        let (exactness, cache) = (Exactness::FaultAround, CacheAtStart::Unknown);
        let profiler = Profiler::start(&ProfilerConfig {
            root: &self.directory.path().join(root),
            ..self.config(files, opened_as, exactness, cache, 4 << 20)
        })
        .unwrap();
        self.work(script);
        profiler.finish().unwrap()
    }

    pub(crate) fn work(&self, script: &str) {
        self.run(Some(&self.cgroup), script);
    }

    pub(crate) fn work_outside(&self, script: &str) {
        self.run(None, script);
    }

    pub(crate) fn work_nested(&self, script: &str) {
        let nested = self.cgroup.join("nested");
        fs::create_dir(&nested).unwrap();
        self.run(Some(&nested), script);
        remove_cgroup(&nested);
    }

    fn run(&self, cgroup: Option<&Path>, script: &str) {
        // Not by its path: that means nothing in another mount namespace of a chroot.
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["worker", "--exact", "--ignored", "--quiet"])
            .current_dir(self.path());
        command.env("ESGZ_WORK", script);
        if let Some(cgroup) = cgroup {
            command.env("ESGZ_CGROUP", cgroup);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{script}: {text}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        remove_cgroup(&self.cgroup.join("nested"));
        remove_cgroup(&self.cgroup);
    }
}

/// Ended tasks leave a cgroup a moment after their parent knows.
fn remove_cgroup(path: &Path) {
    for _ in 0..100 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn evict(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}
