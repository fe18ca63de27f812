//! `cargo xtask test`: everything that can run here, and one closing line that counts.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};
use std::thread;

use anyhow::{Context as _, Result};

use crate::shell::{cargo, has_program};
use crate::{fuzz, kernels, prerequisites};

/// Programs that tests compare with or run, and their packages.
const PREREQUISITES: [(&str, &str); 21] = [
    ("runc", "runc"),
    ("crun", "crun"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("gcc", "gcc"),
    ("strace", "strace"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("buildah", "buildah"),
    ("bsdtar", "libarchive-tools"),
    ("docker-registry", "docker-registry"),
    ("containerd", "containerd"),
    ("pigz", "pigz"),
    ("zopfli", "zopfli"),
    ("igzip", "isal"),
    ("libdeflate-gzip", "libdeflate-tools"),
    ("7zz", "7zip"),
    ("advdef", "advancecomp"),
    ("bgzip", "tabix"),
    ("chromium", "chromium"),
];

/// Runs all tests, then the fuzz targets; with `args`, which go to `cargo test`, only the tests. Fails when
/// one fails, or when none ran.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    for (program, package) in PREREQUISITES {
        if let Err(error) = prerequisites::install(program, package) {
            eprintln!("note: tests that need {program} will say that they are skipped: {error:#}");
        }
    }
    if !has_program("go") {
        eprintln!(
            "note: Go is not installed: tests that need the Go oracle will say that they are skipped"
        );
    }
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    // Both into this process's stdout: a log of the two has to keep their order.
    let reader = thread::spawn(move || forward(stderr, io::stdout));
    let mut totals = forward(stdout, io::stdout);
    totals.add(&reader.join().expect("the reader does not panic"));
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {command:?}"))?;

    // Whoever asks for certain tests does not want these.
    if args.is_empty() {
        fuzz_targets(&mut totals)?;
        let elsewhere = kernels::test().context("the tests on another kernel")?;
        totals.passed += elsewhere.passed;
        totals.failed += elsewhere.failed;
        totals.ignored += elsewhere.skipped;
    }
    for name in &totals.skipped {
        println!("skipped: {name}");
    }
    println!("{}", totals.closing_line());
    if totals.failed > 0 || totals.passed == 0 {
        return Ok(ExitCode::FAILURE);
    }
    // Compilation errors and crashed test executables have no result line.
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}

/// Runs each fuzz target for a while, as one test each.
fn fuzz_targets(totals: &mut Totals) -> Result<()> {
    let targets = fuzz::targets()?;
    totals.passed += targets.len();
    if let Err(error) = fuzz::prepare() {
        let skipped = targets.iter().map(|name| format!("fuzz {name}: {error:#}"));
        totals.skipped.extend(skipped);
        return Ok(());
    }
    let seconds = fuzz::DEFAULT_SECONDS;
    println!("fuzz: building the targets, then {seconds} s for each");
    let failed = match fuzz::build() {
        Ok(()) => fuzz::run_targets(&targets, seconds)?,
        Err(error) => {
            println!("fuzz: the targets cannot be built: {error:#}");
            targets
        }
    };
    totals.passed -= failed.len();
    totals.failed += failed.len();
    Ok(())
}

/// What the test executables reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    /// Among them those that were skipped.
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Name and reason of every test that said it is skipped.
    skipped: BTreeSet<String>,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend(other.skipped.iter().cloned());
    }

    /// Reads one line of output.
    fn read(&mut self, line: &str) {
        // libtest's "test NAME ... " may stand in front, when the test writes past the harness.
        if let Some((_, skipped)) = line.split_once("skipped: ") {
            self.skipped.insert(skipped.trim_end().to_owned());
        }
        let Some(result) = line.trim_start().strip_prefix("test result: ") else {
            return;
        };
        let count = |what: &str| {
            let part = result
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(what))?;
            part.trim().parse().ok()
        };
        self.passed += count("passed").unwrap_or(0);
        self.failed += count("failed").unwrap_or(0);
        self.ignored += count("ignored").unwrap_or(0);
    }

    fn closing_line(&self) -> String {
        let passed = self.passed.saturating_sub(self.skipped.len());
        format!(
            "{passed} passed, {} failed, {} skipped",
            self.failed,
            self.skipped.len() + self.ignored
        )
    }
}

/// Copies a stream line by line, and counts.
fn forward<W: Write>(stream: impl Read, output: impl Fn() -> W) -> Totals {
    let mut totals = Totals::default();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
        totals.read(&String::from_utf8_lossy(&line));
        // Counting goes on when nobody reads any more.
        let mut output = output();
        let _ = output.write_all(&line).and_then(|()| output.flush());
        line.clear();
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_executables_are_added_up() {
        let output = "\
running 2 tests
skipped: a::b: Go is not installed
test b ... ok
test c ... skipped: a::c: not root
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s
skipped: a::b: Go is not installed
test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.23s
";
        let mut totals = forward(output.as_bytes(), io::sink);
        assert_eq!(
            (
                totals.passed,
                totals.failed,
                totals.ignored,
                totals.skipped.len()
            ),
            (7, 2, 1, 2)
        );
        assert_eq!(totals.closing_line(), "5 passed, 2 failed, 3 skipped");
        totals.add(&Totals {
            passed: 1,
            ..Totals::default()
        });
        assert_eq!(totals.closing_line(), "6 passed, 2 failed, 3 skipped");
    }
}
