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

/// The report for a reader, a line a subject; what the report lacks is left out.
fn format_report(report: &Value) -> String {
    let mut text = String::new();
    let mut line = |label: &str, parts: &[Option<String>]| {
        let parts: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
        if !parts.is_empty() {
            let _ = writeln!(text, "{label:16} {}", parts.join(", "));
        }
    };
    let get = |pointer: &str| report.pointer(pointer).filter(|value| !value.is_null());
    let count = |pointer: &str, what: &str| get(pointer).map(|n| format!("{n} {what}"));
    let size = |pointer: &str, what: &str| {
        get(pointer)
            .and_then(Value::as_f64)
            .map(|bytes| format!("{} {what}", megabytes(bytes)))
    };
    let named = |pointer: &str, what: &str| {
        get(pointer).map(|v| {
            format!(
                "{what} {}",
                v.as_str().map_or_else(|| v.to_string(), str::to_owned)
            )
        })
    };
    let all = |pointer: &str, digits: usize| -> Vec<Option<String>> {
        let fields = get(pointer)
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let field = |(name, value): (&String, &Value)| {
            value
                .as_f64()
                .map(|number| format!("{name} {number:.digits$}"))
        };
        fields.map(field).collect()
    };

    line(
        "image",
        &[
            count("/image/files", "files"),
            size("/image/bytes", "in them"),
            size("/source/size_bytes", "compressed"),
        ],
    );
    line(
        "opened",
        &[
            count("/profile/files_opened", "files"),
            size("/profile/opened_bytes", "in them"),
            count("/profile/files_executed", "executed"),
            count("/profile/missing", "names looked for in vain"),
        ],
    );
    line(
        "touched",
        &[
            count("/profile/files_touched", "files"),
            size("/profile/touched_bytes", "of their pages"),
        ],
    );
    line(
        "prefetched",
        &[
            count("/prefetch/files", "files"),
            size("/prefetch/bytes", "in them"),
            size("/prefetch/compressed_bytes", "to fetch before the start"),
        ],
    );
    line(
        "optimised image",
        &[size("/destination/size_bytes", "compressed")],
    );
    line(
        "watched by",
        &[
            named("/profile/tier", "tier"),
            count("/profile/lost_events", "events lost"),
            get("/profile/complete").map(|v| {
                if v == true {
                    "complete"
                } else {
                    "NOT COMPLETE"
                }
                .to_owned()
            }),
            named("/profile/exit_code", "exit code"),
        ],
    );
    line("seconds", &all("/seconds", 2));
    line("MB/s", &all("/megabytes_per_second", 0));
    line(
        "used",
        &[
            get("/cpu_seconds").map(|seconds| format!("{seconds} s of processor time")),
            size("/peak_memory_bytes", "of memory at most"),
        ],
    );
    let verified = get("/verified").and_then(Value::as_bool);
    line(
        "verification",
        &[verified.map(|verified| {
            let done = "passed: TOC, footer, members and chunk digests of every written layer";
            if verified { done } else { "NOT DONE" }.to_owned()
        })],
    );
    text
}

fn megabytes(bytes: f64) -> String {
    if bytes < 1e5 {
        format!("{:.1} kB", bytes / 1e3)
    } else {
        format!("{:.1} MB", bytes / 1e6)
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
    fn figures_have_units_and_may_be_missing() {
        let report = json!({
            "image": {"files": 12, "bytes": 3_200_000}, "seconds": {"run": 0.5, "total": 1.25},
            "profile": {"lost_events": 0, "complete": false, "exit_code": null}, "verified": true,
        });
        let text = format_report(&report);
        for part in [
            "12 files, 3.2 MB",
            "run 0.50, total 1.25",
            "0 events lost, NOT COMPLETE",
            "passed",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(
            !text.contains("null") && !text.contains("prefetched"),
            "{text}"
        );
        assert_eq!(format_report(&json!({})), "");
    }
}
