//! The cgroup around a run: made before the profiler is attached, removed with all below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::runtime::RuntimeError;
use crate::runtime::mounts;

/// How long processes may take to die.
const REMOVAL: Duration = Duration::from_secs(5);

/// A cgroup directly below the root of the v2 hierarchy, for one run. Dropping it kills what is
/// left inside and removes it, in the v1 hierarchies too, where the OCI runtime made its own.
///
/// Inside are two others: one for the OCI runtime and the hooks that it runs, and the container's own. So
/// whoever watches the outer one sees both. Beside it is one for programs that work for the run and are not to be
/// watched: with it, none of them outlives the run either.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    directory: PathBuf,
}

/// The cgroup of the OCI runtime, inside the run's.
const RUNTIME: &str = "runtime";
/// What the name of the cgroup beside the run's ends with.
const UNWATCHED: &str = ".unwatched";

impl Cgroup {
    /// Makes the cgroup `name`.
    ///
    /// # Errors
    /// Without a v2 hierarchy, or without the right to write there.
    pub fn create(name: &str) -> Result<Self, RuntimeError> {
        let mounts = mounts::cgroup_mounts()?;
        let root = mounts.unified.as_ref().ok_or(RuntimeError::NoCgroupV2)?;
        let directory = root.join(name);
        let create = |directory: &Path| {
            fs::create_dir(directory)
                .map_err(|source| RuntimeError::io("creating cgroup", directory, source))
        };
        create(&directory)?;
        let cgroup = Self {
            name: name.to_owned(),
            directory,
        };
        create(&cgroup.directory.join(RUNTIME))?;
        create(&root.join(format!("{name}{UNWATCHED}")))?;
        Ok(cgroup)
    }

    /// Its directory in the v2 hierarchy.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `cgroupsPath` of a container inside it.
    pub(super) fn path_of(&self, container: &str) -> String {
        format!("/{}/{container}", self.name)
    }

    /// Where the runtime's own processes belong.
    pub(super) fn of_runtime(&self) -> ProgramCgroup {
        ProgramCgroup {
            directory: self.directory.join(RUNTIME),
            path: format!("/{}/{RUNTIME}", self.name),
        }
    }

    /// Where programs belong that are not to be watched.
    pub(super) fn unwatched(&self) -> ProgramCgroup {
        ProgramCgroup {
            directory: self
                .directory
                .with_file_name(format!("{}{UNWATCHED}", self.name)),
            path: format!("/{}{UNWATCHED}", self.name),
        }
    }

    /// Kills what is left inside and removes the cgroup.
    ///
    /// # Errors
    /// When a directory cannot be removed; the rest is still tried.
    pub fn remove(self) -> Result<(), RuntimeError> {
        remove_named(&self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove_named(&self.name) {
            tracing::warn!("{error}");
        }
    }
}

/// A cgroup for programs that work for the run: the OCI runtime and its hooks, network plugins.
#[derive(Clone, Debug)]
pub(super) struct ProgramCgroup {
    directory: PathBuf,
    /// In its hierarchy.
    path: String,
}

impl ProgramCgroup {
    /// Its `cgroup.procs`, for processes to enter.
    pub(super) fn procs(&self) -> Result<fs::File, RuntimeError> {
        let path = self.directory.join("cgroup.procs");
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|source| RuntimeError::io("opening", &path, source))
    }

    /// Moves a process into it.
    pub(super) fn adopt(&self, pid: u32) -> Result<(), RuntimeError> {
        use std::io::Write as _;
        let path = self.directory.join("cgroup.procs");
        match self.procs()?.write_all(pid.to_string().as_bytes()) {
            // It has ended already.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(()),
            other => other.map_err(|source| RuntimeError::io("writing", &path, source)),
        }
    }

    /// SIGKILL to all of them, and no zombie left.
    pub(super) fn kill_all(&self) {
        kill_all(&self.directory);
        let deadline = Instant::now() + REMOVAL;
        while is_populated(&self.directory) && Instant::now() < deadline {
            kill_all(&self.directory);
            thread::sleep(Duration::from_millis(5));
        }
        reap(&format!("0::{}", self.path));
    }
}

/// Removes the cgroup `name` in every hierarchy and the one beside it, with all processes in them.
pub(super) fn remove_named(name: &str) -> Result<(), RuntimeError> {
    let mounts = mounts::cgroup_mounts()?;
    let roots = mounts.unified.iter().chain(&mounts.legacy);
    let mut result = Ok(());
    let mut has_existed = false;
    let both = |root: &PathBuf| ["", UNWATCHED].map(|end| root.join(format!("{name}{end}")));
    for directory in roots.flat_map(both) {
        // Hierarchies may be mounted at several places, or not hold this cgroup at all.
        if !directory.exists() {
            continue;
        }
        has_existed = true;
        if let Err(source) = remove_tree(&directory)
            && result.is_ok()
        {
            result = Err(RuntimeError::io("removing cgroup", &directory, source));
        }
    }
    if has_existed {
        reap(&format!("0::/{name}"));
    }
    result
}

/// Takes the exit status of those of our children whose line of the v2 hierarchy (cgroups(7)) begins with
/// `cgroup`: orphans from inside the cgroup, which are ours as we are a subreaper.
fn reap(cgroup: &str) {
    let own = std::process::id();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let mut fields = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace();
        let (state, parent) = (
            fields.next(),
            fields.next().and_then(|ppid| ppid.parse().ok()),
        );
        if state == Some("Z")
            && parent == Some(own)
            && read("cgroup").lines().any(|line| line.starts_with(cgroup))
        {
            let _ = nix::sys::wait::waitpid(
                Pid::from_raw(pid),
                Some(nix::sys::wait::WaitPidFlag::WNOHANG),
            );
        }
    }
}

fn is_populated(directory: &Path) -> bool {
    let events = fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
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
