//! One run of a workload under a subject, and what it took.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::subject::{self, Attached, READ_AHEAD_KIB, Subject};
use crate::truth::Truth;
use crate::workload::{Work, Workload};

/// Runs `workload` once under `subject`; the image is mounted for it, and gone again afterwards.
pub(crate) fn cold(
    workload: &Workload,
    subject: &dyn Subject,
    truth: &Truth,
    scratch: &Path,
) -> Result<Value> {
    let scene = Scene::set(&workload.image, subject.read_ahead_kib(), scratch)?;
    let result = on(&scene, workload, subject, Some(truth), scratch)?;
    scene.strike()?;
    Ok(result)
}

/// A scene on which the workload has run.
pub(crate) fn warmed(workload: &Workload, scratch: &Path) -> Result<Scene> {
    let scene = Scene::set(&workload.image, READ_AHEAD_KIB, scratch)?;
    let nobody = subject::nobody().attach(&scene)?;
    launch(workload, &scene, nobody.as_ref(), scratch)?.finish(&scene)?;
    Ok(scene.warmed())
}

/// Runs `workload` once under `subject`. What was seen is compared with the truth, if one is given.
pub(crate) fn on(
    scene: &Scene,
    workload: &Workload,
    subject: &dyn Subject,
    truth: Option<&Truth>,
    scratch: &Path,
) -> Result<Value> {
    let cpu_before = scene.subject.cpu_seconds()?;
    let started = Instant::now();
    let attached = subject.attach(scene)?;
    let attach_seconds = started.elapsed().as_secs_f64();

    let launched = launch(workload, scene, attached.as_ref(), scratch)?;
    let mut result = match workload.work {
        Work::Beside(_) => beside(launched, scene, scratch)?,
        Work::Command(_) | Work::Script(_) => launched.finish(scene)?.json(),
    };
    let watcher = attached.pid();
    let peak_bytes = watcher.and_then(peak_bytes);

    let started = Instant::now();
    let seen = attached.finish(scene)?;
    result["attach_seconds"] = attach_seconds.into();
    result["finish_seconds"] = started.elapsed().as_secs_f64().into();
    result["subject_cpu_seconds"] = (scene.subject.cpu_seconds()? - cpu_before).into();
    if let Some(peak_bytes) = peak_bytes {
        result["subject_peak_bytes"] = peak_bytes.into();
    }
    if let Some(seen) = &seen {
        result["lost_events"] = seen.lost_events.into();
        // What went on beside has no end that the truth would know.
        let truth = truth.filter(|_| !matches!(workload.work, Work::Beside(_)));
        if let Some(truth) = truth {
            result["truth"] = truth.compare(seen, scene);
        }
    }
    Ok(result)
}

/// A workload that has begun.
pub(crate) struct Launched {
    child: Child,
    began: Instant,
    cpu_before: f64,
    /// Whether the child is a subject that starts the workload.
    is_traced: bool,
}

/// What a workload took.
pub(crate) struct Took {
    wall_seconds: f64,
    cpu_seconds: f64,
    /// Of a subject that started it.
    peak_bytes: Option<u64>,
}

impl Took {
    fn json(&self) -> Value {
        let mut json = json!({"wall_seconds": self.wall_seconds, "cpu_seconds": self.cpu_seconds});
        if let Some(peak_bytes) = self.peak_bytes {
            json["subject_peak_bytes"] = peak_bytes.into();
        }
        json
    }
}

/// Starts the workload, and waits until it begins.
pub(crate) fn launch(
    workload: &Workload,
    scene: &Scene,
    attached: &dyn Attached,
    scratch: &Path,
) -> Result<Launched> {
    let this = std::env::current_exe()?;
    let prefix = attached.prefix();
    let is_traced = !prefix.is_empty();
    let mut words: Vec<String> = Vec::new();
    if is_traced {
        let join = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let subject = scene.subject.path().display().to_string();
        words.extend(["sh".to_owned(), "-c".to_owned(), join.to_owned(), subject]);
        words.extend(prefix);
    }
    words.push(this.display().to_string());
    words.push("launch".to_owned());
    words.push(scene.workload.path().display().to_string());
    words.push(scene.root().display().to_string());
    words.push(workload.image.cwd.clone());
    let script = scratch.join("script");
    let written = |text: &str| -> Result<PathBuf> {
        fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
        Ok(script.clone())
    };
    match &workload.work {
        Work::Command(command) => {
            words.push("command".to_owned());
            words.extend(command.iter().cloned());
        }
        Work::Script(text) => {
            words.extend(["script".to_owned(), written(text)?.display().to_string()]);
        }
        Work::Beside(text) => {
            words.extend(["forever".to_owned(), written(text)?.display().to_string()]);
        }
    }
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().env("HOME", "/root");
    command.env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    command.envs(
        workload
            .image
            .env
            .iter()
            .filter_map(|pair| pair.split_once('=')),
    );
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line)?;
    if line != "go\n" {
        let status = child.wait()?;
        anyhow::bail!("{} did not begin: {status}", workload.name);
    }
    let cpu_before = scene.workload.cpu_seconds()?;
    let began = Instant::now();
    stdin.write_all(b".")?;
    Ok(Launched {
        child,
        began,
        cpu_before,
        is_traced,
    })
}

impl Launched {
    /// Waits for its end, which must be a success, and until all it started has ended.
    pub(crate) fn finish(mut self, scene: &Scene) -> Result<Took> {
        let sampler = self.is_traced.then(|| Sampler::start(self.child.id()));
        let status = self.child.wait()?;
        let wall_seconds = self.began.elapsed().as_secs_f64();
        let peak_bytes = sampler.and_then(Sampler::stop);
        ensure!(status.success(), "the workload failed: {status}");
        scene.workload.wait_until_empty()?;
        Ok(Took {
            wall_seconds,
            cpu_seconds: scene.workload.cpu_seconds()? - self.cpu_before,
            peak_bytes,
        })
    }

    /// Ends a workload that does not end by itself, before whoever started it: nobody else would.
    fn kill(mut self, scene: &Scene) -> Result<()> {
        scene.workload.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// While the workload goes on, a process outside does its work.
fn beside(launched: Launched, scene: &Scene, scratch: &Path) -> Result<Value> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command
        .arg("bystander")
        .arg(scratch)
        .stderr(Stdio::inherit())
        .output();
    launched.kill(scene)?;
    let output = output.context("cannot run the bystander")?;
    ensure!(
        output.status.success(),
        "the bystander failed: {}",
        output.status
    );
    let bystander: Value = serde_json::from_slice(&output.stdout)?;
    Ok(json!({"bystander": bystander}))
}

/// Looks again and again how much memory a process has had at most: of one that has ended nobody can tell.
struct Sampler {
    stop: std::sync::Arc<AtomicBool>,
    peak: std::sync::Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

/// Seldom enough to disturb nobody.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Sampler {
    fn start(pid: u32) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let peak = std::sync::Arc::new(AtomicU64::new(0));
        let (stopped, highest) = (stop.clone(), peak.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(bytes) = peak_bytes(pid) {
                    highest.fetch_max(bytes, Ordering::Relaxed);
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        Self { stop, peak, thread }
    }

    fn stop(self) -> Option<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        let peak = self.peak.load(Ordering::Relaxed);
        (peak > 0).then_some(peak)
    }
}

/// `VmHWM` of `proc_pid_status(5)`.
fn peak_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}
