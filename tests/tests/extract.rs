//! Our layers as ordinary tar.gz: each extractor makes of an output what it makes of the source.

use std::fs;
use std::path::Path;
use std::process::Command;

use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::oracle::Oracle;
use esgz_tests::sets::{self, EntrySet};
use esgz_tests::tree::Tree;
use esgz_tests::{find_program, skipped};

/// What eStargz adds.
const OWN: [&str; 3] = [
    "stargz.index.json",
    ".prefetch.landmark",
    ".no.prefetch.landmark",
];

/// Extracts every set's source and output with `extract`, which says in words how it ended.
fn check(extract: impl Fn(&Path, &Path) -> String) {
    // All sets in one image: one conversion without, one with files to prefetch.
    let mut sets = sets::small(16 << 10);
    // GNU tar takes a file of no bytes for no archive; the converted layer is one.
    sets.retain(|set| !set.tar().is_empty());
    let layers = sets
        .iter()
        .map(|set| Layer::from_tar(set.tar(), Compression::Plain));
    let conversion = Conversion::of(&layers.fold(LayoutBuilder::new(), LayoutBuilder::layer));
    let list = conversion.path("prefetch.list");
    fs::write(&list, "dir/*\nusr/lib/*\nlink*\n**/n*\n").unwrap();
    let mut outputs = Vec::new();
    for (name, args) in [
        ("plain", vec![]),
        ("list", vec!["--prefetch-list", list.to_str().unwrap()]),
    ] {
        outputs.push((name, conversion.convert(name, &args).unwrap()));
    }
    let mut failures = Vec::new();
    for (index, EntrySet { name, .. }) in sets.iter().enumerate() {
        let unpack = |what: &str, blob: &Path| {
            let dir = conversion.path(&format!("{what}-{index}"));
            fs::create_dir(&dir).unwrap();
            let ended = extract(blob, &dir);
            for own in OWN {
                let _ = fs::remove_file(dir.join(own));
            }
            (ended, Tree::read(&dir).without_directory_times())
        };
        let source = &conversion.source;
        let (expected, tree) = unpack("source", &source.blob_path(&source.layer_digest(index)));
        for (what, output) in &outputs {
            let (ended, found) = unpack(what, &output.blob_path(&output.layer_digest(index)));
            if ended != expected {
                failures.push(format!("{name}, {what}: {ended}, the source {expected}"));
            }
            for difference in tree.differences(&found) {
                failures.push(format!("{name}, {what}: {difference}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check_program(test: &str, program: &str, args: &[&str]) {
    if find_program(program).is_none() {
        return skipped(test, format!("{program} is not installed"));
    }
    check(|blob, dir| {
        let mut command = Command::new(program);
        command.args(args).arg("-f").arg(blob).arg("-C").arg(dir);
        let output = command.env("LC_ALL", "C.UTF-8").output().unwrap();
        output.status.to_string()
    });
}

#[test]
fn gnu_tar() {
    let args = ["-x", "-p", "--xattrs", "--xattrs-include=*"];
    check_program("extract::gnu_tar", "tar", &args);
}

#[test]
fn bsdtar() {
    check_program("extract::bsdtar", "bsdtar", &["-x", "-p"]);
}

#[test]
fn go() {
    let name = "extract::go";
    if !rustix::process::geteuid().is_root() {
        return skipped(name, "only root can make devices and owners");
    }
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    check(|blob, dir| {
        let text = |path: &Path| path.to_str().expect("test paths are text").to_owned();
        let request = vec!["extract".to_owned(), text(blob), text(dir)];
        // The report counts what eStargz adds, too; of a failure only the reason matters.
        match oracle.batch(&[request]).remove(0) {
            Ok(_) => "extracted".to_owned(),
            Err(error) => error,
        }
    });
}
