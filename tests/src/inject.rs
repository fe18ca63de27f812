//! System calls of an `esgz` process that fail, or that kill it: strace(1) with `--inject`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::esgz::Esgz;
use crate::find_program;

/// Why nothing can be injected here; `None` if it can.
pub fn unavailable() -> Option<String> {
    if find_program("strace").is_none() {
        return Some("strace is not installed".to_owned());
    }
    let tried = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(
            String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        ),
        Err(error) => Some(error.to_string()),
    }
}

/// The calls of a run, by name: for each, the numbers (from 1, counted in their thread) of those
/// whose arguments name a file below `dir`.
///
/// # Panics
/// When the run fails.
pub fn calls(esgz: Esgz, names: &[&str], dir: &Path) -> BTreeMap<String, Vec<usize>> {
    let log = dir.join("strace.log");
    let trace = format!("trace={}", names.join(","));
    let output = run(esgz, &["-y", "-e", &trace], &log);
    assert!(output.status.success(), "{output:?}");
    let text = fs::read(&log).expect("strace has written its log");
    fs::remove_file(&log).expect("it can be removed");
    let text = String::from_utf8_lossy(&text).into_owned();
    let dir = dir.display().to_string();
    let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let Some((name, arguments)) = call.trim_start().split_once('(') else {
            // The rest of a call that another thread's interrupted, or a signal.
            continue;
        };
        let number = seen.entry((thread, name)).or_default();
        *number += 1;
        if arguments.contains(&dir) {
            found.entry(name.to_owned()).or_default().push(*number);
        }
    }
    for numbers in found.values_mut() {
        numbers.sort_unstable();
        numbers.dedup();
    }
    found
}

/// Runs `esgz` while `what` (`write:error=ENOSPC:when=3`) is injected into each of its threads.
///
/// # Panics
/// When strace cannot be run.
pub fn injected(esgz: Esgz, what: &str, dir: &Path) -> Output {
    let log = dir.join("strace.log");
    let name = what.split(':').next().unwrap_or(what);
    let (trace, inject) = (format!("trace={name}"), format!("inject={what}"));
    let output = run(esgz, &["-e", &trace, "-e", &inject], &log);
    fs::remove_file(&log).expect("strace has written its log");
    output
}

fn run(esgz: Esgz, options: &[&str], log: &Path) -> Output {
    let command = esgz.into_command();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(log).args(options);
    strace.arg(command.get_program()).args(command.get_args());
    strace.stdin(Stdio::null()).output().expect("strace runs")
}

/// At most `count` of `numbers`, evenly spread, the first and the last among them.
pub fn sample(numbers: &[usize], count: usize) -> Vec<usize> {
    if numbers.len() <= count || count < 2 {
        return numbers.to_vec();
    }
    let step = |index: usize| numbers[index * (numbers.len() - 1) / (count - 1)];
    (0..count).map(step).collect()
}
