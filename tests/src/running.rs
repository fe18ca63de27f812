//! A container of the [machine's image](crate::machine) that esgz has not started: `runc` runs it over overlayfs
//! and unpacked layers, as container managers do. It works when it is told to.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde_json::json;

use crate::archive::{Entry, Kind};

/// How long anything may take.
const LONGEST: Duration = Duration::from_secs(60);

/// How the directories are named to overlayfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// By absolute paths, as containerd does where they are short.
    Absolute,
    /// Those of the layers by links in a directory that all have in common, relative to it, and with one more layer
    /// on top of the image's, as Docker does.
    Docker,
}

/// A running container. Dropping it kills and removes it.
#[derive(Debug)]
pub struct Running {
    id: String,
    dir: PathBuf,
    /// The container's first process.
    pub pid: u32,
    /// Its cgroup, below the root of every hierarchy.
    pub cgroup: String,
}

impl Running {
    /// Unpacks `layers`, base first, below the new directory `dir`, and starts the container: a shell that runs the
    /// branch of `branches` (of a `case`) that [`Running::tell`] names.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(dir: &Path, layers: &[Vec<Entry>], naming: Naming, branches: &str) -> Self {
        let make = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            path
        };
        let mut lowers = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            unpack(&make(&format!("{number}/diff")), layer);
            lowers.push(number.to_string());
        }
        if naming == Naming::Docker {
            make("top-init/diff/proc");
            lowers.push("top-init".to_owned());
        }
        let links = make("l");
        for name in &lowers {
            let target = format!("../{name}/diff");
            std::os::unix::fs::symlink(target, links.join(format!("L{name}"))).expect("a new link");
        }
        let named = lowers.iter().rev().map(|name| match naming {
            Naming::Absolute => dir.join(name).join("diff").display().to_string(),
            Naming::Docker => format!("l/L{name}"),
        });
        let named: Vec<String> = named.collect();
        let of_top = match naming {
            Naming::Absolute => format!("{}/top", dir.display()),
            Naming::Docker => "top".to_owned(),
        };
        make("top/diff");
        make("top/work");
        let rootfs = make("merged");
        let options = format!(
            "lowerdir={},upperdir={of_top}/diff,workdir={of_top}/work",
            named.join(":")
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]);
        succeed(mount.arg(&rootfs).current_dir(dir));

        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("esgz-attach-{}-{number}", std::process::id());
        let cgroup = format!("/{id}");
        let running = Self {
            id,
            dir: dir.to_owned(),
            pid: 0,
            cgroup,
        };
        running.start_in(&rootfs, branches)
    }

    fn start_in(mut self, rootfs: &Path, branches: &str) -> Self {
        let control = self.path("ctl");
        fs::create_dir(&control).expect("it is new");
        fs::write(control.join("file"), "of the host\n").expect("it is writable");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, control.join("go"), FileType::Fifo, mode, 0).expect("a new pipe");
        // Whoever has written a line may still hold the pipe when it is opened again: then there is nothing to read.
        let script = format!(
            "while :; do read line < /ctl/go || continue; \
            case $line in end) exit 0;; {branches} esac; echo > /ctl/done; done"
        );
        let kinds = ["pid", "mount", "ipc", "uts", "network", "cgroup"];
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/sh", "-c", script], "cwd": "/opt", "user": { "uid": 0, "gid": 0 },
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            },
            "root": { "path": rootfs },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/ctl", "type": "bind", "source": control, "options": ["rbind"] },
            ],
            "linux": { "namespaces": namespaces, "cgroupsPath": self.cgroup },
        });
        fs::write(self.path("config.json"), config.to_string()).expect("it is writable");
        let pid_file = self.path("pid");
        let mut runc = self.runc();
        runc.args(["run", "--detach", "--pid-file"]).arg(&pid_file);
        runc.arg("--bundle").arg(&self.dir).arg(&self.id);
        // It waits for whoever holds these.
        runc.stdin(Stdio::null()).stdout(Stdio::null());
        let log = File::create(self.path("log")).expect("it is writable");
        let status = runc.stderr(log).status().expect("runc can be run");
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.success(), "runc run: {status}: {log}");
        let pid = fs::read_to_string(&pid_file).expect("runc wrote it");
        self.pid = pid.trim().parse().expect("a number");
        self
    }

    /// A path in the container's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.path("state"));
        command
    }

    /// Lets the container run a branch, and waits until it has; of `end`, until it has ended.
    ///
    /// # Panics
    /// When it does not.
    pub fn tell(&self, branch: &str) {
        let (go, done) = (self.path("ctl/go"), self.path("ctl/done"));
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        // Nobody may be reading it just now.
        let opened = eventually(|| {
            File::options()
                .write(true)
                .custom_flags(flags)
                .open(&go)
                .ok()
        });
        let mut pipe =
            opened.unwrap_or_else(|| panic!("the container does not read {}", go.display()));
        writeln!(pipe, "{branch}").expect("the pipe has room");
        drop(pipe);
        let is_over = || match branch {
            "end" => (!self.is_running()).then_some(()),
            _ => fs::remove_file(&done).ok(),
        };
        eventually(is_over).unwrap_or_else(|| panic!("the container does not finish {branch}"));
    }

    /// Whether its first process lives.
    pub fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The state follows the name, which is in brackets; Z is a zombie.
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        !state.is_empty() && !state.starts_with('Z')
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever these say: the test may have failed half way.
        let _ = self.runc().args(["delete", "--force", &self.id]).output();
        let _ = Command::new("umount").arg(self.path("merged")).output();
    }
}

fn eventually<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LONGEST;
    loop {
        let now = found();
        if now.is_some() || Instant::now() > deadline {
            return now;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the program can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

/// Writes a layer as overlayfs wants it.
fn unpack(root: &Path, layer: &[Entry]) {
    for entry in layer {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("names are UTF-8");
        let path = root.join(text(&entry.name));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let result = match (name.strip_prefix(".wh."), &entry.kind) {
            (Some(hidden), _) => {
                let hidden = path.with_file_name(hidden);
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, hidden, kind, Mode::empty(), 0).map_err(Into::into)
            }
            (None, Kind::Dir) => fs::create_dir_all(&path),
            (None, Kind::Symlink) => std::os::unix::fs::symlink(text(&entry.link), &path),
            (None, Kind::Hardlink) => fs::hard_link(root.join(text(&entry.link)), &path),
            (None, _) => write_file(&path, entry),
        };
        result.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn write_file(path: &Path, entry: &Entry) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&entry.contents)?;
    file.set_permissions(fs::Permissions::from_mode(entry.mode))?;
    let since = Duration::from_secs(entry.mtime.0.unsigned_abs());
    file.set_modified(std::time::UNIX_EPOCH + since)
}
