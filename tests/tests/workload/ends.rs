//! When a run ends, how often it is run, and what cannot be run.

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use esgz_tests::conversion::Conversion;
use esgz_tests::residue::residue;
use esgz_tests::{find_program, machine, privileged, skipped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{WORKLOAD, command, has_file, output_of, run, with_busybox};

#[test]
fn a_line_ends_the_run() {
    let Some(_turn) = privileged::workload("workload::a_line_ends_the_run") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "echo starting; cat /opt/data/small; echo server is ready now; exec sleep 1000";
    let started = Instant::now();
    let printed = output_of(
        &conversion,
        script,
        &["--wait-on-line", "is ready", "--period=60"],
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(printed.contains("server is ready now\n"), "{printed}");
    let profile = conversion.json("profile");
    assert_eq!(
        (&profile["ended"], &profile["exit_code"]),
        (&json!("line"), &Value::Null)
    );
    assert!(has_file(&profile, "opt/data/small"));
    // On stderr it does not count; the time is over then, or the workload's own end comes first.
    let script = "echo is ready >&2; exec sleep 1000";
    output_of(
        &conversion,
        script,
        &["--wait-on-line", "is ready", "--period=1"],
    );
    assert_eq!(conversion.json("profile")["ended"], "period");
    output_of(
        &conversion,
        "echo never",
        &["--wait-on-line", "is ready", "--period=30"],
    );
    assert_eq!(conversion.json("profile")["ended"], "exit");
}

#[test]
fn a_signal_ends_the_run() {
    let Some(_turn) = privileged::workload("workload::a_signal_ends_the_run") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "echo up; exec sleep 1000";
    let args = ["--wait-on-signal", "--period=0.1"];
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut esgz = command(&conversion, script, &args).into_command();
        let mut child = esgz
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stderr.as_mut().unwrap().read_exact(&mut up).unwrap();
        thread::sleep(Duration::from_millis(500));
        assert!(
            child.try_wait().unwrap().is_none(),
            "the period does not count"
        );
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let left = residue(pid, &conversion.path("scratch"));
        assert!(left.is_empty(), "{left:#?}");
        if signal == Signal::SIGINT {
            assert_eq!(output.status.code(), Some(0));
            assert_eq!(conversion.json("profile")["ended"], "signal");
        } else {
            assert_eq!(output.status.code(), Some(130));
        }
    }
}

#[test]
fn a_server_ends_the_run() {
    let name = "workload::a_server_ends_the_run";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(image) = with_busybox(name, &["httpd"]) else {
        return;
    };
    let conversion = Conversion::of(&image);
    let script = "sleep 0.5; exec httpd -f -p 8080 -h /opt/data";
    let started = Instant::now();
    output_of(&conversion, script, &["--wait-on-port=8080", "--period=60"]);
    assert_eq!(conversion.json("profile")["ended"], "port");
    // The request is served, and what that touches is seen.
    let url = "--wait-on-http=http://localhost:8080/small";
    output_of(&conversion, script, &[url, "--period=60"]);
    let profile = conversion.json("profile");
    assert_eq!(profile["ended"], "http");
    assert!(has_file(&profile, "opt/data/small"), "{profile:#}");
    assert!(started.elapsed() < Duration::from_secs(50));
    // An answer that is no success is none.
    let url = "--wait-on-http=http://localhost:8080/no-such-file";
    output_of(&conversion, script, &[url, "--period=2"]);
    assert_eq!(conversion.json("profile")["ended"], "period");
}

#[test]
fn commands_in_the_container() {
    let Some(_turn) = privileged::workload("workload::commands_in_the_container") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "echo up; exec sleep 1000";
    let args = [
        "--wait-on-line=up",
        "--period=60",
        "--user=app",
        "--cwd=/opt/data",
        "--exec",
        "cat small; id -u; echo $IN_IMAGE",
        "--exec",
        "[\"cat\",\"/opt/data/never\"]",
    ];
    let printed = output_of(&conversion, script, &args);
    assert_eq!(printed, "up\nhello\n1000\nyes\nnobody opens it");
    let profile = conversion.json("profile");
    assert_eq!(profile["ended"], "line");
    for path in ["opt/data/small", "opt/data/never"] {
        let files = profile["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["path"] == path).unwrap();
        assert_eq!(file["phase"], "run", "{path}");
        assert_ne!(file["ranges"], json!([]), "{path}");
    }
    // Without anything to wait for they do not end the run.
    output_of(&conversion, "sleep 2", &["--exec", "cat /opt/data/small"]);
    assert_eq!(conversion.json("profile")["ended"], "exit");
    assert!(has_file(&conversion.json("profile"), "opt/data/small"));
    let failing = ["--wait-on-line=up", "--exec", "exit 3", "--exec", "true"];
    let finished = run(&conversion, script, &failing);
    finished
        .failed_with(WORKLOAD, &["exit 3"])
        .unwrap_or_else(|_| {
            assert_eq!(finished.code, Some(WORKLOAD), "{}", finished.stderr);
            assert!(finished.stderr.contains("exit 3"), "{}", finished.stderr);
        });
}

#[test]
fn several_runs_are_merged() {
    let Some(_turn) = privileged::workload("workload::several_runs_are_merged") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let directory = conversion.path("shared");
    fs::create_dir(&directory).unwrap();
    let mount = format!(
        "--mount=type=bind,src={},dst=/mnt,options=rbind:rw",
        directory.display()
    );
    // Reads another file each time.
    let script =
        "if test -e /mnt/second; then cat /opt/data/small; else cat /opt/data/new; fi > /dev/null
        echo > /mnt/second";
    output_of(&conversion, script, &[&mount, "--runs=2"]);
    let profile = conversion.json("profile");
    assert_eq!(
        (&profile["runs"], &profile["complete"]),
        (&json!(2), &json!(true))
    );
    assert!(
        has_file(&profile, "opt/data/small") && has_file(&profile, "opt/data/new"),
        "{profile:#}"
    );
    let files = profile["files"].as_array().unwrap();
    let numbers: Vec<_> = files
        .iter()
        .map(|file| file["first_touch_seq"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..files.len() as u64).collect::<Vec<_>>());
}

#[test]
fn the_images_stop_signal() {
    let Some(_turn) = privileged::workload("workload::the_images_stop_signal") else {
        return;
    };
    for (name, trapped) in [
        ("SIGRTMIN+3", "RTMIN+3"),
        ("SIGQUIT", "QUIT"),
        ("SIGUSR1", "USR1"),
    ] {
        let config = json!({
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "Entrypoint": ["/bin/sh", "-c"],
            "StopSignal": name,
        });
        let conversion = Conversion::of(&machine::image().config(config));
        // dash knows no names of real-time signals.
        let trapped = if trapped == "RTMIN+3" { "37" } else { trapped };
        let script = format!(
            "trap 'echo stopped; exit 0' {trapped}; echo up; while true; do sleep 0.1; done"
        );
        let args = json!([script]).to_string();
        let esgz = conversion
            .record_run("profile")
            .args(["--json", "--period=1", "--args", &args]);
        let finished = conversion.finish(esgz.run()).unwrap().success().unwrap();
        assert_eq!(finished.stderr, "up\nstopped\n", "{name}");
    }
}

#[test]
fn programs_that_cannot_be_executed() {
    use esgz_tests::archive::Entry;
    use esgz_tests::compress::Compression;
    use esgz_tests::layout::Layer;
    let Some(_turn) = privileged::workload("workload::programs_that_cannot_be_executed") else {
        return;
    };
    // A program of this machine whose dynamic linker has another name.
    let mut foreign = fs::read(find_program("true").unwrap()).unwrap();
    let linker = foreign.windows(8).position(|window| window == b"ld-linux");
    if let Some(at) = linker {
        foreign[at..at + 8].copy_from_slice(b"xx-linux");
    }
    let entries = [
        Entry::dir("opt"),
        Entry::file("opt/script", "#!/opt/no/interpreter -x\n").mode(0o755),
        Entry::file("opt/chain", "#!/opt/script\n").mode(0o755),
        Entry::file("opt/text", "hello\n").mode(0o755),
        Entry::file("opt/foreign", foreign).mode(0o755),
    ];
    let image = machine::image().layer(Layer::new(&entries, Compression::Gzip(1)));
    let conversion = Conversion::of(&image);
    for (program, reason) in [
        (
            "/opt/script",
            "its interpreter \"/opt/no/interpreter\" is not in the image",
        ),
        (
            "/opt/chain",
            "its interpreter \"/opt/no/interpreter\" is not in the image",
        ),
        ("/opt/text", "neither an ELF binary nor a script"),
        ("/opt/foreign", "xx-linux"),
    ] {
        if program == "/opt/foreign" && linker.is_none() {
            continue;
        }
        let entrypoint = json!([program]).to_string();
        let esgz = conversion
            .record_run("profile")
            .args(["--entrypoint", &entrypoint]);
        let finished = conversion.finish(esgz.run()).unwrap();
        finished.failed_with(WORKLOAD, &[reason]).unwrap();
        assert!(finished.stderr.contains(program), "{}", finished.stderr);
    }
}

#[test]
fn another_runtime() {
    let name = "workload::another_runtime";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    if find_program("crun").is_none() {
        skipped(name, "crun is not installed");
        return;
    }
    let conversion = Conversion::of(&machine::image());
    let command = conversion
        .record_run("profile")
        .args(["--json", "--runtime=crun"]);
    let finished = conversion.finish(command.run()).unwrap().success().unwrap();
    assert_eq!(finished.stderr, machine::MAIN_PRINTS);
    let by_crun = conversion.json("profile");
    assert_eq!(by_crun["complete"], true);
    let args = [
        "--runtime=crun",
        "--wait-on-line=up",
        "--exec",
        "cat /opt/data/small",
        "--period=60",
    ];
    let printed = output_of(&conversion, "echo up; exec sleep 1000", &args);
    assert_eq!(printed, "up\nhello\n");
    for (args, code) in [
        (["--entrypoint", "[\"/gone\"]"], WORKLOAD),
        (["--user", "nobody-knows"], WORKLOAD),
    ] {
        let esgz = conversion
            .record_run("profile")
            .arg("--runtime=crun")
            .args(args);
        let finished = conversion.finish(esgz.run()).unwrap();
        finished
            .failed_with(code, &["gone", "nobody-knows"])
            .unwrap();
    }
}
