//! `--assume-link` and `inspect --plan`: what is planned is what is written.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::sets::noise;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A program, a giant of which two pages are touched, and a library that is only opened.
fn conversion() -> Conversion {
    // Made once for all tests.
    static IMAGE: LazyLock<LayoutBuilder> = LazyLock::new(|| {
        let entries = [
            Entry::file("bin/app", noise(1, 40_000)),
            Entry::file("lib/opened.so", noise(2, MIB)),
            Entry::file("lib/giant.so", noise(3, 24 * MIB)),
        ];
        LayoutBuilder::new().layer(Layer::new(&entries, Compression::Gzip(1)))
    });
    Conversion::of(&IMAGE)
}

fn profile(conversion: &Conversion, giant: &Value) -> PathBuf {
    let file = |seq: u64, path: &str, size: usize, ranges: &Value| {
        json!({"path": path, "layer": 0, "size_bytes": size, "phase": "run", "first_touch_seq": seq,
            "first_touch_ms": seq * 100, "opened": true, "executed": false, "touched_bytes": 0, "ranges": ranges})
    };
    let source = &conversion.source;
    let document = json!({"esgz_profile": 1, "image": {"reference": source.reference(),
            "manifest": source.manifest_digest(), "platform": "linux/amd64", "layers": [source.layer_digest(0)]},
        "workload": {"args": ["/bin/app"], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 1000, "runs": 1,
        "files": [file(0, "bin/app", 40_000, &json!([[0, 40_000]])), file(1, "lib/opened.so", MIB, &json!([])),
            file(2, "lib/giant.so", 24 * MIB, giant)],
        "missing": []});
    let path = conversion.path("profile.json");
    fs::write(&path, document.to_string()).unwrap();
    path
}

fn inspected(image: &str, args: &[&str]) -> Value {
    let finished = Esgz::new("inspect")
        .arg(image)
        .arg("--json")
        .args(args)
        .run();
    serde_json::from_str(&finished.success().unwrap().stdout).unwrap()
}

#[test]
fn what_is_planned_is_written() {
    let conversion = conversion();
    let sparse = profile(&conversion, &json!([[0, 4096], [16 * MIB, 4096]]));
    let sparse = sparse.to_str().unwrap();
    let source = conversion.source.reference();
    let args = [
        "--plan",
        "--profile",
        sparse,
        "--assume-link",
        "200mbit,40ms",
    ];
    let plan = inspected(&source, &args);
    assert_eq!(plan["chosen"], "by-costs", "{plan:#}");
    let plans = plan["plans"].as_array().unwrap();
    let names: Vec<&Value> = plans.iter().map(|plan| &plan["plan"]).collect();
    assert_eq!(names, ["no-prefetch", "whole-files", "by-costs"]);
    let seconds = |index: usize| plans[index]["prediction"]["seconds"].as_f64().unwrap();
    assert!(seconds(2) < seconds(1), "{plan:#}");
    let files = plan["files"].as_array().unwrap();
    let placed = |path: &str| {
        let file = files.iter().find(|file| file["path"] == path).unwrap();
        file["placement"].as_str().unwrap()
    };
    assert_eq!(placed("bin/app"), "whole");
    assert_eq!(placed("lib/giant.so"), "ranges");
    assert_eq!(placed("lib/opened.so"), "on-demand");

    let text = Esgz::new("inspect")
        .arg(&source)
        .args(args)
        .run()
        .success()
        .unwrap();
    for part in ["chosen", "by costs", "opened, not read", "2 ranges; whole"] {
        assert!(text.stdout.contains(part), "{part}: {}", text.stdout);
    }

    let flags = ["--profile", sparse, "--assume-link", "200mbit,40ms"];
    let image = conversion.convert("out", &flags).unwrap();
    let verified = Esgz::new("verify").arg(image.reference()).run();
    verified.success().unwrap();
    // What was predicted before anything was compressed is what the written image is predicted to need.
    let call = Esgz::new("simulate").arg(image.reference()).arg("--json");
    let call = call.args(["--profile", sparse, "--link", "200mbit,40ms"]);
    let written: Value = serde_json::from_str(&call.run().success().unwrap().stdout).unwrap();
    let written = &written["predictions"][0]["prediction"];
    let near = |what: &str, tolerance: f64| {
        let (planned, written) = (&plans[2]["prediction"][what], &written[what]);
        let ratio = planned.as_f64().unwrap() / written.as_f64().unwrap();
        assert!(
            (ratio - 1.0).abs() < tolerance,
            "{what}: planned {planned}, {written}"
        );
    };
    near("seconds", 0.1);
    near("bytes", 0.2);
    let again = conversion.convert("again", &flags).unwrap();
    assert_eq!(again.manifest_digest(), image.manifest_digest());
}

#[test]
fn whole_files_where_that_is_as_good() {
    let conversion = conversion();
    let dense = profile(&conversion, &json!([[0, 24 * MIB]]));
    let dense = dense.to_str().unwrap();
    let source = conversion.source.reference();
    let plan = inspected(&source, &["--plan", "--profile", dense]);
    assert_eq!(plan["chosen"], "whole-files");
    assert_eq!(plan["link"]["bytes_per_second"], 125e6);
    let off = ["--plan", "--profile", dense, "--hot-pack=off"];
    assert_eq!(
        inspected(&source, &off)["plans"].as_array().unwrap().len(),
        2
    );
    let with = ["--profile", dense, "--assume-link", "1gbit,10ms"];
    let with = conversion.convert("with", &with).unwrap();
    let without = conversion.convert("without", &["--profile", dense, "--hot-pack=off"]);
    assert_eq!(with.manifest_digest(), without.unwrap().manifest_digest());
}

#[test]
fn plans_need_a_profile() {
    let conversion = conversion();
    let source = conversion.source.reference();
    for args in [
        &["--plan"][..],
        &["--plan", "--profile", "p", "--layer", "0"],
        &["--assume-link", "1gbit,10ms"],
        &["--plan", "--profile", "p", "--assume-link", "fast"],
    ] {
        let refused = Esgz::new("inspect").arg(&source).args(args).run();
        assert_eq!(refused.code, Some(2), "{args:?}: {}", refused.stderr);
    }
    let missing = Esgz::new("inspect")
        .arg(&source)
        .args(["--plan", "--profile", "/nowhere"]);
    missing.run().failed_with(6, &["/nowhere"]).unwrap();
}
