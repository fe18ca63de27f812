//! `cargo xtask fuzz`: libFuzzer over the targets in `fuzz/`, with stable Rust.
//!
//! A target is first run over its committed corpus, so that what was found once stays fixed, then on
//! inputs of libFuzzer's own making. What a crash was made by lies in `fuzz/artifacts/TARGET`.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::prerequisites;
use crate::shell::{cargo, run as run_command, workspace_dir};

/// Seconds for each target where none are given.
pub(crate) const DEFAULT_SECONDS: u64 = 10;

/// So much of a failed target's log is shown.
const END_LINES: usize = 60;

/// What a target says, among its artifacts.
const LOG: &str = "log";

/// Built for this triple by name, so that build scripts are not instrumented.
#[cfg(target_arch = "aarch64")]
const TRIPLE: &str = "aarch64-unknown-linux-gnu";
#[cfg(not(target_arch = "aarch64"))]
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Coverage for libFuzzer: what cargo-fuzz passes, without a sanitizer, which stable Rust does not have.
/// Overflows and failed assertions are found by the profile's checks.
const INSTRUMENTATION: [&str; 7] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// `[TARGET] [SECONDS]`.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let all = targets()?;
    let is_number = |arg: &&String| arg.parse::<u64>().is_ok();
    let (numbers, names): (Vec<&String>, Vec<&String>) = args.iter().partition(is_number);
    let seconds = numbers
        .first()
        .map_or(Ok(DEFAULT_SECONDS), |text| text.parse())?;
    for name in &names {
        ensure!(
            all.contains(name),
            "there is no fuzz target {name}; there are {}",
            all.join(", ")
        );
    }
    let chosen: Vec<String> = if names.is_empty() {
        all
    } else {
        names.into_iter().cloned().collect()
    };
    prepare()?;
    build()?;
    let failed = run_targets(&chosen, seconds)?;
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {}", failed.join(", "));
        ExitCode::FAILURE
    })
}

/// What the targets need that is none of ours: libFuzzer, as source, and a compiler for it.
///
/// # Errors
/// When this machine lacks it and it cannot be installed.
pub(crate) fn prepare() -> Result<()> {
    prerequisites::install("c++", "g++")?;
    // Not `--locked`: the outer workspace's dependencies, which are esgz's, change without this one's.
    run_command(cargo().current_dir(fuzz_dir()).args(["fetch", "--quiet"]))
}

/// The names of all targets.
pub(crate) fn targets() -> Result<Vec<String>> {
    let dir = fuzz_dir().join("fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".rs").map(str::to_owned)
        })
        .collect();
    names.sort();
    Ok(names)
}

/// Runs each target for `seconds`, as many beside each other as there are cores. Gives those that failed.
pub(crate) fn run_targets(names: &[String], seconds: u64) -> Result<Vec<String>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failed = Vec::new();
    for group in names.chunks(cores) {
        let running: Vec<_> = group
            .iter()
            .map(|name| Ok((name, Instant::now(), start(name, seconds)?)))
            .collect::<Result<_>>()?;
        for (name, started, mut child) in running {
            let status = child.wait().context("waiting for a target")?;
            let path = artifacts_dir(name).join(LOG);
            let log = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let log = String::from_utf8_lossy(&log);
            let elapsed = started.elapsed().as_secs();
            if status.success() {
                println!("fuzz {name}: {}, {elapsed} s", executions(&log));
            } else {
                println!("fuzz {name}: {status}\n{}", end_of(&log));
                failed.push(name.clone());
            }
        }
    }
    Ok(failed)
}

/// Builds all targets: two minutes of two cores from nothing.
pub(crate) fn build() -> Result<()> {
    let mut command = cargo();
    command
        .current_dir(fuzz_dir())
        .args(["build", "--quiet", "--release", "--bins"])
        .args(["--target", TRIPLE])
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    run_command(&mut command)
}

fn start(name: &str, seconds: u64) -> Result<Child> {
    let dir = fuzz_dir();
    // The first directory takes what libFuzzer finds worth keeping; the committed one is only read.
    let (found, corpus) = (dir.join("found").join(name), dir.join("corpus").join(name));
    let artifacts = artifacts_dir(name);
    for made in [&found, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("creating {}", made.display()))?;
    }
    let mut command = Command::new(target_dir().join(TRIPLE).join("release").join(name));
    command
        .arg(format!("-max_total_time={seconds}"))
        .args([
            "-timeout=60",
            "-rss_limit_mb=2048",
            "-max_len=65536",
            "-print_final_stats=1",
        ])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([&found, &corpus]);
    // Not a pipe: nobody reads it while another target is waited for.
    let path = artifacts.join(LOG);
    let log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))
}

/// How many inputs were tried, from libFuzzer's closing statistics.
fn executions(log: &str) -> String {
    let line = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line.map_or_else(
        || "no statistics".to_owned(),
        |number| format!("{} inputs", number.trim()),
    )
}

/// The last lines of a log: what went wrong, and which file holds the input.
fn end_of(log: &str) -> &str {
    let last = log.trim_end().rmatch_indices('\n').nth(END_LINES - 1);
    last.map_or(log, |(at, _)| &log[at + 1..])
}

fn artifacts_dir(name: &str) -> PathBuf {
    fuzz_dir().join("artifacts").join(name)
}

fn fuzz_dir() -> PathBuf {
    workspace_dir().join("fuzz")
}

fn target_dir() -> PathBuf {
    fuzz_dir().join("target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus_and_is_built() {
        let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
        for name in targets().unwrap() {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let corpus = fuzz_dir().join("corpus").join(&name);
            let seeds = fs::read_dir(&corpus).map_or(0, Iterator::count);
            assert!(seeds > 0, "{} is empty", corpus.display());
        }
    }

    #[test]
    fn statistics_are_read() {
        let log = "Done\nstat::number_of_executed_units: 123\nstat::peak_rss_mb: 40\n";
        assert_eq!(executions(log), "123 inputs");
        assert_eq!(executions(""), "no statistics");
    }

    #[test]
    fn of_a_long_log_the_end_is_shown() {
        let log: String = (1..=100).map(|line| format!("line {line}\n")).collect();
        assert!(end_of(&log).starts_with("line 41\n"), "{}", end_of(&log));
        assert_eq!(end_of("one\n"), "one\n");
    }
}
