//! Runs the image's workload in a container made by an OCI runtime; no daemon.
//!
//! Enters: the image's configuration, the user's wishes and a mounted root file system. Leaves: how
//! the workload ended. The steps are apart, because the profiler goes in between: a [`Cgroup`] is
//! made, the profiler is attached to it, the container is created, and only then started. Whatever
//! happens, dropping the guards removes container, state, bundle and cgroups.

mod cgroup;
mod container;
mod error;
mod mounts;
mod names;
mod output;
mod process;
mod spec;
mod user;

use std::path::Path;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

use crate::cancel::Cancel;

pub use cgroup::Cgroup;
pub use container::{Container, Ended, Outcome};
pub use error::RuntimeError;
pub use output::Streams;
pub use process::Process;

/// What to run, where it differs from the image's configuration.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub args: Option<Vec<String>>,
    /// `KEY=VALUE`, replaces or is added to the image's environment.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; replaces the image's user.
    pub user: Option<String>,
    /// Replaces the image's working directory.
    pub cwd: Option<String>,
    /// The OCI runtime, by name or path: `runc`, `crun`, `youki`.
    pub runtime: String,
    /// Where the workload's output goes.
    pub streams: Streams,
}

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

/// Creates the container of `process` inside `cgroup`; it is set up, but the program has not begun.
///
/// # Errors
/// When the runtime is missing or refuses; nothing is left then.
pub fn create(
    process: &Process,
    options: &WorkloadOptions,
    rootfs: &Path,
    cgroup: &Cgroup,
    scratch: &Path,
) -> Result<Container, RuntimeError> {
    Container::create(process, options, rootfs, cgroup, scratch)
}

/// Runs a created container for at most `period`, then stops it.
///
/// # Errors
/// When the runtime cannot start it, or the user interrupts.
pub fn run(
    container: &mut Container,
    period: Duration,
    cancel: &Cancel,
) -> Result<Outcome, RuntimeError> {
    container.start()?;
    container.wait(period, cancel)
}
