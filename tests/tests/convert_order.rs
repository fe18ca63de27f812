//! `esgz convert --record-in`: which entries come first, and in which order.

use std::fs;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::oracle::Oracle;
use esgz_tests::sets;
use serde_json::{Value, json};

#[test]
fn a_record_orders_the_prefetch() {
    let Some(oracle) = Oracle::for_test("convert::a_record_orders_the_prefetch") else {
        return;
    };
    let check = |entries: &[Entry], record: &[(usize, &str)], expected: &[&str]| {
        let layer = Layer::new(entries, Compression::Gzip(6));
        let conversion = Conversion::of(&LayoutBuilder::new().layer(layer));
        let record = conversion.record(record);
        let output = conversion.convert("output", &["--record-in", record.to_str().unwrap()]);
        let report = oracle
            .image(&output.unwrap(), Some(&conversion.source), &[])
            .unwrap();
        let verified = &report["manifests"][0]["layers"][0]["verify"];
        assert_eq!(
            verified["prioritized"],
            json!(expected),
            "record {record:?}"
        );
        let landmark = if expected.is_empty() {
            "no-prefetch"
        } else {
            "prefetch"
        };
        assert_eq!(verified["landmark"], landmark);
    };
    let usual = sets::usual();
    check(&usual, &[], &[]);
    check(&usual, &[(0, "etc/passwd")], &["etc", "etc/passwd"]);
    check(
        &usual,
        &[
            (0, "usr/lib/libc.so.6"),
            (0, "bin/su"),
            (0, "bin/sh"),
            (0, "usr/lib/libc.so.6"),
        ],
        &[
            "usr",
            "usr/lib",
            "usr/lib/libc.so.6",
            "bin",
            "bin/su",
            "bin/sh",
        ],
    );
    // Parents that have no entry are not made up; names that the layer lacks are left out.
    check(
        &usual,
        &[(0, "usr/lib/implied/parents/only"), (0, "usr/bin/nothing")],
        &["usr", "usr/lib", "usr/lib/implied/parents/only"],
    );
    let links = sets::named("links").entries;
    // A hardlink's target comes before the link.
    check(&links, &[(0, "dir/link")], &["dir", "target", "dir/link"]);
    check(&links, &[(0, "d-link")], &["target", "b-link", "d-link"]);
}

#[test]
fn a_record_applies_to_the_layer_it_names() {
    let Some(oracle) = Oracle::for_test("convert::a_record_applies_to_the_layer_it_names") else {
        return;
    };
    let conversion = Conversion::of(&sets::several_layers());
    let record = conversion.record(&[(3, "etc/passwd"), (1, "target")]);
    let output = conversion
        .convert("output", &["--record-in", record.to_str().unwrap()])
        .unwrap();
    let report = oracle
        .image(&output, Some(&conversion.source), &[])
        .unwrap();
    let layers = report["manifests"][0]["layers"].as_array().unwrap();
    let prioritized: Vec<&Value> = layers
        .iter()
        .map(|layer| &layer["verify"]["prioritized"])
        .collect();
    assert_eq!(
        json!(prioritized),
        json!([[], ["target"], [], ["etc", "etc/passwd"]])
    );
}

/// The same list through the reference's own `Build`: the same entries in the same order, and the
/// same TOC but for what depends on compression.
#[test]
fn the_order_is_the_references() {
    let Some(oracle) = Oracle::for_test("convert::the_order_is_the_references") else {
        return;
    };
    let refused_by_reference = ["sparse", "global header"];
    let paths = [
        "usr/lib/libc.so.6",
        "bin/su",
        "dir/link",
        "dir/file",
        "etc/passwd",
        "noise",
        "./dot",
    ];
    for set in sets::all()
        .iter()
        .filter(|set| !refused_by_reference.contains(&set.name))
    {
        let conversion = Conversion::of(
            &LayoutBuilder::new().layer(Layer::from_tar(set.tar(), Compression::Gzip(6))),
        );
        let record: Vec<(usize, &str)> = paths.iter().map(|path| (0, *path)).collect();
        let record = conversion.record(&record);
        let output = conversion
            .convert("output", &["--record-in", record.to_str().unwrap()])
            .unwrap();
        let list = conversion.path("list");
        fs::write(&list, paths.join("\n")).unwrap();
        let (source, theirs) = (&conversion.source, conversion.path("theirs"));
        let options = ["--prioritized", list.to_str().unwrap()];
        oracle
            .build(
                &source.blob_path(&source.layer_digest(0)),
                &theirs,
                &options,
            )
            .unwrap();
        let headers = |blob: &std::path::Path| {
            let headers = oracle.layer_list(blob).unwrap();
            // The TOC's size differs; the reference writes a landmark that says nothing where no
            // listed file is in the layer.
            let own = [
                "stargz.index.json",
                ".prefetch.landmark",
                ".no.prefetch.landmark",
            ];
            let is_content = |header: &Value| !own.contains(&header["name"].as_str().unwrap());
            let key = |header: &Value| {
                json!([
                    header["name"],
                    header["typeflag"],
                    header["size"],
                    header["sha256"],
                    header["linkName"]
                ])
            };
            headers
                .iter()
                .filter(|header| is_content(header))
                .map(key)
                .collect::<Vec<_>>()
        };
        let ours = output.blob_path(&output.layer_digest(0));
        assert_eq!(headers(&ours), headers(&theirs), "{}", set.name);
    }
}
