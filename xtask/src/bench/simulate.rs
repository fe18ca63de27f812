//! `cargo xtask bench simulate`: what `esgz simulate` predicts for the images of a readiness benchmark, beside what
//! that measured.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

use crate::bench::results_dir;
use crate::shell::{cargo, run as run_command, target_dir, workspace_dir};

const USAGE: &str = "usage: cargo xtask bench simulate NAME [--images DIR] [--fit]";

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Options {
    name: String,
    images: Option<PathBuf>,
    fits: bool,
}

fn parse(args: &[String]) -> Result<Options> {
    let (mut name, mut images, mut fits) = (None, None, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--fit" => fits = true,
            "--images" => match args.next() {
                Some(dir) => images = Some(PathBuf::from(dir)),
                None => bail!(USAGE),
            },
            word if name.is_none() && !word.starts_with('-') => name = Some(word.to_owned()),
            _ => bail!(USAGE),
        }
    }
    match name {
        Some(name) => Ok(Options { name, images, fits }),
        None => bail!(USAGE),
    }
}

/// Writes `simulated.md` beside the runs of `bench/runs/NAME`.
pub(super) fn run(args: &[String]) -> Result<ExitCode> {
    let options = parse(args)?;
    let results = results_dir(&options.name)?;
    ensure!(
        results.join("runs.jsonl").is_file(),
        "{} has no runs.jsonl of `cargo xtask bench readiness`",
        results.display()
    );
    let images = match options.images {
        Some(dir) => workspace_dir().join(dir),
        None => target_dir().join("bench/readiness/images"),
    };
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "esgz-bench"]);
    command
        .args(["--bin", "simulate", "--"])
        .arg(&results)
        .arg(&images);
    if options.fits {
        command.arg("--fit");
    }
    run_command(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood() {
        let parsed = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            parse(&args)
        };
        let options = Options {
            name: "n".to_owned(),
            images: Some(PathBuf::from("d")),
            fits: true,
        };
        assert_eq!(parsed(&["n", "--images", "d", "--fit"]).unwrap(), options);
        for bad in [
            &[][..],
            &["--fit"],
            &["a", "b"],
            &["a", "--images"],
            &["a", "--x"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
