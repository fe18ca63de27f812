//! A node that has nothing yet: containerd and the lazily pulling snapshotter, on empty directories.
//!
//! They run in mount and PID namespaces of their own. Whatever they mounted or started, containers and their shims
//! among them, ends with the first process there, however that ends.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::interrupt::{Interrupt, Running};
use crate::bench::peer::{MAX_SOCKET_BYTES, toml_string};

/// In containerd, and the name of the containers' cgroup.
const NAMESPACE: &str = "esgz-readiness";
const LONGEST_START: Duration = Duration::from_secs(60);
const LONGEST_END: Duration = Duration::from_secs(30);
/// containerd's fixed place for FIFOs and sockets, hidden by a file system of the node's own.
const FIXED_DIR: &str = "/run/containerd";

/// `$0` is the network to make, then come the snapshotter's program and paths, then containerd's command.
const START: &str = r#"
set -e
mount -t tmpfs tmpfs /run/containerd
touch "$0"
unshare --net="$0" ip link set lo up
"$1" --address "$2" --root "$3" --config "$4" --log-level warn &
shift 4
exec "$@"
"#;

/// The peer's programs; `ctr` and the shim lie beside containerd.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Programs {
    pub(super) ctr_remote: PathBuf,
    pub(super) containerd: PathBuf,
    pub(super) snapshotter: PathBuf,
    pub(super) registry: PathBuf,
}

impl Programs {
    pub(super) fn ctr(&self) -> PathBuf {
        self.containerd.with_file_name("ctr")
    }

    fn shim(&self) -> PathBuf {
        self.containerd.with_file_name("containerd-shim-runc-v2")
    }

    /// All that runs.
    pub(super) fn all(&self) -> [PathBuf; 6] {
        [
            self.ctr_remote.clone(),
            self.containerd.clone(),
            self.snapshotter.clone(),
            self.registry.clone(),
            self.ctr(),
            self.shim(),
        ]
    }
}

/// What the snapshotter fetches that nobody has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackgroundFetch {
    /// Nothing: what is to be prefetched, and what is read.
    Off,
    /// All the rest, while nothing else is fetched: its default.
    On,
}

/// A running node. Its drop ends it and removes all it has.
pub(super) struct Node {
    programs: Programs,
    daemons: Option<Running>,
    /// The first process of the PID namespace, as it is known outside.
    first: Option<Pid>,
    dir: TempDir,
}

impl Node {
    /// Starts one in `scratch` that pulls over plain HTTP from `registry`.
    pub(super) fn start(
        programs: &Programs,
        registry: SocketAddr,
        background_fetch: BackgroundFetch,
        scratch: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("n-")
            .tempdir_in(scratch)
            .with_context(|| format!("cannot make a directory in {}", scratch.display()))?;
        let mut node = Self {
            programs: programs.clone(),
            daemons: None,
            first: None,
            dir,
        };
        let longest = node.path("snapshotter.sock");
        ensure!(
            longest.as_os_str().len() <= MAX_SOCKET_BYTES,
            "{} is too long for a socket; CARGO_TARGET_DIR can be a shorter one",
            longest.display()
        );
        fs::write(
            node.path("snapshotter.toml"),
            snapshotter_config(registry, background_fetch),
        )?;
        fs::write(node.path("containerd.toml"), node.containerd_config())?;
        fs::create_dir_all(FIXED_DIR).with_context(|| format!("cannot make {FIXED_DIR}"))?;
        let daemons = Running::start(&mut node.daemons_command()?)?;
        node.first = Some(first_process(daemons.id())?);
        node.daemons = Some(daemons);
        node.wait_until_it_answers(interrupt)?;
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn daemons_command(&self) -> Result<Command> {
        let log = fs::File::create(self.path("log"))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork"]);
        command.args(["--kill-child", "--mount-proc", "--", "sh", "-c", START]);
        command.arg(self.path("net"));
        command.arg(&self.programs.snapshotter);
        for name in ["snapshotter.sock", "snapshotter", "snapshotter.toml"] {
            command.arg(self.path(name));
        }
        command.arg(&self.programs.containerd).arg("--config");
        command.arg(self.path("containerd.toml"));
        command.args(["--log-level", "warn"]);
        // containerd looks for its shim, and that for runc, in PATH.
        command.env("PATH", path_with(&self.programs.containerd)?);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn containerd_config(&self) -> String {
        let path = |name: &str| toml_string(&self.path(name));
        format!(
            "version = 3\nroot = {root}\nstate = {state}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.podsandbox.controller.v1.podsandbox\", \
             \"io.containerd.nri.v1.nri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {socket}\n\
             [proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = {snapshotter}\n\
             [proxy_plugins.stargz.exports]\nroot = {exported}\nenable_remote_snapshot_annotations = \"true\"\n",
            root = path("root"),
            state = path("state"),
            socket = path("s"),
            snapshotter = path("snapshotter.sock"),
            exported = path("snapshotter"),
        )
    }

    fn wait_until_it_answers(&mut self, interrupt: &Interrupt) -> Result<()> {
        let until = Instant::now() + LONGEST_START;
        loop {
            interrupt.check()?;
            if self.path("snapshotter.sock").exists() {
                let mut ask = self.ctr();
                let asked = ask.args(["namespaces", "ls"]).output();
                if asked.is_ok_and(|output| output.status.success()) {
                    return Ok(());
                }
            }
            let daemons = self.daemons.as_mut().context("the node has ended")?;
            if let Some(status) = daemons.wait_a_little(Duration::from_millis(50))? {
                bail!("containerd: {status}: {}", self.log_end());
            }
            ensure!(
                Instant::now() < until,
                "containerd does not answer: {}",
                self.log_end()
            );
        }
    }

    /// What the daemons said last.
    pub(super) fn log_end(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// A client in the node's namespaces.
    fn client(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let first = self.first.map_or_else(String::new, |pid| pid.to_string());
        command.args(["--target", &first, "--mount", "--pid", "--"]);
        command.arg(program).arg("--address").arg(self.path("s"));
        command.args(["--namespace", NAMESPACE]);
        command.env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "1");
        command.env("TMPDIR", self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    pub(super) fn ctr(&self) -> Command {
        self.client(&self.programs.ctr())
    }

    pub(super) fn ctr_remote(&self) -> Command {
        self.client(&self.programs.ctr_remote)
    }

    /// A network for containers, with nothing but the loopback device, as the node knows it.
    pub(super) fn network(&self) -> PathBuf {
        self.path("net")
    }

    /// The same for a thread that wants to go there.
    pub(super) fn open_network(&self) -> Result<fs::File> {
        let first = self.first.context("the node has ended")?;
        let inside = self.network();
        let inside = inside.strip_prefix("/").unwrap_or(&inside);
        let path = Path::new("/proc")
            .join(first.to_string())
            .join("root")
            .join(inside);
        fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(first) = self.first {
            let _ = kill(first, Signal::SIGKILL);
        }
        if let Some(mut daemons) = self.daemons.take() {
            // It ends when its namespace's last process has.
            let _ = daemons.wait_a_little(LONGEST_END);
        }
        remove_cgroups();
        // Only where nobody else uses it.
        let _ = fs::remove_dir(FIXED_DIR);
    }
}

/// Those of containers that could not be removed in order, in all hierarchies.
fn remove_cgroups() {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    let hierarchies = hierarchies.flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let group = hierarchy.join(NAMESPACE);
        for inside in fs::read_dir(&group).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(inside.path());
        }
        let _ = fs::remove_dir(&group);
    }
}

/// The only child of `unshare`, once it is there.
fn first_process(unshare: u32) -> Result<Pid> {
    let path = format!("/proc/{unshare}/task/{unshare}/children");
    let until = Instant::now() + LONGEST_START;
    while Instant::now() < until {
        let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(Pid::from_raw(child.parse()?));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("unshare has started nothing")
}

/// `PATH` with the directory of `program` before it, and root's directories behind it.
fn path_with(program: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dir = program.parent().map(Path::to_owned);
    let root = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let dirs = dir
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(root);
    Ok(std::env::join_paths(dirs)?)
}

/// The default, but for the registry's plain HTTP.
fn snapshotter_config(registry: SocketAddr, background_fetch: BackgroundFetch) -> String {
    let no_background_fetch = background_fetch == BackgroundFetch::Off;
    format!(
        "no_background_fetch = {no_background_fetch}\n\
         [[resolver.host.\"{registry}\".mirrors]]\nhost = \"{registry}\"\ninsecure = true\n"
    )
}
