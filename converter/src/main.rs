//! The `esgz` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    esgz::cli::main()
}
