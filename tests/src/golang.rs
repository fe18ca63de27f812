//! An image of Debian's Go compiler, each package a layer, as no registry of images can be asked here.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::archive::Entry;
use crate::compress::Compression;
use crate::layout::{Layer, LayoutBuilder};
use crate::{find_program, profile_dir};

/// What `go build` needs, and a shell. Their own dependencies are not followed.
const PACKAGES: [&str; 5] = ["libc6", "libtinfo6", "bash", "golang-go", "golang-src"];

/// The image. Packages are fetched once, and kept in the target directory.
///
/// # Errors
/// Why there is none: this is no Debian, or its packages cannot be fetched.
pub fn image() -> Result<LayoutBuilder, String> {
    if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
        return Err("this is no Debian".to_owned());
    }
    // The compiler itself, of the release's version: golang-1.19-go.
    let depends = printed(Command::new("apt-cache").args(["depends", "golang-go", "golang-src"]))?;
    let depends = String::from_utf8_lossy(&depends).into_owned();
    let versioned = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: golang-1."))
        .map(|rest| format!("golang-1.{rest}"));
    let mut packages: Vec<String> = versioned.collect();
    packages.sort();
    packages.dedup();
    if packages.is_empty() {
        return Err("apt knows no golang-go".to_owned());
    }
    packages.splice(0..0, PACKAGES.map(str::to_owned));
    let dir = profile_dir().join("golang-packages");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let config = json!({
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root"],
        "Cmd": ["/bin/bash"],
    });
    let mut image = LayoutBuilder::new().config(config);
    for package in &packages {
        let tar = printed(
            Command::new("dpkg-deb")
                .arg("--fsys-tarfile")
                .arg(&fetched(package, &dir)?),
        )?;
        image = image.layer(Layer::from_tar(tar, Compression::Gzip(1)));
    }
    let local = [Entry::dir("root"), Entry::dir("tmp").mode(0o1777)];
    Ok(image.layer(Layer::new(&local, Compression::Gzip(1))))
}

/// The file of a package.
fn fetched(package: &str, dir: &Path) -> Result<std::path::PathBuf, String> {
    let find = || {
        let names = crate::conversion::names(dir);
        let name = names
            .into_iter()
            .find(|name| name.starts_with(&format!("{package}_")) && name.ends_with(".deb"));
        name.map(|name| dir.join(name))
    };
    if find().is_none() {
        printed(
            Command::new("apt-get")
                .args(["download", "-o", "APT::Sandbox::User=root", package])
                .current_dir(dir),
        )?;
    }
    find().ok_or_else(|| format!("apt-get downloads no {package}"))
}

fn printed(command: &mut Command) -> Result<Vec<u8>, String> {
    let done = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if done.status.success() {
        Ok(done.stdout)
    } else {
        let errors = String::from_utf8_lossy(&done.stderr);
        Err(format!("{command:?}: {}", errors.trim()))
    }
}
