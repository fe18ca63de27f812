//! `cargo xtask demo`: a real image, its workload watched with eBPF, and what came of it.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

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
    optimize(&source, &output, &dir)?;
    let esgz = || Command::new(target_dir().join("release/esgz"));
    let optimized = format!("oci:{}:esgz", output.display());
    for command in ["inspect", "verify"] {
        println!();
        run_shown(esgz().args([command, &optimized]))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn optimize(source: &str, output: &Path, dir: &Path) -> Result<()> {
    let mut command = Command::new(target_dir().join("release/esgz"));
    command.arg("optimize").arg("--scratch").arg(dir);
    command.arg("--profile-out").arg(dir.join("profile.json"));
    command
        .arg(source)
        .arg(format!("oci:{}:esgz", output.display()));
    run_shown(&mut command)
}

/// Prints the command and runs it; its output is the demonstration.
fn run_shown(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    run_command(command.stdin(Stdio::null()))
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
