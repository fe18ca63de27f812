//! Runs the image's workload in a container made by an OCI runtime; no daemon.
//!
//! Enters: the image's configuration, the user's wishes and a mounted root file system. Leaves: how
//! the workload ended. The steps are apart, because the profiler goes in between: a [`Cgroup`] is
//! made, the profiler is attached to it, the container is created, and only then started. Whatever
//! happens, dropping the guards removes container, state, bundle, network and cgroups. What a killed process
//! could not remove, the next one does: a [`Claim`] writes it down beforehand.

mod bundle;
mod cdi;
mod cgroup;
mod claim;
mod commands;
mod console;
mod container;
mod error;
mod init;
mod input;
mod mounts;
mod names;
mod network;
mod oci;
mod options;
mod output;
mod process;
mod program;
mod spec;
mod step;
mod until;
mod user;

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::cancel::Cancel;

pub use cgroup::Cgroup;
pub use claim::{Claim, remove_abandoned};
pub use commands::FailedCommand;
pub use container::{Container, Ended, Outcome};
pub use error::RuntimeError;
pub(crate) use mounts::unescape_mount_field;
use oci::OciRuntime;
pub use options::{
    CniOptions, Devices, Input, Mount, NameResolution, Network, Until, WorkloadOptions,
};
pub use output::Streams;
pub use process::Process;
pub(crate) use until::{Requests, is_listened_on};

/// What will be run, as far as the image's configuration tells.
#[derive(Clone, Debug)]
pub struct Plan(Process);

/// Puts image and options together. Nothing is read.
///
/// # Errors
/// When there is nothing to run.
pub fn plan(config: &ImageConfiguration, options: &WorkloadOptions) -> Result<Plan, RuntimeError> {
    process::from_config(config, options).map(Plan)
}

impl Plan {
    /// Working directory, absolute.
    pub fn cwd(&self) -> &str {
        &self.0.cwd
    }

    /// Looks the user up in the root file system's `etc/passwd` and `etc/group`.
    ///
    /// # Errors
    /// When the user is unknown.
    pub fn resolve(self, rootfs: &Path) -> Result<Process, RuntimeError> {
        let Self(mut process) = self;
        process.ids = user::resolve(rootfs, &process.user)?;
        if !process.env.iter().any(|entry| entry.starts_with("HOME="))
            && let Some(home) = &process.ids.home
        {
            process.env.push(format!("HOME={home}"));
        }
        Ok(process)
    }
}

/// Where the cgroup v2 hierarchy is mounted, alone or beside v1 ones.
///
/// # Errors
/// [`RuntimeError::NoCgroupV2`] where it is not.
pub fn unified_hierarchy() -> Result<PathBuf, RuntimeError> {
    mounts::cgroup_mounts()?
        .unified
        .ok_or(RuntimeError::NoCgroupV2)
}

/// What of the host is mounted into a container: what the user wants, and what devices bring along.
///
/// # Errors
/// When a device is unknown.
pub fn bind_mounts(options: &WorkloadOptions) -> Result<Vec<Mount>, RuntimeError> {
    let edits = cdi::edits(&options.devices)?;
    let of_devices = edits.iter().flat_map(|edits| &edits.mounts);
    let of_devices = of_devices.map(|edited| Mount {
        kind: edited.kind.clone().unwrap_or_else(|| "bind".to_owned()),
        source: edited.host_path.clone(),
        destination: edited.container_path.clone(),
        options: edited.options.clone(),
    });
    let all = of_devices.chain(options.mounts.iter().cloned());
    let is_bind = |mount: &Mount| {
        let mut words = [&mount.kind].into_iter().chain(&mount.options);
        words.any(|word| word == "bind" || word == "rbind")
    };
    Ok(all.filter(is_bind).collect())
}

/// Creates the container of `process` inside `cgroup`, under the names of `claim`; it is set up, but the
/// program has not begun.
///
/// # Errors
/// When the runtime is missing or refuses, or the user interrupts; nothing is left then.
pub fn create(
    process: &Process,
    options: &WorkloadOptions,
    rootfs: &Path,
    cgroup: &Cgroup,
    claim: &Claim,
    cancel: &Cancel,
) -> Result<Container, RuntimeError> {
    Container::create(process, options, rootfs, cgroup, claim, cancel)
}

/// Runs a created container until it ends or [`WorkloadOptions::until`] says so, then stops it.
///
/// # Errors
/// When the runtime cannot start it, or the user interrupts.
pub fn run(container: &mut Container, cancel: &Cancel) -> Result<Outcome, RuntimeError> {
    container.start(cancel)?;
    container.wait(cancel)
}
