//! Conversions with profiles of big sparse files, by the program: what comes out is read by the reference,
//! by extractors and by esgz itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use esgz_tests::archive::{Entry, Kind};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt::Estargz;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::oracle::Oracle;
use esgz_tests::sets::noise;
use esgz_tests::tree::Tree;
use esgz_tests::{find_program, skipped};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;
/// Sizes of the big files: no larger than giants have to be, as tests of this kind are slow.
const ONE: usize = 12 * MIB + 777;
const TWO: usize = 9 * MIB;
const DENSE: usize = 8 * MIB;

/// Bytes that are soon made, with a period that no match reaches: another compressor would save nothing.
fn repeated(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, 48 << 10)
        .into_iter()
        .cycle()
        .take(len)
        .collect()
}

/// Two giants, one of them with another name, one file that is mostly hot, and small ones between them.
fn entries() -> Vec<Entry> {
    vec![
        Entry::dir("lib/"),
        Entry::file("lib/small", noise(1, 3000)),
        Entry::file("lib/one.so", noise(2, ONE)).mode(0o755),
        Entry::file("lib/two.so", repeated(3, TWO)).owner(7, 8),
        Entry::hardlink("lib/two.so.2", "lib/two.so").owner(7, 8),
        Entry::file("lib/dense.so", repeated(4, DENSE)),
        Entry::file("etc/conf", "text"),
        Entry::file("lib/cold.so", repeated(5, DENSE)),
        Entry::new(Kind::Fifo, "pipe"),
    ]
}

pub(super) type Ranges<'a> = &'a [(usize, usize)];

/// A file of the base layer with its size and what of it was touched.
pub(super) type Touched<'a> = (&'a str, usize, Ranges<'a>);

pub(super) const TOUCHED: &[Touched<'_>] = &[
    (
        "lib/one.so",
        ONE,
        &[(0, 4096), (6 * MIB, 8192), (12 * MIB, 777)],
    ),
    ("lib/small", 3000, &[(0, 3000)]),
    // Under its other name; two ranges that are one with their margins.
    (
        "lib/two.so.2",
        TWO,
        &[(5 * MIB, 4096), (5 * MIB + MIB / 2, 4096)],
    ),
    ("lib/dense.so", DENSE, &[(0, 7 * MIB)]),
    // Opened only.
    ("lib/cold.so", DENSE, &[]),
];

pub(super) fn image() -> LayoutBuilder {
    let upper = [Entry::file("etc/conf", "changed")];
    LayoutBuilder::new()
        .layer(Layer::new(&entries(), Compression::Gzip(6)))
        .layer(Layer::new(&upper, Compression::Gzip(6)))
}

/// The file of a profile of `layout` that says so.
pub(super) fn profile(conversion: &Conversion, name: &str, touched: &[Touched<'_>]) -> PathBuf {
    let manifest = conversion.source.manifest();
    let layers = manifest["layers"].as_array().unwrap();
    let layers: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let files: Vec<Value> = touched
        .iter()
        .zip(0..)
        .map(|((path, size, ranges), seq)| {
            let bytes: usize = ranges.iter().map(|(_, len)| len).sum();
            json!({
                "path": path, "layer": 0, "size_bytes": size, "phase": "run",
                "first_touch_seq": seq, "first_touch_ms": 0, "opened": true, "executed": false,
                "touched_bytes": bytes, "ranges": ranges,
            })
        })
        .collect();
    let profile = json!({
        "esgz_profile": 1,
        "image": {
            "reference": "test", "manifest": conversion.source.manifest_digest(),
            "platform": "linux/amd64", "layers": layers,
        },
        "workload": {"args": [], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "test", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 0,
        "runs": 1, "files": files,
    });
    let path = conversion.path(name);
    fs::write(&path, profile.to_string()).unwrap();
    path
}

pub(super) fn with_profile<'a>(path: &'a Path, args: &[&'a str]) -> Vec<&'a str> {
    [&["--profile", path.to_str().unwrap()], args].concat()
}

/// Names of the base layer's tar entries, in order.
fn names(oracle: &Oracle, layout: &Layout) -> Vec<String> {
    let listed = oracle.layer_list(&layout.blob_path(&layout.layer_digest(0)));
    let name = |header: &Value| header["name"].as_str().unwrap().to_owned();
    listed.unwrap().iter().map(name).collect()
}

/// Bytes of hot ranges with their margins, gaps closed: those of one.so and of two.so. First chunks apart.
const BEFORE: usize = 128 << 10;
const BEHIND: usize = 256 << 10;
const HOT_BYTES: usize = (4096 + BEHIND - FIRST_BYTES)
    + (8192 + BEFORE + BEHIND)
    + (777 + BEFORE)
    + (MIB / 2 + 4096 + BEFORE + BEHIND);
const FIRST_BYTES: usize = 16 << 10;

#[test]
fn packed_images_are_read_by_the_reference() {
    let name = "hot_pack::conversions::packed_images_are_read_by_the_reference";
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    let conversion = Conversion::of(&image());
    let profile = profile(&conversion, "profile", TOUCHED);
    let source = conversion.source.reference();
    for (name, args, options) in [
        ("copied", &[][..], &[][..]),
        ("compressed", &["--estargz-compression-level=1"], &[]),
        (
            "small",
            &[
                "--estargz-chunk-size=100KiB",
                "--estargz-compression-level=1",
            ],
            &[],
        ),
        (
            "shared",
            &["--estargz-min-chunk-size=64KiB"],
            &["--shared-members"],
        ),
    ] {
        let mut calls = Vec::new();
        for threads in ["1", "2", "7"] {
            let output = format!("{name}-{threads}");
            let args = [args, &["--threads", threads, "--json"]].concat();
            let args = with_profile(&profile, &args);
            let finished = conversion.command(&output).args(args).run().success();
            let finished = conversion.finish(finished.unwrap()).unwrap();
            calls.push((conversion.output(&output), finished.stdout));
        }
        let (output, report) = &calls[0];
        for (other, _) in &calls[1..] {
            assert_eq!(other.manifest_digest(), output.manifest_digest(), "{name}");
        }
        let report: Value = serde_json::from_str(report).unwrap();
        let prefetch = &report["prefetch"];
        assert_eq!(prefetch["packed"]["files"], 2, "{name}");
        let packed = &prefetch["packed"];
        assert_eq!(packed["bytes"], HOT_BYTES, "{name}");
        assert_eq!(packed["first_chunks_bytes"], FIRST_BYTES, "{name}");
        assert_eq!(prefetch["files"], 2, "{name}");
        assert_eq!(prefetch["bytes"], 3000 + DENSE, "{name}");
        let is_copied = &report["layers"][0]["encoding"]["copied"];
        assert_eq!(*is_copied, json!(name == "copied"), "{name}");

        let read = oracle.image(output, Some(&conversion.source), options);
        let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        let verified = &read["manifests"][0]["layers"][0]["verify"];
        let giants = json!(["lib/one.so", "lib/two.so"]);
        assert_eq!(verified["packedFiles"], giants, "{name}");
        assert_eq!(verified["packedBytes"], HOT_BYTES, "{name}");
        let prioritized = json!(["lib", "lib/small", "lib/dense.so"]);
        assert_eq!(verified["prioritized"], prioritized, "{name}");
        let blob = output.blob_path(&output.layer_digest(0));
        let toc_digest = verified["tocDigest"].as_str().unwrap();
        let inflated = oracle.prefetch(&blob, toc_digest).unwrap();
        // Where chunks share members the reference counts those that came with others again.
        if name != "shared" {
            assert_eq!(inflated["bytes"], 3000 + DENSE, "{name}");
        }
        assert_eq!(
            inflated["compressedBytes"], prefetch["compressed_bytes"],
            "{name}"
        );
        let verify = Esgz::new("verify").arg(output.reference());
        verify.args(["--source", &source]).run().success().unwrap();
    }
}

#[test]
fn packs_stand_where_the_layout_has_them() {
    let name = "hot_pack::conversions::packs_stand_where_the_layout_has_them";
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    let conversion = Conversion::of(&image());
    let check = |name: &str, touched: &[Touched<'_>], args: &[&str], expected: &[&str]| {
        let profile = profile(&conversion, "profile", touched);
        let output = conversion.convert(name, &with_profile(&profile, args));
        let names = names(&oracle, &output.unwrap());
        assert_eq!(names[..expected.len()], *expected, "{name}");
        names
    };
    let rest = ["lib/one.so", "lib/two.so", "lib/two.so.2", "etc/conf"];
    let usual = check(
        "usual",
        TOUCHED,
        &[],
        &[
            ".wh..wh.esgz.hot",
            "lib/",
            "lib/small",
            "lib/dense.so",
            ".prefetch.landmark",
            ".wh..wh.esgz.hot0",
        ],
    );
    assert_eq!(usual[6..10], rest);
    // Also where the profile would not have it by itself.
    let dense = [
        ".wh..wh.esgz.hot",
        "lib/",
        "lib/small",
        ".prefetch.landmark",
        ".wh..wh.esgz.hot0",
    ];
    check("on", TOUCHED, &["--hot-pack=on"], &dense);
    let off = check(
        "off",
        TOUCHED,
        &["--hot-pack=off"],
        &[
            "lib/",
            "lib/one.so",
            "lib/small",
            "lib/two.so",
            "lib/two.so.2",
            "lib/dense.so",
        ],
    );
    assert!(off.iter().all(|name| !name.contains("esgz")), "{off:?}");
    // Giants alone, of which one's start was touched, or only that.
    let (one, start) = (&TOUCHED[..1], &[("lib/one.so", ONE, &[(0, 4096)][..])]);
    check(
        "alone",
        one,
        &[],
        &[
            ".wh..wh.esgz.hot",
            ".prefetch.landmark",
            ".wh..wh.esgz.hot0",
            "lib/",
        ],
    );
    check(
        "start",
        start,
        &[],
        &[
            ".wh..wh.esgz.hot",
            ".prefetch.landmark",
            ".wh..wh.esgz.hot0",
            "lib/",
        ],
    );
    // A list knows of no ranges.
    let list = conversion.path("paths");
    fs::write(&list, "lib/one.so").unwrap();
    let output = conversion.convert(
        "list",
        &["--prefetch-list", list.to_str().unwrap(), "--hot-pack=on"],
    );
    let listed = names(&oracle, &output.unwrap());
    assert_eq!(listed[..3], ["lib/", "lib/one.so", ".prefetch.landmark"]);
}

/// A packed image as source: its packs are dropped, or it is carried over.
#[test]
fn packed_images_are_converted_again() {
    let conversion = Conversion::of(&image());
    let usual = profile(&conversion, "usual", TOUCHED);
    let packed = conversion
        .convert("packed", &with_profile(&usual, &[]))
        .unwrap();
    let convert = |name: &str, from: &Layout, args: &[&str]| {
        let to = conversion.output(name);
        let mut call = Esgz::new("convert").args([from.reference(), to.reference()]);
        call = call.args(args).arg("--json");
        let report = call.run().success().unwrap().stdout;
        let verify = Esgz::new("verify").arg(to.reference());
        let source = conversion.source.reference();
        verify.args(["--source", &source]).run().success().unwrap();
        (to, serde_json::from_str::<Value>(&report).unwrap())
    };
    let members = |layout: &Layout| {
        let mut toc = Estargz::of(layout, 0);
        let mut inner = 0;
        toc.edit_rows(|rows| {
            inner = rows
                .iter()
                .filter(|row| row.get("innerOffset").is_some())
                .count();
        });
        inner
    };
    // The first chunk; behind it, and around two places, what is read and what is there in case; the last place; and
    // between the two of two.so 128 KiB and the rest.
    assert_eq!(members(&packed), 11);
    let (again, report) = convert("again", &packed, &[]);
    assert_eq!(members(&again), 0);
    assert_eq!(report["prefetch"]["packed"]["files"], 0);
    // With the same profile what comes out is the same, whatever the source was.
    let (same, _) = convert(
        "same",
        &packed,
        &with_profile(&usual, &["--estargz-compression-level=6"]),
    );
    let (direct, _) = convert(
        "direct",
        &conversion.source,
        &with_profile(&usual, &["--estargz-compression-level=6"]),
    );
    assert_eq!(same.layer_digest(0), direct.layer_digest(0));

    let is_reused = |name: &str, args: &[&str]| {
        let (_, report) = convert(name, &packed, &[args, &["--reuse"]].concat());
        report["layers"][0]["reused"].as_bool().unwrap()
    };
    assert!(is_reused("nothing-wanted", &[]));
    assert!(is_reused("the-same-wanted", &with_profile(&usual, &[])));
    let less = profile(&conversion, "less", &TOUCHED[1..]);
    assert!(!is_reused("less-wanted", &with_profile(&less, &[])));
    let mut other = TOUCHED.to_vec();
    other[0].2 = &[(0, 4096), (7 * MIB, 8192), (12 * MIB, 777)];
    let other = profile(&conversion, "other", &other);
    assert!(!is_reused("other-ranges", &with_profile(&other, &[])));
    assert!(!is_reused("no-packs", &["--hot-pack=off"]));
}

#[test]
fn inspect_says_what_is_packed() {
    let conversion = Conversion::of(&image());
    let profile = profile(&conversion, "profile", TOUCHED);
    let packed = conversion
        .convert("packed", &with_profile(&profile, &[]))
        .unwrap();
    let inspect = |args: &[&str]| {
        let call = Esgz::new("inspect").arg(packed.reference()).args(args);
        call.run().success().unwrap().stdout
    };
    let json: Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
    let prefetch = &json["layers"][0]["prefetch"];
    assert_eq!(prefetch["packed"]["files"], 2);
    assert_eq!(prefetch["packed"]["bytes"], HOT_BYTES);
    assert_eq!(prefetch["packed"]["first_chunks_bytes"], FIRST_BYTES);
    assert_eq!(prefetch["bytes"], 3000 + DENSE);
    let text = inspect(&[]);
    assert!(text.contains("of 2 big files"), "{text}");
}

/// GNU tar extracts what it extracts from the source, and the packs, which runtimes do not show.
#[test]
fn tar_extracts_the_same_tree() {
    let name = "hot_pack::conversions::tar_extracts_the_same_tree";
    let Some(_alone) = esgz_tests::privileged::exclusive(name) else {
        return;
    };
    if find_program("tar").is_none() {
        return skipped(name, "tar is not installed");
    }
    let conversion = Conversion::of(&image());
    let profile = profile(&conversion, "profile", TOUCHED);
    let packed = conversion
        .convert("packed", &with_profile(&profile, &[]))
        .unwrap();
    let extract = |layout: &Layout, to: &str| {
        let dir = conversion.path(to);
        fs::create_dir(&dir).unwrap();
        let blob = layout.blob_path(&layout.layer_digest(0));
        let mut tar = Command::new("tar");
        tar.arg("-xzpf")
            .arg(blob)
            .arg("-C")
            .arg(&dir)
            .arg("--numeric-owner");
        assert!(tar.status().unwrap().success());
        dir
    };
    let source = Tree::read(&extract(&conversion.source, "of-source")).without_directory_times();
    let dir = extract(&packed, "of-packed");
    for name in [
        "stargz.index.json",
        ".prefetch.landmark",
        ".wh..wh.esgz.hot",
        ".wh..wh.esgz.hot0",
    ] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let differences = source.differences(&Tree::read(&dir).without_directory_times());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
