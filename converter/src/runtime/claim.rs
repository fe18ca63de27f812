//! What a run may leave behind, written down before it is made, so that a later call can remove it.
//!
//! Every run has a directory below a state directory (`/run/esgz`). It holds `run.json`, which names the
//! run's cgroup and its directory in scratch, and is locked with flock(2) by the process that runs: the lock
//! ends with the process, whatever ends it. A run whose directory can be locked is nobody's any more, and
//! [`remove_abandoned`] removes all that it names. What is mounted or made lies below the two directories, so
//! no further names are needed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::runtime::cgroup::{self, Cgroup};
use crate::runtime::mounts;
use crate::runtime::network;
use crate::runtime::{OciRuntime, RuntimeError};
use crate::unfinished::lock;

/// The file that describes a run.
const DESCRIPTION: &str = "run.json";
/// In it, where the OCI runtime keeps what it knows of its containers; below the scratch directory.
pub(super) const OCI_STATE: &str = "oci-state";

/// The names under which a run makes what outlives a process. Dropping it removes the directories.
#[derive(Debug)]
pub struct Claim {
    name: String,
    state: PathBuf,
    scratch: PathBuf,
    /// Locked, for as long as this process lives.
    _lock: File,
    is_released: bool,
}

/// `run.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    pid: u32,
    /// In clock ticks since boot: field 22 of proc(5), stat.
    start_time: u64,
    boot_id: String,
    /// The OCI runtime.
    runtime: String,
    /// The run's own directory in scratch.
    scratch: PathBuf,
}

impl Claim {
    /// Makes the directories of a new run: one in `state_root`, which is made if needed, one in `scratch`.
    /// `runtime` is the OCI runtime that will be used.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] or [`RuntimeError::NotPrivileged`].
    pub fn take(state_root: &Path, scratch: &Path, runtime: &str) -> Result<Self, RuntimeError> {
        let at = |operation, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| RuntimeError::io(operation, path, source)
        };
        let scratch_root =
            fs::canonicalize(scratch).map_err(at("finding the scratch directory", scratch))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_root)
            .map_err(at("creating", state_root))?;
        let state_root = fs::canonicalize(state_root).map_err(at("finding", state_root))?;
        let (name, state, lock) = loop {
            let name = unique_name();
            let state = state_root.join(&name);
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&state)
                .map_err(at("creating", &state))?;
            if let Some(lock) = lock(&state).map_err(at("locking", &state))? {
                break (name, state, lock);
            }
            // Another process took it for abandoned, between the two calls.
        };
        let claim = Self {
            scratch: scratch_root.join(&name),
            name,
            state,
            _lock: lock,
            is_released: false,
        };
        let description = Description {
            pid: std::process::id(),
            start_time: start_time().unwrap_or(0),
            boot_id: boot_id(),
            runtime: runtime.to_owned(),
            scratch: claim.scratch.clone(),
        };
        let path = claim.state.join(DESCRIPTION);
        let json = serde_json::to_vec(&description).expect("numbers and text are JSON");
        fs::write(&path, json).map_err(at("writing", &path))?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&claim.scratch)
            .map_err(at("creating", &claim.scratch))?;
        Ok(claim)
    }

    /// Unique on this machine: of the run, its cgroup and its container.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory on a tmpfs, with a short path.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The run's directory in scratch.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Removes both directories, in which nothing may be mounted.
    ///
    /// # Errors
    /// The first failure; the rest is still tried.
    pub fn release(mut self) -> Result<(), RuntimeError> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), RuntimeError> {
        if std::mem::replace(&mut self.is_released, true) {
            return Ok(());
        }
        // A mount that is left keeps its description, and so its chance of being removed later.
        remove_directory(&self.scratch)?;
        remove_directory(&self.state)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!("{error}");
        }
    }
}

/// Removes what killed processes left behind: processes, containers, mounts (and with them loop devices),
/// network attachments, cgroups, directories. Runs of living processes are not touched. What cannot be removed is
/// logged, and tried again by the next call.
pub fn remove_abandoned(state_root: &Path) {
    for entry in fs::read_dir(state_root).into_iter().flatten().flatten() {
        let state = entry.path();
        let Ok(Some(_lock)) = lock(&state) else {
            continue;
        };
        match remove_run(&state) {
            Ok(pid) => {
                tracing::info!("removed what process {pid} left when it was killed");
            }
            Err(error) => tracing::warn!("a killed run is left behind: {error}"),
        }
    }
}

/// Returns the process id of the one that ran.
fn remove_run(state: &Path) -> Result<u32, RuntimeError> {
    let path = state.join(DESCRIPTION);
    let text = match fs::read(&path) {
        // It was killed before it had made anything else.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|source| RuntimeError::io("reading", &path, source))?,
    };
    let name = state.file_name().unwrap_or_default();
    let description = serde_json::from_slice::<Description>(&text)
        .ok()
        // Only what we made ourselves is removed.
        .filter(|description| description.scratch.file_name() == Some(name));
    let mut pid = 0;
    if let Some(description) = description {
        pid = description.pid;
        let name = name.to_string_lossy();
        let scratch = &description.scratch;
        if description.boot_id == boot_id() {
            // The processes first, an unfinished runtime among them; then nothing new appears.
            cgroup::remove_named(&name)?;
            let oci_state = scratch.join(OCI_STATE);
            let has_container = oci_state.join(&*name).exists();
            if has_container || network::may_be_connected(state) {
                // What works here may itself be killed, and is found again then.
                let cgroup = Cgroup::create(&name)?;
                if has_container {
                    let runtime = OciRuntime::new(&description.runtime, &oci_state);
                    runtime.delete_abandoned(&name, &cgroup.unwatched());
                }
                network::remove_abandoned(state, &cgroup.unwatched());
                cgroup.remove()?;
            }
            for point in mounts::below(&[state, scratch])? {
                let flags =
                    rustix::mount::UnmountFlags::NOFOLLOW | rustix::mount::UnmountFlags::DETACH;
                rustix::mount::unmount(&point, flags)
                    .map_err(|source| RuntimeError::io("unmounting", &point, source))?;
            }
        }
        remove_directory(scratch)?;
    }
    remove_directory(state)?;
    Ok(pid)
}

fn remove_directory(path: &Path) -> Result<(), RuntimeError> {
    match crate::sys::tree::remove(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(source) => Err(RuntimeError::io("removing", path, source)),
    }
}

/// Process ids are unique for a while, a process may record more than once, and ids come again.
fn unique_name() -> String {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    format!(
        "esgz-{}-{run}-{:x}{:08x}",
        std::process::id(),
        now.tv_sec,
        now.tv_nsec
    )
}

fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn start_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name may hold spaces and parentheses.
    let fields = stat.rsplit_once(')')?.1;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_run_is_left_alone_and_a_dead_one_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (state, scratch) = (
            directory.path().join("state"),
            directory.path().join("scratch"),
        );
        fs::create_dir(&scratch).unwrap();
        let live = Claim::take(&state, &scratch, "runc").unwrap();
        fs::write(live.scratch().join("file"), "x").unwrap();
        remove_abandoned(&state);
        assert!(live.scratch().join("file").exists());
        assert!(live.state().join(DESCRIPTION).exists());

        // As a killed process leaves it: there, and not locked.
        let dead = state.join("esgz-1-0-0");
        let left = scratch.join("esgz-1-0-0");
        fs::create_dir_all(left.join("deep/er")).unwrap();
        fs::create_dir(&dead).unwrap();
        let description = Description {
            pid: 1,
            start_time: 1,
            boot_id: "another".to_owned(),
            runtime: "runc".to_owned(),
            scratch: left.clone(),
        };
        fs::write(
            dead.join(DESCRIPTION),
            serde_json::to_vec(&description).unwrap(),
        )
        .unwrap();
        // One that claims a directory which is not its own.
        let liar = state.join("esgz-2-0-0");
        fs::create_dir(&liar).unwrap();
        fs::write(
            liar.join(DESCRIPTION),
            serde_json::to_vec(&Description {
                scratch: scratch.clone(),
                ..description
            })
            .unwrap(),
        )
        .unwrap();
        fs::create_dir(state.join("esgz-3-0-0")).unwrap();
        remove_abandoned(&state);
        assert!(!left.exists() && !dead.exists() && !liar.exists());
        assert!(scratch.exists());
        live.release().unwrap();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    }

    #[test]
    fn names_differ() {
        assert_ne!(unique_name(), unique_name());
        assert!(start_time().is_some_and(|ticks| ticks > 0));
    }
}
