//! What `esgz simulate` predicts beside what was measured, and the constants that would fit best.
//!
//! `simulate [--fit] IMAGES_DIR RUN_DIR…`: each RUN_DIR holds the `runs.jsonl` of `cargo xtask bench readiness`; IMAGES_DIR
//! what that converted: `IMAGE/profile.json`, and a layout `IMAGE/CONTENDER` for each contender. Writes
//! `simulated.md` beside the first runs.
#![allow(clippy::print_stdout, reason = "its result is its output")]

mod fit;
mod measured;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use esgz::simulate::Constants;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let fits = args.first().is_some_and(|arg| arg == "--fit");
    let [images, first, others @ ..] = &args[usize::from(fits)..] else {
        bail!("usage: simulate [--fit] IMAGES_DIR RUN_DIR…");
    };
    let (images, first) = (Path::new(images), Path::new(first));
    let mut text = String::new();
    for runs in std::iter::once(first).chain(others.iter().map(Path::new)) {
        let raw = runs.join("runs.jsonl");
        text += &fs::read_to_string(&raw).with_context(|| format!("reading {}", raw.display()))?;
    }
    let groups = measured::groups(&text)?;
    let cases = measured::cases(groups, images)?;
    ensure!(
        !cases.is_empty(),
        "no run has an image in {}",
        images.display()
    );
    let known = Constants::measured();
    let mut written = table::table("With the committed constants", &cases, &known);
    if fits {
        let fitted = fit::fit(&cases, known);
        written += "\n";
        written += &table::table("With constants fitted to these runs", &cases, &fitted);
        written += &fit::describe(&known, &fitted);
    }
    print!("{written}");
    let path = first.join("simulated.md");
    fs::write(&path, written).with_context(|| format!("writing {}", path.display()))
}
