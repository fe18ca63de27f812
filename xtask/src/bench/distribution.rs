//! The distribution project's registry, which a benchmark starts for itself.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

const LONGEST_START: Duration = Duration::from_secs(30);

/// A registry that listens on this machine, empty at first. Its drop ends it and removes what it has.
pub(super) struct Registry {
    address: SocketAddr,
    child: Child,
    dir: PathBuf,
}

impl Registry {
    /// Starts `program` with a directory of its own in `scratch`.
    pub(super) fn start(program: &Path, scratch: &Path) -> Result<Self> {
        let dir = scratch.join("registry");
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = scratch.join("registry.yml");
        let root = serde_json::to_string(&dir.join("data"))?;
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: \"{address}\"}}\n"
        );
        fs::write(&config, text)?;
        // In a group of its own: Ctrl-C must not end it before what uses it.
        let child = Command::new(program)
            .arg("serve")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut registry = Self {
            address,
            child,
            dir,
        };
        let until = Instant::now() + LONGEST_START;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = registry.child.try_wait()? {
                anyhow::bail!("{}: {status}", program.display());
            }
            ensure!(Instant::now() < until, "the registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// Where it keeps its blobs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The image of a repository, with the tag `x`.
    pub(super) fn image(&self, repository: &str) -> String {
        format!("docker://{}/{repository}:x", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Whatever fails here, the temporary directory around it is removed, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
