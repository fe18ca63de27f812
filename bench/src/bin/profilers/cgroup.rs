//! Cgroups of version 2 for one run: they tell the CPU time of whatever was in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// A cgroup; removed when dropped, with all that is still in it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

/// What is dead leaves its cgroup within this.
const PATIENCE: Duration = Duration::from_secs(20);

impl Cgroup {
    /// A new one below the root of the hierarchy.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.join("cgroup.controllers").exists())
            .context("no cgroup v2 hierarchy is mounted")?;
        let path = root.join(format!("esgz-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// User and system time of all that was ever in it (`usage_usec` of `cpu.stat`).
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let path = self.path.join("cpu.stat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let micros = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .and_then(|number| number.parse::<f64>().ok())
            .with_context(|| format!("no usage_usec in {}", path.display()))?;
        Ok(micros / 1e6)
    }

    /// Waits until nothing lives in it.
    pub(crate) fn wait_until_empty(&self) -> Result<()> {
        let started = Instant::now();
        while self.is_populated() {
            ensure!(
                started.elapsed() < PATIENCE,
                "something still runs in {}",
                self.path.display()
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Kills all that is in it (Linux 5.14).
    pub(crate) fn kill(&self) -> Result<()> {
        let path = self.path.join("cgroup.kill");
        fs::write(&path, "1").with_context(|| format!("cannot write {}", path.display()))?;
        self.wait_until_empty()
    }

    fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.is_populated() {
            let _ = self.kill();
        }
        for _ in 0..200 {
            if fs::remove_dir(&self.path).is_ok() || !self.path.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
