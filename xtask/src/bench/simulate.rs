//! `cargo xtask bench simulate`: what `esgz simulate` predicts for the images of a readiness benchmark, beside what
//! that measured.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};

use crate::bench::results_dir;
use crate::shell::{cargo, run as run_command, target_dir, workspace_dir};

const USAGE: &str = "usage: cargo xtask bench simulate NAME… [--images DIR] [--fit]";

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Options {
    /// Of directories with runs.
    names: Vec<String>,
    images: Option<PathBuf>,
    fits: bool,
}

fn parse(args: &[String]) -> Result<Options> {
    let (mut names, mut images, mut fits) = (Vec::new(), None, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--fit" => fits = true,
            "--images" => match args.next() {
                Some(dir) => images = Some(PathBuf::from(dir)),
                None => bail!(USAGE),
            },
            word if !word.starts_with('-') => names.push(word.to_owned()),
            _ => bail!(USAGE),
        }
    }
    ensure!(!names.is_empty(), USAGE);
    Ok(Options {
        names,
        images,
        fits,
    })
}

/// Writes `simulated.md` beside the runs of the first `bench/runs/NAME`.
pub(super) fn run(args: &[String]) -> Result<ExitCode> {
    let options = parse(args)?;
    let mut results = Vec::with_capacity(options.names.len());
    for name in &options.names {
        let dir = results_dir(name)?;
        ensure!(
            dir.join("runs.jsonl").is_file(),
            "{} has no runs.jsonl of `cargo xtask bench readiness`",
            dir.display()
        );
        results.push(dir);
    }
    let images = match options.images {
        Some(dir) => workspace_dir().join(dir),
        None => target_dir().join("bench/readiness/images"),
    };
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "esgz-bench"]);
    command.args(["--bin", "simulate", "--"]);
    if options.fits {
        command.arg("--fit");
    }
    command.arg(&images).args(&results);
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
            names: vec!["n".to_owned(), "m".to_owned()],
            images: Some(PathBuf::from("d")),
            fits: true,
        };
        let found = parsed(&["n", "--images", "d", "m", "--fit"]).unwrap();
        assert_eq!(found, options);
        for bad in [&[][..], &["--fit"], &["a", "--images"], &["a", "--x"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
