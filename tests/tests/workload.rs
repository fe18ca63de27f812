//! The workload's surroundings and the end of its run: the flags that ctr-remote has, its manual's examples, and
//! those beyond.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::LayoutBuilder;
use esgz_tests::residue::residue;
use esgz_tests::{find_program, machine, privileged, skipped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};

const USAGE: i32 = 2;
const WORKLOAD: i32 = 3;

fn command(conversion: &Conversion, script: &str, args: &[&str]) -> Esgz {
    conversion
        .record_run("profile")
        .args(["--json", "--entrypoint", "[\"/bin/sh\",\"-c\"]", "--args"])
        .arg(json!([script]).to_string())
        .args(args)
}

fn run(conversion: &Conversion, script: &str, args: &[&str]) -> Finished {
    conversion
        .finish(command(conversion, script, args).run())
        .unwrap()
}

/// What the script prints; of a call that succeeds.
fn output_of(conversion: &Conversion, script: &str, args: &[&str]) -> String {
    run(conversion, script, args).success().unwrap().stderr
}

/// The image with busybox, or says that the test is skipped.
fn with_busybox(name: &str, applets: &[&str]) -> Option<LayoutBuilder> {
    let image = machine::with_busybox(applets);
    if image.is_none() {
        skipped(name, "busybox is not installed");
    }
    image
}

fn has_file(profile: &Value, path: &str) -> bool {
    let files = profile["files"].as_array().unwrap();
    files.iter().any(|file| file["path"] == path)
}

#[test]
fn host_files_are_mounted() {
    let Some(_turn) = privileged::workload("workload::host_files_are_mounted") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let directory = conversion.path("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "of the host\n").unwrap();
    let mount = |options: &str| {
        let source = directory.display();
        format!("type=bind,src={source},dst=/opt/host,options={options}")
    };
    // What the shell complains of comes by another pipe, at any time.
    let script = "cat /opt/host/file; { echo new > /opt/host/new; } 2> /dev/null || echo read-only";
    let read_only = output_of(&conversion, script, &["--mount", &mount("rbind:ro")]);
    assert!(
        read_only.starts_with("of the host\n") && read_only.ends_with("read-only\n"),
        "{read_only}"
    );
    assert!(!directory.join("new").exists());
    // It is not the image's.
    let profile = conversion.json("profile");
    assert!(!has_file(&profile, "opt/host/file"), "{profile:#}");
    let mounted = profile["mounted"].as_array().unwrap();
    let rows: Vec<_> = mounted
        .iter()
        .map(|row| (&row["path"], &row["mount"], &row["opened"]))
        .collect();
    let expected = (&json!("opt/host/file"), &json!("/opt/host"), &json!(true));
    assert_eq!(rows, [expected], "{profile:#}");
    let tmpfs = "--mount=type=tmpfs,source=tmpfs,destination=/opt/tmp,options=size=65536k:nosuid";
    let args = ["--mount", &mount("bind:rw"), tmpfs];
    let writable = output_of(
        &conversion,
        &format!("{script}; echo x > /opt/tmp/x"),
        &args,
    );
    assert_eq!(writable, "of the host\n");
    assert_eq!(fs::read_to_string(directory.join("new")).unwrap(), "new\n");
    let gone = run(
        &conversion,
        "true",
        &["--mount=type=bind,src=/gone/x,dst=/d"],
    );
    gone.failed_with(USAGE, &["/gone/x"]).unwrap();
    let unknown = command(&conversion, "true", &["--mount=type=bind,from=/,dst=/d"]).run();
    assert_eq!(unknown.code, Some(USAGE));
}

/// As in ctr-remote's manual, with the C compiler of this machine instead of an image with Go's.
#[test]
fn a_mounted_source_is_compiled() {
    let name = "workload::a_mounted_source_is_compiled";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(gcc) = find_program("gcc") else {
        skipped(name, "gcc is not installed");
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let source = conversion.path("hello.c");
    fs::write(
        &source,
        "#include <stdio.h>\nint main(void) { puts(\"hello world\"); return 0; }\n",
    )
    .unwrap();
    // The compiler comes from the host, as it is far larger than a test's image may be.
    let mut args = vec![format!(
        "--mount=type=bind,source={},destination=/hello.c,options=bind:ro",
        source.display()
    )];
    for directory in ["/usr", "/lib", "/lib64", "/bin"] {
        if fs::symlink_metadata(directory).is_ok() {
            args.push(format!(
                "--mount=type=bind,source={directory},destination={directory},options=rbind:ro"
            ));
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let script = format!("{} -o /tmp/hello /hello.c && /tmp/hello", gcc.display());
    let mut args = args;
    args.push("--period=60");
    assert_eq!(output_of(&conversion, &script, &args), "hello world\n");
    let profile = conversion.json("profile");
    // All that was read is the host's.
    assert_eq!(profile["complete"], true);
    assert!(!has_file(&profile, "hello.c"), "{profile:#}");
}

#[test]
fn variables_come_from_files() {
    let Some(_turn) = privileged::workload("workload::variables_come_from_files") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let file = conversion.path("variables");
    fs::write(&file, "# comment\nA=of file\n\nB=b c\r\nIN_IMAGE=no\n").unwrap();
    let file = file.display().to_string();
    let args = ["--env-file", &*file, "--env", "A=of flag"];
    let printed = output_of(&conversion, "echo \"$A|$B|$IN_IMAGE\"", &args);
    assert_eq!(printed, "of flag|b c|no\n");
    let gone = run(&conversion, "true", &["--env-file", "/gone/file"]);
    gone.failed_with(USAGE, &["/gone/file"]).unwrap();
}

#[test]
fn names_are_resolved_as_wanted() {
    let Some(_turn) = privileged::workload("workload::names_are_resolved_as_wanted") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let args = [
        "--dns-nameservers=1.1.1.1,9.9.9.9",
        "--dns-search-domains=a.example,b.example",
        "--dns-options=ndots:2,rotate",
        "--add-hosts=db:10.0.0.7,web:::1",
    ];
    let printed = output_of(&conversion, "cat /etc/resolv.conf /etc/hosts", &args);
    let resolv_conf = "nameserver 1.1.1.1\nnameserver 9.9.9.9\nsearch a.example b.example\noptions ndots:2 rotate\n";
    assert!(printed.starts_with(resolv_conf), "{printed}");
    assert!(printed.ends_with("10.0.0.7\tdb\n::1\tweb\n"), "{printed}");
    // Whatever the caller's umask is, every user reads them.
    let script = "umask 077; exec \"$0\" \"$@\"";
    let esgz = command(
        &conversion,
        "cat /etc/hosts /etc/resolv.conf",
        &["--user", "app"],
    );
    let esgz = esgz.into_command();
    let mut shell = std::process::Command::new("/bin/sh");
    shell
        .args(["-c", script])
        .arg(esgz.get_program())
        .args(esgz.get_args())
        .stdin(Stdio::null());
    let output = shell.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("localhost") && errors.contains("nameserver 8.8.8.8"),
        "{errors}"
    );
}

#[test]
fn the_hosts_network_and_an_own_one() {
    let name = "workload::the_hosts_network_and_an_own_one";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let script = "cat /proc/self/net/dev /etc/hosts";
    let own = output_of(&conversion, script, &[]);
    let of_host = output_of(&conversion, script, &["--net-host"]);
    let interfaces = |text: &str| -> Vec<String> {
        let names = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, _)| name.trim());
        names.map(str::to_owned).collect()
    };
    assert_eq!(interfaces(&own), ["lo"]);
    let table = fs::read_to_string("/proc/self/net/dev").unwrap();
    assert_eq!(interfaces(&of_host), interfaces(&table));
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    assert!(of_host.ends_with(&hosts), "{of_host}");
}

#[test]
fn stdin_is_passed_on() {
    let Some(_turn) = privileged::workload("workload::stdin_is_passed_on") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    // More than a pipe holds.
    let text = "0123456789abcde\n".repeat(20_000);
    let mut esgz = command(&conversion, "cat", &["-i", "--period=60"]).into_command();
    esgz.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = esgz.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = text.clone();
    let writer = thread::spawn(move || stdin.write_all(sent.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), text);
    // One that does not read it, and one that is not asked.
    let mut esgz = command(&conversion, "exit 0", &["-i"]).into_command();
    let mut child = esgz
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(output_of(&conversion, "cat; echo end", &[]), "end\n");
}

/// As in ctr-remote's manual: `-t -i`, here with a terminal that the test holds.
#[test]
fn a_terminal() {
    let Some(_turn) = privileged::workload("workload::a_terminal") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let pty = nix::pty::openpty(None, None).unwrap();
    let size = |rows, columns| Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&pty.master, size(24, 80)).unwrap();
    let is_raw = || {
        !tcgetattr(&pty.slave)
            .unwrap()
            .local_modes
            .contains(LocalModes::ICANON)
    };
    let start = |script: &str| {
        let esgz = conversion
            .record_run("profile")
            .args([
                "-t",
                "-i",
                "--period=60",
                "--entrypoint",
                "[\"/bin/sh\",\"-c\"]",
                "--args",
            ])
            .arg(json!([script]).to_string());
        let mut esgz = esgz.into_command();
        let slave = || pty.slave.as_fd().try_clone_to_owned().unwrap();
        esgz.stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap()
    };
    let mut seen = String::new();
    let mut master = fs::File::from(pty.master.try_clone().unwrap());
    let mut wait_for = |text: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !seen.contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {seen:?}");
            let mut ready = [rustix::event::PollFd::new(
                &master,
                rustix::event::PollFlags::IN,
            )];
            let tick = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            if rustix::event::poll(&mut ready, Some(&tick)).unwrap() > 0 {
                let mut bytes = [0; 4096];
                let len = master.read(&mut bytes).unwrap();
                seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
            }
        }
        seen.clear();
    };
    assert!(!is_raw());
    let script = "test -t 0 && test -t 1 && test -t 2 && echo is a $TERM terminal
        read a; echo \"<$a>\"; trap 'echo resized' WINCH; while ! read b; do :; done; echo \"<$b>\"
        read c; echo \"<$c>\"";
    let mut child = start(script);
    wait_for("is a xterm terminal");
    assert!(is_raw());
    let mut keys = fs::File::from(pty.master.try_clone().unwrap());
    keys.write_all(b"typed\r").unwrap();
    wait_for("<typed>");
    tcsetwinsize(&pty.master, size(50, 132)).unwrap();
    thread::sleep(Duration::from_millis(300));
    keys.write_all(b"more\r").unwrap();
    wait_for("<more>");
    keys.write_all(b"last\r").unwrap();
    wait_for("<last>");
    assert!(child.wait().unwrap().success());
    assert!(!is_raw());
    let left = residue(child.id(), &conversion.path("scratch"));
    assert!(left.is_empty(), "{left:#?}");

    // Ctrl-C is the container's; and the size is known from the beginning, and when it changes.
    let mut child = start("trap 'echo got; exit 0' INT; echo up; while true; do sleep 0.1; done");
    wait_for("up");
    keys.write_all(b"\x03").unwrap();
    wait_for("got");
    assert!(child.wait().unwrap().success());
    assert!(!is_raw());
    // A signal from outside restores the mode as well.
    let mut child = start("echo up; exec sleep 1000");
    wait_for("up");
    assert!(is_raw());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!is_raw());
    let left = residue(child.id(), &conversion.path("scratch"));
    assert!(left.is_empty(), "{left:#?}");
    // Without -i, and without a terminal.
    assert_eq!(
        command(&conversion, "true", &["-t"]).run().code,
        Some(USAGE)
    );
    run(&conversion, "true", &["-t", "-i"])
        .failed_with(USAGE, &["terminal"])
        .unwrap();
}

#[test]
fn the_terminals_size_is_the_workloads() {
    let name = "workload::the_terminals_size_is_the_workloads";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(image) = with_busybox(name, &["stty"]) else {
        return;
    };
    let conversion = Conversion::of(&image);
    let pty = nix::pty::openpty(None, None).unwrap();
    let set = |rows, columns| {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&pty.master, size).unwrap();
    };
    set(31, 97);
    let script = "stty size; while test \"$(stty size)\" = '31 97'; do sleep 0.05; done; stty size";
    let esgz = conversion
        .record_run("profile")
        .args([
            "-t",
            "-i",
            "--period=30",
            "--entrypoint",
            "[\"/bin/sh\",\"-c\"]",
            "--args",
        ])
        .arg(json!([script]).to_string());
    let slave = || pty.slave.as_fd().try_clone_to_owned().unwrap();
    let mut esgz = esgz.into_command();
    let mut child = esgz
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    let mut master = fs::File::from(pty.master.try_clone().unwrap());
    let reader = thread::spawn(move || {
        let mut seen = String::new();
        while !seen.contains("40 120") {
            let mut bytes = [0; 4096];
            let len = master.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
            if seen.contains("31 97") {
                let size = Winsize {
                    ws_row: 40,
                    ws_col: 120,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                tcsetwinsize(&master, size).unwrap();
            }
        }
    });
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    assert_eq!(conversion.json("profile")["ended"], "exit");
}

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
    // It refuses v1 hierarchies beside a v2 one that has controllers.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if mounts.contains(" - cgroup ") {
        skipped(name, "crun does not know hybrid cgroup hierarchies");
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
