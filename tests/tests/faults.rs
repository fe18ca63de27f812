//! Disks that fill up or break, and a process that is killed, at any of its system calls: the
//! destination is what it was, or the whole new image.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Output;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Esgz;
use esgz_tests::inject::{calls, injected, sample, unavailable};
use esgz_tests::layout::{Layer, Layout, LayoutBuilder, digest};
use esgz_tests::tree::Tree;
use esgz_tests::{privileged, sets, skipped};

/// Source or destination.
const UNREADABLE: i32 = 6;
/// Neither.
const OTHER: i32 = 1;

/// What a run can meet: the call, and how it fails.
const ERRORS: [(&str, &str); 11] = [
    ("write", "error=ENOSPC"),
    ("write", "error=EIO"),
    ("openat", "error=ENOSPC"),
    ("openat", "error=EMFILE"),
    ("read", "error=EIO"),
    ("pread64", "error=EIO"),
    ("linkat", "error=ENOSPC"),
    ("rename", "error=EIO"),
    ("fsync", "error=EIO"),
    ("fdatasync", "error=EIO"),
    ("mkdir", "error=ENOSPC"),
];
/// Calls at which the process may be killed.
const KILLED_AT: [&str; 7] = [
    "write",
    "pread64",
    "linkat",
    "rename",
    "fsync",
    "fdatasync",
    "mkdir",
];
const CALLS: [&str; 8] = [
    "write",
    "openat",
    "read",
    "pread64",
    "linkat",
    "rename",
    "fsync",
    "fdatasync",
];

fn small(compression: Compression) -> Conversion {
    let entries = [
        Entry::dir("etc/"),
        Entry::file("etc/large", sets::noise(1, 900_000)),
        Entry::file("etc/small", "small"),
    ];
    let image = LayoutBuilder::new()
        .layer(Layer::new(&entries, compression))
        .layer(Layer::new(&entries[..1], compression));
    Conversion::of(&image)
}

/// A destination before a run.
struct Destination {
    layout: Layout,
    before: Option<Tree>,
}

impl Destination {
    /// One that does not exist, or one that has another image under the same name.
    fn prepare(conversion: &Conversion, name: &str) -> Self {
        let layout = conversion.output(name);
        let _ = fs::remove_dir_all(&layout.dir);
        let before = (name == "existing").then(|| {
            LayoutBuilder::new()
                .tag(Some("esgz"))
                .layer(Layer::new(&sets::usual(), Compression::Gzip(1)))
                .write(&layout.dir);
            Tree::read(&layout.dir).without_times()
        });
        Self { layout, before }
    }

    /// What a failed run has changed.
    fn changed(&self) -> Vec<String> {
        match &self.before {
            None if self.layout.dir.exists() => vec!["it exists".to_owned()],
            None => Vec::new(),
            Some(before) => before.differences(&Tree::read(&self.layout.dir).without_times()),
        }
    }

    /// What a killed run may not have changed: the old files. What it may leave are whole blobs that
    /// nothing names, and temporary files that say whose they are.
    fn spoilt(&self) -> Vec<String> {
        let parent = self.layout.dir.parent().unwrap();
        let is_known = |name: &String| !name.starts_with(".esgz-");
        let strange = ["source", "scratch", "existing", "new"];
        let beside = names(parent).into_iter().filter(is_known);
        let mut spoilt: Vec<String> = beside
            .filter(|name| !strange.contains(&name.as_str()))
            .collect();
        let Some(before) = &self.before else {
            return spoilt;
        };
        for name in names(&self.layout.dir.join("blobs/sha256")) {
            let path = self.layout.dir.join("blobs/sha256").join(&name);
            if digest(&fs::read(&path).unwrap())[7..] != name {
                spoilt.push(format!("half a blob {name}"));
            }
        }
        let now = Tree::read(&self.layout.dir).without_times();
        let differences = before.differences(&now);
        let new = |line: &String| line.contains("blobs/sha256") || line.contains(".esgz-");
        spoilt.extend(differences.into_iter().filter(|line| !new(line)));
        spoilt
    }

    /// True if the new image is there, whole.
    fn is_complete(&self) -> bool {
        let verify = Esgz::new("verify").arg(self.layout.reference());
        verify.run().code == Some(0)
    }
}

/// The program was not even loaded: numbers are counted in each thread, so that the first call of one
/// is injected into the first of all.
fn is_not_loaded(output: &Output) -> bool {
    output.status.code() == Some(127)
}

fn one_line(output: &Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match text.lines().count() {
        1 if text.starts_with("esgz: ") => Ok(text.trim_end().to_owned()),
        // The line itself may be the write that failed.
        0 => Ok(String::new()),
        _ => Err(format!("expected one line on stderr: {text:?}")),
    }
}

/// Nothing failed in a way that the run had to report, or everything was undone.
fn check_error(destination: &Destination, output: &Output) -> Result<(), String> {
    if output.status.success() {
        return if destination.is_complete() {
            Ok(())
        } else {
            Err("success, but the image is not whole".to_owned())
        };
    }
    let line = one_line(output)?;
    if !matches!(output.status.code(), Some(OTHER | UNREADABLE)) {
        return Err(format!("{}: {line}", output.status));
    }
    let changed = destination.changed();
    // Only these come after the image has its name.
    let is_late = line.contains("syncing") || line.contains("writing to stdout");
    if changed.is_empty() || is_late && destination.is_complete() {
        Ok(())
    } else {
        Err(format!("{line}: {changed:?}"))
    }
}

#[test]
fn a_call_that_fails() {
    if let Some(reason) = unavailable() {
        return skipped("faults::a_call_that_fails", reason);
    }
    let conversion = small(Compression::Gzip(1));
    let dir = conversion.path("");
    let (mut runs, mut failed, mut failures) = (0, 0, Vec::new());
    for name in ["existing", "new"] {
        Destination::prepare(&conversion, name);
        let command = || conversion.command(name).arg("--threads=1");
        let known = calls(command(), &CALLS, &dir);
        for (call, error) in ERRORS {
            let numbers = known.get(call).map_or(&[][..], Vec::as_slice);
            for number in sample(numbers, 6) {
                let what = format!("{call}:{error}:when={number}");
                let destination = Destination::prepare(&conversion, name);
                let output = injected(command(), &what, &dir);
                if is_not_loaded(&output) {
                    continue;
                }
                runs += 1;
                failed += u32::from(!output.status.success());
                let left = names(&conversion.path("scratch"));
                let checked = check_error(&destination, &output);
                if let Err(error) = checked {
                    failures.push(format!("{what} into {name}: {error}"));
                } else if !left.is_empty() {
                    failures.push(format!("{what} into {name}: scratch holds {left:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(runs > 50 && failed > runs / 2, "{failed} of {runs} failed");
}

#[test]
fn a_process_that_is_killed() {
    if let Some(reason) = unavailable() {
        return skipped("faults::a_process_that_is_killed", reason);
    }
    let conversion = small(Compression::Gzip(1));
    let dir = conversion.path("");
    let (mut killed, mut failures) = (0, Vec::new());
    for name in ["existing", "new"] {
        Destination::prepare(&conversion, name);
        let command = || conversion.command(name).arg("--threads=1");
        let known = calls(command(), &CALLS, &dir);
        for call in KILLED_AT {
            let numbers = known.get(call).map_or(&[][..], Vec::as_slice);
            for number in sample(numbers, 5) {
                let what = format!("{call}:signal=KILL:when={number}");
                let destination = Destination::prepare(&conversion, name);
                let output = injected(command(), &what, &dir);
                let died = output.status.signal() == Some(9) || output.status.code() == Some(137);
                killed += u32::from(died);
                let whole = destination.changed().is_empty() || destination.is_complete();
                let spoilt = destination.spoilt();
                let old = fs::read(destination.layout.dir.join("index.json"));
                if !whole && (!spoilt.is_empty() || name == "new" || old.is_err()) {
                    failures.push(format!("{what} into {name}: {spoilt:?}"));
                }
                let left = names(&conversion.path("scratch"));
                if !left.is_empty() {
                    failures.push(format!("{what} into {name}: scratch holds {left:?}"));
                }
            }
        }
        let next = Destination::prepare(&conversion, name);
        command().run().success().unwrap();
        let hidden = names(&dir).into_iter().chain(names(&next.layout.dir));
        let hidden: Vec<String> = hidden.filter(|name| name.starts_with(".esgz-")).collect();
        assert_eq!(hidden, [""; 0], "after the next call");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(killed > 20, "only {killed} were killed");
}

/// A file system of a few pages.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf, size: &str) -> Self {
        use nix::mount::{MsFlags, mount};
        fs::create_dir(&path).unwrap();
        let options = format!("size={size}");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}

#[test]
fn a_full_file_system() {
    let Some(_turn) = privileged::exclusive("faults::a_full_file_system") else {
        return;
    };
    // Layers of gzip need hardly any scratch space.
    let conversion = small(Compression::Zstd);
    // Nearly enough, half of it, next to nothing.
    for size in ["800k", "400k", "8k"] {
        let scratch = Tmpfs::mount(conversion.path("small"), size);
        let destination = Destination::prepare(&conversion, "existing");
        let finished = Esgz::new("convert")
            .args(["--scratch".as_ref(), scratch.0.as_os_str()])
            .args([
                conversion.source.reference(),
                destination.layout.reference(),
            ])
            .run();
        let path = scratch.0.display().to_string();
        finished.failed_with(OTHER, &[&path]).unwrap();
        assert!(destination.changed().is_empty(), "{size}");
        assert_eq!(names(&scratch.0), [""; 0], "{size}");
        drop(scratch);
        fs::remove_dir(conversion.path("small")).unwrap();
    }
    for size in ["480k", "300k", "120k"] {
        let full = Tmpfs::mount(conversion.path("full"), size);
        let layout = Layout {
            dir: full.0.join("layout"),
            tag: Some("esgz".to_owned()),
        };
        if size != "120k" {
            LayoutBuilder::new()
                .tag(Some("esgz"))
                .layer(Layer::new(&sets::usual()[..1], Compression::Gzip(1)))
                .write(&layout.dir);
        }
        let before = Tree::read(&full.0).without_times();
        let convert = Esgz::new("convert").arg("--scratch");
        let finished = convert
            .arg(conversion.path("scratch"))
            .args([conversion.source.reference(), layout.reference()])
            .run();
        let path = full.0.display().to_string();
        finished.failed_with(UNREADABLE, &[&path]).unwrap();
        let differences = before.differences(&Tree::read(&full.0).without_times());
        assert!(differences.is_empty(), "{size}: {differences:?}");
        drop(full);
        fs::remove_dir(conversion.path("full")).unwrap();
    }
}
