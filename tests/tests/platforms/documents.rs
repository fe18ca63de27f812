//! What the documents of an image of several platforms say: annotations, times, media types, what is not known.

use std::fs;

use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder, MediaTypes};
use esgz_tests::platforms::{Documents, ELSEWHERE, IndexBuilder, here, image};
use esgz_tests::{corrupt, find_program, sets, skipped};
use serde_json::{Value, json};

use super::{Case, UNREADABLE, USAGE, everything, images};

#[test]
fn annotations_and_times() {
    let case = everything();
    let source = case.source();
    let wanted = [
        "--annotation",
        "new=1",
        "--annotation",
        "of=somebody",
        "--annotation",
        "index:of=everything=else",
        "--all-platforms",
    ];
    let output = case.convert(&wanted);
    assert_eq!(output.root["annotations"], json!({"of": "everything=else"}));
    for (platform, descriptor) in images(&output) {
        let manifest = output.read(&descriptor);
        assert_eq!(
            manifest["annotations"],
            json!({"of": "somebody", "new": "1"}),
            "{platform}"
        );
    }
    // Below the root, and what is carried over, nothing changes.
    let nested = output.below(&output.listed()[5]);
    assert_eq!(
        nested.root["annotations"],
        source.below(&source.listed()[5]).root["annotations"]
    );
    assert_eq!(output.listed()[6], source.listed()[6]);

    let created = |args: &[&str], variable: Option<&str>| {
        let output = case.conversion.output("output");
        let _ = fs::remove_dir_all(&output.dir);
        let mut command = Esgz::new("convert").args([case.source.reference(), output.reference()]);
        if let Some(variable) = variable {
            command = command.env("SOURCE_DATE_EPOCH", variable);
        }
        command.args(args).run().success().unwrap();
        let output = Documents::of(&output);
        let manifest = output.read(&images(&output)[&here()]);
        let config = output.read(&manifest["config"]);
        let old = source.read(&images(&source)[&here()]);
        let mut expected = source.read(&old["config"]);
        assert_eq!(config["history"], expected["history"]);
        let created = config["created"].clone();
        expected["created"] = created.clone();
        expected["rootfs"] = config["rootfs"].clone();
        assert_eq!(config, expected);
        created
    };
    assert_eq!(created(&[], None), "2024-01-02T03:04:05.678Z");
    assert_eq!(created(&["--created", "0"], None), "1970-01-01T00:00:00Z");
    assert_eq!(created(&[], Some("1700000000")), "2023-11-14T22:13:20Z");
    assert_eq!(created(&[], Some("")), "2024-01-02T03:04:05.678Z");
    let time = "2025-06-07T08:09:10+02:00";
    assert_eq!(created(&["--created", time], Some("1")), time);

    let usage = |args: &[&str], variable: Option<&str>| {
        let output = case.conversion.output("new");
        let mut command = Esgz::new("convert").args([case.source.reference(), output.reference()]);
        if let Some(variable) = variable {
            command = command.env("SOURCE_DATE_EPOCH", variable);
        }
        let finished = command.args(args).run();
        assert_eq!(
            finished.code,
            Some(USAGE),
            "{args:?} {variable:?}: {}",
            finished.stderr
        );
        assert!(!output.dir.exists());
    };
    usage(&["--created", "yesterday"], None);
    usage(&["--annotation", "novalue"], None);
    usage(&["--annotation", "=x"], None);
    usage(&["--oci=maybe"], None);
    usage(&[], Some("yesterday"));
    usage(&[], Some("2025-06-07T08:09:10Z"));
}

#[test]
fn docker_media_types_on_request() {
    let image = |media_types| {
        let layer = Layer::new(&sets::usual(), Compression::Gzip(6));
        image(&here()).media_types(media_types).layer(layer)
    };
    for media_types in [MediaTypes::Oci, MediaTypes::Docker] {
        let case = Case::new(|index| index.built(&here(), &image(media_types)).image(ELSEWHERE));
        let media_type = |value: &Value| value["mediaType"].as_str().unwrap_or("").to_owned();
        let docker = "application/vnd.docker.";
        for (flag, prefix) in [
            ("--oci=false", docker),
            ("--oci=true", "application/vnd.oci."),
            ("--oci", "application/vnd.oci."),
        ] {
            let output = case.convert(&["--all-platforms", flag]);
            let listed = output.listed();
            let manifest = output.read(&listed[0]);
            let layer = &manifest["layers"][0];
            for value in [
                &output.root,
                &listed[0],
                &manifest,
                &manifest["config"],
                layer,
            ] {
                assert!(
                    media_type(value).starts_with(prefix),
                    "{flag}: {}",
                    media_type(value)
                );
            }
            if prefix == docker {
                assert_eq!(
                    media_type(layer),
                    format!("{docker}image.rootfs.diff.tar.gzip")
                );
                assert_eq!(
                    media_type(&output.root),
                    format!("{docker}distribution.manifest.list.v2+json")
                );
            }
        }
        // The warning is for people, not for a log level that hides it.
        let output = case.conversion.output("warned");
        let mut command = std::process::Command::new(esgz_tests::esgz::binary());
        command.args([
            "convert",
            "--oci=false",
            &case.source.reference(),
            &output.reference(),
        ]);
        let finished = command.output().unwrap();
        assert!(String::from_utf8_lossy(&finished.stderr).contains("lazy pulling fails"));
    }
}

/// What esgz does not know stays where it was.
#[test]
fn unknown_keys_subject_and_artifact_type_are_kept() {
    let conversion = Conversion::of(
        &LayoutBuilder::new().layer(Layer::new(&sets::usual(), Compression::Gzip(6))),
    );
    let subject = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": corrupt::NO_BLOB, "size": 7});
    conversion.source.edit_manifest(|manifest| {
        manifest["subject"] = subject.clone();
        manifest["artifactType"] = json!("application/x-image");
        manifest["future"] = json!({"a": [1, null]});
        manifest["config"]["annotations"] = json!({"c": "d"});
        manifest["layers"][0]["future"] = json!(true);
        manifest["layers"][0]["annotations"] = json!({"l": "m"});
    });
    let output = conversion.convert("output", &[]).unwrap();
    let (old, new) = (conversion.source.manifest(), output.manifest());
    for key in ["subject", "artifactType", "future"] {
        assert_eq!(new[key], old[key], "{key}");
    }
    assert_eq!(new["config"]["annotations"], old["config"]["annotations"]);
    assert_eq!(new["layers"][0]["future"], true);
    assert_eq!(new["layers"][0]["annotations"]["l"], "m");
}

/// One line, exit code 6, nothing written.
#[test]
fn bad_indexes_and_layers() {
    let check = |what: &str, case: &Case, args: &[&str], expected: &str| {
        let failed = case.run("convert", "new", args);
        failed
            .failed_with(UNREADABLE, &[expected])
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!case.conversion.path("new").exists(), "{what}");
    };
    let deep = Case::new(|index| {
        let dir = index.dir().to_owned();
        let mut nested = IndexBuilder::new(&dir).image(&here());
        for _ in 0..9 {
            nested = IndexBuilder::new(&dir).nested(&nested);
        }
        index.nested(&nested)
    });
    check("deep", &deep, &[], "nested more than 8 deep");
    let wide = Case::new(|index| {
        let dir = index.dir().to_owned();
        let mut nested = IndexBuilder::new(&dir).image(&here());
        for _ in 0..5 {
            nested = (0..8).fold(IndexBuilder::new(&dir), |index, _| index.nested(&nested));
        }
        index.nested(&nested)
    });
    check("wide", &wide, &[], "list more than 10000 manifests");
    let empty = Case::new(|index| index);
    check("empty", &empty, &["--all-platforms"], "it holds no image");
    check("empty", &empty, &[], "it has none");
    let artifact = Case::new(IndexBuilder::artifact);
    check(
        "an artifact alone",
        &artifact,
        &["--all-platforms"],
        "it holds no image",
    );

    let with_layer = |edit: fn(&mut Value)| {
        let case = Case::new(|index| index);
        let built = image(&here()).write(&case.source.dir);
        built.edit_manifest(|manifest| edit(&mut manifest["layers"][0]));
        case
    };
    let encrypted = with_layer(|layer| {
        layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
    });
    check("encrypted", &encrypted, &[], "gzip+encrypted");
    let foreign = |layer: &mut Value| {
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        layer["urls"] = json!(["https://example.com/layer"]);
    };
    let case = with_layer(foreign);
    // Its contents are here: it becomes a layer like any other.
    let output = case.convert(&[]);
    assert_eq!(output.root["layers"][0].get("urls"), None);
    corrupt::missing_blob(&case.source, 0);
    check(
        "foreign",
        &case,
        &[],
        "is a foreign layer, kept at https://example.com/layer",
    );
    let case = with_layer(|layer| layer["digest"] = json!(format!("sha512:{}", "0".repeat(128))));
    check(
        "another digest",
        &case,
        &[],
        "unusable digest \"sha512:0000",
    );
}

#[test]
fn skopeo_reads_an_index_that_esgz_writes() {
    let test = "platforms::skopeo_reads_an_index_that_esgz_writes";
    if find_program("skopeo").is_none() {
        return skipped(test, "skopeo is not installed");
    }
    let case = Case::new(|index| {
        let index = index.image(&here()).attestation();
        index.image(ELSEWHERE).attestation()
    });
    case.convert(&["--all-platforms"]);
    let output = case.conversion.output("output");
    let copy = case.conversion.output("copy");
    // skopeo checks every digest while it copies.
    let args = [
        "--insecure-policy",
        "copy",
        "--quiet",
        "--all",
        "--preserve-digests",
    ];
    let copied = std::process::Command::new("skopeo")
        .args(args)
        .args([output.reference(), copy.reference()])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success(), "{errors}");
    assert_eq!(copy.manifest_digest(), output.manifest_digest());
    Esgz::new("verify")
        .arg(copy.reference())
        .run()
        .success()
        .unwrap();
}
