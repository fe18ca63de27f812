//! `--uncompress` and `--reuse`: layers that are written as they are.

use std::collections::BTreeSet;
use std::fs;

use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layer, Layout, LayoutBuilder, MediaTypes};
use esgz_tests::oracle::Oracle;
use esgz_tests::sets;
use serde_json::{Value, json};

#[test]
fn uncompressed_layers_are_the_sources_tars() {
    let Some(oracle) = Oracle::for_test("verbatim::uncompressed_layers_are_the_sources_tars")
    else {
        return;
    };
    for media_types in [MediaTypes::Oci, MediaTypes::Docker] {
        let mut image = LayoutBuilder::new().media_types(media_types);
        let compressions = match media_types {
            MediaTypes::Oci => &Compression::ALL[..],
            MediaTypes::Docker => &[Compression::Gzip(6), Compression::Plain],
        };
        for (set, &compression) in sets::all().iter().zip(compressions.iter().cycle()) {
            image = image.layer(Layer::from_tar(set.tar(), compression));
        }
        let conversion = Conversion::of(&image);
        let output = conversion.convert("output", &["--uncompress"]).unwrap();
        oracle.image(&output, None, &["--plain"]).unwrap();
        let diff_ids = &output.config()["rootfs"]["diff_ids"];
        assert_eq!(diff_ids, &conversion.source.config()["rootfs"]["diff_ids"]);
        for (layer, diff_id) in output.manifest()["layers"]
            .as_array()
            .unwrap()
            .iter()
            .zip(diff_ids.as_array().unwrap())
        {
            assert_eq!(&layer["digest"], diff_id);
            assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar");
            assert_eq!(layer.get("annotations"), None);
        }
    }
}

/// Both ways: an eStargz image loses its annotations with its format.
#[test]
fn an_estargz_image_is_uncompressed() {
    let conversion = Conversion::of(&sets::several_layers());
    let estargz = conversion.convert("estargz", &[]).unwrap();
    let plain = conversion.output("plain");
    let finished = again(&estargz, &plain, &["--uncompress", "--json"]);
    let report: Value = serde_json::from_str(&finished.success().unwrap().stdout).unwrap();
    assert_eq!(report["prefetch"]["bytes"], 0);
    assert_eq!(report["layers"][0]["toc_digest"], Value::Null);
    let manifest = plain.manifest();
    assert_eq!(
        manifest["layers"][0]["annotations"],
        json!({"org.example.layer": "base"})
    );
    assert_eq!(manifest["layers"][1].get("annotations"), None);
    assert_eq!(plain.config()["rootfs"], estargz.config()["rootfs"]);
}

#[test]
fn uncompress_contradicts_what_concerns_estargz() {
    let conversion = Conversion::of(&sets::several_layers());
    for args in [
        ["--uncompress", "--estargz-compression-level", "3"].as_slice(),
        &["--uncompress", "--estargz-chunk-size=1MiB"],
        &["--uncompress", "--reuse"],
        &["--uncompress", "--prefetch-list", "/dev/null"],
    ] {
        assert_eq!(
            conversion.command("x").args(args).run().code,
            Some(2),
            "{args:?}"
        );
    }
}

fn again(from: &Layout, to: &Layout, args: &[&str]) -> Finished {
    Esgz::new("convert")
        .args([from.reference(), to.reference()])
        .args(["--log-level", "info"])
        .args(args)
        .run()
}

/// For each layer, whether it was reused; stderr must say the same.
fn reused(finished: Finished, from: &Layout) -> Vec<bool> {
    let finished = finished.success().unwrap();
    let report: Value = serde_json::from_str(&finished.stdout).expect("--json prints JSON");
    let layers = report["layers"].as_array().unwrap();
    let reused: Vec<bool> = layers
        .iter()
        .map(|l| l["reused"].as_bool().unwrap())
        .collect();
    for (index, reused) in reused.iter().enumerate() {
        let line = format!(
            "reusing \"{}\" without conversion",
            from.layer_digest(index)
        );
        if *reused {
            assert!(
                finished.stderr.contains(&line),
                "{line}: {}",
                finished.stderr
            );
        }
    }
    // A layer that occurs twice is decided on once.
    let unique: BTreeSet<String> = (0..reused.len())
        .filter(|&index| reused[index])
        .map(|index| from.layer_digest(index).clone())
        .collect();
    assert_eq!(
        finished.stderr.matches("without conversion").count(),
        unique.len()
    );
    reused
}

#[test]
fn a_layer_is_reused_where_it_is_as_wanted() {
    let Some(oracle) = Oracle::for_test("verbatim::a_layer_is_reused_where_it_is_as_wanted") else {
        return;
    };
    let conversion = Conversion::of(&sets::several_layers());
    let list = conversion.path("list");
    fs::write(&list, "etc/passwd\ntarget\n").unwrap();
    let other = conversion.path("other");
    fs::write(&other, "etc/passwd\nbin/su\n").unwrap();
    let (list, other) = (list.to_str().unwrap(), other.to_str().unwrap());
    let once = conversion
        .convert("once", &["--prefetch-list", list])
        .unwrap();

    let check = |name: &str, args: &[&str], expected: &[bool]| {
        let output = conversion.output(name);
        assert_eq!(
            reused(again(&once, &output, &[&["--json"], args].concat()), &once),
            expected,
            "{name}"
        );
        oracle
            .image(&output, Some(&conversion.source), &[])
            .unwrap();
        for (index, reused) in expected.iter().enumerate() {
            let same = output.layer_digest(index) == once.layer_digest(index);
            assert!(same || !reused, "{name}: layer {index}");
        }
        output
    };
    check("not asked for", &[], &[false; 4]);
    let same = check(
        "the same list",
        &["--reuse", "--prefetch-list", list],
        &[true; 4],
    );
    assert_eq!(same.manifest()["layers"], once.manifest()["layers"]);
    check("no list", &["--reuse"], &[true; 4]);
    check("unchecked", &["--reuse", "--no-verify"], &[true; 4]);
    // The upper etc/passwd is in the list still, and bin/su lies in the second copy of the base.
    check(
        "another list",
        &["--reuse", "--prefetch-list", other],
        &[true, true, false, true],
    );
}

#[test]
fn a_faulty_layer_is_converted() {
    let conversion = Conversion::of(&sets::several_layers());
    let once = conversion.convert("once", &[]).unwrap();
    let toc_digest = "containerd.io/snapshot/stargz/toc.digest";
    once.edit_manifest(|manifest| {
        manifest["layers"][0]["annotations"][toc_digest] = corrupt::NO_BLOB.into();
    });
    once.edit_manifest(|manifest| manifest["layers"][1]["annotations"] = Value::Null);
    let finished = again(&once, &conversion.output("again"), &["--reuse", "--json"]);
    assert_eq!(reused(finished, &once), [false, false, true, true]);
}

/// What no eStargz writer made is converted, whatever its compression.
#[test]
fn other_layers_are_converted() {
    let mut image = LayoutBuilder::new();
    for compression in Compression::ALL {
        image = image.layer(Layer::new(&sets::usual(), compression));
    }
    let conversion = Conversion::of(&image);
    let finished = conversion
        .command("output")
        .args(["--log-level=info", "--reuse", "--json"])
        .run();
    assert_eq!(reused(finished, &conversion.source), [false; 8]);
}
