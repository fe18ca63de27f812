//! An image of the machine's own Python: a base layer (shell, shared libraries), and on top the
//! interpreter and its standard library.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::layout::{LayerWriter, finish_image};
use crate::prerequisites;
use crate::shell::capture;

/// The distribution's interpreter; others on `PATH` may lie in somebody's home.
const PYTHON: &str = "/usr/bin/python3";

/// Modules that the demonstration imports, where this Python has them.
const MODULES: [&str; 10] = [
    "json",
    "re",
    "asyncio",
    "email.message",
    "http.server",
    "sqlite3",
    "ssl",
    "decimal",
    "zipfile",
    "xml.etree.ElementTree",
];

const ASK: &str = "import json, os, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps({'version': sys.version.split()[0], 'executable': os.path.realpath(sys.executable),
                  'stdlib': sorted({os.path.realpath(paths['stdlib']), os.path.realpath(paths['platstdlib'])})}))";

/// Makes the image in `dir`, replacing what is there.
pub(crate) fn make(dir: &Path) -> Result<()> {
    if !Path::new(PYTHON).exists() {
        prerequisites::install(PYTHON, "python3")?;
    }
    // Isolated: no module of the user's, no variable of the caller's.
    let answer = capture(Command::new(PYTHON).args(["-I", "-c", ASK]))?;
    let python: Value =
        serde_json::from_str(&answer).with_context(|| format!("answer of {PYTHON}"))?;
    let executable = PathBuf::from(python["executable"].as_str().context("no executable")?);
    let stdlib: Vec<PathBuf> = python["stdlib"]
        .as_array()
        .context("no standard library")?
        .iter()
        .filter_map(|path| path.as_str().map(PathBuf::from))
        .collect();
    println!(
        "making an image of Python {} in {}",
        python["version"].as_str().unwrap_or("?"),
        dir.display()
    );
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }

    let mut objects: Vec<PathBuf> = ["/bin/sh", "/usr/bin/env", "/bin/cat"]
        .map(PathBuf::from)
        .to_vec();
    let programs = objects.clone();
    objects.push(executable.clone());
    for dir in &stdlib {
        extension_modules(dir, &mut objects)?;
    }
    let layers = [
        base_layer(dir, &programs, &objects)?,
        python_layer(dir, &executable, &stdlib)?,
    ];
    let config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
        "Entrypoint": ["python3", "-c", program()?],
        "WorkingDir": "/",
    });
    finish_image(dir, &layers, &config)
}

fn program() -> Result<String> {
    let present = |module: &&str| {
        let import = format!("import {module}");
        Command::new(PYTHON)
            .args(["-I", "-c", &import])
            .output()
            .is_ok_and(|run| run.status.success())
    };
    let modules: Vec<&str> = MODULES.into_iter().filter(present).collect();
    ensure!(
        !modules.is_empty(),
        "{PYTHON} can import none of {MODULES:?}"
    );
    Ok(format!("import {}; print('ready')", modules.join(", ")))
}

/// Shell, dynamic loader, shared libraries, and the few files of /etc that they read.
fn base_layer(
    dir: &Path,
    programs: &[PathBuf],
    objects: &[PathBuf],
) -> Result<crate::layout::FinishedLayer> {
    let mut layer = LayerWriter::create(dir)?;
    let mut paths = BTreeSet::new();
    for name in ["/bin", "/lib", "/lib64", "/sbin"].map(Path::new) {
        if name.is_symlink() {
            paths.insert(name.to_owned());
        }
    }
    for path in programs {
        with_links(path, &mut paths)?;
    }
    for object in objects {
        for library in shared_libraries(object)? {
            with_links(&library, &mut paths)?;
        }
    }
    for (name, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
    ] {
        layer.dir(name, mode)?;
    }
    layer.file(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")?;
    layer.file(
        "etc/nsswitch.conf",
        b"passwd: files\ngroup: files\nhosts: files dns\n",
    )?;
    layer.file(
        "etc/os-release",
        &fs::read("/etc/os-release").unwrap_or_default(),
    )?;
    for path in &paths {
        layer.copy(path)?;
    }
    layer.finish()
}

/// The interpreter under its names, and the standard library.
fn python_layer(
    dir: &Path,
    executable: &Path,
    stdlib: &[PathBuf],
) -> Result<crate::layout::FinishedLayer> {
    let mut layer = LayerWriter::create(dir)?;
    let mut names = BTreeSet::new();
    with_links(Path::new(PYTHON), &mut names)?;
    names.insert(executable.to_owned());
    for path in &names {
        layer.copy(path)?;
    }
    // The directory with what is needed to link against libpython is not needed to run.
    let skip = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("config-"))
    };
    for dir in stdlib {
        layer.copy(dir)?;
        layer.tree(dir, dir.strip_prefix("/").unwrap_or(dir), &skip)?;
    }
    layer.finish()
}

fn extension_modules(dir: &Path, objects: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            extension_modules(&path, objects)?;
        } else if path.extension().is_some_and(|extension| extension == "so") {
            objects.push(path);
        }
    }
    Ok(())
}

/// The shared libraries that a program or library is loaded with, the dynamic loader among them.
fn shared_libraries(object: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(object)
        .output()
        .context("cannot run ldd")?;
    // It fails for what is linked statically, and lists nothing.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    Ok(text.lines().filter_map(path).collect())
}

/// Adds `path`, and what it links to until that is no link, all in directories that are no links.
fn with_links(path: &Path, paths: &mut BTreeSet<PathBuf>) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    let parent = parent
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", path.display()))?;
    let path = parent.join(path.file_name().context("a file has a name")?);
    if !paths.insert(path.clone()) || !path.is_symlink() {
        return Ok(());
    }
    let target = fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
    with_links(&parent.join(target), paths)
}
