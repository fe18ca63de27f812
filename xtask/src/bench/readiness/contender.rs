//! Who takes part: the image as it is, and what each converter makes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::images::{Image, Ready, image_bytes};
use super::interrupt::{Interrupt, Running, finish};
use super::node::{BackgroundFetch, Node, Programs};
use crate::bench::peer::{import, imported};
use crate::shell::target_dir;

/// The profile of a workload that has not ended by then is of no use.
const LONGEST_RUN: Duration = Duration::from_secs(3600);
/// The peer cannot wait for a server: it watches it for so long, which is twice what the slowest needs.
const PEER_PERIOD_SECONDS: u64 = 20;
const PEER_TARGET: &str = "bench.invalid/optimized:x";

/// One way to ship the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// As it is, pulled whole onto overlayfs.
    Plain,
    /// `esgz convert`: eStargz of which nothing is prefetched.
    Unoptimized,
    /// `ctr-remote image optimize --oci`.
    Peer,
    /// `esgz optimize`.
    Esgz,
    /// The same run's profile, converted with other flags.
    Variant { name: String, flags: Vec<String> },
}

impl Contender {
    /// `NAME=FLAGS`, flags of `esgz convert` with spaces between them.
    pub(super) fn variant(text: &str) -> Result<Self> {
        let (name, flags) = text
            .split_once('=')
            .with_context(|| format!("{text:?} is not NAME=FLAGS"))?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_plain),
            "{name:?} is no name: letters, digits and hyphens"
        );
        Ok(Self::Variant {
            name: name.to_owned(),
            flags: flags.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// Its name in results, and as a repository.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Plain => "plain",
            Self::Unoptimized => "estargz",
            Self::Peer => "ctr-remote",
            Self::Esgz => "esgz",
            Self::Variant { name, .. } => name,
        }
    }

    pub(super) fn is_lazy(&self) -> bool {
        *self != Self::Plain
    }
}

/// An image that is ready to be pushed.
pub(super) struct Converted {
    pub(super) contender: Contender,
    pub(super) layout: PathBuf,
    pub(super) tag: String,
    pub(super) bytes: u64,
    /// What is known of how it was made.
    pub(super) made: Value,
}

/// Converts `image` for each contender, into `target/bench/readiness/images/NAME`. The peer's, which takes minutes, is
/// kept from one benchmark to the next.
pub(super) fn convert(
    image: &Image,
    contenders: &[Contender],
    programs: &Programs,
    scratch: &Path,
    interrupt: &Interrupt,
) -> Result<Vec<Converted>> {
    let (source, source_tag) = image.layout()?;
    let dir = target_dir()
        .join("bench/readiness/images")
        .join(&image.name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let work = Work {
        image,
        reference: format!("oci:{}:{source_tag}", source.display()),
        profile: dir.join("profile.json"),
        dir: &dir,
        scratch,
        interrupt,
    };
    // Variants need the profile that comes with the first.
    let needs_profile = |contender: &&Contender| matches!(contender, Contender::Variant { .. });
    ensure!(
        !contenders.iter().any(|contender| needs_profile(&contender))
            || contenders.contains(&Contender::Esgz),
        "variants are made with the profile of `esgz optimize`, which is left out"
    );
    let mut order: Vec<&Contender> = contenders.iter().collect();
    order.sort_by_key(needs_profile);
    let mut converted = Vec::new();
    for contender in order {
        interrupt.check()?;
        println!("{}: {}", image.name, contender.name());
        let (layout, made) = match contender {
            Contender::Plain => (source.clone(), Value::Null),
            Contender::Unoptimized => work.esgz("estargz", "convert", &[])?,
            Contender::Esgz => work.esgz("esgz", "optimize", &work.workload_flags())?,
            Contender::Variant { name, flags } => {
                let profile = format!("--profile={}", work.profile.display());
                let flags: Vec<String> = flags.iter().cloned().chain([profile]).collect();
                work.esgz(name, "convert", &flags)?
            }
            Contender::Peer => work.peer(programs, &source, &source_tag)?,
        };
        let tag = match contender {
            Contender::Plain => source_tag.clone(),
            Contender::Peer => peer_tag(&layout)?,
            _ => "x".to_owned(),
        };
        converted.push(Converted {
            contender: contender.clone(),
            bytes: image_bytes(&layout)?,
            layout,
            tag,
            made,
        });
    }
    Ok(converted)
}

/// The name that the exported layout has for its image.
fn peer_tag(layout: &Path) -> Result<String> {
    let index: Value = serde_json::from_str(&fs::read_to_string(layout.join("index.json"))?)?;
    let name = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    Ok(name.as_str().unwrap_or_default().to_owned())
}

struct Work<'a> {
    image: &'a Image,
    reference: String,
    profile: PathBuf,
    dir: &'a Path,
    scratch: &'a Path,
    interrupt: &'a Interrupt,
}

impl Work<'_> {
    fn workload_flags(&self) -> Vec<String> {
        let longest = LONGEST_RUN.as_secs();
        let mut flags = vec![
            format!("--period={longest}"),
            format!("--profile-out={}", self.profile.display()),
        ];
        if let Ready::Http(port) = self.image.ready {
            flags.push(format!("--wait-on-http=http://localhost:{port}/"));
        }
        flags
    }

    fn esgz(&self, name: &str, task: &str, flags: &[String]) -> Result<(PathBuf, Value)> {
        let layout = self.dir.join(name);
        remove(&layout)?;
        let mut command = Command::new(target_dir().join("release/esgz"));
        command
            .args([task, "--log-level=warn", "--progress=none", "--scratch"])
            .arg(self.scratch)
            .args(flags)
            .arg(&self.reference)
            .arg(format!("oci:{}:x", layout.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let begun = Instant::now();
        finish(&mut command, self.interrupt)?;
        Ok((layout, json!({"seconds": begun.elapsed().as_secs_f64()})))
    }

    /// Its layout, and what is known of it; made unless one of the same source, program and arguments is there.
    fn peer(&self, programs: &Programs, source: &Path, tag: &str) -> Result<(PathBuf, Value)> {
        let layout = self.dir.join("ctr-remote");
        let described = self.dir.join("ctr-remote.json");
        let mut flags = vec!["--oci".to_owned()];
        // A command that ends is watched to its end; the period is the longest then.
        let period = match self.image.ready {
            Ready::Exit => LONGEST_RUN.as_secs(),
            Ready::Http(_) => PEER_PERIOD_SECONDS,
        };
        flags.push(format!("--period={period}"));
        let key = json!({
            "source": digest_of(&source.join("index.json"))?,
            "program": digest_of(&programs.ctr_remote)?,
            "flags": flags,
        });
        let there = fs::read_to_string(&described).unwrap_or_default();
        let there: Value = serde_json::from_str(&there).unwrap_or_default();
        if there["key"] == key && layout.join("index.json").exists() {
            return Ok((layout, there["made"].clone()));
        }
        remove(&layout)?;
        let node = self.peer_node(programs)?;
        import(node.ctr(), source)?;
        let name = imported(node.ctr(), Some(tag).filter(|tag| !tag.is_empty()))?;
        let begun = Instant::now();
        let mut optimize = node.ctr_remote();
        optimize.args(["image", "optimize"]).args(&flags);
        optimize.args([&name, PEER_TARGET]);
        // It says more than anyone wants to read, unless it fails.
        let said = self.scratch.join("ctr-remote.log");
        let log = fs::File::create(&said)?;
        optimize.stdout(log.try_clone()?).stderr(log);
        finish(&mut optimize, self.interrupt).with_context(|| {
            let said = fs::read_to_string(&said).unwrap_or_default();
            let last = said.lines().next_back().unwrap_or_default();
            format!("ctr-remote image optimize: {last}: {}", node.log_end())
        })?;
        let made = json!({"seconds": begun.elapsed().as_secs_f64(), "flags": flags});
        self.export(&node, &layout)?;
        let text = json!({"key": key, "made": made}).to_string();
        fs::write(&described, text)?;
        Ok((layout, made))
    }

    /// A node that pulls nothing.
    fn peer_node(&self, programs: &Programs) -> Result<Node> {
        let nowhere = "127.0.0.1:9".parse().context("an address")?;
        let off = BackgroundFetch::Off;
        Node::start(programs, nowhere, off, self.scratch, self.interrupt)
    }

    /// Takes the optimised image out of the node, as a stream.
    fn export(&self, node: &Node, layout: &Path) -> Result<()> {
        let unfinished = layout.with_extension("unfinished");
        remove(&unfinished)?;
        fs::create_dir_all(&unfinished)?;
        let mut unpack = Command::new("sh");
        // Both ends of a pipe, ended together on interruption.
        let mut export = node.ctr();
        export.args(["images", "export", "-", PEER_TARGET]);
        unpack.args([
            "-c",
            "directory=$1; shift; \"$@\" | tar -x -C \"$directory\"",
            "sh",
        ]);
        unpack.arg(&unfinished);
        unpack.arg(export.get_program()).args(export.get_args());
        finish(unpack.stdin(Stdio::null()), self.interrupt)?;
        fs::rename(&unfinished, layout).with_context(|| format!("cannot name {}", layout.display()))
    }
}

/// Pushes an image into the registry, as it is.
pub(super) fn push(image: &Converted, to: &str, interrupt: &Interrupt) -> Result<()> {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy", "--all"]);
    command.args(["--preserve-digests", "--dest-tls-verify=false"]);
    let tag = match image.tag.as_str() {
        "" => String::new(),
        tag => format!(":{tag}"),
    };
    command.arg(format!("oci:{}{tag}", image.layout.display()));
    let mut push = Running::start(command.arg(to).stdin(Stdio::null()))?;
    let status = push.wait(interrupt, LONGEST_RUN)?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn digest_of(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex::encode(Sha256::digest(&bytes)))
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_understood() {
        let variant = Contender::variant("no-pack=--hot-pack=off --chunk-size=1").unwrap();
        let flags = ["--hot-pack=off", "--chunk-size=1"].map(str::to_owned);
        assert_eq!(
            variant,
            Contender::Variant {
                name: "no-pack".to_owned(),
                flags: flags.to_vec()
            }
        );
        for bad in ["a", "=--x", "a b=--x", "-a=--x", "A=--x"] {
            assert!(Contender::variant(bad).is_err(), "{bad}");
        }
    }
}
