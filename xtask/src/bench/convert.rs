//! `cargo xtask bench convert`: whole conversions of one image, in turns, so that what the machine does
//! beside them hits all alike.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::contender::Contender;
use crate::bench::peer::{Peer, Programs};
use crate::bench::table::table;
use crate::bench::{on_this_machine, results_dir, scratch_dir};
use crate::layout::{LayerWriter, finish_image};
use crate::shell::{cargo, is_root, run as run_command};

const USAGE: &str = "usage: cargo xtask bench convert oci:DIR[:TAG]|--small FILES NAME [RUNS] [--levels N,…] [--once] \
[--peer-ctr-remote PATH --peer-containerd PATH]";

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Options {
    image: Image,
    name: String,
    runs: usize,
    levels: Vec<u8>,
    /// Only what is compared most often takes a turn in every run.
    once: bool,
    ctr_remote: Option<PathBuf>,
    containerd: Option<PathBuf>,
}

#[derive(Debug, PartialEq)]
enum Image {
    /// A directory, and the tag if one is given.
    Layout(PathBuf, Option<String>),
    /// So many files of 1 KiB, made for this run.
    Small(usize),
}

const SMALL_BYTES: usize = 1 << 10;

fn parse(args: &[String]) -> Result<Options> {
    let mut words = Vec::new();
    let (mut small, mut levels) = (None, vec![1, 6, 9]);
    let (mut ctr_remote, mut containerd) = (None, None);
    let mut once = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{arg} needs a value\n{USAGE}"))
        };
        match arg.as_str() {
            "--small" => small = Some(value()?.parse().context("--small")?),
            "--levels" => {
                let level = |text: &str| text.parse::<u8>().context("--levels");
                levels = value()?.split(',').map(level).collect::<Result<_>>()?;
                ensure!(
                    levels.iter().all(|level| *level <= 12),
                    "--levels: 12 is the highest"
                );
            }
            "--once" => once = true,
            "--peer-ctr-remote" => ctr_remote = Some(PathBuf::from(value()?)),
            "--peer-containerd" => containerd = Some(PathBuf::from(value()?)),
            flag if flag.starts_with('-') => bail!("unknown flag {flag}\n{USAGE}"),
            _ => words.push(arg.as_str()),
        }
    }
    let image = match small {
        Some(files) => Image::Small(files),
        None => {
            ensure!(!words.is_empty(), USAGE);
            layout(words.remove(0)).context(USAGE)?
        }
    };
    let (name, runs) = match words.as_slice() {
        [name] => (*name, 3),
        [name, runs] => (*name, runs.parse().context(USAGE)?),
        _ => bail!(USAGE),
    };
    ensure!(runs > 0, USAGE);
    ensure!(
        ctr_remote.is_some() == containerd.is_some(),
        "a peer needs both of its programs\n{USAGE}"
    );
    Ok(Options {
        image,
        name: name.to_owned(),
        runs,
        levels,
        once,
        ctr_remote,
        containerd,
    })
}

/// As esgz reads it: a tag has no slash.
fn layout(reference: &str) -> Option<Image> {
    let path = reference.strip_prefix("oci:")?;
    Some(match path.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => Image::Layout(dir.into(), Some(tag.to_owned())),
        _ => Image::Layout(path.into(), None),
    })
}

/// Runs all contenders in turns; results go to `bench/runs/NAME/`.
pub(super) fn run(args: &[String]) -> Result<ExitCode> {
    let options = parse(args)?;
    let results = results_dir(&options.name)?;
    run_command(cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "esgz",
        "--package",
        "esgz-bench",
        "--bins",
    ]))?;
    let scratch = tempfile::Builder::new()
        .prefix("convert-")
        .tempdir_in(scratch_dir()?)?;
    let (dir, tag) = match &options.image {
        Image::Layout(dir, tag) => (dir.clone(), tag.clone()),
        Image::Small(files) => {
            let dir = scratch.path().join("small");
            make_small(&dir, *files)?;
            (dir, Some("latest".to_owned()))
        }
    };
    let peer = match (&options.ctr_remote, &options.containerd) {
        (Some(ctr_remote), Some(containerd)) => {
            ensure!(is_root(), "containerd needs root");
            let programs = Programs {
                ctr_remote: ctr_remote.clone(),
                containerd: containerd.clone(),
            };
            Some(Peer::start(
                &programs,
                &dir,
                tag.as_deref(),
                scratch.path(),
            )?)
        }
        _ => None,
    };
    let image = match &tag {
        Some(tag) => format!("oci:{}:{tag}", dir.display()),
        None => format!("oci:{}", dir.display()),
    };
    let mut found: Vec<(Contender, Vec<Value>)> = Contender::all(&options.levels, peer.as_ref())
        .into_iter()
        .map(|contender| (contender, Vec::new()))
        .collect();
    let mut raw = String::new();
    for run in 1..=options.runs {
        for (contender, results_of_it) in &mut found {
            if options.once && run > 1 && !contender.takes_every_turn() {
                continue;
            }
            let name = contender.name();
            let result = contender
                .run(&image, scratch.path(), peer.as_ref())
                .with_context(|| format!("run {run} of {name}"))?;
            println!("run {run}: {name}: {} s", result["wall_seconds"]);
            let mut line = json!({ "run": run, "contender": name });
            if let (Some(line), Some(result)) = (line.as_object_mut(), result.as_object()) {
                line.extend(result.clone());
            }
            writeln!(raw, "{line}")?;
            // Whatever happens later, what was measured is kept.
            fs::write(results.join("runs.jsonl"), &raw)?;
            results_of_it.push(result);
        }
    }
    let mut title = match &options.image {
        Image::Layout(..) => "`esgz convert`".to_owned(),
        Image::Small(files) => format!("`esgz convert` of {files} files of 1 KiB"),
    };
    write!(
        title,
        ", {} runs in turns, {}",
        options.runs,
        on_this_machine()?
    )?;
    if let Some(peer) = &peer {
        write!(title, "; {}", peer.version()?)?;
    }
    let table = table(&title, &found)?;
    fs::write(results.join("table.md"), &table)?;
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// One layer, `files` files of 1 KiB in directories of 1000: half of each is text, half noise.
fn make_small(dir: &Path, files: usize) -> Result<()> {
    let mut layer = LayerWriter::create(dir)?;
    let mut contents = b"a line of text that many small files have, more or less\n".repeat(32);
    contents.truncate(SMALL_BYTES);
    let mut state = 1_u64;
    for file in 0..files {
        if file % 1000 == 0 {
            layer.dir(&format!("files/{}", file / 1000), 0o755)?;
        }
        for byte in &mut contents[SMALL_BYTES / 2..] {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        layer.file(&format!("files/{}/{file}", file / 1000), &contents)?;
    }
    finish_image(dir, &[layer.finish()?], &json!({"Cmd": ["/bin/true"]}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Options> {
        let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&args)
    }

    #[test]
    fn arguments_are_understood() {
        let options = parsed("oci:/a:b/c:tag name 5 --levels 1,12").unwrap();
        assert_eq!(
            options.image,
            Image::Layout("/a:b/c".into(), Some("tag".to_owned()))
        );
        assert_eq!((options.runs, options.levels), (5, vec![1, 12]));
        assert!(!options.once && parsed("oci:a name --once").unwrap().once);
        let options = parsed("--small 50000 name").unwrap();
        assert_eq!((options.image, options.runs), (Image::Small(50_000), 3));
        for bad in [
            "",
            "oci:a",
            "a name",
            "oci:a name x",
            "oci:a name 0",
            "oci:a name --levels 13",
            "oci:a name --peer-ctr-remote /c",
            "oci:a name --loud",
            "--small x name",
            "oci:a name 1 2",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
