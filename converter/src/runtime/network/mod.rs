//! A network namespace of the run's own, which CNI plugins connect.

mod cni;
mod netns;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::Called;

use crate::cancel::Cancel;
use crate::runtime::RuntimeError;
use crate::runtime::cgroup::ProgramCgroup;
use crate::runtime::options::CniOptions;
use crate::runtime::step::Limit;

/// How long a plugin may take to take its connection away.
const REMOVAL: Duration = Duration::from_secs(20);

/// A connected network namespace. Dropping it runs the plugins' DEL and removes it.
#[derive(Debug)]
pub(super) struct ConnectedNetwork {
    state: PathBuf,
    namespace: PathBuf,
    /// Of the plugins.
    cgroup: ProgramCgroup,
    is_released: bool,
}

impl ConnectedNetwork {
    /// Makes the namespace in the directory `state` and connects it for `container`. The plugins run in
    /// `cgroup`.
    pub(super) fn set_up(
        options: &CniOptions,
        container: &str,
        state: &Path,
        cgroup: ProgramCgroup,
        cancel: &Cancel,
    ) -> Result<Self, RuntimeError> {
        let configuration = cni::first_configuration(&options.config_dir)?;
        let namespace = state.join("netns");
        let network = Self {
            state: state.to_owned(),
            namespace: namespace.clone(),
            cgroup,
            is_released: false,
        };
        netns::make(&namespace)?;
        let mut attached = cni::Attached::new(options, container, &namespace);
        // As containerd has it: the loopback interface is brought up by a plugin, too.
        for (configuration, interface) in [(cni::loopback(), "lo"), (configuration, "eth0")] {
            attached.plan(configuration, interface);
            // Written before: whoever finds it knows what may have been added.
            attached.write(state)?;
            let called = Called {
                state,
                cgroup: &network.cgroup,
                limit: Limit::Cancel(cancel),
            };
            attached.add_last(&called)?;
            attached.write(state)?;
        }
        Ok(network)
    }

    /// The namespace's file.
    pub(super) fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// Runs the plugins' DEL and removes the namespace.
    ///
    /// # Errors
    /// The first failure; the rest is still tried.
    pub(super) fn release(&mut self) -> Result<(), RuntimeError> {
        if std::mem::replace(&mut self.is_released, true) {
            return Ok(());
        }
        let disconnected = disconnect(&self.state, &self.cgroup);
        disconnected.and(netns::remove(&self.namespace))
    }
}

impl Drop for ConnectedNetwork {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("{error}");
        }
    }
}

/// Runs the plugins' DEL for a killed run. Its namespace is unmounted with all else below `state`.
pub(super) fn remove_abandoned(state: &Path, cgroup: &ProgramCgroup) {
    if let Err(error) = disconnect(state, cgroup) {
        tracing::warn!("{error}");
    }
}

/// Whether plugins were called for the run of the directory `state`.
pub(super) fn may_be_connected(state: &Path) -> bool {
    !matches!(cni::Attached::read(state), Ok(None))
}

fn disconnect(state: &Path, cgroup: &ProgramCgroup) -> Result<(), RuntimeError> {
    let called = Called {
        state,
        cgroup,
        limit: Limit::Time(REMOVAL),
    };
    match cni::Attached::read(state)? {
        Some(attached) => attached.delete_all(&called),
        None => Ok(()),
    }
}
