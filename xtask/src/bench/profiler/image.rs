//! The image whose programs are watched: Debian with a few interpreters, a server and a compiler.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::layout::{LayerWriter, finish_image};
use crate::shell::{is_root, target_dir};
use crate::{corpus, prerequisites};

/// What the workloads run. JVM and Node come without what only development needs.
const PACKAGES: [&str; 6] = [
    "gcc",
    "libc6-dev",
    "nginx-light",
    "nodejs",
    "openjdk-17-jre-headless",
    "python3",
];

/// Makes the image, unless it is there already, and returns its layout.
pub(super) fn make() -> Result<PathBuf> {
    let dir = target_dir().join("bench/programs");
    let layout = dir.join("layout");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    ensure!(is_root(), "debootstrap and overlay mounts need root");
    prerequisites::install("debootstrap", "debootstrap")?;
    let base = corpus::base(&target_dir().join("corpus"))?;
    let programs = corpus::upper(&dir, "installed", &[&base], |root| {
        corpus::install_debian(root, &PACKAGES)
    })?;
    if layout.exists() {
        fs::remove_dir_all(&layout)
            .with_context(|| format!("cannot remove {}", layout.display()))?;
    }
    let mut layers = Vec::new();
    for tree in [&base, &programs] {
        println!("compressing {}", tree.display());
        let mut layer = LayerWriter::create(&layout)?;
        layer.tree(tree, Path::new(""), &|_| false)?;
        layers.push(layer.finish()?);
    }
    let config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
        "Cmd": ["sh"],
        "WorkingDir": "/",
    });
    finish_image(&layout, &layers, &config)?;
    Ok(layout)
}
