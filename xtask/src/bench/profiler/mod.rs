//! `cargo xtask bench profiler`: profilers side by side on programs and on generators of which the truth is known. The
//! runs themselves are those of the program `profilers` in `bench/`; here its image is made, and tables of its results.

mod chart;
mod differences;
mod image;
mod median;
mod results;
mod table;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::bench::{on_this_machine, results_dir, scratch_dir};
use crate::prerequisites;
use crate::shell::{cargo, is_root, run as run_command, target_dir};
use results::Results;

const USAGE: &str = "usage: cargo xtask bench profiler NAME [ROUNDS] [--subjects NAME,…] [--workloads NAME,…] \
    [--image oci:DIR] [--subject NAME=COMMAND]… [--append] [--only-table]";

struct Options {
    name: String,
    rounds: usize,
    /// For the program.
    passed_on: Vec<String>,
    /// Adds rounds to those that are there.
    append: bool,
    /// Makes tables of what is there.
    only_table: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let [name, rest @ ..] = args else {
            bail!(USAGE)
        };
        ensure!(!name.starts_with('-'), USAGE);
        let mut options = Self {
            name: name.clone(),
            rounds: 5,
            passed_on: Vec::new(),
            append: false,
            only_table: false,
        };
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--append" => options.append = true,
                "--only-table" => options.only_table = true,
                "--subjects" | "--workloads" | "--image" | "--subject" => {
                    let value = rest.next().context(USAGE)?;
                    options.passed_on.extend([word.clone(), value.clone()]);
                }
                rounds => options.rounds = rounds.parse().context(USAGE)?,
            }
        }
        ensure!(options.rounds > 0, USAGE);
        Ok(options)
    }
}

/// Results go to `bench/runs/NAME/`: every run as a line of `runs.jsonl`, `table.md`, `slow-down.svg`, and
/// `differences.md`, how esgz and strace differ on each program.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let options = Options::parse(args)?;
    let results = results_dir(&options.name)?;
    let raw = results.join("runs.jsonl");
    if !options.only_table {
        measure(&options, &raw)?;
    }
    let text =
        fs::read_to_string(&raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let found = Results::parse(&text)?;
    let table = table::table(&found)?;
    fs::write(results.join("table.md"), &table)?;
    fs::write(results.join("slow-down.svg"), chart::chart(&found)?)?;
    if let Some(differences) = differences::text(&found)? {
        fs::write(results.join("differences.md"), differences)?;
    }
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn measure(options: &Options, raw: &Path) -> Result<()> {
    ensure!(is_root(), "cgroups, mounts and BPF programs need root");
    for (program, package) in [("strace", "strace"), ("ip", "iproute2")] {
        prerequisites::install(program, package)?;
    }
    let image = image::make()?;
    println!("building esgz and the benchmark");
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "esgz-bench",
        "--bin",
        "profilers",
    ]);
    run_command(&mut build)?;
    let first_round = if options.append {
        let text = fs::read_to_string(raw).unwrap_or_default();
        Results::parse(&text)?.rounds() + 1
    } else {
        fs::write(raw, "").with_context(|| format!("cannot write {}", raw.display()))?;
        1
    };
    let mut out = fs::File::options().create(true).append(true).open(raw)?;
    let machine = serde_json::json!({"machine": on_this_machine()?});
    writeln!(out, "{machine}")?;
    let mut command = Command::new(target_dir().join("release/profilers"));
    command
        .arg("run")
        .arg("--programs")
        .arg(format!("oci:{}:latest", image.display()))
        .arg("--scratch")
        .arg(scratch_dir()?)
        .arg("--rounds")
        .arg(options.rounds.to_string())
        .arg("--first-round")
        .arg(first_round.to_string())
        .args(&options.passed_on);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    // Line by line, so that a run that is interrupted has not been for nothing.
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
        writeln!(out, "{}", line?)?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "profilers: {status}");
    Ok(())
}
