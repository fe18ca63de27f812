//! Debian packages that a task needs and a fresh machine lacks.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::shell::{has_program, is_root, run};

/// Installs `package` if there is no program called `program`.
pub(crate) fn install(program: &str, package: &str) -> Result<()> {
    if has_program(program) {
        return Ok(());
    }
    if !has_program("apt-get") {
        bail!("{program} is not installed, and there is no apt-get to install it with");
    }
    if !is_root() {
        bail!("{program} is not installed; as root: apt-get install {package}");
    }
    println!("installing {package}, as there is no {program}");
    apt_get(&["update"]).context("the list of packages cannot be refreshed")?;
    apt_get(&["install", "--yes", "--no-install-recommends", package])
        .with_context(|| format!("{package} cannot be installed"))
}

fn apt_get(args: &[&str]) -> Result<()> {
    // Its output is long and says nothing unless it fails; then its stderr says it.
    run(Command::new("apt-get")
        .args(["--quiet=2", "-o", "Dpkg::Use-Pty=0"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null()))
}
