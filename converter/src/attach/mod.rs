//! A container that something else started: what it is made of, and its end.
//!
//! Enters: a process, or a cgroup. Leaves: the directories that its root file system stacks, its cgroup, its bind
//! mounts; and later why watching it ended. Nothing of the container is changed: it gets no signal, nothing is
//! mounted or written, its processes are only looked at in /proc.

mod cgroup;
mod error;
mod mountinfo;
mod overlay;
mod process;
mod wait;

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use error::AttachError;
pub use wait::{Ended, Until};

use crate::cancel::Cancel;
use crate::rootfs::{BindMount, Lower, Stack};
use mountinfo::Mount;
use process::Process;

/// Which container is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// That of this process.
    Process(u32),
    /// That of the processes in this cgroup: its directory, or its path below the hierarchy's root.
    Cgroup(PathBuf),
}

/// A running container.
#[derive(Debug)]
pub struct Attached {
    process: Process,
    root: OwnedFd,
    /// The root as a path that leads there as long as this value lives.
    root_path: PathBuf,
    device: u32,
    lowers: Vec<Lower>,
    upper: Option<PathBuf>,
    cgroup: PathBuf,
    binds: Vec<BindMount>,
}

/// Looks at a running container. Needs root, and what it looks at must be visible from here: /proc, the cgroups,
/// and the directories that the container's root stacks.
///
/// # Errors
/// [`AttachError`] where there is no such container, or it cannot be understood.
pub fn find(target: &Target) -> Result<Attached, AttachError> {
    let (pid, wanted_cgroup) = match target {
        Target::Process(pid) => (*pid, None),
        Target::Cgroup(path) => {
            let directory = cgroup::directory(path)?;
            let pid = cgroup::first_process(&directory)?;
            (pid, Some(directory))
        }
    };
    let process = Process::open(pid)?;
    let mounts = process.mounts()?;
    // Of mounts on one place, the last one shows.
    let root_mount = mounts
        .iter()
        .rev()
        .find(|mount| mount.point == Path::new("/"));
    let root_mount = root_mount.ok_or(AttachError::NoRoot { pid })?;
    if process.has_our_root()? {
        return Err(AttachError::NotInContainer { pid });
    }
    let root = process.root()?;
    if root_mount.kind != "overlay" {
        return Err(AttachError::NotStacked {
            pid,
            kind: root_mount.kind.clone(),
        });
    }
    let own_mounts = mountinfo::own()?;
    let stacked = overlay::resolve(&root_mount.options, &points_of(root_mount, &own_mounts))?;
    // Overlayfs has the topmost first.
    let mut lowers = Vec::with_capacity(stacked.lowers.len());
    for directory in stacked.lowers.into_iter().rev() {
        let device = mountinfo::device_of(&directory, &own_mounts)?;
        lowers.push(Lower { directory, device });
    }
    let cgroup = match wanted_cgroup {
        Some(directory) if cgroup::is_unified(&directory) => directory,
        // Of a v1 hierarchy: the same processes have a v2 one, too.
        _ => cgroup::of_process(&process)?,
    };
    cgroup::must_be_of(&cgroup, &process)?;
    process.must_live()?;
    let root_path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    let binds = binds(&mounts, &root_path);
    Ok(Attached {
        root_path,
        device: root_mount.device,
        lowers,
        upper: stacked.upper,
        cgroup,
        binds,
        process,
        root,
    })
}

/// Where the file system of `mount` is mounted for us.
fn points_of<'a>(mount: &Mount, own: &'a [Mount]) -> Vec<&'a Path> {
    let same = own.iter().filter(|own| own.device == mount.device);
    same.map(|own| own.point.as_path()).collect()
}

/// The files and directories from outside that were mounted into the container.
fn binds(mounts: &[Mount], root: &Path) -> Vec<BindMount> {
    const KERNELS_OWN: [&str; 3] = ["/proc", "/sys", "/dev"];
    let is_bind = |mount: &&Mount| {
        let is_kernels = KERNELS_OWN.iter().any(|own| mount.point.starts_with(own));
        // A tmpfs of the container's own is mounted from its root.
        let is_own_tmpfs = mount.kind == "tmpfs" && mount.root == Path::new("/");
        mount.point != Path::new("/") && !is_kernels && !is_own_tmpfs
    };
    let binds = mounts.iter().filter(is_bind).map(|mount| BindMount {
        destination: mount.point.clone(),
        root: root.to_owned(),
        path: mount
            .point
            .strip_prefix("/")
            .unwrap_or(&mount.point)
            .to_owned(),
        device: Some(mount.device),
    });
    binds.collect()
}

impl Attached {
    /// What its root file system stacks.
    pub fn stack(&self) -> Stack<'_> {
        Stack {
            lowers: &self.lowers,
            upper: self.upper.as_deref(),
            merged: self.root(),
            device: self.device,
        }
    }

    /// Its root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// As [`Attached::root`]: a path that leads there while this value lives.
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// Its cgroup in the v2 hierarchy.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// What is mounted into it from outside.
    pub fn binds(&self) -> &[BindMount] {
        &self.binds
    }

    /// Program and arguments of its process, as they are now.
    pub fn args(&self) -> Vec<String> {
        self.process.args()
    }

    /// Its user and group, as numbers.
    pub fn user(&self) -> String {
        self.process.user()
    }

    /// Its working directory, below its root.
    pub fn cwd(&self) -> String {
        self.process.cwd()
    }

    /// Waits until the container has ended, or what `until` says.
    ///
    /// # Errors
    /// [`AttachError`] when it cannot be watched, or the user interrupts.
    pub fn wait(&self, until: &Until, cancel: &Cancel) -> Result<Ended, AttachError> {
        wait::wait(&self.process, &self.cgroup, until, cancel)
    }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}
