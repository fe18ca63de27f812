//! `cargo xtask bench optimize`: whole runs of `esgz optimize`, raw results and a table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::{on_this_machine, results_dir, scratch_dir};
use crate::shell::{capture, cargo, is_root, run as run_command, target_dir};

const USAGE: &str = "usage: cargo xtask bench optimize oci:DIR[:TAG] NAME [RUNS]";

/// Runs `esgz optimize` on the image several times; results go to `bench/runs/NAME/`.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [image, name, rest @ ..] = args else {
        bail!(USAGE)
    };
    let runs: usize = match rest {
        [] => 3,
        [runs] => runs.parse().context(USAGE)?,
        _ => bail!(USAGE),
    };
    ensure!(image.starts_with("oci:") && runs > 0, USAGE);
    ensure!(is_root(), "optimize runs a container: it needs root");
    run_command(cargo().args(["build", "--release", "--quiet", "--package", "esgz"]))?;
    let results = results_dir(name)?;
    let scratch = scratch_dir()?;

    let mut all = Vec::new();
    for number in 1..=runs {
        let result = one(image, &scratch)?;
        println!("run {number}: {} s", result["seconds"]["total"]);
        all.push(result);
    }
    let mut raw = String::new();
    for result in &all {
        writeln!(raw, "{result}")?;
    }
    let table = table(&all)?;
    fs::write(results.join("runs.jsonl"), raw)?;
    fs::write(results.join("table.md"), &table)?;
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// One run, its output removed again.
fn one(image: &str, scratch: &Path) -> Result<Value> {
    let output = scratch.join("optimized");
    if output.exists() {
        fs::remove_dir_all(&output)?;
    }
    let mut command = Command::new(target_dir().join("release/esgz"));
    command
        .args(["optimize", "--json", "--period", "120", "--scratch"])
        .arg(scratch);
    command
        .arg(image)
        .arg(format!("oci:{}:bench", output.display()));
    let mut result: Value = serde_json::from_str(&capture(command.stdin(Stdio::null()))?)?;
    fs::remove_dir_all(&output)?;
    // Paths of this machine say nothing to anyone else.
    for side in ["source", "destination"] {
        if let Some(side) = result[side].as_object_mut() {
            side.remove("reference");
        }
    }
    Ok(result)
}

/// Minimum, median and maximum of each figure.
fn table(results: &[Value]) -> Result<String> {
    let mut text = format!(
        "`esgz optimize`, {} runs, {}\n\n| figure | min | median | max |\n|---|--:|--:|--:|\n",
        results.len(),
        on_this_machine()?,
    );
    let mut row = |name: &str, figure: &dyn Fn(&Value) -> f64| -> Result<()> {
        let mut figures: Vec<f64> = results.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let (min, median, max) = (
            figures[0],
            figures[figures.len() / 2],
            figures[figures.len() - 1],
        );
        Ok(writeln!(
            text,
            "| {name} | {min:.1} | {median:.1} | {max:.1} |"
        )?)
    };
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    for stage in ["total", "scan", "mount", "run", "encode", "commit"] {
        row(&format!("{stage}, s"), &|result| {
            number(&result["seconds"][stage])
        })?;
    }
    row("CPU, s", &|result| number(&result["cpu_seconds"]))?;
    row("peak memory, MiB", &|result| {
        number(&result["peak_memory_bytes"]) / 1048576.0
    })?;
    row("touched, MB", &|result| {
        number(&result["profile"]["touched_bytes"]) / 1e6
    })?;
    row("files touched", &|result| {
        number(&result["profile"]["files_touched"])
    })?;
    row("output, % of source", &|result| {
        100.0 * number(&result["destination"]["size_bytes"])
            / number(&result["source"]["size_bytes"])
    })?;
    let complete = results
        .iter()
        .all(|result| result["profile"]["complete"] == json!(true));
    writeln!(text, "\nEvery profile complete: {complete}")?;
    Ok(text)
}
