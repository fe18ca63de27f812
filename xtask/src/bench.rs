//! `cargo xtask bench`: whole runs, their raw results and a table of them in `bench/runs/NAME`.

mod contender;
mod convert;
mod distribution;
mod limits;
mod measure;
mod optimize;
mod peer;
mod profiler;
mod readiness;
mod registry;
mod simulate;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::shell::{capture, target_dir, workspace_dir};

/// Runs the benchmark that the first argument names.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    match args.split_first() {
        Some((task, rest)) if task == "optimize" => optimize::run(rest),
        Some((task, rest)) if task == "convert" => convert::run(rest),
        Some((task, rest)) if task == "limits" => limits::run(rest),
        Some((task, rest)) if task == "profiler" => profiler::run(rest),
        Some((task, rest)) if task == "readiness" => readiness::run(rest),
        Some((task, rest)) if task == "registry" => registry::run(rest),
        Some((task, rest)) if task == "simulate" => simulate::run(rest),
        _ => bail!(
            "usage: cargo xtask bench optimize|convert|limits|profiler|readiness|registry|simulate …"
        ),
    }
}

/// Where results are kept.
fn results_dir(name: &str) -> Result<PathBuf> {
    made(workspace_dir().join("bench/runs").join(name))
}

/// Where images and spools lie while a benchmark runs.
fn scratch_dir() -> Result<PathBuf> {
    made(target_dir().join("bench"))
}

fn made(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// What figures hold for: the commit, the cores, the kernel.
fn on_this_machine() -> Result<String> {
    let mut describe = Command::new("git");
    describe.args(["describe", "--always", "--dirty"]);
    Ok(format!(
        "esgz {}, {} cores, Linux {}",
        capture(describe.current_dir(workspace_dir()))?.trim(),
        std::thread::available_parallelism()?,
        capture(Command::new("uname").arg("-r"))?.trim(),
    ))
}
