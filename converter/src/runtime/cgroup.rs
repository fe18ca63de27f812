//! The cgroup around a run: made before the profiler is attached, removed with all below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::runtime::RuntimeError;
use crate::runtime::mounts::{self, CgroupMounts};

/// How long processes may take to die.
const REMOVAL: Duration = Duration::from_secs(5);

/// A cgroup directly below the root of the v2 hierarchy, for one run. Dropping it kills what is
/// left inside and removes it, in the v1 hierarchies too, where the OCI runtime made its own.
#[derive(Debug)]
pub struct Cgroup {
    mounts: CgroupMounts,
    name: String,
    directory: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name`.
    ///
    /// # Errors
    /// Without a v2 hierarchy, or without the right to write there.
    pub fn create(name: &str) -> Result<Self, RuntimeError> {
        const MOUNTINFO: &str = "/proc/self/mountinfo";
        let mountinfo =
            fs::read(MOUNTINFO).map_err(|source| RuntimeError::io("reading", MOUNTINFO, source))?;
        let mounts = mounts::parse(&mountinfo);
        let root = mounts.unified.as_ref().ok_or(RuntimeError::NoCgroupV2)?;
        let directory = root.join(name);
        fs::create_dir(&directory)
            .map_err(|source| RuntimeError::io("creating cgroup", &directory, source))?;
        Ok(Self {
            mounts,
            name: name.to_owned(),
            directory,
        })
    }

    /// Its directory in the v2 hierarchy.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `cgroupsPath` of a container inside it.
    pub(super) fn path_of(&self, container: &str) -> String {
        format!("/{}/{container}", self.name)
    }

    /// Kills what is left inside and removes the cgroup.
    ///
    /// # Errors
    /// When a directory cannot be removed; the rest is still tried.
    pub fn remove(self) -> Result<(), RuntimeError> {
        self.release()
    }

    fn release(&self) -> Result<(), RuntimeError> {
        let roots = self.mounts.unified.iter().chain(&self.mounts.legacy);
        let mut result = Ok(());
        for directory in roots.map(|root| root.join(&self.name)) {
            // Hierarchies may be mounted at several places, or not hold this cgroup at all.
            if !directory.exists() {
                continue;
            }
            if let Err(source) = remove_tree(&directory)
                && result.is_ok()
            {
                result = Err(RuntimeError::io("removing cgroup", &directory, source));
            }
        }
        result
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("{error}");
        }
    }
}

/// Removes a cgroup and its children, which must be empty of processes.
fn remove_tree(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + REMOVAL;
    loop {
        kill_all(directory);
        match remove_once(directory) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

fn remove_once(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_once(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// SIGKILL to every process in the cgroup and below.
fn kill_all(directory: &Path) {
    // Linux 5.14, v2: all of them at once, so that nobody can fork away.
    let _ = fs::write(directory.join("cgroup.kill"), "1");
    let Ok(processes) = fs::read_to_string(directory.join("cgroup.procs")) else {
        return;
    };
    for pid in processes.lines().filter_map(|line| line.parse().ok()) {
        // 0 stands for a process of another PID namespace; kill(0) would be ourselves.
        if pid > 1 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_all(&entry.path());
        }
    }
}
