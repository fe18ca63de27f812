//! Runs the `esgz` binary.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The binary of this build. It is built first, as cargo builds binaries for the tests of their own
/// package only; `ESGZ_BIN` names another one.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| std::env::var_os("ESGZ_BIN").map_or_else(build, PathBuf::from))
        .clone()
}

fn build() -> PathBuf {
    let dir = crate::profile_dir();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--package",
        "esgz",
        "--bin",
        "esgz",
        "--target-dir",
    ]);
    command.arg(
        dir.parent()
            .expect("a profile's directory lies in the target directory"),
    );
    if dir.ends_with("release") {
        command.arg("--release");
    }
    let status = command
        .current_dir(crate::workspace_dir())
        .stdin(Stdio::null())
        .status();
    let status = status.expect("cargo runs, as it runs the tests");
    assert!(status.success(), "cargo build --package esgz: {status}");
    dir.join("esgz")
}

/// One call of the binary.
#[derive(Debug)]
pub struct Esgz(Command);

impl Esgz {
    /// `esgz SUBCOMMAND`, with errors alone on standard error, and without anything of the caller's
    /// environment that it could read.
    pub fn new(subcommand: &str) -> Self {
        let mut command = Command::new(binary());
        command
            .arg(subcommand)
            .arg("--log-level=error")
            .stdin(Stdio::null());
        for variable in ["ESGZ_LOG", "RUST_LOG", "SOURCE_DATE_EPOCH", "NO_COLOR"] {
            command.env_remove(variable);
        }
        Self(command)
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args);
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    /// The command, to run it in another way.
    pub fn into_command(self) -> Command {
        self.0
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or takes longer than any call of a test may.
    pub fn run(mut self) -> Finished {
        let command = format!("{:?}", self.0);
        self.0.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.0.spawn().expect("the esgz binary can be run");
        let stdout = read_all(child.stdout.take().expect("stdout is piped"));
        let stderr = read_all(child.stderr.take().expect("stderr is piped"));
        let started = Instant::now();
        let deadline = started + LONGEST_RUN;
        let status = loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                // It may end just now; either way it is gone afterwards.
                let _ = child.kill();
                let _ = child.wait();
                let errors = stderr.join().unwrap_or_default();
                panic!("{command}: still running after {LONGEST_RUN:?}; stderr:\n{errors}");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = started.elapsed();
        Finished {
            command,
            pid: child.id(),
            code: status.code(),
            status: status.to_string(),
            took,
            stdout: stdout.join().expect("the reader does not panic"),
            stderr: stderr.join().expect("the reader does not panic"),
        }
    }
}

/// Longer than any conversion of the tests takes on a busy machine.
const LONGEST_RUN: Duration = Duration::from_secs(60);

fn read_all(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a call of the binary left.
#[derive(Debug)]
pub struct Finished {
    /// The command, for messages.
    pub command: String,
    /// Its process id.
    pub pid: u32,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its exit status in words.
    pub status: String,
    /// From its start to its end; nothing of the test's own.
    pub took: Duration,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// An error in words unless the exit code is 0.
    ///
    /// # Errors
    /// When it is another.
    pub fn success(self) -> Result<Self, String> {
        match self.code {
            Some(0) => Ok(self),
            _ => Err(format!(
                "{}: {}: {}",
                self.command,
                self.status,
                self.stderr.trim_end()
            )),
        }
    }

    /// An error in words unless it failed as documented: with exit code `code`, nothing on standard
    /// output, and one line on standard error that holds one of `names`.
    ///
    /// # Errors
    /// When it did not.
    pub fn failed_with(&self, code: i32, names: &[&str]) -> Result<(), String> {
        let lines: Vec<&str> = self.stderr.lines().collect();
        let problem = if self.code != Some(code) {
            format!("{}, expected exit code {code}", self.status)
        } else if lines.len() != 1 {
            format!("{} lines on stderr, expected one", lines.len())
        } else if !names.iter().any(|name| lines[0].contains(name)) {
            format!("stderr names none of {names:?}")
        } else if !self.stdout.is_empty() {
            format!("unexpected stdout {:?}", self.stdout)
        } else {
            return Ok(());
        };
        Err(format!(
            "{}: {problem}; stderr:\n{}",
            self.command,
            self.stderr.trim_end()
        ))
    }
}
