//! Rebuilds the BPF object and compares it with the committed one.
//!
//! The object is committed so that `cargo build` needs a stable Rust alone. With the toolchain that
//! `TOOLCHAIN` names, the rebuilt object must be the same, byte for byte; with another one it may
//! differ.
#![allow(clippy::print_stderr, reason = "tasks report on stderr")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Debian's compiler: the pinned one that can build `core` for the BPF target.
const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const PACKAGES: &[&str] = &[
    "rustc-web",
    "rust-web-src",
    "cargo-web",
    "llvm-22-dev",
    "libclang-22-dev",
    "clang-22",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
];
/// Variables that would change what the compiler is told.
const FOREIGN_VARIABLES: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// `cargo xtask bpf [--write]`: rebuilds the object, and compares it with the committed one or, with
/// `--write`, replaces that one.
///
/// # Errors
/// When the toolchain cannot be installed, the build fails, or the objects differ although the
/// toolchain is the recorded one.
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let write = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--write"] => true,
        _ => bail!("usage: cargo xtask bpf [--write]"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no workspace")?;
    let package = root.join("converter-ebpf");
    let linker = install_toolchain()?;
    let toolchain = describe_toolchain(&package, &linker)?;
    let built = build(root, &package, &linker)?;

    let object = package.join("esgz.bpf.o");
    let record = package.join("TOOLCHAIN");
    if write {
        std::fs::write(&object, &built).with_context(|| format!("write {}", object.display()))?;
        std::fs::write(&record, &toolchain)
            .with_context(|| format!("write {}", record.display()))?;
        eprintln!(
            "wrote {} ({} bytes) and {}",
            object.display(),
            built.len(),
            record.display()
        );
        return Ok(());
    }
    let committed = std::fs::read(&object).with_context(|| format!("read {}", object.display()))?;
    let recorded =
        std::fs::read_to_string(&record).with_context(|| format!("read {}", record.display()))?;
    if built == committed {
        eprintln!(
            "{} equals its source ({} bytes)",
            object.display(),
            built.len()
        );
    } else if recorded == toolchain {
        bail!(
            "{} differs from its source, built with the same toolchain; run `cargo xtask bpf --write`",
            object.display()
        );
    } else {
        eprintln!(
            "notice: {} differs, but so does the toolchain",
            object.display()
        );
        eprintln!("committed with:\n{recorded}here:\n{toolchain}");
    }
    Ok(())
}

/// Installs what is missing; the result is the directory of `bpf-linker`.
fn install_toolchain() -> anyhow::Result<PathBuf> {
    if !installed(PACKAGES)? {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "--no-install-recommends"])
            .args(PACKAGES);
        succeed(apt.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    let directory = home.join("bin");
    if linker_version(&directory).ok().as_deref() != Some(LINKER_VERSION) {
        let mut install = clean(CARGO);
        install.args(["install", "bpf-linker", "--locked", "--force"]);
        install.args(["--version", LINKER_VERSION]);
        install.args(["--no-default-features", "--features", "llvm-22"]);
        install
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .env("LLVM_SYS_221_PREFIX", LLVM_PREFIX);
        succeed(install.env("RUSTC", RUSTC).env("CARGO_HOME", &home))?;
    }
    Ok(directory)
}

fn installed(packages: &[&str]) -> anyhow::Result<bool> {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("run dpkg-query: the toolchain is installed with Debian's packages")?;
    let installed = String::from_utf8_lossy(&query.stdout)
        .lines()
        .filter(|l| *l == "installed")
        .count();
    Ok(installed == packages.len())
}

fn linker_version(directory: &Path) -> anyhow::Result<String> {
    let text = output(Command::new(directory.join("bpf-linker")).arg("--version"))?;
    text.split_whitespace()
        .nth(1)
        .map(Into::into)
        .context("bpf-linker --version: unexpected output")
}

/// What the object's bytes depend on, besides its source.
fn describe_toolchain(package: &Path, linker: &Path) -> anyhow::Result<String> {
    let rustc = output(Command::new(RUSTC).args(["--version", "--verbose"]))?;
    let field = |name: &str| {
        rustc
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let release = field("release:").context("rustc --version: no release")?;
    let commit = field("commit-hash:").context("rustc --version: no commit")?;
    let llvm = field("LLVM version:").context("rustc --version: no LLVM version")?;
    let lock = std::fs::read_to_string(package.join("Cargo.lock")).context("read Cargo.lock")?;
    let aya = lock
        .split("[[package]]")
        .find(|entry| entry.contains("name = \"aya-ebpf\"\n"))
        .and_then(|entry| {
            entry
                .lines()
                .find_map(|line| line.strip_prefix("version = "))
        })
        .context("Cargo.lock: no aya-ebpf")?;
    Ok(format!(
        "rustc {release} ({commit})\nllvm {llvm}\nbpf-linker {}\naya-ebpf {}\n",
        linker_version(linker)?,
        aya.trim_matches('"')
    ))
}

/// Builds the object from nothing and gives its bytes.
fn build(root: &Path, package: &Path, linker: &Path) -> anyhow::Result<Vec<u8>> {
    let target = tempfile::tempdir_in(root.join("target")).context("make a target directory")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(linker.into()).chain(std::env::split_paths(&path));
    let mut cargo = clean(CARGO);
    cargo
        .current_dir(package)
        .args(["build", "--release", "--locked", "--quiet"]);
    cargo
        .env("PATH", std::env::join_paths(path)?)
        .env("CARGO_TARGET_DIR", target.path());
    // Debian's compiler is a stable one; `-Z build-std` and the target need its unstable features.
    succeed(cargo.env("RUSTC", RUSTC).env("RUSTC_BOOTSTRAP", "1"))?;
    let built = target.path().join(TARGET).join("release/esgz");
    std::fs::read(&built).with_context(|| format!("read {}", built.display()))
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
