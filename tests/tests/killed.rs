//! esgz is killed with SIGKILL, at any moment: the next call removes what was left.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use esgz_tests::conversion::{Conversion, names};
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
    let rounds = 12;
    let (mut killed, mut with_mounts) = (Vec::new(), 0);
    for round in 0..rounds {
        // Also long after the beginning: then the workload runs.
        let delay = whole * round / (rounds - 3);
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
