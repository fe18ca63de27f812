//! `cargo xtask kernels`: the profiler's own tests on another kernel, in a machine that QEMU makes.
//!
//! The kernel is Debian's, unpacked from its package; the machine's whole system is an initramfs made
//! here: busybox, a test executable of this build with its libraries, and two modules of the kernel. No
//! KVM is needed: a boot takes about 10 s.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::prerequisites;
use crate::shell::cargo;

const QEMU: &str = "qemu-system-x86_64";
/// The package that depends on the newest 6.1 kernel of Debian 12, with few drivers.
const KERNEL: &str = "linux-image-cloud-amd64";
const SHELL: &str = "busybox-static";
/// What the tests need of the kernel that is not built in.
const MODULES: [&str; 2] = [
    "kernel/drivers/block/loop.ko",
    "kernel/fs/overlayfs/overlay.ko",
];
/// Tests that are run there: those of the collectors, all of which must pass or say why not.
const FILTER: &str = "tiers::";
/// Printed by the machine's first process, before the exit code of the tests.
const EXIT_MARK: &str = "esgz tests exited with";
/// Longer than a boot with all tests takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(300);

/// What the first process does: a file system on a disk's image, as the tests want pages that come from
/// a file system; cgroup v2; then the tests.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /var/tmp /tmp
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox --install -s /bin
mount -t cgroup2 none /sys/fs/cgroup
for module in /modules/*.ko; do insmod "$module"; done
dd if=/dev/zero of=/disk bs=1M count=64 2> /dev/null
mke2fs -F /disk > /dev/null 2>&1
mount -t ext4 -o loop /disk /var/tmp
ip link set lo up
/tests FILTER --test-threads 1 2>&1
echo "EXIT_MARK $?"
poweroff -f
"#;

/// `cargo xtask kernels`: boots the kernel and runs the tests there.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    ensure!(args.is_empty(), "usage: cargo xtask kernels");
    let summary = test()?;
    Ok(if summary.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Boots the kernel, runs the tests there, and prints what they say. What cannot be run here is
/// skipped.
pub(crate) fn test() -> Result<Summary> {
    let skipped = |reason: &dyn std::fmt::Display| {
        println!("skipped: kernels: {reason}");
        Ok(Summary {
            skipped: 1,
            ..Summary::default()
        })
    };
    if !cfg!(target_arch = "x86_64") {
        return skipped(&"the test machine is for x86-64");
    }
    if let Err(error) = prerequisites::install(QEMU, "qemu-system-x86") {
        return skipped(&format_args!("{error:#}"));
    }
    let work = tempfile::tempdir().context("make a directory")?;
    let kernel = match Kernel::of_debian(work.path()) {
        Ok(kernel) => kernel,
        Err(error) => return skipped(&format_args!("{error:#}")),
    };
    let tests = test_executable()?;
    let initramfs = work.path().join("initramfs.cpio");
    make_initramfs(&kernel, &tests, &initramfs)?;
    let clock = Instant::now();
    let log = boot(&kernel, &initramfs, work.path())?;
    let mut summary = Summary::of(&log);
    if !summary.exited_well && summary.failed == 0 {
        summary.failed = 1;
    }
    if summary.failed > 0 {
        println!("{log}");
    }
    print!("{}", summary.lines);
    println!(
        "Linux {}: {} passed, {} failed, {} skipped in {:.0} s",
        kernel.release,
        summary.passed,
        summary.failed,
        summary.skipped,
        clock.elapsed().as_secs_f64()
    );
    Ok(summary)
}

/// An unpacked kernel, and a shell for its machine.
struct Kernel {
    release: String,
    image: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks the packages into `work`; installs nothing.
    fn of_debian(work: &Path) -> Result<Self> {
        let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-6.1"))
            .map(|rest| format!("linux-image-6.1{rest}"))
            .with_context(|| format!("{KERNEL} depends on no 6.1 kernel here"))?;
        output(
            Command::new("apt-get")
                .args(["download", "--quiet", &package, SHELL])
                .current_dir(work),
        )?;
        let root = work.join("packages");
        for entry in fs::read_dir(work)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
                fs::remove_file(&path)?;
            }
        }
        let release = package
            .strip_prefix("linux-image-")
            .unwrap_or(&package)
            .to_owned();
        Ok(Self {
            image: root.join(format!("boot/vmlinuz-{release}")),
            modules: root.join("lib/modules").join(&release),
            busybox: root.join("bin/busybox"),
            release,
        })
    }
}

/// Builds the profiler's tests; the result is their executable.
fn test_executable() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--package", "esgz-tests", "--test", "profiler"]);
    build.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    let messages = output(&mut build)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "profiler")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no test executable")
}

/// Writes the machine's system.
fn make_initramfs(kernel: &Kernel, tests: &Path, path: &Path) -> Result<()> {
    let tree = path.with_extension("d");
    let init = INIT
        .replace("FILTER", FILTER)
        .replace("EXIT_MARK", EXIT_MARK);
    copy(&kernel.busybox, &tree.join("bin/busybox"))?;
    copy(tests, &tree.join("tests"))?;
    for module in MODULES {
        let source = kernel.modules.join(module);
        let name = source.file_name().context("a module has a name")?;
        copy(&source, &tree.join("modules").join(name))?;
    }
    // Dynamic programs, and this machine's libraries for them.
    let programs = ["/bin/true", "/bin/sh"].map(Path::new);
    for program in programs {
        copy(program, &tree.join(program.strip_prefix("/")?))?;
    }
    for program in programs.into_iter().chain([tests]) {
        for library in output(Command::new("ldd").arg(program))?.split_whitespace() {
            if let Some(inside) = library.strip_prefix('/') {
                copy(Path::new(library), &tree.join(inside))?;
            }
        }
    }
    let script = tree.join("init");
    fs::write(&script, init)?;
    output(Command::new("chmod").arg("755").arg(&script))?;
    // The names are relative to the tree; the shell's own cpio writes the kernel's format.
    let mut archive = Command::new(&kernel.busybox);
    archive
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&tree);
    archive.stdin(Stdio::piped()).stderr(Stdio::null());
    let mut child = archive.stdout(File::create(path)?).spawn()?;
    let names = output(Command::new("find").arg(".").current_dir(&tree))?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    stdin.write_all(names.as_bytes())?;
    drop(stdin);
    let status = child.wait()?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copy {}", from.display()))
}

/// Runs the machine until it switches itself off; the result is what it printed.
fn boot(kernel: &Kernel, initramfs: &Path, work: &Path) -> Result<String> {
    let log = work.join("console.log");
    let mut qemu = Command::new(QEMU);
    qemu.args([
        "-machine",
        "q35,accel=tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
    ]);
    qemu.args(["-nographic", "-no-reboot", "-nic", "none", "-append"]);
    qemu.arg("console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init");
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd").arg(initramfs);
    qemu.stdin(Stdio::null()).stderr(Stdio::inherit());
    let mut child = qemu
        .stdout(File::create(&log)?)
        .spawn()
        .with_context(|| format!("run {QEMU}"))?;
    let deadline = Instant::now() + LONGEST;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            let printed = fs::read(&log)?;
            bail!(
                "the machine still runs after {LONGEST:?}:\n{}",
                String::from_utf8_lossy(&printed)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(String::from_utf8_lossy(&fs::read(&log)?).replace('\r', ""))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        errors.trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the tests there printed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    exited_well: bool,
    /// One for each test, and one for each that was skipped.
    lines: String,
}

impl Summary {
    fn of(log: &str) -> Self {
        let mut summary = Self::default();
        for line in log.lines() {
            if let Some((_, skipped)) = line.split_once("skipped: ") {
                summary.skipped += 1;
                summary.lines += &format!("skipped: {skipped}\n");
            }
            if line.ends_with("... ok") || line.trim_end() == "ok" {
                summary.passed += 1;
            } else if line.contains("... FAILED") {
                summary.failed += 1;
            }
            if line.starts_with("test ") && line.contains(" ... ") {
                summary.lines += &format!("{line}\n");
            }
            if let Some(code) = line.split_once(EXIT_MARK) {
                summary.exited_well = code.1.trim() == "0";
            }
        }
        summary.passed = summary.passed.saturating_sub(summary.skipped);
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let log = "\
test profiler::tiers::a ... ok
test profiler::tiers::b ... skipped: tiers::b: no such tracepoint
ok
test profiler::tiers::c ... FAILED
esgz tests exited with 101
";
        let summary = Summary::of(log);
        assert_eq!((summary.passed, summary.failed, summary.skipped), (1, 1, 1));
        assert!(!summary.exited_well);
        assert!(Summary::of("test a ... ok\nesgz tests exited with 0\n").exited_well);
    }
}
