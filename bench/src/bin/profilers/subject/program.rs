//! A subject that is a program. It speaks a small protocol:
//!
//! - It is started in a cgroup of its own, with `ESGZ_BENCH_CGROUP` (directory of the cgroup v2 whose tasks it has to
//!   watch, and those of cgroups below), `ESGZ_BENCH_ROOT` (where the image is mounted), `ESGZ_BENCH_CWD` (the
//!   workload's directory in it), `ESGZ_BENCH_CACHE` (`cold` if nothing of the image was cached before, else `warm`) and
//!   `ESGZ_BENCH_FILES` (a file with a line of JSON for every file of the image: `path`,
//!   `size_bytes`, `device` and `inode` under which the kernel has its pages, `merged_device` and `merged_inode` which
//!   fstat(2) tells; devices are `major << 20 | minor`).
//! - It prints `{"ready":true}` when it sees everything.
//! - When its standard input ends it stops watching and prints a line for each file, in the order of their first touch:
//!   `{"path":"usr/bin/env","ranges":[[0,4096]]}`, offset and length in bytes; without `ranges` the file counts as a
//!   whole. Other paths than the image's are ignored. `{"lost_events":0}` may follow. It exits with 0.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Attached, READ_AHEAD_KIB, Seen, SeenFile, Subject};
use crate::scene::Scene;

/// A command line of the shell.
pub(crate) struct Program {
    name: String,
    command: String,
    read_ahead_kib: u32,
}

impl Program {
    /// One of esgz's collectors: this program's own `watch`.
    pub(crate) fn watch(name: &str, args: &str, read_ahead_kib: u32) -> Result<Self> {
        let this = std::env::current_exe()?;
        Ok(Self {
            name: name.to_owned(),
            command: format!("exec '{}' watch {args}", this.display()),
            read_ahead_kib,
        })
    }

    /// Any other.
    pub(super) fn of_user(name: &str, command: &str) -> Self {
        Self {
            name: name.to_owned(),
            command: command.to_owned(),
            read_ahead_kib: READ_AHEAD_KIB,
        }
    }
}

impl Subject for Program {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_ahead_kib(&self) -> u32 {
        self.read_ahead_kib
    }

    fn attach(&self, scene: &Scene) -> Result<Box<dyn Attached>> {
        let script = format!(
            "echo $$ > '{}/cgroup.procs' || exit; {}",
            scene.subject.path().display(),
            self.command
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .env("ESGZ_BENCH_CGROUP", scene.workload.path())
            .env("ESGZ_BENCH_ROOT", scene.root())
            .env("ESGZ_BENCH_CWD", scene.cwd())
            .env("ESGZ_BENCH_CACHE", scene.cache())
            .env("ESGZ_BENCH_FILES", scene.table())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot run sh")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut running = Running {
            name: self.name.clone(),
            child,
            stdin,
            stdout: BufReader::new(stdout),
        };
        let mut line = String::new();
        running.stdout.read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        ensure!(ready["ready"] == true, "{}: not ready: {line:?}", self.name);
        Ok(Box::new(running))
    }
}

struct Running {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Attached for Running {
    fn pid(&self) -> Option<u32> {
        Some(self.child.id())
    }

    fn finish(mut self: Box<Self>, scene: &Scene) -> Result<Option<Seen>> {
        drop(self.stdin.take());
        let mut seen = Seen::default();
        let mut line = String::new();
        while self.stdout.read_line(&mut line)? > 0 {
            add(&line, scene, &mut seen).with_context(|| format!("{}: {line:?}", self.name))?;
            line.clear();
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}", self.name);
        Ok(Some(seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn add(line: &str, scene: &Scene, seen: &mut Seen) -> Result<()> {
    let line: Value = serde_json::from_str(line)?;
    if let Some(lost) = line["lost_events"].as_u64() {
        seen.lost_events = Some(lost);
        return Ok(());
    }
    let Some(path) = line["path"].as_str() else {
        bail!("neither path nor lost_events");
    };
    let Some(row) = scene.row(path) else {
        return Ok(());
    };
    let ranges = match line.get("ranges") {
        None => None,
        Some(ranges) => Some(serde_json::from_value(ranges.clone())?),
    };
    seen.files.push(SeenFile { row, ranges });
    Ok(())
}
