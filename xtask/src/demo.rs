//! `cargo xtask demo`: a real image, its workload watched with eBPF, and what came of it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::shell::{cargo, is_root, run as run_command, target_dir};
use crate::{prerequisites, python_image};

/// Optimises the image in the argument (`oci:DIR[:TAG]`), or one of the machine's own Python.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let image = match args {
        [] => None,
        [image] if image.starts_with("oci:") => Some(image.clone()),
        _ => bail!("usage: cargo xtask demo [oci:DIR[:TAG]]"),
    };
    ensure!(
        is_root(),
        "the demonstration loads BPF programs and runs a container: it needs root"
    );
    prerequisites::install("runc", "runc")?;
    let dir = target_dir().join("demo");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;

    println!("building esgz");
    run_command(cargo().args(["build", "--release", "--quiet", "--package", "esgz"]))?;
    let source = match image {
        Some(image) => image,
        None => {
            let layout = dir.join("python");
            python_image::make(&layout)?;
            format!("oci:{}:latest", layout.display())
        }
    };
    let output = dir.join("optimized");
    if output.exists() {
        fs::remove_dir_all(&output)
            .with_context(|| format!("cannot remove {}", output.display()))?;
    }
    let report = optimize(&source, &output, &dir)?;
    println!("\n{}", format_report(&report));
    println!("optimised image: oci:{}:esgz", output.display());
    Ok(ExitCode::SUCCESS)
}

fn optimize(source: &str, output: &Path, dir: &Path) -> Result<Value> {
    let mut command = Command::new(target_dir().join("release/esgz"));
    command
        .arg("optimize")
        .arg("--json")
        .arg("--scratch")
        .arg(dir);
    command.arg("--profile-out").arg(dir.join("profile.json"));
    command
        .arg(source)
        .arg(format!("oci:{}:esgz", output.display()));
    println!("running {}", shown(&command));
    let run = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let run = run.with_context(|| format!("cannot run {command:?}"))?;
    let stdout = String::from_utf8_lossy(&run.stdout);
    ensure!(
        run.status.success(),
        "esgz optimize: {}; it printed:\n{stdout}",
        run.status
    );
    let (workload, report) =
        split_report(&stdout).context("esgz optimize --json printed no JSON object")?;
    for line in workload.lines() {
        println!("  workload: {line}");
    }
    let path: PathBuf = dir.join("report.json");
    fs::write(&path, format!("{report:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(report)
}

fn shown(command: &Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Splits standard output into what the workload printed and the report: the last JSON object that
/// starts a line and ends the output.
fn split_report(stdout: &str) -> Option<(&str, Value)> {
    let starts = stdout
        .match_indices('{')
        .map(|(at, _)| at)
        .filter(|&at| at == 0 || stdout[..at].ends_with('\n'));
    starts.into_iter().find_map(|at| {
        let value: Value = serde_json::from_str(&stdout[at..]).ok()?;
        value.is_object().then_some((&stdout[..at], value))
    })
}

/// The report for a reader: one line a figure, nested objects indented, units from the keys' names
/// (`_bytes`, `_ms`, `seconds`, `_per_second`).
fn format_report(report: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, 0, "", report);
    text
}

fn write_value(text: &mut String, depth: usize, key: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    let label = key.replace('_', " ");
    match value {
        Value::Object(fields) => {
            if !key.is_empty() {
                let _ = writeln!(text, "{indent}{label}");
            }
            for (name, field) in fields {
                write_value(text, depth + usize::from(!key.is_empty()), name, field);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (index, item) in items.iter().enumerate() {
                write_value(text, depth, &format!("{key} {index}"), item);
            }
        }
        _ => {
            let width = 36_usize.saturating_sub(indent.len());
            let _ = writeln!(text, "{indent}{label:width$} {}", format_figure(key, value));
        }
    }
}

fn format_figure(key: &str, value: &Value) -> String {
    let number = value.as_f64();
    match (number, value) {
        (Some(number), _) if key.ends_with("bytes_per_second") => {
            format!("{:.1} MB/s", number / 1e6)
        }
        (Some(number), _) if key.ends_with("bytes") && number >= 1e6 => {
            format!("{:.1} MB", number / 1e6)
        }
        (Some(number), _) if key.ends_with("bytes") && number >= 1e3 => {
            format!("{:.1} kB", number / 1e3)
        }
        (Some(number), _) if key.ends_with("bytes") => format!("{number} bytes"),
        (Some(number), _) if key.ends_with("_ms") => format!("{:.2} s", number / 1e3),
        (Some(number), _) if key.ends_with("seconds") => format!("{number:.2} s"),
        (Some(number), _) if number.fract() != 0.0 => format!("{number:.2}"),
        (None, Value::String(text)) => text.clone(),
        (None, Value::Array(items)) => {
            let words: Vec<String> = items.iter().map(|item| format_figure("", item)).collect();
            words.join(" ")
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_report_stands_behind_what_the_workload_printed() {
        let (workload, report) = split_report("ready\n{not json}\n{\n  \"a\": 1\n}\n").unwrap();
        assert_eq!((workload, report), ("ready\n{not json}\n", json!({"a": 1})));
        assert_eq!(
            split_report("{\"a\":{\"b\":2}}").unwrap().1,
            json!({"a": {"b": 2}})
        );
        assert_eq!(split_report("ready\n"), None);
        assert_eq!(split_report(""), None);
    }

    #[test]
    fn figures_have_units() {
        let report = json!({
            "image": {"files": 12, "size_bytes": 3_200_000}, "run_ms": 1500,
            "layers": [{"seconds": 0.5}], "args": ["a", "b"],
        });
        let text = format_report(&report);
        for part in ["files", "3.2 MB", "1.50 s", "layers 0", "0.50 s", "a b"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
