//! The directory from which the OCI runtime makes a container: its configuration, and the files that are mounted
//! into it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::runtime::cdi::{self, DeviceNode, Edits};
use crate::runtime::options::{Input, Network, WorkloadOptions};
use crate::runtime::spec::{self, NetworkNamespace, Surroundings};
use crate::runtime::{Process, RuntimeError, names};

/// What a bundle is made for.
pub(super) struct Contents<'a> {
    pub(super) process: &'a Process,
    pub(super) options: &'a WorkloadOptions,
    pub(super) rootfs: &'a Path,
    pub(super) cgroups_path: &'a str,
    /// Of a network that was connected for it.
    pub(super) network_namespace: Option<&'a Path>,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Bundle {
    /// For each command that is run later, the file that describes its process.
    pub(super) commands: Vec<PathBuf>,
    /// Whether the runtime runs a hook when the workload has begun.
    pub(super) has_late_hooks: bool,
}

/// Writes a bundle into `directory`.
pub(super) fn write(directory: &Path, contents: &Contents<'_>) -> Result<Bundle, RuntimeError> {
    let options = contents.options;
    let edits = cdi::edits(&options.devices)?;
    let nodes = edits.iter().flat_map(|edits| &edits.device_nodes);
    let device_nodes = nodes
        .map(cdi::resolve)
        .collect::<Result<Vec<DeviceNode>, _>>()?;
    let is_host = options.network == Network::Host;
    let of_host = |path: &str| is_host.then(|| fs::read_to_string(path).ok()).flatten();
    let hosts = names::hosts(&options.names, of_host("/etc/hosts"));
    let resolv_conf = names::resolv_conf(&options.names, of_host("/etc/resolv.conf"));
    let hosts = write_public(directory, "hosts", &hosts)?;
    let resolv_conf = write_public(directory, "resolv.conf", &resolv_conf)?;
    let network = match (is_host, contents.network_namespace) {
        (true, _) => NetworkNamespace::OfHost,
        (false, Some(path)) => NetworkNamespace::At(path),
        (false, None) => NetworkNamespace::New,
    };
    let surroundings = Surroundings {
        rootfs: contents.rootfs,
        cgroups_path: contents.cgroups_path,
        hosts: &hosts,
        resolv_conf: &resolv_conf,
        has_terminal: options.input == Input::Terminal,
        network,
        mounts: &options.mounts,
        edits: &edits,
        device_nodes: &device_nodes,
    };
    let path = directory.join("config.json");
    let spec = spec::spec(contents.process, &surroundings)
        .map_err(|error| RuntimeError::io("writing", &path, io::Error::from(error)))?;
    write_json(&path, &spec)?;
    let without_terminal = Surroundings {
        has_terminal: false,
        ..surroundings
    };
    let mut commands = Vec::new();
    for (number, args) in options.commands.iter().enumerate() {
        let path = directory.join(format!("command-{number}.json"));
        let process = Process {
            args: args.clone(),
            ..contents.process.clone()
        };
        let document: Value = spec::process(&process, &without_terminal);
        write_json(&path, &document)?;
        commands.push(path);
    }
    Ok(Bundle {
        commands,
        has_late_hooks: has_late_hooks(&edits),
    })
}

fn has_late_hooks(edits: &[Edits]) -> bool {
    let mut hooks = edits.iter().flat_map(|edits| &edits.hooks);
    hooks.any(|hook| hook.kind == cdi::HookKind::Poststart)
}

/// Writes a file that every user of the container may read, whatever our umask is.
fn write_public(directory: &Path, name: &str, contents: &str) -> Result<PathBuf, RuntimeError> {
    let path = directory.join(name);
    fs::write(&path, contents)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
        .map_err(|source| RuntimeError::io("writing", &path, source))?;
    Ok(path)
}

fn write_json(path: &Path, document: &impl serde::Serialize) -> Result<(), RuntimeError> {
    let file = File::create(path).map_err(|source| RuntimeError::io("creating", path, source))?;
    serde_json::to_writer(file, document)
        .map_err(|error| RuntimeError::io("writing", path, io::Error::from(error)))
}
