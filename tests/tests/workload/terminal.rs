//! What the workload reads: a pipe, a terminal and its size.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use esgz_tests::conversion::Conversion;
use esgz_tests::residue::residue;
use esgz_tests::{machine, privileged};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use super::{USAGE, command, output_of, run, with_busybox};

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
