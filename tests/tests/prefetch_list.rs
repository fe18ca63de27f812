//! `--prefetch-list` and `--no-optimize`: what is prefetched without a run, and without privilege.

use std::fs;

use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::oracle::Oracle;
use esgz_tests::sets;
use serde_json::{Value, json};

fn conversion() -> Conversion {
    let layer = Layer::new(&sets::usual(), Compression::Gzip(6));
    let conversion = Conversion::of(&LayoutBuilder::new().layer(layer));
    let list = "# what starts first\n/usr/lib/*.so*\n\nbin/s?\nno/such/file\n/etc/[!e]*\n";
    fs::write(conversion.path("list"), list).unwrap();
    conversion
}

fn verified(oracle: &Oracle, conversion: &Conversion, output: &Layout) -> Value {
    let report = oracle.image(output, Some(&conversion.source), &[]).unwrap();
    report["manifests"][0]["layers"][0]["verify"].clone()
}

#[test]
fn a_list_orders_the_prefetch() {
    let Some(oracle) = Oracle::for_test("prefetch_list::a_list_orders_the_prefetch") else {
        return;
    };
    let conversion = conversion();
    let list = conversion.path("list");
    let mut digests = Vec::new();
    for command in [
        conversion.command("convert"),
        conversion.optimize("optimize"),
    ] {
        let finished = command.arg("--prefetch-list").arg(&list);
        let finished = finished.arg("--log-level=warn").run();
        let finished = conversion.finish(finished.success().unwrap()).unwrap();
        assert!(
            finished.stderr.contains("\"no/such/file\""),
            "{}",
            finished.stderr
        );
    }
    for name in ["convert", "optimize"] {
        let output = conversion.output(name);
        assert_eq!(
            verified(&oracle, &conversion, &output)["prioritized"],
            json!([
                "usr",
                "usr/lib",
                "usr/lib/libc.so.6",
                "bin",
                "bin/sh",
                "bin/su",
                "etc",
                "etc/passwd"
            ])
        );
        digests.push(output.manifest_digest());
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn no_optimize_converts_only() {
    let conversion = conversion();
    let finished = conversion.optimize("optimized").arg("--no-optimize").run();
    conversion.finish(finished.success().unwrap()).unwrap();
    let converted = conversion.convert("converted", &[]).unwrap();
    assert_eq!(
        conversion.output("optimized").manifest_digest(),
        converted.manifest_digest()
    );
}

#[test]
fn contradictions_are_usage_errors() {
    let conversion = conversion();
    let list = conversion.path("list");
    let list = list.to_str().unwrap();
    for args in [
        ["--prefetch-list", list, "--profile", list].as_slice(),
        &["--prefetch-list", list, "--record-in", list],
        &["--profile", list, "--record-in", list],
    ] {
        assert_eq!(
            conversion.command("x").args(args).run().code,
            Some(2),
            "{args:?}"
        );
    }
    for args in [
        ["--no-optimize", "--prefetch-list", list].as_slice(),
        &["--no-optimize", "--profile-out", list],
        &["--no-optimize", "--record-out", list],
        &["--prefetch-list", list, "--profile-out", list],
    ] {
        assert_eq!(
            conversion.optimize("x").args(args).run().code,
            Some(2),
            "{args:?}"
        );
    }
    let missing = conversion
        .command("x")
        .args(["--prefetch-list", "/nowhere"])
        .run();
    missing.failed_with(6, &["/nowhere"]).unwrap();
}
