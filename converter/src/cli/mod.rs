//! The command line: arguments, environment and terminal end here.
//!
//! Data goes to stdout, everything else to stderr. An error is printed once, in one line.

mod args;
mod attach;
mod conversion;
mod created;
mod failure;
mod generate;
mod inspect;
mod optimize;
mod output;
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
use failure::Failure;
use progress::Shown;
use signals::Signals;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
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
    output::init_logging(&cli.log_level, shown.clone());
    let signals = Signals::listen();
    match run(&cli, &signals, &shown) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: &Cli, signals: &Signals, progress: &Shown) -> Result<(), Failure> {
    let cancel = signals.cancel();
    match &cli.command {
        Command::Optimize(args) => optimize::optimize(args, signals, progress),
        Command::Record(args) => optimize::record(args, signals, progress),
        Command::Convert(args) => conversion::convert(args, cancel, progress),
        Command::Profile(args) => profile::run(args, cancel),
        Command::Inspect(args) => inspect::inspect(args, cancel),
        Command::Verify(args) => verify::verify(args, cancel, progress),
        Command::Simulate(args) => simulate::simulate(args, cancel),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
    }
}
