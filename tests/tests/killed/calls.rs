//! Signals at system calls of esgz's own: while it reads the source, mounts, makes cgroups, loads programs, and
//! writes.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output, Stdio};

use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Esgz;
use esgz_tests::inject::unavailable;
use esgz_tests::residue::residue;
use esgz_tests::{machine, privileged, skipped};

use super::{Existing, INTERRUPTED};

/// Calls, by name and number in their thread, that no program makes which esgz calls before or at that time.
const MOMENTS: [(&str, &str, &[usize]); 15] = [
    ("source, scan", "pread64", &[4, 20]),
    ("names, root, cgroups", "mkdir", &[3, 6, 10, 11]),
    ("root", "mount", &[1, 2]),
    ("root", "fsmount", &[1]),
    ("root", "move_mount", &[1, 2]),
    ("BPF programs", "bpf", &[4, 20]),
    ("BPF programs", "perf_event_open", &[1]),
    ("opens", "fanotify_init", &[1]),
    ("end of the run", "rmdir", &[1, 4]),
    ("end of the run", "umount2", &[3]),
    ("encode", "pwrite64", &[1, 2]),
    ("write", "fdatasync", &[1, 3]),
    ("commit", "linkat", &[1, 3]),
    ("commit", "fsync", &[1, 3]),
    ("commit", "rename", &[1]),
];

fn command(conversion: &Conversion, output: &str) -> Command {
    let esgz = conversion.optimize(output);
    let esgz = esgz.arg("--state-dir").arg(conversion.path("state"));
    esgz.args(["--threads=1", "--entrypoint", "[\"/bin/true\"]"])
        .into_command()
}

/// Runs it while strace(1) sends it a signal at a call. Returns its process id, too.
fn run(conversion: &Conversion, output: &str, inject: &str) -> (u32, Output) {
    let esgz = command(conversion, output);
    let call = inject.split(':').next().unwrap_or(inject);
    let mut strace = Command::new("strace");
    // -D: the process that we start becomes esgz, and strace another's child.
    strace.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"]);
    strace.arg(format!("trace={call}")).arg("-e");
    strace.arg(format!("inject={inject}"));
    strace.arg(esgz.get_program()).args(esgz.get_args());
    strace.process_group(0);
    strace
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = strace.spawn().unwrap();
    let pid = child.id();
    let status = child.wait().unwrap();
    let mut stderr = Vec::new();
    // A killed one's programs may hold the other side.
    if status.signal().is_none() {
        let from = child.stderr.as_mut().unwrap();
        std::io::Read::read_to_end(from, &mut stderr).unwrap();
    }
    let stdout = Vec::new();
    (
        pid,
        Output {
            status,
            stdout,
            stderr,
        },
    )
}

/// What the calls with these process ids left, and what nobody finishes in the destinations.
fn left(conversion: &Conversion, processes: &[u32]) -> Vec<String> {
    let scratch = conversion.path("scratch");
    let mut left: Vec<String> = processes
        .iter()
        .flat_map(|pid| residue(*pid, &scratch))
        .collect();
    left.extend(names(&conversion.path("state")));
    let places = ["", "existing", "killed"];
    let hidden = places.iter().flat_map(|dir| names(&conversion.path(dir)));
    left.extend(hidden.filter(|name| name.starts_with(".esgz")));
    left
}

fn is_there(conversion: &Conversion, output: &str) -> bool {
    let verify = Esgz::new("verify").arg(conversion.output(output).reference());
    verify.run().code == Some(0)
}

#[test]
fn at_calls_of_every_stage() {
    let name = "killed::at_calls_of_every_stage";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    if let Some(reason) = unavailable() {
        return skipped(name, reason);
    }
    let conversion = Conversion::of(&machine::image());
    let moments: Vec<(&str, usize, String)> = MOMENTS
        .iter()
        .flat_map(|(stage, call, numbers)| {
            let at = move |number: &usize| (*call, *number, format!("{call} {number} ({stage})"));
            numbers.iter().map(at)
        })
        .collect();
    let mut interrupted = 0;
    let mut existing = Existing::new(&conversion);
    for (round, (call, number, what)) in moments.iter().enumerate() {
        // A call that only a new layout needs.
        let kind = ["INT", "TERM"][round % 2];
        let output = if *call == "rename" { "new" } else { "existing" };
        let inject = format!("{call}:signal={kind}:when={number}");
        let (pid, ended) = run(&conversion, output, &inject);
        let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
        let left_now: Vec<String> = left(&conversion, &[pid]);
        assert!(left_now.is_empty(), "{kind} at {what}: {left_now:#?}");
        if ended.status.code() == Some(INTERRUPTED) {
            assert_eq!(errors, "esgz: interrupted\n", "{kind} at {what}");
            existing.assert_unchanged(what);
            assert!(!conversion.path("new").exists(), "{kind} at {what}");
            interrupted += 1;
        } else {
            // What is written is not taken back. The last small blobs are written shortly before.
            let late = ["pwrite64", "fdatasync", "linkat", "fsync", "rename"];
            let is_late = late.contains(call);
            assert!(
                ended.status.success() && is_late,
                "{kind} at {what}: {}, {errors}",
                ended.status
            );
            assert!(is_there(&conversion, output), "{kind} at {what}");
            fs::remove_dir_all(conversion.path(output)).unwrap();
            existing = Existing::new(&conversion);
        }
    }
    assert!(interrupted >= 14, "only {interrupted} were interrupted");
    let mut killed = Vec::new();
    // Each removes what the one before has left.
    let mut with_mounts = 0;
    let scratch = conversion.path("scratch").display().to_string();
    for (call, number, what) in &moments {
        let inject = format!("{call}:signal=KILL:when={number}");
        let (pid, ended) = run(&conversion, "killed", &inject);
        assert_eq!(ended.status.signal(), Some(9), "KILL at {what}");
        assert!(!is_there(&conversion, "killed"), "KILL at {what}");
        killed.push(pid);
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        with_mounts += usize::from(mountinfo.contains(&scratch));
    }
    // Or the test tests nothing.
    assert!(with_mounts >= 5, "only {with_mounts} left mounts");
    let hidden = names(&conversion.path("")).into_iter();
    let hidden: Vec<String> = hidden.filter(|name| name.starts_with(".esgz")).collect();
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    let mut next = command(&conversion, "killed");
    next.stdout(Stdio::null()).stderr(Stdio::piped());
    let next = next.spawn().unwrap();
    killed.push(next.id());
    let ended = next.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let found = left(&conversion, &killed);
    assert!(found.is_empty(), "{found:#?}");
    assert!(is_there(&conversion, "killed"));
}
