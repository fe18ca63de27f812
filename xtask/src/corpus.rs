//! `cargo xtask corpus`: large real images, made of Debian's and PyPI's packages alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::layout::{LayerWriter, finish_image};
use crate::shell::{is_root, run as run_command, target_dir};
use crate::{prerequisites, shell};

/// The distribution of the base layer, and the Python it has.
const SUITE: &str = "bookworm";
const PYTHON_VERSION: &str = "3.11";

/// One image of the corpus.
struct Image {
    name: &'static str,
    packages: &'static [&'static str],
    program: &'static str,
}

const IMAGES: [Image; 2] = [
    // About 5.8 GB uncompressed, 3.1 GB compressed; 12 GB of disk while it is made.
    Image {
        name: "torch",
        packages: &["torch", "numpy"],
        program: "import torch; print(torch.__version__, torch.ones(3).sum())",
    },
    Image {
        name: "numpy",
        packages: &["numpy"],
        program: "import numpy; print(numpy.__version__, numpy.ones(3).sum())",
    },
];

/// Makes the image named in the argument in `target/corpus/NAME/layout`.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let name = args.first().map_or("torch", String::as_str);
    let Some(image) = IMAGES
        .iter()
        .find(|image| image.name == name)
        .filter(|_| args.len() < 2)
    else {
        bail!("usage: cargo xtask corpus [torch|numpy]");
    };
    ensure!(is_root(), "debootstrap and overlay mounts need root");
    prerequisites::install("debootstrap", "debootstrap")?;
    let dir = target_dir().join("corpus").join(name);
    let layout = dir.join("layout");
    if layout.join("index.json").exists() {
        println!("{} is there already", layout.display());
        return Ok(ExitCode::SUCCESS);
    }
    let base = base(&target_dir().join("corpus"))?;
    let python = upper(&dir, "python", &[&base], install_python)?;
    let packages = upper(&dir, "packages", &[&python, &base], |root| {
        install_packages(root, image.packages)
    })?;

    let mut layers = Vec::new();
    for tree in [&base, &python, &packages] {
        println!("compressing {}", tree.display());
        let mut layer = LayerWriter::create(&layout)?;
        layer.tree(tree, Path::new(""), &|_| false)?;
        layers.push(layer.finish()?);
    }
    let config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["python3", "-c", image.program],
        "WorkingDir": "/",
    });
    finish_image(&layout, &layers, &config)?;
    println!("oci:{}:latest", layout.display());
    Ok(ExitCode::SUCCESS)
}

/// A minimal Debian, shared by all images.
pub(crate) fn base(dir: &Path) -> Result<PathBuf> {
    let base = dir.join("base");
    if !base.join("finished").exists() {
        remove(&base)?;
        let root = base.join("root");
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        println!("debootstrap {SUITE}");
        let mut command = Command::new("debootstrap");
        command
            .args(["--variant=minbase", SUITE])
            .arg(&root)
            .arg(mirror())
            .stdout(Stdio::null());
        run_command(&mut command)?;
        fs::write(base.join("finished"), "")?;
    }
    Ok(base.join("root"))
}

/// The mirror that this machine's apt uses.
fn mirror() -> String {
    let sources = [
        "/etc/apt/sources.list.d/debian.sources",
        "/etc/apt/sources.list",
    ];
    let text: String = sources
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let lines = || {
        text.lines()
            .filter(|line| !line.trim_start().starts_with('#'))
    };
    let word = lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|word| word.starts_with("http"));
    word.unwrap_or("http://deb.debian.org/debian").to_owned()
}

/// What `change` does to the root file system of `lower` (the topmost first), as a directory.
pub(crate) fn upper(
    dir: &Path,
    name: &str,
    lower: &[&Path],
    change: impl Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let layer = dir.join(name);
    if !layer.join("finished").exists() {
        remove(&layer)?;
        println!("installing {name}");
        for part in ["upper", "work", "merged"] {
            fs::create_dir_all(layer.join(part))
                .with_context(|| format!("cannot make {}", layer.display()))?;
        }
        let lower: Vec<String> = lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let merged = layer.join("merged");
        run_command(
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(&merged),
        )?;
        let changed = change(&merged);
        let unmounted = run_command(Command::new("umount").arg(&merged));
        changed.and(unmounted)?;
        fs::write(layer.join("finished"), "")?;
    }
    Ok(layer.join("upper"))
}

fn install_python(root: &Path) -> Result<()> {
    install_debian(root, &["python3", "ca-certificates"])
}

/// Installs Debian packages into the root file system at `root`.
pub(crate) fn install_debian(root: &Path, packages: &[&str]) -> Result<()> {
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))
        .context("cannot copy /etc/resolv.conf")?;
    let script = "set -e; apt-get -qq update; \
        apt-get -qq install -y --no-install-recommends \"$@\"; \
        apt-get clean; rm -rf /var/lib/apt/lists/*";
    // Java's package wants /proc; in a mount namespace that ends with the command.
    let inside = "mount -t proc proc \"$1/proc\" && exec chroot \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", inside, "sh"])
        .arg(root)
        .args(["sh", "-c", script, "sh"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run_command(
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null()),
    )
}

fn install_packages(root: &Path, packages: &[&str]) -> Result<()> {
    let pip = ["-m", "pip"];
    let has_pip = |python: &str| {
        Command::new(python)
            .args(pip)
            .arg("--version")
            .output()
            .is_ok_and(|run| run.status.success())
    };
    let python = match ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|python| has_pip(python))
    {
        Some(python) => python,
        None => {
            prerequisites::install("pip3", "python3-pip")?;
            "/usr/bin/python3"
        }
    };
    let target = root.join(format!(
        "usr/local/lib/python{PYTHON_VERSION}/dist-packages"
    ));
    let mut command = Command::new(python);
    command.args(pip).args([
        "install",
        "--quiet",
        "--no-compile",
        "--no-cache-dir",
        "--only-binary=:all:",
    ]);
    command.args([
        "--python-version",
        PYTHON_VERSION,
        "--root-user-action=ignore",
        "--target",
    ]);
    run_command(command.arg(target).args(packages).stdin(Stdio::null()))
}

fn remove(dir: &Path) -> Result<()> {
    let merged = dir.join("merged");
    // An interrupted run may have left its mount.
    if merged.exists() && shell::has_program("mountpoint") {
        let mounted = Command::new("mountpoint").arg("-q").arg(&merged).status();
        if mounted.is_ok_and(|status| status.success()) {
            run_command(Command::new("umount").arg(&merged))?;
        }
    }
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
