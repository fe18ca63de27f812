//! Whatever ends `esgz optimize`, nothing of it is left, and an existing destination is as it was.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use esgz::cancel::Cancel;
use esgz::convert::scan_image;
use esgz::image::ImageRef;
use esgz::layer::scan::ScanOptions;
use esgz::rootfs::{RootfsMode, RootfsOptions};
use esgz::runtime::{self, Cgroup, Claim, Streams, Until, WorkloadOptions};
use esgz::source::{OpenOptions, Selection};
use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::hold::moments;
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::residue::residue;
use esgz_tests::tree::Tree;
use esgz_tests::{machine, privileged, sets};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;

/// The user interrupted.
const INTERRUPTED: i32 = 130;

/// Starts `esgz optimize` in a process group of its own, as a shell would.
fn start(conversion: &Conversion, output: &str, args: &[&str]) -> Child {
    let mut command = conversion.optimize(output).args(args).into_command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    // The whole group, as a terminal does; it exists until the child is waited for.
    killpg(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Waits for the end; panics if that takes long or anything is left.
fn finish(conversion: &Conversion, mut child: Child, what: &str) -> Output {
    let (pid, started) = (child.id(), Instant::now());
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            panic!("{what}: still running 10 s later");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let left = residue(pid, &conversion.path("scratch"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(left.is_empty(), "{what}: left {left:#?}; stderr:\n{errors}");
    output
}

/// Whatever was interrupted, one line says so.
fn assert_interrupted(output: &Output, what: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{what}: {errors}");
    assert_eq!(errors, "esgz: interrupted\n", "{what}");
}

/// A destination with another image, and what it holds.
fn existing(conversion: &Conversion, name: &str) -> (Layout, Tree) {
    let output = conversion.output(name);
    LayoutBuilder::new()
        .tag(Some("esgz"))
        .layer(Layer::new(&sets::usual(), Compression::Gzip(1)))
        .write(&output.dir);
    let tree = Tree::read(&output.dir).without_times();
    (output, tree)
}

fn assert_unchanged(destination: &(Layout, Tree), what: &str) {
    let now = Tree::read(&destination.0.dir).without_times();
    let differences = destination.1.differences(&now);
    assert!(differences.is_empty(), "{what}: {differences:?}");
}

#[test]
fn an_interrupted_run() {
    let Some(_turn) = privileged::workload("left_behind::an_interrupted_run") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let destination = existing(&conversion, "existing");
    let workload = |script: &str| json!(["/bin/sh", "-c", script]).to_string();
    // With children, with one that ignores signals, and with more than one signal.
    let scripts = [
        ("echo up; sleep 1000 & sleep 1000", 1),
        (
            "trap '' INT TERM HUP; echo up; while true; do sleep 1; done",
            1,
        ),
        ("echo up; exec sleep 1000", 3),
    ];
    for (kind, (script, times)) in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .zip(scripts)
    {
        for output in ["new", "existing"] {
            let what = format!("{kind} during {script:?} into {output}");
            let args = ["--entrypoint", &*workload(script), "--period=60", "--json"];
            let mut child = start(&conversion, output, &args);
            wait_for_line(&mut child, &what);
            for _ in 0..times {
                signal(&child, kind);
                thread::sleep(Duration::from_millis(3));
            }
            let output = finish(&conversion, child, &what);
            assert_interrupted(&output, &what);
            assert!(output.stdout.is_empty(), "{what}");
            assert!(!conversion.path("new").exists(), "{what}");
            assert_unchanged(&destination, &what);
        }
    }
}

/// Until the workload says that it runs. Reads nothing else of what it prints.
fn wait_for_line(child: &mut Child, what: &str) {
    use std::io::Read as _;
    let mut line = [0; 3];
    let stderr = child.stderr.as_mut().expect("stderr is piped");
    stderr.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"up\n", "{what}");
}

/// Signals at many times, so that every stage is hit.
#[test]
fn an_interrupted_stage() {
    let Some(_turn) = privileged::workload("left_behind::an_interrupted_stage") else {
        return;
    };
    let noise = |i: u64| Entry::file(format!("noise/{i}"), sets::noise(i, 2 << 20));
    let entries: Vec<Entry> = (0..8).map(noise).collect();
    let image = machine::image().layer(Layer::new(&entries, Compression::Gzip(1)));
    let conversion = Conversion::of(&image);
    let destination = existing(&conversion, "existing");
    let started = Instant::now();
    let whole = start(&conversion, "whole", &[]);
    assert!(finish(&conversion, whole, "whole").status.success());
    let whole = started.elapsed();
    let delays = moments(whole);
    let mut interrupted = 0;
    for (round, &delay) in delays.iter().enumerate() {
        let output = ["new", "existing"][round % 2];
        let kind = [Signal::SIGTERM, Signal::SIGINT][round / 2 % 2];
        let what = format!("{kind} after {delay:?} of {whole:?}");
        let child = start(&conversion, output, &[]);
        thread::sleep(delay);
        signal(&child, kind);
        let finished = finish(&conversion, child, &what);
        if finished.status.success() {
            // It was done already.
            let _ = fs::remove_dir_all(conversion.path("new"));
            if output == "existing" {
                break;
            }
            continue;
        }
        // Before the handlers are set the signal itself ends the process.
        if finished.status.code().is_some() {
            let printed = String::from_utf8_lossy(&finished.stdout).into_owned();
            assert!(
                machine::MAIN_PRINTS.starts_with(&*printed),
                "{what}: {printed}"
            );
            assert_interrupted(&finished, &what);
            interrupted += 1;
        }
        assert!(!conversion.path("new").exists(), "{what}");
        assert_unchanged(&destination, &what);
    }
    assert!(
        interrupted >= delays.len() / 2,
        "only {interrupted} were in time"
    );
}

#[test]
fn an_interrupted_unpacking() {
    let Some(_turn) = privileged::workload("left_behind::an_interrupted_unpacking") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    for millis in [80, 160, 240] {
        let child = start(&conversion, "new", &["--rootfs=unpack"]);
        thread::sleep(Duration::from_millis(millis));
        signal(&child, Signal::SIGINT);
        let what = format!("after {millis} ms");
        let output = finish(&conversion, child, &what);
        if output.status.success() {
            break;
        }
        assert!(!conversion.path("new").exists(), "{what}");
    }
}

#[test]
fn an_existing_destination_after_a_failure() {
    let Some(_turn) = privileged::workload("left_behind::an_existing_destination_after_a_failure")
    else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let destination = existing(&conversion, "existing");
    let failing: [(&str, &[&str]); 4] = [
        (
            "workload",
            &["--entrypoint", "[\"/bin/sh\",\"-c\",\"exit 1\"]"],
        ),
        ("program", &["--entrypoint", "[\"/gone\"]"]),
        ("runtime", &["--runtime", "/nonexistent/runc"]),
        ("user", &["--user", "nobody-knows"]),
    ];
    for (what, args) in failing {
        let finished = conversion.optimize("existing").args(args).run();
        let finished = conversion.finish(finished).unwrap();
        assert_ne!(finished.code, Some(0), "{what}");
        assert_unchanged(&destination, what);
    }
}

#[test]
fn a_panic_at_every_step() {
    let Some(_turn) = privileged::workload("left_behind::a_panic_at_every_step") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let scratch = conversion.path("scratch");
    for steps in 1..=4 {
        let work = || run_and_panic(&conversion, &scratch, steps);
        let panicked = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
        let message = panicked.downcast_ref::<String>();
        assert_eq!(message, Some(&format!("after step {steps}")));
        let left = residue(std::process::id(), &scratch);
        assert!(left.is_empty(), "after step {steps}: {left:#?}");
    }
}

/// Does what `esgz record` does, step by step, and panics after `steps` of them.
fn run_and_panic(conversion: &Conversion, scratch: &Path, steps: u32) {
    let panic_after = |step: u32| assert!(step != steps, "after step {step}");
    let cancel = Cancel::default();
    let reference: ImageRef = conversion.source.reference().parse().unwrap();
    let open = OpenOptions {
        scratch: scratch.to_owned(),
        max_unpacked_bytes: 1 << 30,
        registry: esgz::registry::RegistryOptions::default(),
        containerd: esgz::containerd::ContainerdOptions::default(),
    };
    let source = esgz::source::open(&reference, &Selection::ThisMachine, &open, &cancel);
    let source = source.unwrap().into_image().unwrap();
    let scan = ScanOptions {
        scratch: scratch.to_owned(),
        max_layer_bytes: 1 << 30,
        entry_memory: esgz::layer::scan::EntryMemory::unlimited(),
        keep: esgz::layer::scan::Keep::Spool,
        decode: esgz::layer::scan::DecodeOptions::ONE_THREAD,
    };
    let layers = scan_image(&source, &scan, 2, &cancel).unwrap();
    let layers: Vec<_> = layers.iter().collect();
    let rootfs = RootfsOptions {
        mode: RootfsMode::Auto,
        scratch: scratch.to_owned(),
        read_ahead_kib: 64,
    };
    let rootfs = esgz::rootfs::mount(&layers, &rootfs, &cancel).unwrap();
    panic_after(1);
    let options = WorkloadOptions {
        entrypoint: Some(vec!["sleep".to_owned(), "1000".to_owned()]),
        streams: Streams::AllToStderr,
        until: Until {
            period: Some(Duration::from_millis(100)),
            ..Until::default()
        },
        ..WorkloadOptions::default()
    };
    let plan = runtime::plan(&source.config.parsed, &options).unwrap();
    let process = plan.resolve(rootfs.path()).unwrap();
    let state = conversion.path("state");
    let claim = Claim::take(&state, scratch, "runc").unwrap();
    let cgroup = Cgroup::create(claim.name()).unwrap();
    panic_after(2);
    let mut container =
        runtime::create(&process, &options, rootfs.path(), &cgroup, &claim, &cancel).unwrap();
    panic_after(3);
    runtime::run(&mut container, &cancel).unwrap();
    panic_after(4);
}
