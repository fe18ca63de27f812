//! `esgz convert` over the conformance matrix: every compression and every entry set, each output
//! read in full by the Go oracle and compared with its source.

use std::fs;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder, MediaTypes};
use esgz_tests::oracle::Oracle;
use esgz_tests::sets::{self, EntrySet};
use serde_json::Value;

fn image_of(set: &EntrySet, compression: Compression) -> LayoutBuilder {
    LayoutBuilder::new().layer(Layer::from_tar(set.tar(), compression))
}

/// Converts every set with this compression; reports all failures together.
fn check_matrix(name: &str, compression: Compression, args: &[&str]) {
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    let mut failures = Vec::new();
    for set in sets::all() {
        let conversion = Conversion::of(&image_of(&set, compression));
        let checked = conversion
            .convert("output", args)
            .and_then(|output| oracle.image(&output, Some(&conversion.source), &[]));
        if let Err(error) = checked {
            failures.push(format!("{}: {error}", set.name));
        }
    }
    assert!(
        failures.is_empty(),
        "{} sets failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn gzip_1() {
    check_matrix("convert::gzip_1", Compression::Gzip(1), &[]);
}

#[test]
fn gzip_6() {
    check_matrix("convert::gzip_6", Compression::Gzip(6), &[]);
}

#[test]
fn gzip_9() {
    check_matrix("convert::gzip_9", Compression::Gzip(9), &[]);
}

#[test]
fn gzip_members() {
    check_matrix("convert::gzip_members", Compression::MultiMember, &[]);
}

#[test]
fn gzip_header_fields() {
    check_matrix("convert::gzip_header_fields", Compression::FullHeader, &[]);
}

#[test]
fn gzip_stored() {
    check_matrix("convert::gzip_stored", Compression::Stored, &[]);
}

#[test]
fn zstd() {
    check_matrix("convert::zstd", Compression::Zstd, &[]);
}

#[test]
fn plain() {
    check_matrix("convert::plain", Compression::Plain, &[]);
}

#[test]
fn recompressed_at_level_1() {
    let args = ["--estargz-compression-level", "1"];
    check_matrix(
        "convert::recompressed_at_level_1",
        Compression::Gzip(6),
        &args,
    );
}

#[test]
fn docker_media_types_become_oci() {
    let name = "convert::docker_media_types_become_oci";
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    for compression in [Compression::Gzip(6), Compression::Plain] {
        let layer = Layer::new(&sets::usual(), compression);
        let image = LayoutBuilder::new()
            .media_types(MediaTypes::Docker)
            .layer(layer);
        let conversion = Conversion::of(&image);
        let output = conversion.convert("output", &[]).unwrap();
        oracle.image(&output, None, &[]).unwrap();
        let media_type = |value: &Value| value["mediaType"].as_str().unwrap_or("").to_owned();
        let manifest = output.manifest();
        assert_eq!(
            media_type(&manifest),
            "application/vnd.oci.image.manifest.v1+json"
        );
        assert_eq!(
            media_type(&manifest["config"]),
            "application/vnd.oci.image.config.v1+json"
        );
        let layer = &manifest["layers"][0];
        assert_eq!(
            media_type(layer),
            "application/vnd.oci.image.layer.v1.tar+gzip"
        );
    }
}

#[test]
fn several_layers_keep_annotations_and_configuration() {
    let name = "convert::several_layers_keep_annotations_and_configuration";
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    let conversion = Conversion::of(&sets::several_layers());
    let output = conversion.convert("output", &[]).unwrap();
    let report = oracle
        .image(&output, Some(&conversion.source), &[])
        .unwrap();
    let layers = report["manifests"][0]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    assert_eq!(
        layers[0]["digest"], layers[2]["digest"],
        "one source layer gives one output layer"
    );
    let config = output.config();
    assert_eq!(config["history"], conversion.source.config()["history"]);
    assert_eq!(config["config"].get("Image"), None);
}

#[test]
fn threads_and_repetition_change_no_byte() {
    let mut sources = vec![sets::several_layers()];
    let border = sets::named("chunk borders");
    sources.push(image_of(&border, Compression::Gzip(6)));
    for source in sources {
        let conversion = Conversion::of(&source);
        let record = conversion.record(&[(0, "usr/lib/libc.so.6"), (0, "bin/sh"), (0, "noise")]);
        let mut digests = Vec::new();
        for (run, threads) in ["1", "2", "7", "2"].iter().enumerate() {
            let name = format!("output-{run}");
            let args = [
                "--threads",
                threads,
                "--record-in",
                record.to_str().unwrap(),
            ];
            let output = conversion.convert(&name, &args).unwrap();
            let index = fs::read(output.dir.join("index.json")).unwrap();
            digests.push((output.manifest_digest(), esgz_tests::layout::digest(&index)));
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "threads 1, 2, 7, 2 gave {digests:?}");
    }
}

/// Converting an output again gives the same file system, one landmark and one TOC.
#[test]
fn an_estargz_image_is_converted_again() {
    let Some(oracle) = Oracle::for_test("convert::an_estargz_image_is_converted_again") else {
        return;
    };
    let conversion = Conversion::of(&sets::several_layers());
    let once = conversion.convert("once", &[]).unwrap();
    let again = conversion.output("again");
    let record = conversion.record(&[]);
    let finished = Esgz::new("convert")
        .args([once.reference(), again.reference()])
        .arg("--record-in")
        .arg(record)
        .run();
    finished.success().unwrap();
    oracle.image(&again, Some(&conversion.source), &[]).unwrap();
}

#[test]
fn fifty_thousand_files() {
    let Some(oracle) = Oracle::for_test("convert::fifty_thousand_files") else {
        return;
    };
    let entry = |i: u64| {
        Entry::file(
            format!("dir-{}/file-{i}", i % 100),
            sets::noise(i, (i % 600) as usize),
        )
    };
    let entries: Vec<Entry> = (0..50_000).map(entry).collect();
    let layer = Layer::new(&entries, Compression::Gzip(6));
    let conversion = Conversion::of(&LayoutBuilder::new().layer(layer));
    let output = conversion.convert("output", &[]).unwrap();
    let report = oracle
        .image(&output, Some(&conversion.source), &[])
        .unwrap();
    assert_eq!(
        report["manifests"][0]["layers"][0]["verify"]["files"],
        50_000
    );
}

#[test]
fn verify_and_inspect_accept_an_output() {
    let conversion = Conversion::of(&sets::several_layers());
    let output = conversion.convert("output", &[]).unwrap();
    Esgz::new("verify")
        .arg(output.reference())
        .run()
        .success()
        .unwrap();
    let finished = Esgz::new("inspect")
        .args([&*output.reference(), "--json"])
        .run()
        .success()
        .unwrap();
    let report: Value = serde_json::from_str(&finished.stdout).expect("inspect --json prints JSON");
    assert!(
        report.to_string().contains(&output.layer_digest(1)),
        "{report}"
    );
    Esgz::new("inspect")
        .arg(output.reference())
        .run()
        .success()
        .unwrap();
}

#[test]
fn verify_finds_faults_in_an_output() {
    use esgz_tests::corrupt;
    type Fault = fn(&esgz_tests::layout::Layout);
    let faults: [(&str, Fault); 6] = [
        ("flipped byte", |layout| corrupt::flip_byte(layout, 1, 700)),
        ("truncated", |layout| corrupt::truncate(layout, 1)),
        ("wrong digest", |layout| corrupt::wrong_digest(layout, 1)),
        ("wrong size", |layout| corrupt::wrong_size(layout, 1)),
        ("missing blob", |layout| corrupt::missing_blob(layout, 1)),
        ("wrong DiffID", |layout| corrupt::wrong_diff_id(layout, 1)),
    ];
    let conversion = Conversion::of(&sets::several_layers());
    for (what, fault) in faults {
        let output = conversion.convert(what, &[]).unwrap();
        fault(&output);
        let finished = Esgz::new("verify").arg(output.reference()).run();
        assert!(
            matches!(finished.code, Some(5 | 6)),
            "{what}: {}: {}",
            finished.status,
            finished.stderr
        );
        assert_eq!(
            finished.stderr.lines().count(),
            1,
            "{what}: {}",
            finished.stderr
        );
    }
}
