//! `launch CGROUP ROOT CWD command ARG…|script FILE|forever FILE`: becomes the workload. Joins the cgroup and changes into
//! the root, with /proc, /dev, /tmp and a loopback interface of its own, says `go`, waits for a byte, and begins.
//!
//! What the kernel is asked for until then does not count: it is done before the change of the root, and before `go`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

enum Work {
    Command(Vec<String>),
    Once(String),
    Forever(String),
}

/// Does not return from a command.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let [cgroup, root, cwd, kind, what @ ..] = args else {
        bail!("usage: launch CGROUP ROOT CWD command ARG…|script FILE|forever FILE");
    };
    let script = || -> Result<String> {
        let path = what.first().context("no script is named")?;
        fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
    };
    let work = match kind.as_str() {
        "command" => Work::Command(what.to_vec()),
        "script" => Work::Once(script()?),
        "forever" => Work::Forever(script()?),
        other => bail!("unknown kind of work {other}"),
    };
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mounts(Path::new(root))?;
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    anyhow::ensure!(status.context("cannot run ip")?.success(), "no loopback");
    // Only now: no program of the host runs in it.
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").context("cannot join the cgroup")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::chroot(Path::new(root))?;
    nix::unistd::chdir(Path::new(cwd)).with_context(|| format!("cannot change to {cwd}"))?;

    std::io::stdout().write_all(b"go\n")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_exact(&mut [0])?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    match work {
        Work::Command(words) => {
            let [program, args @ ..] = words.as_slice() else {
                bail!("no command is given");
            };
            // What it says to stderr is seen only if there is no program.
            let mut command = Command::new(program);
            command.args(args);
            let kept = std::io::stderr();
            let stderr = rustix::io::fcntl_dupfd_cloexec(&kept, 3)?;
            dup2_stderr(&null)?;
            let failed = command.exec();
            dup2_stderr(&stderr)?;
            Err(failed).with_context(|| format!("cannot execute {program}"))
        }
        Work::Once(script) => esgz_tests::touch::work(&script),
        Work::Forever(script) => loop {
            esgz_tests::touch::work(&script)?;
        },
    }
}

fn mounts(root: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let at = |name: &str| root.join(name);
    for name in ["proc", "dev", "tmp"] {
        fs::create_dir_all(at(name)).with_context(|| format!("cannot make {name} in the root"))?;
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(
        Some("proc"),
        &at("proc"),
        Some("proc"),
        MsFlags::empty(),
        none,
    )
    .context("cannot mount proc")?;
    mount(Some("/dev"), &at("dev"), none, bind, none).context("cannot mount /dev")?;
    mount(
        Some("tmpfs"),
        &at("tmp"),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .context("cannot mount a tmpfs")?;
    Ok(())
}
