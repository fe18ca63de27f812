//! `esgz record --attach`: a container that runc has started over overlayfs is watched while it runs.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, Command, Stdio};

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::Layer;
use esgz_tests::machine::{self, BIG, BIG_RANGES};
use esgz_tests::privileged;
use esgz_tests::running::{Naming, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const USAGE: i32 = 2;
const INTERRUPTED: i32 = 130;

/// What the container does when it is told to; its output goes where it is not looked at.
const BRANCHES: &str = "\
    before) cat /opt/data/small > /tmp/out;; \
    work) \
      dd if=/opt/data/big of=/tmp/out bs=4096 skip=10 count=2 status=none; \
      dd if=/opt/data/big of=/tmp/out bs=4096 skip=700 count=1 status=none; \
      dd if=/opt/data/big of=/tmp/out bs=4096 skip=1024 count=9 status=none; \
      cat data/new /ctl/file > /tmp/out; \
      cat /opt/data/gone data/none 2> /tmp/err;; \
    change) echo more >> /opt/data/small; cat /opt/data/small > /tmp/out;;";

/// A call of `esgz record` that watches.
struct Watching {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Watching {
    /// Returns when everything that the container does is seen.
    fn start(conversion: &Conversion, args: &[&str]) -> Self {
        let mut command: Command = conversion.record_run("profile").args(args).into_command();
        command
            .args(["--log-level=info", "--json"])
            .stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("watching") {
            let read = stderr.read_line(&mut said).unwrap();
            assert!(read > 0, "it ended: {said}");
        }
        Self { child, stderr }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Its exit code, and what it printed.
    fn finish(mut self) -> (Option<i32>, String) {
        let (mut said, mut errors) = (String::new(), String::new());
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        self.stderr.read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code(), said + &errors)
    }

    fn succeed(self) {
        let (code, said) = self.finish();
        assert_eq!(code, Some(0), "{said}");
    }
}

fn start(conversion: &Conversion, naming: Naming) -> Running {
    Running::start(
        &conversion.path("container"),
        machine::layers(),
        naming,
        BRANCHES,
    )
}

fn file<'a>(profile: &'a Value, path: &str) -> Option<&'a Value> {
    let files = profile["files"].as_array().unwrap();
    files.iter().find(|file| file["path"] == path)
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn a_running_container_is_watched_and_runs_on() {
    let name = "attach::a_running_container_is_watched_and_runs_on";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let container = start(&conversion, Naming::Absolute);
    container.tell("before");
    let pid = container.pid.to_string();
    let args = ["--attach", &pid, "--wait-on-signal"];
    let watching = Watching::start(&conversion, &args);
    container.tell("work");
    watching.signal(Signal::SIGINT);
    watching.succeed();

    let profile = conversion.json("profile");
    assert_eq!(
        (&profile["ended"], &profile["exit_code"]),
        (&json!("signal"), &Value::Null)
    );
    assert_eq!(
        (&profile["complete"], &profile["lost_events"]),
        (&json!(true), &json!(0))
    );
    let collector = &profile["collector"];
    assert_eq!(collector["tier"], "filemap");
    assert_eq!(
        (&collector["attached"], &collector["ranges"]),
        (&json!(true), &json!("partial"))
    );
    assert_eq!(
        profile["image"]["manifest"],
        conversion.source.manifest_digest()
    );
    let workload = &profile["workload"];
    assert_eq!(strings(&workload["args"])[..2], ["/bin/sh", "-c"]);
    assert_eq!(
        (&workload["cwd"], &workload["user"]),
        (&json!("/opt"), &json!("0:0"))
    );

    // What was read, to the page, though all of it is cached since the layers were unpacked.
    let big = file(&profile, BIG).expect("it was read");
    let ranges: Vec<_> = BIG_RANGES
        .iter()
        .map(|(at, len)| json!([at, len]))
        .collect();
    assert_eq!((&big["ranges"], &big["layer"]), (&json!(ranges), &json!(0)));
    assert_eq!(
        (&big["opened"], &big["phase"]),
        (&json!(true), &json!("run"))
    );
    let new = file(&profile, "opt/data/new").expect("it was read");
    assert_eq!(
        (&new["ranges"], &new["layer"]),
        (&json!([[0, 19]]), &json!(1))
    );
    let dd = file(&profile, &machine::program("dd")).expect("it was executed");
    assert_eq!(dd["executed"], true);
    // What was read before is not known, and nothing else is said to be touched.
    for untouched in [
        "opt/data/small",
        "opt/data/never",
        "opt/main",
        machine::UNREAD,
    ] {
        assert!(
            file(&profile, untouched).is_none(),
            "{untouched} in {profile:#}"
        );
    }
    assert_eq!(collector["not_known"], json!(["missing"]));

    // The host's file stands apart.
    let mounted = profile["mounted"].as_array().unwrap();
    let rows: Vec<_> = mounted
        .iter()
        .map(|row| (&row["path"], &row["mount"]))
        .collect();
    assert_eq!(rows, [(&json!("ctl/file"), &json!("/ctl"))], "{profile:#}");
    assert_eq!(
        (&mounted[0]["opened"], &mounted[0]["size_bytes"]),
        (&json!(true), &json!(12))
    );
    assert!(file(&profile, "ctl/file").is_none());

    // It still works, and may be watched once more.
    assert!(container.is_running());
    let args = [&args[..], &["--missing"]].concat();
    let watching = Watching::start(&conversion, &args);
    container.tell("work");
    watching.signal(Signal::SIGINT);
    watching.succeed();
    let profile = conversion.json("profile");
    assert_eq!(profile["collector"].get("not_known"), None);
    let missing = strings(&profile["missing"]);
    assert!(
        missing.contains(&"opt/data/gone") && missing.contains(&"opt/data/none"),
        "{missing:?}"
    );
    container.tell("end");
    let left = esgz_tests::conversion::names(&conversion.path("scratch"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_container_of_dockers_kind_is_watched_until_it_ends() {
    let name = "attach::a_container_of_dockers_kind_is_watched_until_it_ends";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let container = start(&conversion, Naming::Docker);
    let args = ["--attach-cgroup", &container.cgroup, "--period=60"];
    let watching = Watching::start(&conversion, &args);
    container.tell("work");
    container.tell("change");
    container.tell("end");
    watching.succeed();
    let profile = conversion.json("profile");
    assert_eq!(
        (&profile["ended"], &profile["complete"]),
        (&json!("exit"), &json!(true))
    );
    let ranges: Vec<_> = BIG_RANGES
        .iter()
        .map(|(at, len)| json!([at, len]))
        .collect();
    assert_eq!(file(&profile, BIG).unwrap()["ranges"], json!(ranges));
    // To change a file it is copied as a whole.
    let small = file(&profile, "opt/data/small").or(file(&profile, "opt/data/hard"));
    assert_eq!(small.expect("it was copied up")["ranges"], json!([[0, 6]]));
}

#[test]
fn the_other_collectors_know_what_was_opened() {
    let Some(_turn) = privileged::workload("attach::the_other_collectors_know_what_was_opened")
    else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let container = start(&conversion, Naming::Absolute);
    let pid = container.pid.to_string();
    for tier in ["open", "fanotify"] {
        let collector = format!("--collector={tier}");
        let args = ["--attach", &pid, "--wait-on-signal", &collector];
        let watching = Watching::start(&conversion, &args);
        container.tell("work");
        watching.signal(Signal::SIGINT);
        watching.succeed();
        let profile = conversion.json("profile");
        assert_eq!(profile["collector"]["tier"], tier);
        assert_eq!(profile["collector"]["ranges"], "whole");
        let big = file(&profile, BIG).unwrap_or_else(|| panic!("{tier}: {profile:#}"));
        assert_eq!(big["ranges"], json!([[0, machine::BIG_BYTES]]));
        let sh = machine::libraries_of_sh();
        assert!(
            sh.iter().any(|library| file(&profile, library).is_some()),
            "{profile:#}"
        );
        assert!(file(&profile, "opt/data/never").is_none());
    }
    let refused =
        conversion
            .record_run("profile")
            .args(["--attach", &pid, "--collector=page-cache"]);
    refused.run().failed_with(USAGE, &["page-cache"]).unwrap();
}

#[test]
fn what_is_no_container_of_the_image_is_refused() {
    let Some(_turn) = privileged::workload("attach::what_is_no_container_of_the_image_is_refused")
    else {
        return;
    };
    let more = [Entry::file("opt/more", "of a third layer\n")];
    let third = Layer::new(&more, Compression::Gzip(6));
    let other = Conversion::of(&machine::image().layer(third));
    let conversion = Conversion::of(&machine::image());
    let container = start(&conversion, Naming::Absolute);
    let pid = container.pid.to_string();

    let check = |conversion: &Conversion, args: &[&str], words: &str| {
        let finished = conversion.record_run("profile").args(args).run();
        finished.failed_with(USAGE, &[words]).unwrap();
        assert!(!conversion.path("profile").exists());
        conversion.finish(finished).unwrap();
    };
    check(
        &other,
        &["--attach", &pid],
        "the container is of another image: it is made of 2 layers",
    );
    // As many layers, and another file.
    let mut changed = machine::layers().clone();
    changed[1].push(Entry::file("opt/data/newer", "x"));
    let changed = changed
        .iter()
        .map(|layer| Layer::new(layer, Compression::Gzip(6)));
    let changed = changed.fold(esgz_tests::layout::LayoutBuilder::new(), |image, layer| {
        image.layer(layer)
    });
    let changed = Conversion::of(&changed);
    check(
        &changed,
        &["--attach", &pid],
        "\"opt/data/newer\" is missing there",
    );

    let own = std::process::id().to_string();
    check(
        &conversion,
        &["--attach", &own],
        "this machine's own root file system",
    );
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let gone = dead.id().to_string();
    check(
        &conversion,
        &["--attach", &gone],
        &format!("there is no process {gone}"),
    );
    check(
        &conversion,
        &["--attach-cgroup", "/no/such"],
        "there is no cgroup /no/such",
    );
    check(
        &conversion,
        &["--attach-cgroup", "/var/tmp"],
        "there is no cgroup /var/tmp",
    );
    // The root of the hierarchy holds everybody.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let unified = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .unwrap();
    let unified = unified.split(' ').nth(1).unwrap();
    check(
        &conversion,
        &["--attach-cgroup", unified],
        "every process of the machine is in the cgroup",
    );

    // Somebody else's process, whose accesses would count.
    let mut guest = Command::new("sleep").arg("60").spawn().unwrap();
    let processes = format!("{unified}{}/cgroup.procs", container.cgroup);
    std::fs::write(processes, guest.id().to_string()).unwrap();
    let words = format!("also holds process {}", guest.id());
    check(&conversion, &["--attach", &pid], &words);
    guest.kill().unwrap();
    guest.wait().unwrap();

    let both = conversion
        .record_run("profile")
        .args(["--attach", &pid, "--attach-cgroup", "/x"]);
    assert_eq!(both.run().code, Some(USAGE));
    let own_flag = conversion
        .record_run("profile")
        .args(["--attach", &pid, "--env", "A=1"]);
    assert_eq!(own_flag.run().code, Some(USAGE));

    // Interrupted by another signal than Ctrl-C: no profile.
    let watching = Watching::start(&conversion, &["--attach", &pid, "--wait-on-signal"]);
    watching.signal(Signal::SIGTERM);
    let (code, said) = watching.finish();
    assert_eq!(code, Some(INTERRUPTED), "{said}");
    assert!(!conversion.path("profile").exists());
    assert!(container.is_running());
    container.tell("end");
}
