//! The workload's flags, its output, its end, and what goes wrong with it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::{Finished, binary};
use esgz_tests::{machine, privileged};
use serde_json::{Value, json};

/// The workload failed, or could not be run.
const WORKLOAD: i32 = 3;
/// Wrong arguments.
const USAGE: i32 = 2;
/// All that has no code of its own.
const OTHER: i32 = 1;

/// Runs `sh -c SCRIPT` in the machine's image under `esgz record --json`.
fn run(conversion: &Conversion, script: &str, args: &[&str]) -> Finished {
    let command = conversion
        .record_run("profile")
        .args(["--json", "--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"])
        .arg(json!([script]).to_string())
        .args(args);
    conversion.finish(command.run()).unwrap()
}

/// What the script prints.
fn output_of(conversion: &Conversion, script: &str, args: &[&str]) -> String {
    run(conversion, script, args).success().unwrap().stderr
}

#[test]
fn arguments_environment_and_directory() {
    let Some(_turn) = privileged::workload("runtime::arguments_environment_and_directory") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let printed = |args: &[&str]| {
        let command = conversion.record_run("profile").arg("--json").args(args);
        let finished = conversion.finish(command.run()).unwrap();
        finished.success().unwrap().stderr
    };
    let print_args = "[\"/bin/sh\",\"-c\",\"for arg do echo \\\"<$arg>\\\"; done\",\"name\"]";
    let args = [
        "--entrypoint",
        print_args,
        "--args",
        "[\"a b\",\"\",\"é\\n$x\"]",
    ];
    assert_eq!(printed(&args), "<a b>\n<>\n<é\n$x>\n");
    // An entrypoint without arguments takes the image's command, which has none here.
    assert_eq!(printed(&["--entrypoint", print_args]), "");

    let env = "[\"env\"]";
    let env = [
        "--entrypoint",
        env,
        "--env",
        "A=1",
        "--env",
        "B=x y=z",
        "--env",
        "A=2",
    ];
    let text = printed(&env);
    let mut variables: Vec<&str> = text.lines().collect();
    variables.sort_unstable();
    let path = "PATH=/usr/local/bin:/usr/bin:/bin";
    assert_eq!(
        variables,
        ["A=2", "B=x y=z", "HOME=/root", "IN_IMAGE=yes", path]
    );
    assert_eq!(
        conversion.json("profile")["workload"]["env"],
        json!(["A=1", "B=x y=z", "A=2"])
    );
    let changed = printed(&["--entrypoint", "[\"env\"]", "--env", "IN_IMAGE=no"]);
    assert!(changed.contains("IN_IMAGE=no\n") && !changed.contains("yes"));

    assert_eq!(printed(&["--entrypoint", "[\"pwd\"]"]), "/\n");
    let cwd = [
        "--entrypoint",
        "[\"/bin/sh\",\"-c\",\"pwd; cat small\"]",
        "--cwd",
        "/opt/data",
    ];
    assert_eq!(printed(&cwd), "/opt/data\nhello\n");
    assert_eq!(conversion.json("profile")["workload"]["cwd"], "/opt/data");
    let command = conversion.record_run("profile").args(["--cwd", "opt"]);
    let relative = conversion.finish(command.run()).unwrap();
    relative.failed_with(USAGE, &["\"opt\""]).unwrap();
    let command = conversion
        .record_run("profile")
        .args(["--cwd", "/opt/main"]);
    let no_directory = conversion.finish(command.run()).unwrap();
    let line = "esgz: runc create failed: unable to start";
    no_directory.failed_with(OTHER, &[line]).unwrap();
}

#[test]
fn users_are_those_of_the_image() {
    let Some(_turn) = privileged::workload("runtime::users_are_those_of_the_image") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "id -u; id -g; id -G; echo $HOME";
    for (user, expected) in [
        ("", "0\n0\n0\n/root\n"),
        ("app", "1000\n1001\n1001 44\n/home/app\n"),
        ("1000", "1000\n1001\n1001 44\n/home/app\n"),
        ("app:video", "1000\n44\n44\n/home/app\n"),
        ("1234:567", "1234\n567\n567\n/\n"),
    ] {
        assert_eq!(
            output_of(&conversion, script, &["--user", user]),
            expected,
            "{user:?}"
        );
        assert_eq!(conversion.json("profile")["workload"]["user"], user);
    }
    for user in ["nobody-knows", "app:nobody-knows"] {
        let finished = run(&conversion, script, &["--user", user]);
        finished.failed_with(WORKLOAD, &["nobody-knows"]).unwrap();
    }
}

#[test]
fn network_files_are_the_documented_ones() {
    let Some(_turn) = privileged::workload("runtime::network_files_are_the_documented_ones") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let hosts = "127.0.0.1\tlocalhost
::1\t\tlocalhost ip6-localhost ip6-loopback
fe00::0\t\tip6-localnet
ff00::0\t\tip6-mcastprefix
ff02::1\t\tip6-allnodes
ff02::2\t\tip6-allrouters
";
    let printed = output_of(&conversion, "cat /etc/hosts", &[]);
    let words = |text: &str| -> Vec<Vec<String>> {
        let lines = text.lines();
        lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect()
    };
    assert_eq!(words(&printed), words(hosts));
    let printed = output_of(&conversion, "cat /etc/resolv.conf", &[]);
    assert_eq!(printed, "nameserver 8.8.8.8\n");
    let profile = conversion.json("profile");
    let files = profile["files"].as_array().unwrap();
    assert!(!files.iter().any(|file| file["path"] == "etc/resolv.conf"));
}

#[test]
fn output_is_passed_through() {
    let Some(_turn) = privileged::workload("runtime::output_is_passed_through") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "echo to stdout; echo to stderr >&2; cat /opt/data/small";
    let args = ["--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"];
    let optimize = |more: &[&str]| {
        let command = conversion.optimize("output").args(args);
        let command = command.arg(json!([script]).to_string()).args(more);
        let finished = conversion.finish(command.run()).unwrap();
        finished.success().unwrap()
    };
    let plain = optimize(&[]);
    assert!(
        plain.stdout.starts_with("to stdout\nhello\n"),
        "{}",
        plain.stdout
    );
    assert_eq!(plain.stderr, "to stderr\n");
    let as_json = optimize(&["--json"]);
    let report: Value = serde_json::from_str(&as_json.stdout).expect("stdout is one document");
    assert_eq!(report["profile"]["exit_code"], 0);
    assert_eq!(report["verified"], true);
    let mut lines: Vec<&str> = as_json.stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["hello", "to stderr", "to stdout"]);

    // More than a pipe holds, and a workload that closes its own output.
    let big = "cat /opt/data/big; exec >&- 2>&-; cat /opt/data/small; true";
    let command = conversion.record_run("profile").args(args);
    let command = command.arg(json!([big]).to_string()).into_command();
    let output = { command }.output().unwrap();
    assert!(output.status.success());
    let printed = output.stdout.len() as u64;
    assert!(printed > machine::BIG_BYTES, "{printed} bytes came through");
}

#[test]
fn the_period_ends_the_run() {
    let Some(_turn) = privileged::workload("runtime::the_period_ends_the_run") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    // Who waits for a workload that is asked to end takes no less than this.
    let with_grace = Duration::from_millis(500) + Duration::from_secs(5);
    for (script, is_given_time) in [
        ("exec sleep 1000", false),
        ("sleep 1000 & sleep 1001", false),
        ("trap '' TERM; while true; do sleep 1; done", false),
        ("trap 'exit 7' TERM; sleep 1000 & wait", false),
        // Has a handler and does not end: gets some time, and is killed.
        ("trap ':' TERM; while true; do sleep 1; done", true),
    ] {
        let finished = run(&conversion, script, &["--period", "0.5"]);
        let finished = finished.success().unwrap();
        let took = finished.took;
        assert!(took >= Duration::from_millis(500), "{script}: {took:?}");
        assert_eq!(took >= with_grace, is_given_time, "{script}: {took:?}");
        assert!(took < with_grace * 2, "{script}: {took:?}");
        let profile = conversion.json("profile");
        assert_eq!(profile["ended"], "period", "{script}");
        let duration_ms = profile["duration_ms"].as_u64().unwrap();
        assert!(
            (500..1500).contains(&duration_ms),
            "{script}: {duration_ms}"
        );
        assert_eq!(profile["exit_code"], Value::Null, "{script}");
        assert_eq!(profile["complete"], true, "{script}");
    }
    // Children that outlive the workload do not hold it up.
    let finished = run(&conversion, "sleep 1000 & exit 0", &[]);
    let took = finished.success().unwrap().took;
    assert!(took < with_grace, "{took:?}");
    assert_eq!(conversion.json("profile")["ended"], "exit");
}

#[test]
fn failures_of_the_workload() {
    let Some(_turn) = privileged::workload("runtime::failures_of_the_workload") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    for (script, code) in [
        ("exit 42", "42"),
        ("exec 2> /dev/null; sh -c 'kill -SEGV $$'", "139"),
    ] {
        let finished = run(&conversion, script, &[]);
        finished.failed_with(WORKLOAD, &[code]).unwrap();
        assert!(!conversion.path("profile").exists());
    }
    run(&conversion, "exit 42", &["--allow-failure"])
        .success()
        .unwrap();
    assert_eq!(conversion.json("profile")["exit_code"], 42);
    let optimize = |args: &[&str]| {
        let command = conversion.optimize("output").args(args);
        conversion.finish(command.run()).unwrap()
    };
    let failing = ["--entrypoint", "[\"cat\",\"/gone\"]"];
    let finished = optimize(&failing);
    assert_eq!(finished.code, Some(WORKLOAD));
    assert!(!conversion.path("output").exists());
    let allowed = optimize(&[failing[0], failing[1], "--allow-failure"]);
    allowed.success().unwrap();

    for program in [
        "no-such-program",
        "/opt/no/such/program",
        "/opt/data/small",
        "/opt/data",
    ] {
        let entrypoint = json!([program]).to_string();
        let command = conversion
            .optimize("new")
            .args(["--entrypoint", &entrypoint]);
        let finished = conversion.finish(command.run()).unwrap();
        finished.failed_with(WORKLOAD, &[program]).unwrap();
        assert!(!conversion.path("new").exists());
    }
}

#[test]
fn without_a_runtime() {
    let Some(_turn) = privileged::workload("runtime::without_a_runtime") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let failing = |runtime: &str, args: &[&str]| {
        let command = conversion.optimize("output").args(args);
        let command = command.args(["--runtime", runtime]);
        let finished = conversion.finish(command.run()).unwrap();
        finished.failed_with(OTHER, &[runtime]).unwrap();
        assert!(!conversion.path("output").exists());
    };
    failing("/nonexistent/runc", &[]);
    failing("no-such-runtime", &[]);
    failing("/bin/false", &[]);
    let file = conversion.path("no-program");
    fs::write(&file, "no program").unwrap();
    failing(&file.display().to_string(), &[]);
    let nothing = Conversion::of(&machine::image().config(json!({})));
    let finished = nothing.finish(nothing.optimize("output").run()).unwrap();
    finished.failed_with(WORKLOAD, &["nothing to run"]).unwrap();
}

#[test]
fn without_privilege() {
    let Some(_turn) = privileged::workload("runtime::without_privilege") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    // The build's directory may be closed to others.
    let copy = conversion.path("esgz");
    fs::copy(binary(), &copy).unwrap();
    let directory = copy.parent().unwrap();
    for path in [directory, &*conversion.path("scratch")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let run = |subcommand: &str, destination: &str| {
        let output = conversion.output(destination);
        let mut command = Command::new(&copy);
        command
            .args([subcommand, "--log-level=error", "--scratch"])
            .arg(conversion.path("scratch"))
            .args([conversion.source.reference(), output.reference()])
            .uid(65534)
            .gid(65534);
        command.output().unwrap()
    };
    let refused = run("optimize", "output");
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(OTHER), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(
        errors.contains("root") || errors.contains("permitted"),
        "{errors}"
    );
    assert!(!conversion.path("output").exists());
    let left = esgz_tests::conversion::names(&conversion.path("scratch"));
    assert!(left.is_empty(), "{left:?}");
    let converted = run("convert", "converted");
    let errors = String::from_utf8(converted.stderr).unwrap();
    assert!(converted.status.success(), "{errors}");
    assert!(conversion.path("converted/index.json").is_file());
}
