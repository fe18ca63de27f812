//! `cargo xtask bench registry`: images to and from a registry on this machine, beside skopeo, pushed from a containerd,
//! beside `ctr image push`, and a conversion from registry to registry beside the same in layouts.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::distribution::Registry;
use crate::bench::measure::{measure, tree_bytes};
use crate::bench::peer::{Peer, Programs};
use crate::bench::{on_this_machine, results_dir, scratch_dir};
use crate::prerequisites;
use crate::shell::{capture, cargo, has_program, run as run_command, target_dir};

const USAGE: &str = "usage: cargo xtask bench registry oci:DIR[:TAG] NAME [RUNS] [--scratch DIR] [--only copy|convert] \
    [--peer-containerd PATH]";
/// Debian's.
const REGISTRY: &str = "docker-registry";

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Options {
    image: String,
    name: String,
    runs: usize,
    scratch: Option<PathBuf>,
    tasks: Vec<Task>,
    containerd: Option<PathBuf>,
}

/// Work that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// An eStargz image is pushed and pulled as it is.
    Copy,
    /// An image is converted.
    Convert,
}

fn parse(args: &[String]) -> Result<Options> {
    let mut words = Vec::new();
    let (mut scratch, mut tasks) = (None, vec![Task::Copy, Task::Convert]);
    let mut containerd = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg}?\n{USAGE}"));
        match arg.as_str() {
            "--scratch" => scratch = Some(PathBuf::from(value()?)),
            "--peer-containerd" => containerd = Some(PathBuf::from(value()?)),
            "--only" => {
                tasks = match value()?.as_str() {
                    "copy" => vec![Task::Copy],
                    "convert" => vec![Task::Convert],
                    _ => bail!(USAGE),
                }
            }
            flag if flag.starts_with('-') => bail!("unknown flag {flag}\n{USAGE}"),
            _ => words.push(arg.as_str()),
        }
    }
    let (image, name, runs) = match words.as_slice() {
        [image, name] => (*image, *name, 3),
        [image, name, runs] => (*image, *name, runs.parse().context(USAGE)?),
        _ => bail!(USAGE),
    };
    ensure!(runs > 0 && image.starts_with("oci:"), USAGE);
    Ok(Options {
        image: image.to_owned(),
        name: name.to_owned(),
        runs,
        scratch,
        tasks,
        containerd,
    })
}

/// Runs all contenders in turns; results go to `bench/runs/NAME/`.
pub(super) fn run(args: &[String]) -> Result<ExitCode> {
    let options = parse(args)?;
    for program in [REGISTRY, "skopeo"] {
        prerequisites::install(program, program)?;
        ensure!(has_program(program), "there is no {program}");
    }
    run_command(cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "esgz",
        "--bins",
    ]))?;
    let results = results_dir(&options.name)?;
    let parent = match &options.scratch {
        Some(dir) => dir.clone(),
        None => scratch_dir()?,
    };
    let scratch = tempfile::Builder::new()
        .prefix("registry-")
        .tempdir_in(parent)?;
    let mut bench = Bench {
        scratch: scratch.path(),
        raw: String::new(),
        rows: Vec::new(),
        results,
    };
    for run in 1..=options.runs {
        for task in &options.tasks {
            match task {
                Task::Copy => {
                    bench.copies(run, &options.image)?;
                    if let Some(containerd) = &options.containerd {
                        bench.pushes_from_containerd(run, containerd)?;
                    }
                }
                Task::Convert => bench.conversions(run, &options.image)?,
            }
        }
    }
    let title = format!(
        "A registry on this machine, {} runs in turns, {}; {}; docker-registry: {}",
        options.runs,
        on_this_machine()?,
        capture(Command::new("skopeo").arg("--version"))?.trim(),
        capture(Command::new(REGISTRY).arg("--version"))?.trim(),
    );
    let table = table(&title, &bench.rows)?;
    fs::write(bench.results.join("table.md"), &table)?;
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// One command's results, and the command that it is compared with.
struct Row {
    name: &'static str,
    beside: Option<&'static str>,
    results: Vec<Value>,
}

struct Bench<'a> {
    scratch: &'a Path,
    raw: String,
    rows: Vec<Row>,
    results: PathBuf,
}

impl Bench<'_> {
    /// Pushes and pulls of the same eStargz image.
    fn copies(&mut self, run: usize, image: &str) -> Result<()> {
        let made = self.scratch.join("estargz");
        let source = format!("oci:{}:x", made.display());
        if !made.exists() {
            measure(self.esgz(&[image, &source]).arg("--no-verify"), None)?;
        }
        let bytes = tree_bytes(&made)?;
        let back = self.scratch.join("back");
        let to = format!("oci:{}:x", back.display());
        let registry = Registry::start(REGISTRY.as_ref(), self.scratch)?;
        let at = registry.image("skopeo");
        self.turn(
            run,
            "skopeo copy, push",
            None,
            bytes,
            &mut skopeo(&source, &at),
        )?;
        self.turn(run, "skopeo copy, pull", None, bytes, &mut skopeo(&at, &to))?;
        fs::remove_dir_all(&back)?;
        let mut pull = self.esgz(&[&at, &to, "--reuse", "--no-verify"]);
        let beside = Some("skopeo copy, pull");
        self.turn(run, "esgz convert --reuse, pull", beside, bytes, &mut pull)?;
        fs::remove_dir_all(&back)?;
        // The registry keeps a blob once, whatever the repository: a push begins with an empty one.
        drop(registry);
        let registry = Registry::start(REGISTRY.as_ref(), self.scratch)?;
        let at = registry.image("esgz");
        let mut push = self.esgz(&[&source, &at, "--reuse", "--no-verify"]);
        let beside = Some("skopeo copy, push");
        self.turn(run, "esgz convert --reuse, push", beside, bytes, &mut push)
    }

    /// Pushes of the same image from a containerd of version 2, beside which `ctr` lies.
    fn pushes_from_containerd(&mut self, run: usize, containerd: &Path) -> Result<()> {
        let made = self.scratch.join("estargz");
        let bytes = tree_bytes(&made)?;
        let programs = Programs {
            ctr_remote: containerd.with_file_name("ctr-remote"),
            containerd: containerd.to_owned(),
        };
        let peer = Peer::start(&programs, &made, None, self.scratch)?;
        let esgz = target_dir().join("release/esgz");
        for (name, program, beside) in [
            ("ctr image push", None, None),
            ("esgz image push", Some(&*esgz), Some("ctr image push")),
        ] {
            let registry = Registry::start(REGISTRY.as_ref(), self.scratch)?;
            let image = registry.image("pushed");
            let image = image.trim_start_matches("docker://");
            peer.tag(image)?;
            let (mut push, daemon) = peer.user(program);
            push.args(["image", "push", "--plain-http", image]);
            self.turn_beside(run, name, beside, bytes, &mut push, Some(daemon))?;
        }
        Ok(())
    }

    /// The same conversion without and with a registry.
    fn conversions(&mut self, run: usize, image: &str) -> Result<()> {
        let output = self.scratch.join("converted");
        let to = format!("oci:{}:x", output.display());
        let mut local = self.esgz(&[image, &to]);
        let registry = Registry::start(REGISTRY.as_ref(), self.scratch)?;
        let from = registry.image("source");
        measure(&mut skopeo(image, &from), None)?;
        let bytes = tree_bytes(registry.dir())?;
        self.turn(
            run,
            "esgz convert, layout to layout",
            None,
            bytes,
            &mut local,
        )?;
        fs::remove_dir_all(&output)?;
        let mut both = self.esgz(&[&from, &registry.image("target")]);
        let beside = Some("esgz convert, layout to layout");
        let name = "esgz convert, registry to registry";
        self.turn(run, name, beside, bytes, &mut both)
    }

    fn esgz(&self, args: &[&str]) -> Command {
        let mut command = Command::new(target_dir().join("release/esgz"));
        command.args(["convert", "--log-level=warn", "--scratch"]);
        command.arg(self.scratch).args(args);
        command
    }

    /// Runs one command and keeps what it cost.
    fn turn(
        &mut self,
        run: usize,
        name: &'static str,
        beside: Option<&'static str>,
        bytes: u64,
        command: &mut Command,
    ) -> Result<()> {
        self.turn_beside(run, name, beside, bytes, command, None)
    }

    /// The same for one that lets a daemon work, whose cost counts.
    fn turn_beside(
        &mut self,
        run: usize,
        name: &'static str,
        beside: Option<&'static str>,
        bytes: u64,
        command: &mut Command,
        daemon: Option<u32>,
    ) -> Result<()> {
        let (cost, _) = measure(command, daemon).with_context(|| format!("run {run} of {name}"))?;
        println!("run {run}: {name}: {:.2} s", cost.wall_seconds);
        let result = json!({
            "run": run,
            "contender": name,
            "wall_seconds": cost.wall_seconds,
            "cpu_seconds": cost.cpu_seconds,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "image_bytes": bytes,
        });
        writeln!(self.raw, "{result}")?;
        // Whatever happens later, what was measured is kept.
        fs::write(self.results.join("runs.jsonl"), &self.raw)?;
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.results.push(result),
            None => self.rows.push(Row {
                name,
                beside,
                results: vec![result],
            }),
        }
        Ok(())
    }
}

fn skopeo(from: &str, to: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy"]);
    command.args(["--src-tls-verify=false", "--dest-tls-verify=false"]);
    command.args([from, to]);
    command
}

fn median(results: &[Value], figure: &str) -> f64 {
    let mut figures: Vec<f64> = results
        .iter()
        .filter_map(|result| result[figure].as_f64())
        .collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Markdown, below the line `title`. Times are medians; a ratio is time by time.
fn table(title: &str, rows: &[Row]) -> Result<String> {
    let mut text = format!(
        "{title}\n\n| | wall, s | MB/s | its time ÷ the other's | CPU, s | peak memory, MiB |\n\
         |---|--:|--:|--:|--:|--:|\n"
    );
    for row in rows {
        let figure = |name| median(&row.results, name);
        let seconds = figure("wall_seconds");
        let other = rows.iter().find(|other| Some(other.name) == row.beside);
        let ratio = other.map_or_else(String::new, |other| {
            let other = median(&other.results, "wall_seconds");
            format!("{:.2}", seconds / other)
        });
        writeln!(
            text,
            "| {} | {seconds:.2} | {:.0} | {ratio} | {:.2} | {:.0} |",
            row.name,
            figure("image_bytes") / 1e6 / seconds,
            figure("cpu_seconds"),
            figure("peak_memory_bytes") / 1048576.0,
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood() {
        let parsed = |text: &str| {
            let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            parse(&args)
        };
        let options = parsed("oci:/a:b name 2 --only copy --scratch /s").unwrap();
        assert_eq!((options.image.as_str(), options.runs), ("oci:/a:b", 2));
        assert_eq!(options.tasks, [Task::Copy]);
        assert_eq!(options.scratch, Some("/s".into()));
        for bad in [
            "",
            "oci:a",
            "a name",
            "oci:a b 0",
            "oci:a b --only x",
            "oci:a b --x",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_compared() {
        let row = |name, beside, seconds: &[f64]| Row {
            name,
            beside,
            results: seconds
                .iter()
                .map(|seconds| {
                    json!({"wall_seconds": seconds, "image_bytes": 2e6, "cpu_seconds": 1.0,
                        "peak_memory_bytes": 1 << 20})
                })
                .collect(),
        };
        let rows = [
            row("a", None, &[2.0]),
            row("b", Some("a"), &[9.0, 1.0, 3.0]),
        ];
        let text = table("title", &rows).unwrap();
        assert!(
            text.ends_with("| a | 2.00 | 1 |  | 1.00 | 1 |\n| b | 3.00 | 1 | 1.50 | 1.00 | 1 |\n"),
            "{text}"
        );
    }
}
