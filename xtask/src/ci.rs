//! `cargo xtask ci`: what has to hold before a change is merged.

use std::process::ExitCode;

use anyhow::Result;

use crate::shell::{cargo, has_program, run as run_command};

/// Format, lints, licences, then the tests.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    step("format");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("licences");
    if has_program("cargo-deny") {
        run_command(cargo().args(["deny", "check", "licenses", "bans", "sources"]))?;
    } else {
        println!("skipped: licences: cargo-deny is not installed");
    }
    step("tests");
    crate::test::run(args)
}

fn step(name: &str) {
    println!("== {name}");
}
