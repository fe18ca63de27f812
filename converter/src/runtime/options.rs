//! What the user wants of a run.

use std::path::PathBuf;
use std::time::Duration;

use crate::cancel::EndOfRun;
use crate::runtime::Streams;

/// What to run, where it differs from the image's configuration, and in which surroundings.
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
    /// What it reads.
    pub input: Input,
    /// What is mounted besides the image.
    pub mounts: Vec<Mount>,
    /// What it is connected to.
    pub network: Network,
    /// What its resolver knows.
    pub names: NameResolution,
    /// Devices by the Container Device Interface.
    pub devices: Devices,
    /// When it is stopped.
    pub until: Until,
    /// Commands that are run in the container once it is up: at once, or when what [`Until`] waits for has
    /// happened. One after the other.
    pub commands: Vec<Vec<String>>,
}

impl Default for WorkloadOptions {
    fn default() -> Self {
        Self {
            entrypoint: None,
            args: None,
            env: Vec::new(),
            user: None,
            cwd: None,
            runtime: "runc".to_owned(),
            streams: Streams::default(),
            input: Input::default(),
            mounts: Vec::new(),
            network: Network::default(),
            names: NameResolution::default(),
            devices: Devices::default(),
            until: Until::default(),
            commands: Vec::new(),
        }
    }
}

/// What the workload reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Input {
    /// `/dev/null`.
    #[default]
    Nothing,
    /// What we read, through a pipe.
    Stdin,
    /// The workload has a terminal, which is ours.
    Terminal,
}

/// A mount of the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Type of the file system; `bind` for a directory or file of the host.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where, absolute in the container.
    pub destination: String,
    /// As mount(8) has them.
    pub options: Vec<String>,
}

/// What the container is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Network {
    /// A network namespace with the loopback interface alone.
    #[default]
    Isolated,
    /// The host's own.
    Host,
    /// A network namespace that plugins of the Container Network Interface connect.
    Cni(CniOptions),
}

/// Where CNI plugins and their configuration are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniOptions {
    /// Of `*.conf`, `*.conflist` and `*.json` there, the first by name is used.
    pub config_dir: PathBuf,
    /// Where the plugins' programs are looked for.
    pub plugin_dirs: Vec<PathBuf>,
}

/// Contents of `/etc/hosts` and `/etc/resolv.conf`, besides the defaults.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NameResolution {
    /// Name and address.
    pub hosts: Vec<(String, String)>,
    /// Addresses; 8.8.8.8 if none.
    pub nameservers: Vec<String>,
    /// Domains.
    pub search: Vec<String>,
    /// As resolv.conf(5) has them.
    pub options: Vec<String>,
}

/// Devices by the Container Device Interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Devices {
    /// `VENDOR/CLASS=NAME`.
    pub names: Vec<String>,
    /// Directories with specifications; a later one replaces what an earlier one says of the same device.
    pub spec_dirs: Vec<PathBuf>,
}

/// When a run ends, if the workload does not end before.
#[derive(Clone, Debug, Default)]
pub struct Until {
    /// After this time.
    pub period: Option<Duration>,
    /// When this text stands in the workload's stdout.
    pub line: Option<String>,
    /// When something listens on this TCP port in the container.
    pub port: Option<u16>,
    /// When a request for this URL, from inside the container's network, is answered with success.
    pub http: Option<String>,
    /// When the user asks for it.
    pub signal: Option<EndOfRun>,
}
