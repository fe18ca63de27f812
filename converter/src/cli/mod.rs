//! The command line: arguments, environment and terminal end here.
//!
//! Data goes to stdout, everything else to stderr. An error is printed once, in one line.

mod args;
mod attach;
mod containerd;
mod conversion;
mod created;
mod failure;
mod generate;
mod image;
mod inspect;
mod optimize;
mod output;
mod page;
mod plan;
mod profile;
mod profile_place;
mod progress;
mod reading;
mod registry;
mod report;
mod signals;
mod simulate;
mod verify;
mod wanted;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;

use crate::sys;
use args::{Cli, Command};
use conversion::Said;
use failure::Failure;
use progress::Shown;
use signals::Signals;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let words: Vec<_> = words.collect();
    if image::ctr::is_meant(&words) {
        let failure = image::ctr::hand_over(&words);
        output::error(&failure);
        return ExitCode::from(failure.code);
    }
    let mut cli = match Cli::try_parse_from([&name].into_iter().chain(&words)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap knows where each is printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                failure::USAGE
            } else {
                0
            });
        }
    };
    sys::allocator::return_large_blocks();
    let shown = Shown::new(cli.progress);
    if cli.containerd.debug {
        "debug".clone_into(&mut cli.log_level);
    }
    output::init_logging(&cli.log_level, shown.clone());
    let signals = Signals::listen();
    match run(&mut cli, &signals, &shown) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: &mut Cli, signals: &Signals, progress: &Shown) -> Result<(), Failure> {
    let cancel = signals.cancel();
    let containerd = &containerd::options(&cli.containerd);
    match &mut cli.command {
        Command::Optimize(args) => {
            optimize::optimize(args, containerd, signals, progress, Said::Report)
        }
        Command::Record(args) => optimize::record(args, containerd, signals, progress),
        Command::Convert(args) => {
            conversion::convert(args, containerd, cancel, progress, Said::Report)
        }
        Command::Image(command) => image::run(command, containerd, signals, progress),
        Command::Profile(args) => profile::run(args, cancel),
        Command::Inspect(args) => inspect::inspect(args, containerd, cancel),
        Command::Verify(args) => verify::verify(args, containerd, cancel, progress),
        Command::Report(args) => page::report(args, containerd, cancel),
        Command::Simulate(args) => simulate::simulate(args, containerd, cancel),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
    }
}
