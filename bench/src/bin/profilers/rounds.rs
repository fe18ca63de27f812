//! `run`: all workloads under all subjects, in rounds.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::image::Image;
use crate::truth::Truth;
use crate::{measure, subject, workload};

const USAGE: &str = "usage: profilers run --programs oci:DIR --scratch DIR [--image oci:DIR] [--rounds N] \
    [--first-round N] [--subjects NAME,…] [--workloads NAME,…] [--subject NAME=COMMAND]…";

struct Options {
    programs: String,
    scratch: PathBuf,
    image: Option<String>,
    rounds: usize,
    first_round: usize,
    subjects: Vec<String>,
    workloads: Vec<String>,
    commands: Vec<String>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self {
            programs: String::new(),
            scratch: PathBuf::from("/var/tmp"),
            image: None,
            rounds: 1,
            first_round: 1,
            subjects: Vec::new(),
            workloads: Vec::new(),
            commands: Vec::new(),
        };
        let list = |value: &String| value.split(',').map(str::to_owned).collect();
        for pair in args.chunks(2) {
            let [flag, value] = pair else { bail!(USAGE) };
            match flag.as_str() {
                "--programs" => options.programs.clone_from(value),
                "--scratch" => options.scratch = value.into(),
                "--image" => options.image = Some(value.clone()),
                "--rounds" => options.rounds = value.parse().context(USAGE)?,
                "--first-round" => options.first_round = value.parse().context(USAGE)?,
                "--subjects" => options.subjects = list(value),
                "--workloads" => options.workloads = list(value),
                "--subject" => options.commands.push(value.clone()),
                _ => bail!(USAGE),
            }
        }
        if options.programs.is_empty() {
            bail!(USAGE);
        }
        Ok(options)
    }
}

/// A line of JSON for every run, and before them one for every program: how esgz compares with strace.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    // The run that is going on ends, and takes its mounts and cgroups away.
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    let go_on = || {
        ensure!(!stopped.load(Ordering::Relaxed), "interrupted");
        Ok(())
    };
    let scratch = tempfile::tempdir_in(&options.scratch)?;
    let scratch = scratch.path();
    let mut subjects = subject::chosen(&options.subjects, &options.commands)?;
    let programs = Image::scan(&options.programs, scratch)?;
    let given = options.image.as_deref();
    let given = given.map(|image| Image::scan(image, scratch)).transpose()?;
    let workloads = workload::chosen(&options.workloads, &programs, given.as_ref(), scratch)?;
    let mut truths = Vec::new();
    for workload in &workloads {
        eprintln!("{}: the truth", workload.name);
        go_on()?;
        let of = || format!("the truth of {}", workload.name);
        if workload.is_warm {
            truths.push(None);
            continue;
        }
        let (truth, differences) = Truth::of(workload, scratch).with_context(of)?;
        if let Some(differences) = differences {
            print(&differences)?;
        }
        truths.push(Some(truth));
    }
    let last = options.first_round + options.rounds;
    for round in options.first_round..last {
        eprintln!("round {round}");
        for (workload, truth) in workloads.iter().zip(&truths) {
            let warmed = match truth {
                Some(_) => None,
                None => Some(measure::warmed(workload, scratch)?),
            };
            for subject in &subjects {
                go_on()?;
                let what = || format!("{} under {}", workload.name, subject.name());
                let result = match (truth, &warmed) {
                    (Some(truth), _) => measure::cold(workload, subject.as_ref(), truth, scratch),
                    (None, Some(scene)) => {
                        measure::on(scene, workload, subject.as_ref(), None, scratch)
                    }
                    (None, None) => bail!("neither truth nor scene"),
                };
                let mut result = result.with_context(what)?;
                result["workload"] = workload.name.clone().into();
                result["subject"] = subject.name().into();
                result["round"] = round.into();
                print(&result)?;
            }
            if let Some(scene) = warmed {
                scene.strike()?;
            }
        }
        // A slow minute, or what one leaves to the next, hits another one each time.
        subjects.rotate_left(1);
    }
    Ok(())
}

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
