//! What a call of `esgz` may leave behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::conversion::names;

/// How long the kernel may take to detach a loop device after its last user.
const SETTLING: Duration = Duration::from_secs(3);

/// Everything that the finished call with the process id `pid` and the scratch directory `scratch`
/// left behind: files, mounts, loop devices, cgroups, processes. A line each; none is what it should
/// be.
pub fn residue(pid: u32, scratch: &Path) -> Vec<String> {
    let deadline = Instant::now() + SETTLING;
    loop {
        let found = look(pid, scratch);
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn look(pid: u32, scratch: &Path) -> Vec<String> {
    // The container's state is in the scratch directory, too.
    let mut found: Vec<String> = names(scratch)
        .iter()
        .map(|name| format!("scratch file {name}"))
        .collect();
    let scratch = scratch.display().to_string();
    let run = format!("esgz-{pid}-");
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mountinfo.lines().filter(|line| line.contains(&scratch));
    found.extend(mounts.map(|line| format!("mount {line}")));
    for device in names(Path::new("/sys/block")) {
        let file = format!("/sys/block/{device}/loop/backing_file");
        let backing = fs::read_to_string(file).unwrap_or_default();
        if backing.contains(&scratch) {
            found.push(format!("loop device {device} on {}", backing.trim_end()));
        }
    }
    for hierarchy in hierarchies(&mountinfo) {
        let left = names(&hierarchy)
            .into_iter()
            .filter(|name| name.starts_with(&run));
        found.extend(left.map(|name| format!("cgroup {}/{name}", hierarchy.display())));
    }
    let state = names(Path::new("/run/esgz"))
        .into_iter()
        .filter(|name| name.starts_with(&run));
    found.extend(state.map(|name| format!("state directory /run/esgz/{name}")));
    let mounts = mountinfo
        .lines()
        .filter(|line| line.contains(&format!("/run/esgz/{run}")));
    found.extend(mounts.map(|line| format!("mount {line}")));
    let own = std::process::id().to_string();
    for process in names(Path::new("/proc")) {
        if process == own || process.parse::<u32>().is_err() {
            continue;
        }
        // A process that is gone meanwhile reads as empty.
        let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
        let of_run = String::from_utf8_lossy(&read("cgroup")).contains(&run);
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        if of_run || command.contains(&scratch) {
            found.push(format!("process {process}: {command}"));
        }
    }
    found
}

/// Mount points of every cgroup hierarchy, of both versions.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup = matches!(after.split(' ').next(), Some("cgroup" | "cgroup2"));
        is_cgroup
            .then(|| before.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    });
    mounts.collect()
}
