//! What takes its turn in `bench convert`: the machine's limit, esgz in several ways, and the peer.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::bench::measure::{Cost, measure, tree_bytes};
use crate::bench::peer::Peer;
use crate::shell::target_dir;

/// One way to convert the image, or a part of the work alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// libdeflate alone over the plan's members, on all cores.
    Limits(u8),
    /// A part of copying compressed data, alone.
    Alone(Part),
    /// `esgz convert` at its default, which copies compressed data.
    EsgzDefault,
    /// The same with an index of an earlier conversion.
    EsgzIndexed,
    /// `esgz convert` at a level.
    Esgz(u8),
    /// The same without reading back.
    EsgzUnverified(u8),
    /// The peer at its default.
    PeerDefault,
    /// The peer at a level.
    Peer(u8),
}

/// What a conversion that copies compressed data cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The largest layer, decoded by one thread.
    Inflate,
    /// All members, made from the source's tokens on all cores.
    Copy,
    /// As many bytes as the largest layer's blob has, written and synced.
    Disk,
}

impl Part {
    /// As `limits` names it.
    fn name(self) -> &'static str {
        match self {
            Self::Inflate => "decode_layer",
            Self::Copy => "copy_members",
            Self::Disk => "write_blob",
        }
    }
}

/// The level of the loop, and of the run without verification.
pub(super) const LIMITS_LEVEL: u8 = 6;

impl Contender {
    /// All, in the order of their turns.
    pub(super) fn all(levels: &[u8], peer: Option<&Peer>) -> Vec<Self> {
        let mut levels = levels.to_vec();
        if !levels.contains(&LIMITS_LEVEL) {
            levels.push(LIMITS_LEVEL);
        }
        levels.sort_unstable();
        levels.dedup();
        let mut all = vec![Self::Limits(LIMITS_LEVEL)];
        all.extend([Part::Inflate, Part::Copy, Part::Disk].map(Self::Alone));
        all.extend([Self::EsgzDefault, Self::EsgzIndexed]);
        all.extend(levels.iter().map(|&level| Self::Esgz(level)));
        all.push(Self::EsgzUnverified(LIMITS_LEVEL));
        if peer.is_some() {
            all.push(Self::PeerDefault);
            // ctr-remote's levels end with 9.
            let levels = levels.iter().filter(|level| (1..=9).contains(*level));
            all.extend(levels.map(|&level| Self::Peer(level)));
        }
        all
    }

    /// Whether it is what others are compared with: the loop, the default, and the level of both.
    pub(super) fn takes_every_turn(self) -> bool {
        matches!(
            self,
            Self::Limits(_) | Self::EsgzDefault | Self::Esgz(LIMITS_LEVEL)
        )
    }

    /// Its name in results and tables.
    pub(super) fn name(self) -> String {
        match self {
            Self::Limits(level) => format!("libdeflate {level}, bare loop"),
            Self::Alone(Part::Inflate) => "decoding the largest layer, 1 thread".to_owned(),
            Self::Alone(Part::Copy) => "copying all members, bare loop".to_owned(),
            Self::Alone(Part::Disk) => "writing the largest blob, synced".to_owned(),
            Self::EsgzDefault => "esgz, default".to_owned(),
            Self::EsgzIndexed => "esgz, default, warm --index-cache".to_owned(),
            Self::Esgz(level) => format!("esgz, level {level}"),
            Self::EsgzUnverified(level) => format!("esgz, level {level}, --no-verify"),
            Self::PeerDefault => "ctr-remote, default".to_owned(),
            Self::Peer(level) => format!("ctr-remote, level {level}"),
        }
    }

    /// The peer's run that does the same.
    pub(super) fn same_of_peer(self) -> Option<Self> {
        match self {
            Self::EsgzDefault | Self::EsgzIndexed => Some(Self::PeerDefault),
            Self::Esgz(level) | Self::EsgzUnverified(level) => Some(Self::Peer(level)),
            Self::Limits(_) | Self::Alone(_) | Self::PeerDefault | Self::Peer(_) => None,
        }
    }

    /// Runs it once on `image`; its output is removed again.
    pub(super) fn run(self, image: &str, scratch: &Path, peer: Option<&Peer>) -> Result<Value> {
        match self {
            Self::Limits(level) => limits(image, level, scratch),
            Self::Alone(part) => alone(image, part, scratch),
            Self::EsgzDefault => esgz(image, scratch, &[]),
            Self::EsgzIndexed => {
                let cache = scratch.join("index-cache");
                let flag = format!("--index-cache={}", cache.display());
                if !cache.exists() {
                    esgz(image, scratch, &[&flag])?;
                }
                let mut result = esgz(image, scratch, &[&flag])?;
                result["index_bytes"] = tree_bytes(&cache)?.into();
                Ok(result)
            }
            Self::Esgz(level) => esgz(image, scratch, &[&level_flag(level)]),
            Self::EsgzUnverified(level) => {
                esgz(image, scratch, &[&level_flag(level), "--no-verify"])
            }
            Self::PeerDefault => with_peer(peer, None),
            Self::Peer(level) => with_peer(peer, Some(level)),
        }
    }
}

fn level_flag(level: u8) -> String {
    format!("--estargz-compression-level={level}")
}

fn part_of_limits(image: &str, level: u8, scratch: &Path, part: &str) -> Result<Value> {
    let threads = std::thread::available_parallelism()?.to_string();
    let mut command = Command::new(target_dir().join("release/limits"));
    command.args([image, &level.to_string(), &threads]);
    command.arg(scratch).arg(part);
    let (_, stdout) = measure(&mut command, None)?;
    Ok(serde_json::from_str(&stdout)?)
}

fn alone(image: &str, part: Part, scratch: &Path) -> Result<Value> {
    let found = part_of_limits(image, LIMITS_LEVEL, scratch, part.name())?;
    let result = &found["limits"][part.name()];
    Ok(json!({
        "wall_seconds": result["seconds"],
        "mb_per_second": result["mb_per_second"],
        "output_bytes": found["copied_gzip_bytes"],
    }))
}

fn limits(image: &str, level: u8, scratch: &Path) -> Result<Value> {
    let found = part_of_limits(image, level, scratch, "compress_members")?;
    // The program also scans the image: of its costs only those of the loop are asked for.
    let looped = &found["limits"]["compress_alone"];
    Ok(json!({
        "wall_seconds": looped["seconds"],
        "output_bytes": found["gzip_bytes"],
        "limits": found["limits"],
    }))
}

fn esgz(image: &str, scratch: &Path, args: &[&str]) -> Result<Value> {
    let output = scratch.join("converted");
    remove(&output)?;
    let mut command = Command::new(target_dir().join("release/esgz"));
    command.args(["convert", "--json", "--log-level=warn", "--scratch"]);
    command.arg(scratch).args(args).arg(image);
    command.arg(format!("oci:{}:bench", output.display()));
    let (cost, stdout) = measure(&mut command, None)?;
    let written_bytes = tree_bytes(&output)?;
    remove(&output)?;
    let found: Value = serde_json::from_str(&stdout)?;
    let mut result = costs(&cost);
    result["source_bytes"] = found["source"]["size_bytes"].clone();
    result["tar_bytes"] = found["image"]["tar_bytes"].clone();
    result["output_bytes"] = found["destination"]["size_bytes"].clone();
    result["written_bytes"] = written_bytes.into();
    result["seconds"] = found["seconds"].clone();
    Ok(result)
}

fn with_peer(peer: Option<&Peer>, level: Option<u8>) -> Result<Value> {
    let peer = peer.context("a run of the peer is planned only where there is one")?;
    let converted = peer.convert(level)?;
    let mut result = costs(&converted.cost);
    result["output_bytes"] = converted.output_bytes.into();
    Ok(result)
}

fn costs(cost: &Cost) -> Value {
    let round = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    json!({
        "wall_seconds": round(cost.wall_seconds),
        "cpu_seconds": round(cost.cpu_seconds),
        "peak_memory_bytes": cost.peak_memory_bytes,
    })
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
    fn level_6_takes_part_whatever_the_levels() {
        let names: Vec<String> = Contender::all(&[9, 1, 9], None)
            .into_iter()
            .map(Contender::name)
            .collect();
        assert_eq!(
            names,
            [
                "libdeflate 6, bare loop",
                "decoding the largest layer, 1 thread",
                "copying all members, bare loop",
                "writing the largest blob, synced",
                "esgz, default",
                "esgz, default, warm --index-cache",
                "esgz, level 1",
                "esgz, level 6",
                "esgz, level 9",
                "esgz, level 6, --no-verify"
            ]
        );
    }
}
