//! Scripts that stop at a certain moment and say so, for a test that wants something to happen just then.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long a moment may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory of scripts, and of the moments at which they stop.
#[derive(Debug)]
pub struct Hold {
    dir: PathBuf,
}

impl Hold {
    /// An empty one in `dir`, which is made; its path is written into shell scripts as it is.
    ///
    /// # Panics
    /// When the directory cannot be made.
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Self { dir }
    }

    /// Where the scripts are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first script that comes to `moment` from now on stops there for ever; no other one does.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn arm(&self, moment: &str) {
        for name in crate::conversion::names(&self.dir) {
            if name.ends_with(".armed") || name.ends_with(".reached") {
                fs::remove_file(self.dir.join(name)).expect("the directory is writable");
            }
        }
        let armed = self.dir.join(format!("{moment}.armed"));
        fs::write(armed, "").expect("the directory is writable");
    }

    /// A line for a shell: stop here, if `moment` (which may hold shell variables) is armed.
    pub fn line(&self, moment: &str) -> String {
        let at = format!("{}/{moment}", self.dir.display());
        // The shell stays, and with it a command line that tells whose it is.
        format!("mv {at}.armed {at}.reached 2> /dev/null && {{ sleep 1000; exit 1; }}\n")
    }

    /// Writes an executable script of these lines.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn script(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{lines}")).expect("the directory is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    }

    /// An OCI runtime: runc, which stops at `before-STEP` and `after-STEP` of `create`, `start` and `delete`.
    pub fn runtime(&self) -> PathBuf {
        let lines = format!(
            "for word; do case $word in create|start|delete) step=$word; break;; esac; done\n\
             {}runc \"$@\"\ncode=$?\n{}exit $code\n",
            self.line("before-$step"),
            self.line("after-$step"),
        );
        self.script("runtime", &lines)
    }

    /// Waits until the armed moment has come; false when `is_over` says that it never will.
    ///
    /// # Panics
    /// When it does not come for long.
    pub fn wait(&self, moment: &str, mut is_over: impl FnMut() -> bool) -> bool {
        let (reached, started) = (self.dir.join(format!("{moment}.reached")), Instant::now());
        while !reached.exists() {
            assert!(started.elapsed() < PATIENCE, "{moment} did not come");
            if is_over() {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// 25 times within `span`, the same ones in every test run, at no regular distance.
pub fn moments(span: Duration) -> Vec<Duration> {
    const MOMENTS: u32 = 25;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut within_step = || {
        // Marsaglia, "Xorshift RNGs", 2003.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 40) as f64 / f64::from(1 << 24)
    };
    let step = span / MOMENTS;
    (0..MOMENTS)
        .map(|i| step * i + step.mul_f64(within_step()))
        .collect()
}
