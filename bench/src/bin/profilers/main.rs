//! Runs workloads under profilers and measures what these see and what they cost.
//!
//! `profilers run OPTIONS…` prints a line of JSON for each run; `cargo xtask bench profiler` makes tables of them.
//! Every workload runs in a cgroup and a chroot of its own, on a fresh mount of its image of which nothing is cached, and
//! is seen by one subject. A subject is a program (`subject`); a workload is a command of an image or a script of
//! `esgz_tests::touch` (`workload`). The other commands are processes of such a run: `launch` becomes the workload,
//! `watch` is esgz's collector as a subject, `bystander` is the process outside.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its result is its output"
)]

mod bystander;
mod cgroup;
mod closure;
mod differences;
mod image;
mod launch;
mod measure;
mod metrics;
mod rounds;
mod scene;
mod subject;
mod truth;
mod watch;
mod workload;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((task, rest)) => match task.as_str() {
            "run" => rounds::run(rest),
            "launch" => launch::run(rest),
            "watch" => watch::run(rest),
            "bystander" => bystander::run(rest),
            other => bail!("unknown command {other}"),
        },
        None => bail!("usage: profilers run|launch|watch|bystander …"),
    }
}
