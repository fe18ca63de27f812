//! The peer: ctr-remote with a containerd of its own, which nobody else uses.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::bench::measure::{Cost, measure};
use crate::shell::capture;

const NAMESPACE: &str = "bench";
const BASE_NAME: &str = "bench.invalid/source";
const TARGET: &str = "bench.invalid/target:esgz";
/// A Unix socket's path is no longer (`unix(7)`, with its terminating zero).
pub(super) const MAX_SOCKET_BYTES: usize = 107;
const LONGEST_START: Duration = Duration::from_secs(60);
const LONGEST_END: Duration = Duration::from_secs(30);

/// Where its programs are.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// `ctr` lies beside it.
    pub(super) ctr_remote: PathBuf,
    pub(super) containerd: PathBuf,
}

/// A running containerd with the source image in it. Its drop ends it and removes all it has.
pub(super) struct Peer {
    programs: Programs,
    daemon: Child,
    source: String,
    dir: TempDir,
}

/// What a conversion gave.
pub(super) struct Converted {
    pub(super) cost: Cost,
    pub(super) output_bytes: u64,
}

impl Peer {
    /// Starts a containerd in `scratch` and imports the image `tag`, or the only one, of the layout.
    pub(super) fn start(
        programs: &Programs,
        layout: &Path,
        tag: Option<&str>,
        scratch: &Path,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("peer-")
            .tempdir_in(scratch)?;
        let socket = dir.path().join("s");
        ensure!(
            socket.as_os_str().len() <= MAX_SOCKET_BYTES,
            "{} is too long for a socket; CARGO_TARGET_DIR can be a shorter one",
            socket.display()
        );
        let config = dir.path().join("config.toml");
        let path = |name: &str| toml_string(&dir.path().join(name));
        let text = format!(
            "version = 2\nroot = {}\nstate = {}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {}\n",
            path("root"),
            path("state"),
            path("s")
        );
        fs::write(&config, text)?;
        let log = fs::File::create(dir.path().join("log"))?;
        // In a group of its own: Ctrl-C must not end it before what uses it.
        let daemon = Command::new(&programs.containerd)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", programs.containerd.display()))?;
        let mut peer = Self {
            programs: programs.clone(),
            daemon,
            source: String::new(),
            dir,
        };
        peer.wait_until_it_answers()?;
        import(peer.ctr(), layout)?;
        peer.source = imported(peer.ctr(), tag)?;
        Ok(peer)
    }

    /// Versions of the programs, for the table.
    pub(super) fn version(&self) -> Result<String> {
        let mut words = Vec::new();
        for program in [&self.programs.ctr_remote, &self.programs.containerd] {
            let text = capture(Command::new(program).arg("--version"))?;
            words.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        Ok(words.join(" with "))
    }

    /// Converts the image without running it; the result is removed again.
    pub(super) fn convert(&self, level: Option<u8>) -> Result<Converted> {
        let mut command = self.client(&self.programs.ctr_remote);
        command.args(["image", "optimize", "--no-optimize", "--oci"]);
        if let Some(level) = level {
            command.arg(format!("--estargz-compression-level={level}"));
        }
        // It unpacks to temporary files, as others do to their scratch directories.
        command.env("TMPDIR", self.dir.path());
        command.args([&self.source, TARGET]);
        let (cost, _) = measure(&mut command, Some(self.daemon.id()))?;
        let output_bytes = self.layer_bytes(TARGET)?;
        // Waits for the blobs to be gone.
        capture(self.ctr().args(["images", "rm", "--sync", TARGET]))?;
        Ok(Converted { cost, output_bytes })
    }

    /// Gives the image another name.
    pub(super) fn tag(&self, name: &str) -> Result<()> {
        capture(self.ctr().args(["images", "tag", &self.source, name])).map(|_| ())
    }

    /// `ctr`, or another program that finds the daemon by the same variables, and the daemon's process.
    pub(super) fn user(&self, program: Option<&Path>) -> (Command, u32) {
        let ctr = self.programs.ctr_remote.with_file_name("ctr");
        let mut command = Command::new(program.unwrap_or(&ctr));
        command.env("CONTAINERD_ADDRESS", self.dir.path().join("s"));
        command.env("CONTAINERD_NAMESPACE", NAMESPACE);
        (command, self.daemon.id())
    }

    fn client(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("--address").arg(self.dir.path().join("s"));
        command.args(["--namespace", NAMESPACE]);
        command
    }

    fn ctr(&self) -> Command {
        self.client(&self.programs.ctr_remote.with_file_name("ctr"))
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let Err(error) = capture(self.ctr().args(["namespaces", "ls"])) else {
                return Ok(());
            };
            if let Some(status) = self.daemon.try_wait()? {
                bail!("containerd: {status}: {}", self.log_end());
            }
            if started.elapsed() > LONGEST_START {
                return Err(
                    error.context(format!("containerd does not answer: {}", self.log_end()))
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().next_back().unwrap_or_default().to_owned()
    }

    /// The layers' sizes, of the only image where `name` is an index.
    fn layer_bytes(&self, name: &str) -> Result<u64> {
        let list = capture(self.ctr().args(["images", "ls", &format!("name=={name}")]))?;
        let digest = list
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"));
        let mut digest = digest
            .with_context(|| format!("no digest of {name} in {list:?}"))?
            .to_owned();
        loop {
            let text = capture(self.ctr().args(["content", "get", &digest]))?;
            let document: Value = serde_json::from_str(&text)?;
            if let Some(layers) = document["layers"].as_array() {
                return Ok(layers
                    .iter()
                    .filter_map(|layer| layer["size"].as_u64())
                    .sum());
            }
            let manifest = &document["manifests"][0]["digest"];
            digest = manifest
                .as_str()
                .with_context(|| format!("{digest} is no image"))?
                .to_owned();
        }
    }
}

/// Imports the image of a layout. It goes in as a stream: no copy of it is made beside that in the store.
pub(super) fn import(mut ctr: Command, layout: &Path) -> Result<()> {
    ctr.args(["images", "import", "--local", "--no-unpack"]);
    ctr.args(["--base-name", BASE_NAME, "-"]);
    let mut child = ctr
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {ctr:?}"))?;
    let stdin = child.stdin.take().context("stdin is a pipe")?;
    let mut tar = tar::Builder::new(stdin);
    let packed = tar
        .append_dir_all(".", layout)
        .and_then(|()| tar.into_inner())
        .and_then(|mut stdin| stdin.flush());
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{ctr:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    packed.with_context(|| format!("cannot pack {}", layout.display()))
}

/// The name of what was imported: the image with that tag, or the only one.
pub(super) fn imported(mut ctr: Command, tag: Option<&str>) -> Result<String> {
    let names = capture(ctr.args(["images", "ls", "-q"]))?;
    let is_meant = |name: &&str| tag.is_none_or(|tag| name.ends_with(&format!(":{tag}")));
    let found: Vec<&str> = names.lines().filter(is_meant).collect();
    match found.as_slice() {
        [only] => Ok((*only).to_owned()),
        _ => bail!("containerd imported {names:?}, one image was expected"),
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.daemon.id()) else {
            return;
        };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let started = Instant::now();
        while started.elapsed() < LONGEST_END {
            if !matches!(self.daemon.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A path as a string of TOML.
pub(super) fn toml_string(path: &Path) -> String {
    // TOML's basic strings are escaped as JSON's.
    Value::from(path.to_string_lossy()).to_string()
}
