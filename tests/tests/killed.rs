//! Signals at any moment. After SIGINT and SIGTERM nothing is left, and the destination is what it was; after
//! SIGKILL the next call removes what was left.

mod killed {
    mod calls;
    mod moments;

    use esgz_tests::compress::Compression;
    use esgz_tests::conversion::Conversion;
    use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
    use esgz_tests::sets;
    use esgz_tests::tree::Tree;

    /// The exit code for the user's interruption.
    pub(crate) const INTERRUPTED: i32 = 130;

    /// A destination that holds another image.
    pub(crate) struct Existing {
        layout: Layout,
        before: Tree,
    }

    impl Existing {
        /// The output `existing`.
        pub(crate) fn new(conversion: &Conversion) -> Self {
            let layout = conversion.output("existing");
            LayoutBuilder::new()
                .tag(Some("esgz"))
                .layer(Layer::new(&sets::usual(), Compression::Gzip(1)))
                .write(&layout.dir);
            let before = Tree::read(&layout.dir).without_times();
            Self { layout, before }
        }

        pub(crate) fn assert_unchanged(&self, what: &str) {
            let now = Tree::read(&self.layout.dir).without_times();
            let differences = self.before.differences(&now);
            assert!(differences.is_empty(), "{what}: {differences:?}");
        }
    }
}

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use esgz_tests::conversion::{Conversion, names};
use esgz_tests::hold::moments;
use esgz_tests::residue::residue;
use esgz_tests::{machine, privileged};
use serde_json::json;

/// A call of `esgz record` that looks after runs in a state directory of its own.
fn start(conversion: &Conversion, script: &str, args: &[&str]) -> Child {
    let mut command = conversion
        .record_run("profile")
        .arg("--state-dir")
        .arg(conversion.path("state"))
        .args(["--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"])
        .arg(json!([script]).to_string())
        .args(args)
        .into_command();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0).spawn().unwrap()
}

/// Everything that belongs to any of `processes`. Names in the scratch directory are listed once.
fn left(conversion: &Conversion, processes: &[u32]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for &process in processes {
        found.extend(residue(process, &conversion.path("scratch")));
    }
    found.extend(names(&conversion.path("state")));
    found
}

#[test]
fn the_next_call_removes_what_a_killed_one_left() {
    let Some(_turn) = privileged::workload("killed::the_next_call_removes_what_a_killed_one_left")
    else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let started = Instant::now();
    let mut whole = start(&conversion, "true", &[]);
    assert!(whole.wait().unwrap().success());
    let whole = started.elapsed();
    let (mut killed, mut with_mounts) = (Vec::new(), 0);
    // Also after the run's set-up: then the workload runs.
    for delay in moments(whole.mul_f64(1.2)) {
        let mut child = start(&conversion, "sleep 1000 & sleep 1000", &["--period=60"]);
        thread::sleep(delay);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "it was killed after {delay:?}");
        killed.push(child.id());
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let scratch = conversion.path("scratch").display().to_string();
        with_mounts += usize::from(mountinfo.contains(&scratch));
    }
    // Or the test tests nothing.
    assert!(with_mounts > 0, "no mount was left by any");
    assert!(!names(&conversion.path("state")).is_empty());
    let mut next = start(&conversion, "true", &[]);
    killed.push(next.id());
    assert!(next.wait().unwrap().success());
    let left = left(&conversion, &killed);
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_run_that_lives_is_left_alone() {
    let Some(_turn) = privileged::workload("killed::a_run_that_lives_is_left_alone") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let mut living = start(&conversion, "sleep 3; cat /opt/data/small", &[]);
    thread::sleep(Duration::from_millis(1500));
    let mut other = start(&conversion, "true", &[]);
    assert!(other.wait().unwrap().success());
    assert!(living.wait().unwrap().success());
    let left = left(&conversion, &[living.id(), other.id()]);
    assert!(left.is_empty(), "{left:#?}");
}
