//! What `std::process` and nix lack: a child that begins inside a cgroup or in its own mount namespace, and real-time
//! signals.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::Signal;

/// Lets the child of `command` enter a cgroup before it executes its program. `procs` is the
/// `cgroup.procs` file of a v2 cgroup, open for writing.
pub fn begin_in_cgroup(command: &mut Command, procs: File) {
    let enter = move || {
        // "0" is the process that writes (kernel: Documentation/admin-guide/cgroup-v2.rst).
        rustix::io::write(&procs, b"0")?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call on a descriptor that it owns; it
    // neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// Lets the child of `command` see the v2 cgroup hierarchy alone, at its usual place, in a mount namespace of its own.
/// What is mounted elsewhere later appears there, too; what it mounts itself appears nowhere else.
pub fn begin_with_one_cgroup_hierarchy(command: &mut Command) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let enter = || {
        // SAFETY: the child has one thread, and nothing of it depends on its mount namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
        let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change(c"/", propagation)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"cgroup2", c"/sys/fs/cgroup", c"cgroup2", flags, None)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls with constant arguments; it neither allocates nor
    // takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// The last signal number of Linux (`_NSIG`).
const LAST: i32 = 64;
/// The first real-time signal that glibc and musl leave to programs: what images call `SIGRTMIN`.
pub const FIRST_REAL_TIME: i32 = 34;
/// The last signal before the real-time ones.
const LAST_CLASSIC: i32 = 31;

/// The signal with this number, real-time ones included; those that C libraries keep to themselves are
/// none.
pub fn signal(number: i32) -> Option<Signal> {
    let is_signal =
        (1..=LAST_CLASSIC).contains(&number) || (FIRST_REAL_TIME..=LAST).contains(&number);
    // SAFETY: the number is one of a signal, and not of 32 and 33, which C libraries use inside.
    is_signal.then(|| unsafe { Signal::from_raw_unchecked(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_signals() {
        let check =
            |number, is_signal: bool| assert_eq!(signal(number).is_some(), is_signal, "{number}");
        check(0, false);
        check(-1, false);
        check(1, true);
        check(31, true);
        check(32, false);
        check(33, false);
        check(34, true);
        check(64, true);
        check(65, false);
        assert_eq!(signal(37).map(Signal::as_raw), Some(37));
    }
}
