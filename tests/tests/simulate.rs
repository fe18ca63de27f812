//! `esgz simulate` on converted images: what it says of them agrees with `inspect`, and with what the profile says.

use std::fs;
use std::path::PathBuf;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::sets::noise;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A small program, a library of which a page is touched, and one that nobody needs.
fn conversion() -> Conversion {
    let base = [
        Entry::file("bin/app", noise(1, 40_000)),
        Entry::file("lib/unused.so", noise(2, 2 * MIB)),
        Entry::file("lib/big.so", noise(3, 12 * MIB)),
    ];
    let top = [Entry::file("etc/conf", b"x=1")];
    let image = LayoutBuilder::new()
        .layer(Layer::new(&base, Compression::Gzip(1)))
        .layer(Layer::new(&top, Compression::Gzip(6)));
    Conversion::of(&image)
}

/// What a run of it touched.
fn profile(conversion: &Conversion) -> PathBuf {
    let file = |seq: u64, path: &str, layer: u32, size: usize, ranges: Value| {
        json!({"path": path, "layer": layer, "size_bytes": size, "phase": "run", "first_touch_seq": seq,
            "first_touch_ms": seq * 100, "opened": true, "executed": false, "touched_bytes": 4096,
            "ranges": ranges})
    };
    let source = &conversion.source;
    let document = json!({"esgz_profile": 1, "image": {"reference": source.reference(),
            "manifest": source.manifest_digest(), "platform": "linux/amd64",
            "layers": [source.layer_digest(0), source.layer_digest(1)]},
        "workload": {"args": ["/bin/app"], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 1000, "runs": 1,
        "files": [file(0, "bin/app", 0, 40_000, json!([[0, 40_000]])),
            file(1, "lib/big.so", 0, 12 * MIB, json!([[0, 4096], [9 * MIB, 4096]])),
            file(2, "etc/conf", 1, 3, json!([[0, 3]]))],
        "missing": []});
    let path = conversion.path("profile.json");
    fs::write(&path, document.to_string()).unwrap();
    path
}

fn call(image: &Layout, profile: &PathBuf, args: &[&str]) -> Finished {
    let call = Esgz::new("simulate").arg(image.reference());
    call.arg("--profile").arg(profile).args(args).run()
}

/// The prediction for the only link.
fn predicted(image: &Layout, profile: &PathBuf, args: &[&str]) -> Value {
    let args = [&["--json", "--link=1gbit,10ms"], args].concat();
    let finished = call(image, profile, &args).success().unwrap();
    let document: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(document["manifest"], image.manifest_digest());
    let predictions = document["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 1);
    assert_eq!(predictions[0]["link"]["bytes_per_second"], 125e6);
    predictions[0]["prediction"].clone()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn images_are_told_apart() {
    let conversion = conversion();
    let profile = profile(&conversion);
    let list = conversion.path("list");
    fs::write(&list, "bin/app\nlib/unused.so\netc/conf\n").unwrap();
    let list = list.to_str().unwrap();
    let plain = conversion.convert("plain", &[]).unwrap();
    let listed = conversion
        .convert("listed", &["--prefetch-list", list])
        .unwrap();
    let size = |image: &Layout, layer: usize| number(&image.manifest()["layers"][layer]["size"]);

    // No eStargz: everything is downloaded.
    let source = predicted(&conversion.source, &profile, &[]);
    assert_eq!(source["layers"][0]["lazy"], false);
    let all = size(&conversion.source, 0) + size(&conversion.source, 1);
    assert!(number(&source["bytes"]) > all, "{source:#}");
    assert!(number(&source["seconds"]) > all / 125e6);

    // The app, the first and the third chunk of the library, and the other layer.
    let none = predicted(&plain, &profile, &[]);
    assert_eq!(none["layers"][0]["prefetch_bytes"], 0);
    assert_eq!(none["layers"][0]["missed_chunks"], 3, "{none:#}");
    let missed = none["missed"].as_array().unwrap();
    assert_eq!(missed[0]["path"], "lib/big.so");
    assert_eq!(missed[0]["chunks"], 2);
    assert!(number(&none["bytes"]) < number(&source["bytes"]));
    assert!(number(&none["network_wait_seconds"]) > 0.03);

    // What a list names is prefetched, needed or not.
    let hot = predicted(&listed, &profile, &[]);
    let inspected = Esgz::new("inspect").arg(listed.reference()).arg("--json");
    let inspected = inspected.run().success().unwrap();
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert_eq!(
        hot["layers"][0]["prefetch_bytes"],
        inspected["layers"][0]["prefetch"]["compressed_bytes"]
    );
    let unused = hot["unused"].as_array().unwrap();
    assert_eq!(unused.len(), 1, "{unused:?}");
    assert_eq!(unused[0]["path"], "lib/unused.so");
    assert_eq!(unused[0]["unused_bytes"], 2 * MIB);
    let missed: Vec<&Value> = hot["missed"].as_array().unwrap().iter().collect();
    assert_eq!(missed.len(), 1);
    assert_eq!(missed[0]["path"], "lib/big.so");

    // Pulled by a node that does not pull lazily.
    let eager = predicted(&plain, &profile, &["--eager"]);
    assert!(number(&eager["bytes"]) > size(&plain, 0) + size(&plain, 1));
    // A registry drops annotations: nothing is lazy any more.
    plain.edit_manifest(|manifest| {
        for layer in 0..2 {
            manifest["layers"][layer]["annotations"] = json!({});
        }
    });
    let dropped = predicted(&plain, &profile, &[]);
    assert_eq!(dropped["layers"][0]["lazy"], false);
}

#[test]
fn text_has_a_table_for_each_link() {
    let conversion = conversion();
    let profile = profile(&conversion);
    let image = conversion.convert("out", &[]).unwrap();
    let both = call(&image, &profile, &[]).success().unwrap().stdout;
    let heads: Vec<&str> = both
        .lines()
        .filter(|line| line.contains("ready after"))
        .collect();
    assert_eq!(heads.len(), 2, "{both}");
    assert!(heads[0].starts_with("125 MB/s, 10 ms: ") && heads[1].starts_with("25 MB/s, 40 ms: "));
    assert!(both.contains("lib/big.so"));
    let one = call(&image, &profile, &["--link", "10gbit,1ms", "--cores", "8"]);
    let one = one.success().unwrap().stdout;
    assert_eq!(one.matches("ready after").count(), 1);
    assert!(one.contains("1250 MB/s, 1 ms"), "{one}");
}

#[test]
fn what_cannot_be_predicted_is_one_line() {
    let conversion = conversion();
    let good = profile(&conversion);
    let image = conversion.convert("out", &[]).unwrap();
    for (link, name) in [
        ("fast", "BANDWIDTH"),
        ("0gbit,1ms", "bandwidth"),
        ("1gbit,1", "round trip"),
    ] {
        let refused = call(&image, &good, &["--link", link]);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains(name), "{}", refused.stderr);
    }
    let nowhere = conversion.path("nowhere");
    call(&image, &nowhere, &[])
        .failed_with(6, &["nowhere"])
        .unwrap();
    let digest = image.layer_digest(0);
    let toc = fs::metadata(image.blob_path(&digest)).unwrap().len() - 51 - 100;
    corrupt::flip_byte(&image, 0, toc);
    call(&image, &good, &[]).failed_with(5, &[&digest]).unwrap();
    fs::remove_file(image.blob_path(&digest)).unwrap();
    call(&image, &good, &[]).failed_with(6, &[&digest]).unwrap();
}
