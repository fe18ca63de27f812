//! The Go oracle (`tests/oracle`): an independent reading of what esgz writes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The oracle, built.
#[derive(Clone, Debug)]
pub struct Oracle {
    program: PathBuf,
}

/// The oldest Go that fetches the toolchain that `go.mod` asks for.
const OLDEST_GO: (u32, u32) = (1, 21);

impl Oracle {
    /// The oracle; without Go, says that the test `name` is skipped and returns `None`.
    ///
    /// # Panics
    /// When Go is there and cannot build it.
    pub fn for_test(name: &str) -> Option<Self> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        match BUILT.get_or_init(|| usable_go().map(|()| build())) {
            Ok(program) => Some(Self {
                program: program.clone(),
            }),
            Err(reason) => {
                crate::skipped(name, reason);
                None
            }
        }
    }

    /// Checks an eStargz blob, against the source's blob if one is given.
    ///
    /// # Errors
    /// What the oracle found.
    pub fn verify(
        &self,
        blob: &Path,
        toc_digest: &str,
        source: Option<&Path>,
    ) -> Result<Value, String> {
        let mut args = vec![
            blob.as_os_str(),
            "--toc-digest".as_ref(),
            toc_digest.as_ref(),
        ];
        if let Some(source) = source {
            args.extend::<[&OsStr; 2]>(["--source".as_ref(), source.as_os_str()]);
        }
        parse(&self.run("verify", &args)?)
    }

    /// Reads an eStargz blob with the reference's readers, and checks nothing that they do not.
    ///
    /// # Errors
    /// What they say.
    pub fn read(&self, blob: &Path, toc_digest: &str, options: &[&str]) -> Result<Value, String> {
        let mut args = vec![
            blob.as_os_str(),
            "--toc-digest".as_ref(),
            toc_digest.as_ref(),
        ];
        args.extend(options.iter().map(AsRef::<OsStr>::as_ref));
        parse(&self.run("read", &args)?)
    }

    /// What the snapshotter inflates when a layer is mounted.
    ///
    /// # Errors
    /// What it says.
    pub fn prefetch(&self, blob: &Path, toc_digest: &str) -> Result<Value, String> {
        let args = [
            blob.as_os_str(),
            "--toc-digest".as_ref(),
            toc_digest.as_ref(),
        ];
        parse(&self.run("prefetch", &args)?)
    }

    /// Checks the image in the layout `output`, against the one in `source`.
    ///
    /// # Errors
    /// What the oracle found.
    pub fn image(
        &self,
        output: &crate::layout::Layout,
        source: Option<&crate::layout::Layout>,
        options: &[&str],
    ) -> Result<Value, String> {
        let request = image_request(output, source, options);
        let args: Vec<&OsStr> = request[1..].iter().map(AsRef::as_ref).collect();
        parse(&self.run("image", &args)?)
    }

    /// Runs many commands in one process, several at once; each request is a command's arguments.
    ///
    /// # Panics
    /// When the oracle does not answer every request.
    pub fn batch(&self, requests: &[Vec<String>]) -> Vec<Result<Value, String>> {
        let mut command = Command::new(&self.program);
        command.arg("batch").stdin(Stdio::piped());
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the oracle can be run");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        for request in requests {
            writeln!(stdin, "{}", Value::from(request.clone())).expect("the oracle reads requests");
        }
        drop(stdin);
        let output = child.wait_with_output().expect("the oracle ends");
        let text = String::from_utf8(output.stdout).expect("the oracle writes text");
        let answers: Vec<_> = text
            .lines()
            .map(|line| {
                let mut answer = parse(line)?;
                match answer["error"].as_str() {
                    Some(error) => Err(error.to_owned()),
                    None => Ok(answer["result"].take()),
                }
            })
            .collect();
        assert_eq!(answers.len(), requests.len(), "{}", output.status);
        answers
    }

    /// Makes an eStargz blob with the reference implementation; `options` as `oracle build` has
    /// them.
    ///
    /// # Errors
    /// What it says.
    pub fn build(&self, source: &Path, output: &Path, options: &[&str]) -> Result<Value, String> {
        let mut args = vec![source.as_os_str(), output.as_os_str()];
        args.extend(options.iter().map(AsRef::<OsStr>::as_ref));
        parse(&self.run("build", &args)?)
    }

    /// The tar headers of a blob, in order.
    ///
    /// # Errors
    /// When Go cannot read it.
    pub fn layer_list(&self, blob: &Path) -> Result<Vec<Value>, String> {
        self.run("layer-list", &[blob.as_os_str()])?
            .lines()
            .map(parse)
            .collect()
    }

    fn run(&self, subcommand: &str, args: &[&OsStr]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        let output = command
            .arg(subcommand)
            .args(args)
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(|error| format!("{}: {error}", self.program.display()))?;
        if output.status.success() {
            return String::from_utf8(output.stdout).map_err(|error| error.to_string());
        }
        Err(String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned())
    }
}

/// The arguments that check the image in `output`, against the one in `source`.
pub fn image_request(
    output: &crate::layout::Layout,
    source: Option<&crate::layout::Layout>,
    options: &[&str],
) -> Vec<String> {
    let text = |path: &Path| path.to_str().expect("test paths are text").to_owned();
    let mut args = vec!["image".to_owned(), text(&output.dir)];
    if let Some(tag) = &output.tag {
        args.extend(["--tag".to_owned(), tag.clone()]);
    }
    if let Some(source) = source {
        args.extend(["--source".to_owned(), text(&source.dir)]);
        if let Some(tag) = &source.tag {
            args.extend(["--source-tag".to_owned(), tag.clone()]);
        }
    }
    args.extend(options.iter().map(|&option| option.to_owned()));
    args
}

fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("the oracle printed {text:?}: {error}"))
}

/// The oracle's source.
pub fn source_dir() -> PathBuf {
    crate::workspace_dir().join("tests/oracle")
}

/// # Errors
/// Why Go is of no use here.
pub fn usable_go() -> Result<(), String> {
    if crate::find_program("go").is_none() {
        return Err("Go is not installed".to_owned());
    }
    let output = Command::new("go")
        .args(["env", "GOVERSION"])
        .current_dir("/")
        .output();
    let output = output.map_err(|error| format!("go env: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers = version
        .trim_start_matches("go")
        .split('.')
        .map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_GO => Ok(()),
        _ => Err(format!("Go is {version:?}, older than 1.21")),
    }
}

/// A `go` command in the oracle's directory.
pub fn go() -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(source_dir())
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false");
    command.stdin(Stdio::null());
    command
}

fn build() -> PathBuf {
    let dir = crate::profile_dir()
        .parent()
        .expect("it lies in the target directory")
        .join("oracle");
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    // Test executables may run at the same time: one builds, the others wait.
    let lock = File::create(dir.join("lock")).expect("the oracle's directory is writable");
    lock.lock().expect("the oracle's lock file can be locked");
    let program = dir.join("oracle");
    let output = go()
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .output()
        .expect("go can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "go build in tests/oracle failed:\n{errors}"
    );
    program
}
