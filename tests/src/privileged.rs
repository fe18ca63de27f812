//! What privileged tests need: root, and no other test that would disturb them.

use std::fs::{self, File};
use std::process::Command;

/// Held while a privileged test runs; those that it would disturb wait, in this process and in all
/// others.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// Waits until no other privileged test runs. Without root, says that the test `name` is skipped and
/// returns `None`.
///
/// # Panics
/// When the lock file cannot be made in the target directory.
pub fn exclusive(name: &str) -> Option<Turn> {
    let lock = lock_file(name)?;
    lock.lock()
        .unwrap_or_else(|error| panic!("the lock of privileged tests: {error}"));
    Some(Turn { _lock: lock })
}

/// Waits until no [`exclusive`] test runs; others of its own kind may run beside it, as calls of
/// `esgz` may. Also says that the test is skipped, and why, where no workload can be watched.
///
/// # Panics
/// As [`exclusive`].
pub fn workload(name: &str) -> Option<Turn> {
    let lock = lock_file(name)?;
    if let Err(reason) = workloads_can_be_watched() {
        crate::skipped(name, reason);
        return None;
    }
    lock.lock_shared()
        .unwrap_or_else(|error| panic!("the lock of privileged tests: {error}"));
    Some(Turn { _lock: lock })
}

fn lock_file(name: &str) -> Option<File> {
    if !rustix::process::geteuid().is_root() {
        crate::skipped(name, "not root");
        return None;
    }
    let path = crate::profile_dir().join("privileged-tests.lock");
    let lock = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(lock)
}

fn workloads_can_be_watched() -> Result<(), String> {
    if crate::find_program("runc").is_none() {
        return Err("runc is not installed".to_owned());
    }
    let has_erofs = || {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.ends_with("\terofs"))
    };
    // A module is loaded by the first mount only.
    if !has_erofs() {
        let _ = Command::new("modprobe").args(["-q", "erofs"]).status();
        if !has_erofs() {
            return Err("the kernel has no EROFS".to_owned());
        }
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 12) {
        let release = release.trim_end();
        return Err(format!("Linux {release} is older than 6.12"));
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mountinfo.contains(" - cgroup2 ") {
        return Err("no cgroup v2 hierarchy is mounted".to_owned());
    }
    Ok(())
}
