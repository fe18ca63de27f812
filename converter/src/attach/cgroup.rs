//! The container's cgroup in the v2 hierarchy, by which it is watched.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::AttachError;
use super::process::Process;
use crate::runtime::unified_hierarchy;

/// The directory of the cgroup that the user means: a path in a hierarchy, v2 or v1, or below the root of the v2
/// one.
pub(super) fn directory(path: &Path) -> Result<PathBuf, AttachError> {
    let no_cgroup = || AttachError::NoCgroup {
        path: path.to_owned(),
    };
    let below = unified_hierarchy()?.join(path.strip_prefix("/").unwrap_or(path));
    let candidates = [path.to_owned(), below];
    let found = candidates
        .iter()
        .filter_map(|path| path.canonicalize().ok());
    let is_cgroup = |path: &PathBuf| {
        statfs(path).is_ok_and(|stat| {
            let kind = stat.filesystem_type();
            path.is_dir() && (kind == CGROUP2_SUPER_MAGIC || kind == CGROUP_SUPER_MAGIC)
        })
    };
    let found = found.into_iter().find(is_cgroup).ok_or_else(no_cgroup)?;
    // What is above the root of a hierarchy is another file system.
    let device = |path: &Path| rustix::fs::stat(path).ok().map(|stat| stat.st_dev);
    if found
        .parent()
        .is_none_or(|parent| device(parent) != device(&found))
    {
        return Err(AttachError::WholeHierarchy { path: found });
    }
    Ok(found)
}

/// Whether the directory is in the v2 hierarchy.
pub(super) fn is_unified(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// A process of the cgroup, the one with the lowest number: in a container its first.
pub(super) fn first_process(directory: &Path) -> Result<u32, AttachError> {
    processes(directory)
        .into_iter()
        .min()
        .ok_or_else(|| AttachError::Empty {
            path: directory.to_owned(),
        })
}

/// All processes in the cgroup and below it.
fn processes(directory: &Path) -> Vec<u32> {
    let mut processes = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        // One that is removed meanwhile has none; a threaded one lists none, but its parent does.
        let list = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        // 0 is a process that we cannot see.
        let listed = list.lines().filter_map(|line| line.parse().ok());
        processes.extend(listed.filter(|&pid: &u32| pid != 0));
        for child in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(child.path());
            }
        }
    }
    processes
}

/// The v2 cgroup of a container's process: the root of its cgroup namespace, where it has one of its own, so that
/// what a manager inside the container has divided is together; else the process's.
pub(super) fn of_process(process: &Process) -> Result<PathBuf, AttachError> {
    let path = path_of(&process.read("cgroup")?);
    let path = path
        .filter(|path| path != "/")
        .ok_or(AttachError::NoOwnCgroup { pid: process.pid })?;
    let within = path_within(process)?;
    let path = match within.and_then(|within| path.strip_suffix(&within).map(str::to_owned)) {
        Some(outer) if !outer.is_empty() => outer,
        _ => path,
    };
    let directory = unified_hierarchy()?.join(path.trim_start_matches('/'));
    if !is_unified(&directory) {
        return Err(AttachError::NoCgroup { path: directory });
    }
    Ok(directory)
}

/// The path in the v2 hierarchy, from /proc/PID/cgroup (cgroups(7)).
fn path_of(table: &[u8]) -> Option<String> {
    let table = String::from_utf8_lossy(table);
    let line = table.lines().find_map(|line| line.strip_prefix("0::"));
    line.map(str::to_owned)
}

/// The process's cgroup as seen in its own cgroup namespace; None where that is ours.
fn path_within(process: &Process) -> Result<Option<String>, AttachError> {
    let namespace = process.proc.join("ns/cgroup");
    let theirs = fs::read_link(&namespace);
    process.must_live()?;
    let (Ok(theirs), Ok(ours)) = (theirs, fs::read_link("/proc/self/ns/cgroup")) else {
        // A kernel without such namespaces.
        return Ok(None);
    };
    if theirs == ours {
        return Ok(None);
    }
    let file = fs::File::open(&namespace).map_err(AttachError::io("open", &namespace))?;
    // Only the thread enters it, and it ends then.
    let look = || -> io::Result<Vec<u8>> {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
        fs::read(process.proc.join("cgroup"))
    };
    let looked = thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("cgroup-ns".to_owned())
            .spawn_scoped(scope, look)?;
        let panicked = |_| io::Error::other("its thread panicked");
        thread.join().map_err(panicked)?
    });
    let table = looked.map_err(AttachError::io("enter", &namespace))?;
    Ok(path_of(&table).map(|path| if path == "/" { String::new() } else { path }))
}

/// Makes sure that nothing else is in the cgroup: all processes share the mounts, the root or the process
/// namespace of `process`.
pub(super) fn must_be_of(directory: &Path, process: &Process) -> Result<(), AttachError> {
    // What is not there any more matches nothing; two of them do not match either.
    let seen = |proc: &Path, file: &str| fs::read_link(proc.join(file)).ok();
    let root_of = |proc: &Path| {
        let stat = rustix::fs::stat(proc.join("root"));
        stat.ok().map(|stat| stat.st_dev)
    };
    let (mounts, pids) = (seen(&process.proc, "ns/mnt"), seen(&process.proc, "ns/pid"));
    let is_our_pids = pids == seen(Path::new("/proc/self"), "ns/pid");
    let root = root_of(&process.proc);
    for other in processes(directory) {
        let proc = PathBuf::from(format!("/proc/{other}"));
        let Some(other_mounts) = seen(&proc, "ns/mnt") else {
            continue;
        };
        let shares_pids = !is_our_pids && pids.is_some() && seen(&proc, "ns/pid") == pids;
        let shares_root = root.is_some() && root_of(&proc) == root;
        if Some(other_mounts) != mounts && !shares_pids && !shares_root {
            return Err(AttachError::Shared {
                path: directory.to_owned(),
                other,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_path_is_found_among_others() {
        let hybrid = b"4:memory:/docker/1\n1:name=systemd:/x\n0::/docker/1/a:b\n";
        assert_eq!(path_of(hybrid).as_deref(), Some("/docker/1/a:b"));
        assert_eq!(path_of(b"0::/\n").as_deref(), Some("/"));
        assert_eq!(path_of(b"4:memory:/docker/1\n"), None);
    }
}
