//! `watch TIER [--exact | --missing]`: one of esgz's collectors as a program that speaks the protocol of `subject::program`.

use std::fs;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use esgz::layer::entry::FileId;
use esgz::profiler::{
    CacheAtStart, CgroupFilter, DEFAULT_RING_BYTES, Exactness, OpenSource, Profiler,
    ProfilerConfig, Tier, choose,
};
use esgz::rootfs::MountedFile;
use serde_json::{Value, json};

/// Watches until standard input ends.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (mut exactness, mut opens) = (Exactness::FaultAround, OpenSource::Fanotify);
    let tier = match args {
        [tier] => tier,
        [tier, flag] if flag == "--exact" => {
            exactness = Exactness::Exact;
            tier
        }
        [tier, flag] if flag == "--missing" => {
            opens = OpenSource::SystemCalls;
            tier
        }
        _ => bail!("usage: watch TIER [--exact | --missing]"),
    };
    let tier = Tier::ALL
        .into_iter()
        .find(|known| known.name() == tier)
        .with_context(|| format!("no tier {tier}"))?;
    let variable = |name: &str| -> Result<PathBuf> {
        Ok(std::env::var_os(name)
            .with_context(|| format!("{name} is not set"))?
            .into())
    };
    let (root, cwd) = (variable("ESGZ_BENCH_ROOT")?, variable("ESGZ_BENCH_CWD")?);
    let table = Table::read(&variable("ESGZ_BENCH_FILES")?)?;
    let profiler = Profiler::start(&ProfilerConfig {
        tier: choose(Some(tier))?,
        cgroup: &CgroupFilter::from_directory(&variable("ESGZ_BENCH_CGROUP")?)?,
        files: &table.files,
        opened_as: &table.opened_as,
        opens,
        also_opened: &[],
        root: &root,
        cwd: cwd.as_os_str().as_encoded_bytes(),
        ring_bytes: DEFAULT_RING_BYTES,
        exactness,
        cache: match variable("ESGZ_BENCH_CACHE")?.to_str() {
            Some("cold") => CacheAtStart::Cold,
            _ => CacheAtStart::Unknown,
        },
    })?;
    println!("{}", json!({"ready": true}));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let seen = profiler.finish()?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for file in &seen.files {
        let mut line = json!({"path": table.paths[file.file.entry as usize]});
        if tier.knows_ranges() {
            let ranges = file.ranges.iter();
            line["ranges"] = ranges
                .map(|range| json!([range.offset_bytes, range.len_bytes]))
                .collect();
        }
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{}", json!({"lost_events": seen.lost_events}))?;
    Ok(out.flush()?)
}

/// The image's files; an entry's number is its line in the table.
#[derive(Default)]
struct Table {
    paths: Vec<String>,
    files: Vec<MountedFile>,
    opened_as: Vec<MountedFile>,
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut table = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line: Value = serde_json::from_str(line)?;
            let file = |device: &str, inode: &str| {
                Some(MountedFile {
                    device: u32::try_from(line[device].as_u64()?).ok()?,
                    inode: line[inode].as_u64()?,
                    file: FileId {
                        layer: 0,
                        entry: u32::try_from(number).ok()?,
                    },
                    size_bytes: line["size_bytes"].as_u64()?,
                })
            };
            let add = || {
                let path = line["path"].as_str()?.to_owned();
                Some((
                    path,
                    file("device", "inode")?,
                    file("merged_device", "merged_inode")?,
                ))
            };
            let (path, lower, merged) = add().with_context(|| format!("line {line}"))?;
            table.paths.push(path);
            table.files.push(lower);
            table.opened_as.push(merged);
        }
        Ok(table)
    }
}
