//! Signals while another program works for esgz: the OCI runtime, a hook, a plugin, the workload itself.

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use esgz_tests::conversion::{Conversion, names};
use esgz_tests::hold::Hold;
use esgz_tests::residue::residue;
use esgz_tests::{machine, privileged};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Existing, INTERRUPTED};

/// How long esgz may take to end: a hook or plugin that hangs while it cleans up gets 10 s or 20 s.
const LONGEST: Duration = Duration::from_secs(45);

/// An image, and programs that stop at moments of its run.
struct Scene {
    conversion: Conversion,
    hold: Hold,
    existing: Existing,
}

impl Scene {
    fn new() -> Self {
        let conversion = Conversion::of(&machine::image());
        let hold = Hold::new(conversion.path("hold"));
        hold.runtime();
        let existing = Existing::new(&conversion);
        Self {
            conversion,
            hold,
            existing,
        }
    }

    /// `esgz optimize` over the existing destination, in a process group of its own.
    fn start(&self, script: &str, args: &[&str]) -> Child {
        let mut command = self.command(script, args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.process_group(0).spawn().unwrap()
    }

    fn command(&self, script: &str, args: &[&str]) -> Command {
        let mount = format!(
            "type=bind,source={0},destination={0},options=rbind",
            self.hold.dir().display()
        );
        let esgz = self.conversion.optimize("existing");
        esgz.arg("--state-dir")
            .arg(self.conversion.path("state"))
            .arg("--runtime")
            .arg(self.hold.dir().join("runtime"))
            .args(["--mount", &mount])
            .args(["--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"])
            .arg(json!([script]).to_string())
            .args(args)
            .into_command()
    }

    /// At `moment` each signal comes once. After SIGINT and SIGTERM nothing is left; after SIGKILL nothing is
    /// when another call has ended.
    fn check(&self, moment: &str, script: &str, args: &[&str]) {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let what = format!("{signal} at {moment}");
            self.hold.arm(moment);
            let mut child = self.start(script, args);
            if !self
                .hold
                .wait(moment, || child.try_wait().unwrap().is_some())
            {
                let (code, errors) = end(child, &what);
                panic!("{what}: ended before with {code:?}: {errors}");
            }
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            let mut processes = vec![child.id()];
            let (code, errors) = end(child, &what);
            if signal == Signal::SIGKILL {
                assert_eq!(code, None, "{what}: {errors}");
                processes.push(self.clean_up(&what));
            } else {
                assert_eq!(code, Some(INTERRUPTED), "{what}: {errors}");
                assert_eq!(errors.lines().last(), Some("esgz: interrupted"), "{what}");
            }
            let left = self.left(&processes);
            assert!(left.is_empty(), "{what}: {left:#?}\n{errors}");
            self.existing.assert_unchanged(&what);
        }
    }

    /// The next call. Returns its process id.
    fn clean_up(&self, what: &str) -> u32 {
        let record = self.conversion.record_run("profile");
        let finished = record
            .arg("--state-dir")
            .arg(self.conversion.path("state"))
            .args(["--entrypoint", "[\"/bin/true\"]"])
            .run();
        let pid = finished.pid;
        finished
            .success()
            .unwrap_or_else(|error| panic!("the call after {what}: {error}"));
        pid
    }

    /// What is left of these calls, mounts, processes and files alike.
    fn left(&self, processes: &[u32]) -> Vec<String> {
        let scratch = self.conversion.path("scratch");
        let mut left: Vec<String> = processes
            .iter()
            .flat_map(|pid| residue(*pid, &scratch))
            .collect();
        let state = names(&self.conversion.path("state"));
        left.extend(state.iter().map(|name| format!("state {name}")));
        let dir = self.conversion.path("").display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir))
                .map(str::to_owned),
        );
        let hidden = names(&self.conversion.path("")).into_iter();
        left.extend(hidden.filter(|name| name.starts_with(".esgz")));
        // The scripts that stopped somewhere name their directory.
        for process in names(std::path::Path::new("/proc")) {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if process != std::process::id().to_string() && line.contains(&dir) {
                left.push(format!("process {process}: {line}"));
            }
        }
        left
    }
}

/// Waits for the end. Returns the exit code, none for a signal's, and what was printed to stderr.
fn end(mut child: Child, what: &str) -> (Option<i32>, String) {
    let started = Instant::now();
    // Not read to the end: what a killed process leaves behind may hold the other side.
    let mut stderr = child.stderr.take().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > LONGEST {
            child.kill().unwrap();
            panic!("{what}: still running after {LONGEST:?}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    if status.signal().is_some() {
        return (None, String::new());
    }
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut errors).unwrap();
    (status.code(), errors)
}

#[test]
fn while_the_runtime_creates_and_starts() {
    let name = "killed::while_the_runtime_creates_and_starts";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let scene = Scene::new();
    for moment in [
        "before-create",
        "after-create",
        "before-start",
        "after-start",
    ] {
        scene.check(moment, "sleep 1000", &["--period=60"]);
    }
}

#[test]
fn while_the_runtime_deletes() {
    let Some(_turn) = privileged::workload("killed::while_the_runtime_deletes") else {
        return;
    };
    let scene = Scene::new();
    for moment in ["before-delete", "after-delete"] {
        scene.check(moment, "true", &[]);
    }
}

#[test]
fn while_the_workload_runs_and_ends() {
    let Some(_turn) = privileged::workload("killed::while_the_workload_runs_and_ends") else {
        return;
    };
    let scene = Scene::new();
    let at = |moment: &str| format!("{}/{moment}", scene.hold.dir().display());
    let reach = |moment: &str| format!("cat {0}.armed > {0}.reached", at(moment));
    let runs = format!("{}; sleep 1000 & sleep 1000", reach("run"));
    scene.check("run", &runs, &["--period=60"]);
    let ends = format!(
        "trap '{}' TERM; while true; do sleep 0.1; done",
        reach("stop")
    );
    scene.check("stop", &ends, &["--period=0.2"]);
}

#[test]
fn while_a_hook_runs() {
    let Some(_turn) = privileged::workload("killed::while_a_hook_runs") else {
        return;
    };
    let scene = Scene::new();
    let kinds = ["createContainer", "poststart", "poststop", "createRuntime"];
    let hook = |kind: &&str| {
        let lines = format!("{}exit 0\n", scene.hold.line(kind));
        let path = scene.hold.script(kind, &lines);
        json!({ "hookName": kind, "path": path, "env": ["PATH=/usr/bin:/bin"] })
    };
    let device = json!({ "name": "0", "containerEdits": {
        "hooks": kinds.iter().map(hook).collect::<Vec<_>>(),
    } });
    let specification =
        json!({ "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [device] });
    let directory = scene.conversion.path("cdi");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("gpu.json"), specification.to_string()).unwrap();
    let directory = directory.display().to_string();
    let args = ["--gpus=0", "--cdi-spec-dir", &directory];
    for kind in kinds {
        scene.check(kind, "true", &args);
    }
}

#[test]
fn while_a_plugin_connects_the_network() {
    let name = "killed::while_a_plugin_connects_the_network";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let scene = Scene::new();
    // Keeps a list of what it has connected, as host-local keeps its addresses.
    let leases = scene.conversion.path("leases");
    fs::create_dir(&leases).unwrap();
    let lines = format!(
        "{}case $CNI_COMMAND in\n\
         ADD) : > {1}/$CNI_CONTAINERID-$CNI_IFNAME\n{2}echo '{{\"cniVersion\":\"1.0.0\"}}';;\n\
         DEL) rm -f {1}/$CNI_CONTAINERID-$CNI_IFNAME\n{3};;\nesac\n",
        scene.hold.line("before-$CNI_COMMAND"),
        leases.display(),
        scene.hold.line("after-ADD"),
        scene.hold.line("after-DEL").trim_end(),
    );
    let plugins = scene.hold.dir().join("plugins");
    fs::create_dir(&plugins).unwrap();
    for plugin in ["plugins/held", "plugins/loopback"] {
        scene.hold.script(plugin, &lines);
    }
    let configurations = scene.conversion.path("net.d");
    fs::create_dir(&configurations).unwrap();
    let list = json!({ "cniVersion": "1.0.0", "name": "held", "plugins": [{ "type": "held" }] });
    fs::write(configurations.join("held.conflist"), list.to_string()).unwrap();
    let paths = [plugins, configurations].map(|path| path.display().to_string());
    let args = [
        "--cni",
        "--cni-plugin-dir",
        &paths[0],
        "--cni-plugin-config-dir",
        &paths[1],
    ];
    for moment in ["before-ADD", "after-ADD", "before-DEL"] {
        scene.check(moment, "true", &args);
        // SIGINT and SIGTERM found plugins that did not do what they are for.
        let hung = if moment == "before-DEL" { 2 } else { 0 };
        assert_eq!(names(&leases).len(), hung, "{moment}");
    }
}
