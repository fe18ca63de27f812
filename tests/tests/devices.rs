//! Devices by the Container Device Interface, and the hooks that come with them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::residue::residue;
use esgz_tests::{machine, privileged};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Writes a specification of the devices `nvidia.com/gpu=0` and `=1`, in which the first has the hooks
/// (name, script) and returns its directory.
fn specification(conversion: &Conversion, hooks: &[(&str, &str)]) -> PathBuf {
    let directory = conversion.path("cdi");
    fs::create_dir_all(&directory).unwrap();
    let hook = |(kind, script): &(&str, &str)| {
        let path = directory.join(kind);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        json!({ "hookName": kind, "path": path, "args": [kind, "argument"], "env": ["PATH=/usr/bin:/bin"] })
    };
    fs::write(directory.join("driver"), "of the driver\n").unwrap();
    let document = json!({
        "cdiVersion": "0.6.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {
            "env": ["DRIVER=1"],
            "mounts": [{ "hostPath": directory.join("driver"), "containerPath": "/opt/driver", "options": ["ro", "bind"] }],
        },
        "devices": [
            { "name": "0", "containerEdits": {
                "env": ["GPU=0"],
                "additionalGids": [44],
                "deviceNodes": [{ "path": "/dev/gpu0", "hostPath": "/dev/full", "permissions": "rw" }],
                "hooks": hooks.iter().map(hook).collect::<Vec<_>>(),
            } },
            { "name": "1", "containerEdits": { "env": ["GPU1=1"] } },
        ],
    });
    fs::write(directory.join("gpu.json"), document.to_string()).unwrap();
    directory
}

fn record(conversion: &Conversion, script: &str, gpus: &str) -> Esgz {
    conversion
        .record_run("profile")
        .args(["--json", "--gpus", gpus, "--cdi-spec-dir"])
        .arg(conversion.path("cdi"))
        .args(["--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"])
        .arg(json!([script]).to_string())
}

/// Reads a file of the image, from outside: the runtime tells a hook where its bundle is.
const READS: &str = "#!/bin/sh
bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')
root=$(sed 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/' \"$bundle/config.json\")
cat \"$root/opt/data/never\" > /dev/null
";

#[test]
fn what_a_device_needs_is_in_the_container() {
    let Some(_turn) = privileged::workload("devices::what_a_device_needs_is_in_the_container")
    else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    specification(&conversion, &[]);
    let script = "echo $DRIVER,$GPU,$GPU1; cat /opt/driver; id -G; test -c /dev/gpu0 && echo node
        cat /dev/gpu0 | dd bs=1 count=1 status=none | cat > /dev/null; echo read";
    let printed = |gpus: &str| {
        let finished = conversion
            .finish(record(&conversion, script, gpus).run())
            .unwrap();
        finished.success().unwrap().stderr
    };
    assert_eq!(printed("0"), "1,0,\nof the driver\n0 44\nnode\nread\n");
    // The driver is the host's.
    let profile = conversion.json("profile");
    assert_eq!(profile["mounted"][0]["path"], "opt/driver");
    assert_eq!(profile["mounted"][0]["mount"], "/opt/driver");
    assert_eq!(printed("0,1"), "1,0,1\nof the driver\n0 44\nnode\nread\n");
    assert_eq!(printed("all"), "1,0,1\nof the driver\n0 44\nnode\nread\n");
    assert_eq!(printed("nvidia.com/gpu=1").lines().next(), Some("1,,1"));
    let unknown = conversion
        .finish(record(&conversion, "true", "7").run())
        .unwrap();
    unknown.failed_with(2, &["nvidia.com/gpu=7"]).unwrap();
}

#[test]
fn specifications_may_be_yaml() {
    let Some(_turn) = privileged::workload("devices::specifications_may_be_yaml") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    fs::create_dir(conversion.path("cdi")).unwrap();
    let yaml = "cdiVersion: \"0.5.0\"\nkind: vendor.example/thing\ndevices:\n  - name: one\n    containerEdits:\n      \
        env:\n        - THING=yes\n";
    fs::write(conversion.path("cdi/thing.yaml"), yaml).unwrap();
    let command = record(&conversion, "echo $THING", "vendor.example/thing=one");
    let finished = conversion.finish(command.run()).unwrap();
    assert_eq!(finished.success().unwrap().stderr, "yes\n");
}

#[test]
fn what_hooks_touch_is_seen_as_setup() {
    let Some(_turn) = privileged::workload("devices::what_hooks_touch_is_seen_as_setup") else {
        return;
    };
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let conversion = Conversion::of(&machine::image());
        specification(&conversion, &[(kind, READS)]);
        let command = record(&conversion, "read line < /opt/data/small", "0");
        conversion.finish(command.run().success().unwrap()).unwrap();
        let profile = conversion.json("profile");
        assert_eq!(profile["complete"], true, "{kind}");
        let file = |path: &str| -> Value {
            let files = profile["files"].as_array().unwrap();
            let found = files.iter().find(|file| file["path"] == path);
            found
                .unwrap_or_else(|| panic!("{kind}: no {path} in {profile:#}"))
                .clone()
        };
        let by_hook = file("opt/data/never");
        assert_eq!(by_hook["phase"], "setup", "{kind}");
        assert_eq!(
            by_hook["ranges"],
            json!([[0, by_hook["size_bytes"]]]),
            "{kind}"
        );
        assert_eq!(by_hook["opened"], true, "{kind}");
        let by_workload = file("opt/data/small");
        assert_eq!(by_workload["phase"], "run", "{kind}");
        let earlier =
            |a: &Value, b: &Value| a["first_touch_seq"].as_u64() < b["first_touch_seq"].as_u64();
        assert!(earlier(&by_hook, &by_workload), "{kind}");
    }
    // A hook that runs when the workload has begun.
    let conversion = Conversion::of(&machine::image());
    specification(&conversion, &[("poststart", READS)]);
    let command = record(&conversion, "sleep 1", "0");
    conversion.finish(command.run().success().unwrap()).unwrap();
    let profile = conversion.json("profile");
    let files = profile["files"].as_array().unwrap();
    assert!(
        files.iter().any(|file| file["path"] == "opt/data/never"),
        "{profile:#}"
    );
}

/// A hook that hangs: SIGINT and SIGTERM end the call nevertheless, and nothing is left.
#[test]
fn a_hanging_hook_is_interrupted() {
    let Some(_turn) = privileged::workload("devices::a_hanging_hook_is_interrupted") else {
        return;
    };
    let hang = "#!/bin/sh\necho > \"$0.began\"\nsetsid sleep 1000 &\nsleep 1000\n";
    for (kind, signal) in [
        ("createRuntime", Signal::SIGINT),
        ("createContainer", Signal::SIGTERM),
        ("poststart", Signal::SIGINT),
    ] {
        let conversion = Conversion::of(&machine::image());
        specification(&conversion, &[(kind, hang)]);
        let mut command = record(&conversion, "sleep 1000", "0").into_command();
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let began = conversion.path(&format!("cdi/{kind}.began"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !began.exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(began.exists(), "{kind}: the hook has not begun");
        killpg(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{kind}: still running");
            }
            thread::sleep(Duration::from_millis(5));
        }
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{kind}: {errors}");
        assert_eq!(errors, "esgz: interrupted\n", "{kind}");
        let left = residue(pid, &conversion.path("scratch"));
        assert!(left.is_empty(), "{kind}: {left:#?}");
    }
}

/// A hook leaves a process behind that holds the workload's output: nobody waits for it.
#[test]
fn a_process_that_outlives_its_hook() {
    let Some(_turn) = privileged::workload("devices::a_process_that_outlives_its_hook") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let stay = "#!/bin/sh
pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')
setsid sleep 1000 < /dev/null > /proc/$pid/fd/1 2>&1 &
";
    specification(&conversion, &[("createRuntime", stay)]);
    let command = record(&conversion, "echo hello", "0");
    let finished = conversion.finish(command.run()).unwrap();
    let finished = finished.success().unwrap();
    assert_eq!(finished.stderr, "hello\n");
    assert!(
        finished.took < Duration::from_secs(15),
        "{:?}",
        finished.took
    );
}
