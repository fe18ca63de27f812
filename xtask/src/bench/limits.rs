//! `cargo xtask bench limits`: whether `--memory` holds on layers that ask for much of it, and what scratch
//! space they take. Fails if it does not.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::measure::{measure_any, tree_bytes};
use crate::bench::{on_this_machine, results_dir, scratch_dir};
use crate::layout::{LayerWriter, finish_image};
use crate::shell::{cargo, run as run_command, target_dir};

const USAGE: &str = "usage: cargo xtask bench limits NAME [--no-zeros]";

/// The default of `--memory`, which every run is given.
const MEMORY_BYTES: u64 = 512 << 20;

/// Layers at the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// 500 000 files of 100 bytes with names of about 60.
    SmallFiles,
    /// A file of 20 GB that gzip makes 20 MB of.
    Zeros,
    /// More names than fit: 400 000 of 240 bytes.
    Names,
}

/// What is run on a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Convert(&'static [&'static str]),
    Verify,
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::SmallFiles => "500 000 files of 100 bytes",
            Self::Zeros => "20 GB of zeros",
            Self::Names => "400 000 names of 240 bytes",
        }
    }

    fn make(self, dir: &Path) -> Result<()> {
        let mut layer = LayerWriter::create(dir)?;
        match self {
            Self::SmallFiles => {
                let mut contents = [0; 100];
                let mut state = 1_u64;
                for file in 0..500_000 {
                    for byte in &mut contents[..32] {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        *byte = (state >> 56) as u8;
                    }
                    let name = format!(
                        "usr/lib/python3/dist-packages/package{:04}/module_{file:07}.py",
                        file / 500
                    );
                    layer.file(&name, &contents)?;
                }
            }
            Self::Zeros => layer.zeros("zeros", 20_000_000_000)?,
            Self::Names => {
                for file in 0..400_000 {
                    layer.file(&format!("{}/{file:07}", "directory".repeat(25)), b"")?;
                }
            }
        }
        finish_image(dir, &[layer.finish()?], &json!({"Cmd": ["/bin/true"]}))
    }

    fn runs(self) -> &'static [Run] {
        match self {
            Self::SmallFiles | Self::Zeros => &[
                Run::Convert(&[]),
                Run::Verify,
                Run::Convert(&["--estargz-compression-level=6"]),
                Run::Verify,
            ],
            Self::Names => &[Run::Convert(&[])],
        }
    }

    /// What a command must say if it may not succeed.
    fn refusal(self) -> Option<&'static str> {
        (self == Self::Names).then_some("has too many entries")
    }
}

/// Runs everything; results go to `bench/runs/NAME/`.
pub(super) fn run(args: &[String]) -> Result<ExitCode> {
    let (name, layers) = parse(args)?;
    let results = results_dir(&name)?;
    run_command(cargo().args(["build", "--release", "--quiet", "--package", "esgz"]))?;
    let scratch = tempfile::Builder::new()
        .prefix("limits-")
        .tempdir_in(scratch_dir()?)?;
    let (mut raw, mut table) = (String::new(), String::new());
    writeln!(
        table,
        "`esgz` with `--memory=512MiB`, {}\n\n\
        | layer | command | wall, s | peak memory, MiB | scratch, MiB | output, MB | said |\n\
        |---|---|--:|--:|--:|--:|---|",
        on_this_machine()?
    )?;
    let mut holds = true;
    for &layer in layers {
        println!("making {}", layer.name());
        let dirs = Dirs {
            source: scratch.path().join("source"),
            output: scratch.path().join("output"),
            spools: scratch.path().join("spools"),
        };
        layer.make(&dirs.source)?;
        for run in layer.runs() {
            let result = dirs.run(layer, *run)?;
            println!("{result}");
            writeln!(raw, "{result}")?;
            fs::write(results.join("runs.jsonl"), &raw)?;
            holds &= result["peak_memory_bytes"].as_u64() <= Some(MEMORY_BYTES);
            row(&mut table, &result)?;
        }
        fs::remove_dir_all(&dirs.source)?;
    }
    fs::write(results.join("table.md"), &table)?;
    print!("{table}");
    if !holds {
        println!("--memory does not hold");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(args: &[String]) -> Result<(String, &'static [Layer])> {
    let all = &[Layer::SmallFiles, Layer::Names, Layer::Zeros];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [name] if !name.starts_with('-') => Ok((name.to_owned(), all)),
        [name, "--no-zeros"] | ["--no-zeros", name] => Ok((name.to_owned(), &all[..2])),
        _ => bail!(USAGE),
    }
}

fn row(table: &mut String, result: &Value) -> Result<()> {
    let in_units = |figure: &str, unit: f64| {
        let bytes = result[figure].as_f64();
        bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{:.1}", bytes / unit))
    };
    let text = |figure: &str| result[figure].as_str().unwrap_or("").to_owned();
    writeln!(
        table,
        "| {} | `{}` | {} | {} | {} | {} | {} |",
        text("layer"),
        text("command"),
        in_units("wall_seconds", 1.0),
        in_units("peak_memory_bytes", f64::from(1 << 20)),
        in_units("scratch_bytes", f64::from(1 << 20)),
        in_units("output_bytes", 1e6),
        text("said"),
    )?;
    Ok(())
}

/// Where a layer's runs read and write.
struct Dirs {
    source: PathBuf,
    output: PathBuf,
    spools: PathBuf,
}

impl Dirs {
    fn run(&self, layer: Layer, run: Run) -> Result<Value> {
        fs::create_dir_all(&self.spools)?;
        let reference = |dir: &Path| format!("oci:{}:latest", dir.display());
        let mut command = Command::new(target_dir().join("release/esgz"));
        let words = match run {
            Run::Convert(flags) => {
                let _ = fs::remove_dir_all(&self.output);
                command
                    .arg("convert")
                    .args([reference(&self.source), reference(&self.output)]);
                command.args(flags);
                ["convert"].iter().chain(flags).copied().collect()
            }
            Run::Verify => {
                command.arg("verify").arg(reference(&self.output));
                vec!["verify"]
            }
        };
        command
            .arg("--memory=512MiB")
            .arg("--scratch")
            .arg(&self.spools)
            .args(["--progress=none"]);
        let mut scratch_bytes = 0;
        let ended = measure_any(&mut command, None, &mut |pid| {
            scratch_bytes = open_bytes(pid, &self.spools).max(scratch_bytes);
        })?;
        let said = match layer.refusal() {
            None => {
                ensure!(
                    ended.status.success(),
                    "{command:?}: {}: {}",
                    ended.status,
                    ended.stderr
                );
                String::new()
            }
            Some(refusal) => {
                let line = ended.stderr.lines().find(|line| line.contains(refusal));
                let line = line.with_context(|| format!("{command:?}: {}", ended.stderr))?;
                ensure!(!ended.status.success(), "{command:?} should fail");
                line.to_owned()
            }
        };
        let output_bytes = self.output.is_dir().then(|| tree_bytes(&self.output));
        Ok(json!({
            "layer": layer.name(),
            "command": words.join(" "),
            "wall_seconds": ended.cost.wall_seconds,
            "cpu_seconds": ended.cost.cpu_seconds,
            "peak_memory_bytes": ended.cost.peak_memory_bytes,
            "scratch_bytes": scratch_bytes,
            "output_bytes": output_bytes.transpose()?,
            "said": said,
        }))
    }
}

/// Disk space of the files below `dir` that a process has open: spools have no name.
fn open_bytes(pid: u32, dir: &Path) -> u64 {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    open.flatten()
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(dir)))
        .filter_map(|fd| fs::metadata(fd.path()).ok())
        // In units of 512 bytes (stat(2)).
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn arguments_are_understood() {
        let parsed = |text: &str| {
            let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            parse(&args)
        };
        assert_eq!(parsed("name").unwrap().1.len(), 3);
        assert!(!parsed("name --no-zeros").unwrap().1.contains(&Layer::Zeros));
        for bad in ["", "--no-zeros", "a b", "a --no-zeros c"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_without_names_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        file.sync_all().unwrap();
        assert!(open_bytes(std::process::id(), dir.path()) >= 100_000);
        assert_eq!(open_bytes(std::process::id(), Path::new("/elsewhere")), 0);
    }
}
