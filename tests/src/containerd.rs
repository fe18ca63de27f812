//! A real containerd, with root, state and socket in a directory of its own.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::esgz::Esgz;
use crate::layout::Layout;
use crate::{find_program, skipped};

/// Names a directory with the `containerd` and `ctr` of another version than the one of `PATH`; tests go through
/// both.
pub const OTHER_VERSION: &str = "ESGZ_TEST_CONTAINERD";

/// One version of containerd.
#[derive(Clone, Debug)]
pub struct Programs {
    containerd: PathBuf,
    ctr: PathBuf,
}

/// All versions that are here. Says that the test `name` is skipped for those that are not.
pub fn versions(name: &str) -> Vec<Programs> {
    let mut versions = Vec::new();
    // As everybody who mounts for others, containerd needs root.
    if !rustix::process::geteuid().is_root() {
        skipped(name, "not root");
        return versions;
    }
    match (find_program("containerd"), find_program("ctr")) {
        (Some(containerd), Some(ctr)) => versions.push(Programs { containerd, ctr }),
        _ => skipped(name, "there is no containerd (Debian package containerd)"),
    }
    match std::env::var_os(OTHER_VERSION).map(PathBuf::from) {
        Some(dir) => versions.push(Programs {
            containerd: dir.join("containerd"),
            ctr: dir.join("ctr"),
        }),
        None => skipped(
            &format!("{name} with another containerd"),
            format!("{OTHER_VERSION} names no directory with one, of version 2, say"),
        ),
    }
    versions
}

/// A containerd that runs.
#[derive(Debug)]
pub struct Containerd {
    programs: Programs,
    dir: TempDir,
    root: PathBuf,
    plugins: String,
    child: Option<Child>,
}

impl Containerd {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not answer after half a minute.
    pub fn start(programs: &Programs) -> Self {
        Self::with_plugins(programs, "")
    }

    /// Starts it, with more in its configuration.
    ///
    /// # Panics
    /// As [`Containerd::start`].
    pub fn with_plugins(programs: &Programs, plugins: &str) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a temporary directory can be made");
        let root = dir.path().join("root");
        Self::in_root(programs, dir, &root, plugins)
    }

    /// Starts it with its contents in `root`, a directory that the caller has made.
    ///
    /// # Panics
    /// As [`Containerd::start`].
    pub fn with_root(programs: &Programs, root: &Path) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a temporary directory can be made");
        Self::in_root(programs, dir, root, "")
    }

    fn in_root(programs: &Programs, dir: TempDir, root: &Path, plugins: &str) -> Self {
        let mut containerd = Self {
            programs: programs.clone(),
            dir,
            root: root.to_owned(),
            plugins: plugins.to_owned(),
            child: None,
        };
        containerd.restart();
        containerd
    }

    /// Ends it as `kill -9` does, and starts it anew.
    ///
    /// # Panics
    /// As [`Containerd::start`].
    pub fn restart(&mut self) {
        self.stop();
        let config = self.dir.path().join("config.toml");
        let disabled = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.internal.v1.opt",
            "io.containerd.nri.v1.nri",
        ];
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled:?}\n[grpc]\naddress = {:?}\n{}",
            self.root,
            self.dir.path().join("state"),
            self.address(),
            self.plugins,
        );
        fs::write(&config, text).expect("the temporary directory is writable");
        let log = fs::File::create(self.log()).expect("the temporary directory is writable");
        let child = Command::new(&self.programs.containerd)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd can be run");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self
            .ctr_command(&["version"])
            .output()
            .is_ok_and(|o| o.status.success())
        {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "containerd does not answer:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Its socket.
    pub fn address(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    /// The directory of its blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root
            .join("io.containerd.content.v1.content/blobs/sha256")
    }

    fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.ctr);
        command.arg("--address").arg(self.address()).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// What `ctr ARGS` prints.
    ///
    /// # Errors
    /// When it fails, with what it says then.
    pub fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let done = self.ctr_command(args).output();
        let done = done.map_err(|error| format!("ctr: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() {
            Ok(text(&done.stdout))
        } else {
            Err(format!("ctr {args:?}: {}", text(&done.stderr)))
        }
    }

    /// A program that knows this containerd, and where to find its `ctr`.
    pub fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("CONTAINERD_ADDRESS", self.address())
            .env("PATH", self.path());
        command
    }

    /// `PATH` with its programs in front.
    fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        let ctr = self.programs.ctr.parent().unwrap_or(Path::new("/"));
        format!("{}:{path}", ctr.display())
    }

    /// `esgz SUBCOMMAND` that knows this containerd, and where to find its `ctr`.
    pub fn esgz(&self, subcommand: &str) -> Esgz {
        Esgz::new(subcommand)
            .env("CONTAINERD_ADDRESS", self.address())
            .env("PATH", self.path())
    }

    /// Takes in a layout as the image `name`, without unpacking it.
    ///
    /// # Errors
    /// When it does not take it.
    pub fn import(&self, layout: &Layout, name: &str) -> Result<(), String> {
        self.import_to("default", layout, name)
    }

    /// As [`Containerd::import`], into another namespace.
    ///
    /// # Errors
    /// When it does not take it.
    ///
    /// # Panics
    /// When the archive cannot be written.
    pub fn import_to(&self, namespace: &str, layout: &Layout, name: &str) -> Result<(), String> {
        let mut index = layout.index();
        for manifest in index["manifests"].as_array_mut().into_iter().flatten() {
            manifest["annotations"] = json!({ "io.containerd.image.name": name });
        }
        let file = self.dir.path().join("import.tar");
        let out = fs::File::create(&file).expect("the temporary directory is writable");
        let mut archive = tar::Builder::new(out);
        let put = |archive: &mut tar::Builder<fs::File>, name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive
                .append_data(&mut header, name, bytes)
                .expect("the archive is writable");
        };
        put(
            &mut archive,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        );
        put(&mut archive, "index.json", index.to_string().as_bytes());
        for blob in crate::conversion::names(&layout.dir.join("blobs/sha256")) {
            let bytes = fs::read(layout.dir.join("blobs/sha256").join(&blob));
            let bytes = bytes.expect("a blob can be read");
            put(&mut archive, &format!("blobs/sha256/{blob}"), &bytes);
        }
        archive.finish().expect("the archive is writable");
        let file = file.display().to_string();
        let args = [
            "-n",
            namespace,
            "images",
            "import",
            "--all-platforms",
            "--no-unpack",
            &file,
        ];
        self.ctr(&args).map(|_| ())
    }

    /// The digest that the image `name` means.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn target(&self, namespace: &str, name: &str) -> Result<String, String> {
        let filter = format!("name=={name}");
        let list = self.ctr(&["-n", namespace, "images", "ls", &filter])?;
        let row = list
            .lines()
            .nth(1)
            .ok_or_else(|| format!("no image {name}"))?;
        let digest = row
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"));
        digest
            .map(str::to_owned)
            .ok_or_else(|| format!("no digest in {row}"))
    }

    /// A document among its blobs.
    ///
    /// # Errors
    /// When it does not have it.
    pub fn document(&self, namespace: &str, digest: &str) -> Result<Value, String> {
        let text = self.ctr(&["-n", namespace, "content", "get", digest])?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// A blob's labels, `KEY=VALUE`, sorted; `None` if it is not there.
    ///
    /// # Errors
    /// When it does not say.
    pub fn labels(&self, namespace: &str, digest: &str) -> Result<Option<Vec<String>>, String> {
        let list = self.ctr(&["-n", namespace, "content", "ls"])?;
        let row = list.lines().find(|row| row.starts_with(digest));
        Ok(row.map(|row| {
            let labels = row.split('\t').next_back().unwrap_or_default();
            let mut labels: Vec<String> = labels.split(',').map(|l| l.trim().to_owned()).collect();
            labels.retain(|label| label.contains('='));
            labels.sort();
            labels
        }))
    }

    /// The digests of all its blobs, sorted.
    ///
    /// # Errors
    /// When it does not say.
    pub fn content(&self, namespace: &str) -> Result<Vec<String>, String> {
        let list = self.ctr(&["-n", namespace, "content", "ls", "-q"])?;
        let mut digests: Vec<String> = list.lines().map(str::to_owned).collect();
        digests.sort();
        Ok(digests)
    }

    /// Waits for a run of the garbage collector.
    ///
    /// # Errors
    /// When there is none.
    pub fn collect_garbage(&self, namespace: &str) -> Result<(), String> {
        // The end of a lease is waited for together with the collector.
        self.ctr(&["-n", namespace, "leases", "create", "--id", "tests-gc"])?;
        self.ctr(&["-n", namespace, "leases", "delete", "--sync", "tests-gc"])?;
        Ok(())
    }

    /// What it keeps for nobody: leases and ingests.
    ///
    /// # Errors
    /// When it does not say.
    pub fn unfinished(&self, namespace: &str) -> Result<Vec<String>, String> {
        let leases = self.ctr(&["-n", namespace, "leases", "ls", "-q"])?;
        let ingests = self.ctr(&["-n", namespace, "content", "active", "-t", "1s"]);
        let ingests = ingests.unwrap_or_default();
        let ingests = ingests.lines().filter(|line| line.starts_with("esgz-"));
        Ok(leases.lines().chain(ingests).map(str::to_owned).collect())
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        let mut text = String::new();
        if let Ok(mut log) = fs::File::open(self.log()) {
            // Only for messages.
            let _ = log.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
    }
}
