//! Images of several platforms: what is selected, what is carried over, and what is said of it.

mod platforms {
    mod documents;
    mod layers;

    use super::{Case, UNREADABLE, USAGE, check_index, everything, images};
}

use std::collections::BTreeMap;
use std::fs;

use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layout, LayoutBuilder};
use esgz_tests::platforms::{Documents, ELSEWHERE, IndexBuilder, here, image};
use serde_json::{Value, json};

const USAGE: i32 = 2;

const UNREADABLE: i32 = 6;

/// A directory with an index of several platforms in it.
struct Case {
    conversion: Conversion,
    source: Layout,
}

impl Case {
    fn new(build: impl FnOnce(IndexBuilder) -> IndexBuilder) -> Self {
        // Its own image is not used; the directory is.
        let conversion = Conversion::of(&LayoutBuilder::new());
        let source = build(Self::index(&conversion)).finish();
        Self { conversion, source }
    }

    fn index(conversion: &Conversion) -> IndexBuilder {
        let dir = conversion.path("index");
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        IndexBuilder::new(&dir)
    }

    fn run(&self, subcommand: &str, output: &str, args: &[&str]) -> Finished {
        let output = self.conversion.output(output).reference();
        let scratch = self.conversion.path("scratch");
        let command = Esgz::new(subcommand).arg("--scratch").arg(scratch);
        let command = command.args([self.source.reference(), output]);
        self.conversion.finish(command.args(args).run()).unwrap()
    }

    fn convert(&self, args: &[&str]) -> Documents {
        let output = self.conversion.output("output");
        let _ = fs::remove_dir_all(&output.dir);
        self.run("convert", "output", args).success().unwrap();
        let documents = Documents::of(&output);
        // Whatever was written is whole.
        let verified = Esgz::new("verify").arg(output.reference()).run();
        verified.success().unwrap();
        documents
    }

    fn source(&self) -> Documents {
        Documents::of(&self.source)
    }
}

/// Everything that an index may hold: images with and without variants, attestations, an artifact,
/// a nested index.
fn everything() -> Case {
    Case::new(|index| {
        let nested = IndexBuilder::new(index.dir())
            .image("linux/riscv64")
            .attestation();
        index
            .image(&here())
            .attestation()
            .image(ELSEWHERE)
            .attestation()
            .image("linux/arm/v7")
            .nested(&nested)
            .artifact()
    })
}

/// Manifest digests of the images that `documents` lists, by platform.
fn images(documents: &Documents) -> BTreeMap<String, Value> {
    let listed = documents.listed().into_iter();
    let named = documents.platforms().into_iter().zip(listed);
    named
        .filter(|(platform, _)| platform.contains('/') && !platform.starts_with("unknown"))
        .collect()
}

#[test]
fn all_platforms_keep_the_shape_of_the_index() {
    let case = everything();
    let (source, output) = (case.source(), case.convert(&["--all-platforms"]));
    assert_eq!(output.platforms(), source.platforms());
    for key in [
        "annotations",
        "key of the future",
        "mediaType",
        "schemaVersion",
    ] {
        assert_eq!(output.root[key], source.root[key], "{key}");
    }
    check_index(&source, &output);
}

/// Compares two indexes of the same shape.
fn check_index(source: &Documents, output: &Documents) {
    let mut new_digests: BTreeMap<String, Value> = BTreeMap::new();
    for ((platform, old), new) in source
        .platforms()
        .iter()
        .zip(source.listed())
        .zip(output.listed())
    {
        assert_eq!(new["platform"], old["platform"]);
        match platform.as_str() {
            "index" => {
                let (old, new) = (source.below(&old), output.below(&new));
                assert_eq!(new.platforms(), old.platforms());
                check_index(&old, &new);
            }
            "-" => assert_eq!(new, old, "an artifact is carried over"),
            "unknown/unknown" => {
                let mut expected = old.clone();
                let of = &mut expected["annotations"]["vnd.docker.reference.digest"];
                *of = new_digests[of.as_str().unwrap()].clone();
                assert_eq!(new, expected, "an attestation follows its image");
                let manifest = output.read(&new);
                assert_eq!(output.bytes(&new), source.bytes(&old));
                for layer in manifest["layers"].as_array().unwrap() {
                    assert_eq!(output.bytes(layer), source.bytes(layer));
                }
                output.bytes(&manifest["config"]);
            }
            _ => {
                assert_eq!(new["annotations"], old["annotations"]);
                assert_ne!(new["digest"], old["digest"]);
                let key = old["digest"].as_str().unwrap().to_owned();
                new_digests.insert(key, new["digest"].clone());
                let (old, new) = (source.read(&old), output.read(&new));
                assert_eq!(new["annotations"], old["annotations"]);
                let layers = new["layers"].as_array().unwrap();
                assert_eq!(layers.len(), old["layers"].as_array().unwrap().len());
                for layer in layers {
                    let annotations = &layer["annotations"];
                    assert!(annotations["containerd.io/snapshot/stargz/toc.digest"].is_string());
                }
            }
        }
    }
}

#[test]
fn selected_platforms() {
    let case = Case::new(|index| {
        index
            .image(&here())
            .image("linux/arm/v6")
            .image("linux/arm/v7")
            .image(ELSEWHERE)
            .attestation()
            .image("windows/amd64")
    });
    let source = images(&case.source());
    let check = |args: &[&str], expected: &[&str]| {
        let output = case.convert(args);
        assert!(output.is_index(), "{args:?}");
        assert_eq!(output.platforms(), expected, "{args:?}");
    };
    // One image alone is written without its index.
    let alone = |args: &[&str], platform: &str| {
        let output = case.convert(args);
        assert!(!output.is_index(), "{args:?}");
        assert_eq!(output.root["annotations"]["of"], platform, "{args:?}");
        let old = case.source().read(&source[platform]);
        let (old, new) = (old["layers"].as_array(), output.root["layers"].as_array());
        assert_eq!(old.map(Vec::len), new.map(Vec::len));
    };
    alone(&[], &here());
    alone(&["--platform", "linux/arm"], "linux/arm/v7");
    alone(&["--platform", "linux/armhf"], "linux/arm/v7");
    alone(&["--platform", "linux/arm/v6"], "linux/arm/v6");
    alone(&["--platform", "windows/x86_64"], "windows/amd64");
    check(
        &["--platform", "linux/s390x"],
        &[ELSEWHERE, "unknown/unknown"],
    );
    check(
        &["--platform", "linux/s390x", "--platform", "linux/armel"],
        &["linux/arm/v6", ELSEWHERE, "unknown/unknown"],
    );
    let all = case.source().platforms();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    check(&["--all-platforms"], &all);

    let known = format!("it has \"{}\", \"linux/arm/v6\"", here());
    for (platform, expected) in [("plan9/386", &*known), ("linux/ppc64le", &known)] {
        let failed = case.run("convert", "new", &["--platform", platform]);
        failed.failed_with(UNREADABLE, &[expected]).unwrap();
    }
    for args in [
        &["--platform", "nowhere"][..],
        &["--platform", ""],
        &["--platform", "linux/amd64", "--all-platforms"],
    ] {
        let failed = case.run("convert", "new", args);
        assert_eq!(failed.code, Some(USAGE), "{args:?}: {}", failed.stderr);
    }
    assert!(!case.conversion.path("new").exists());
}

/// What one command writes, the others read with the same flags.
#[test]
fn inspect_and_verify_select_platforms() {
    let case = Case::new(|index| index.image(&here()).image(ELSEWHERE).attestation());
    let inspect = |args: &[&str]| {
        let finished = Esgz::new("inspect")
            .arg(case.source.reference())
            .args(args)
            .run();
        let finished = finished.success().unwrap();
        serde_json::from_str::<Value>(&finished.stdout).unwrap()
    };
    assert_eq!(inspect(&["--json"])["platform"], here());
    let elsewhere = inspect(&["--json", "--platform", "s390x"]);
    assert_eq!(elsewhere["platform"], ELSEWHERE);
    let all = inspect(&["--json", "--all-platforms"]);
    let platforms = [&all["images"][0]["platform"], &all["images"][1]["platform"]];
    assert_eq!(platforms, [&json!(here()), &json!(ELSEWHERE)]);
    assert_eq!(all["images"][1]["layers"].as_array().unwrap().len(), 2);
    // Not eStargz, on either platform.
    for args in [&[][..], &["--platform", "s390x"]] {
        let finished = Esgz::new("verify")
            .arg(case.source.reference())
            .args(args)
            .run();
        assert_eq!(finished.code, Some(5), "{}", finished.stderr);
    }
    let layer = ["--layer", "0", "--all-platforms"];
    let finished = Esgz::new("inspect")
        .arg(case.source.reference())
        .args(layer)
        .run();
    finished
        .failed_with(UNREADABLE, &["choose one with --platform"])
        .unwrap();
}

#[test]
fn images_without_a_platform_in_the_index() {
    // One alone is meant, whatever it is for.
    let case = Case::new(|index| index.image(ELSEWHERE).without_platform());
    let output = case.convert(&[]);
    assert_eq!(output.root["annotations"]["of"], ELSEWHERE);
    assert!(!output.is_index());
    // Among others the configuration tells.
    let case = Case::new(|index| {
        let index = index.image(ELSEWHERE).without_platform();
        index.image(&here()).without_platform()
    });
    let output = case.convert(&[]);
    assert_eq!(output.root["annotations"]["of"], here());
    let output = case.convert(&["--platform", "s390x"]);
    assert_eq!(output.root["annotations"]["of"], ELSEWHERE);
    // An image that no index lists is taken as it is, unless another is asked for.
    let conversion = Conversion::of(&image(ELSEWHERE));
    conversion.convert("output", &[]).unwrap();
    conversion
        .convert("output", &["--platform", "s390x"])
        .unwrap();
    let failed = conversion
        .command("new")
        .args(["--platform", &here()])
        .run();
    failed
        .failed_with(UNREADABLE, &["it has \"linux/s390x\""])
        .unwrap();
    // A single image that its index puts elsewhere is not.
    let case = Case::new(|index| index.image(ELSEWHERE));
    let failed = case.run("convert", "new", &[]);
    failed
        .failed_with(UNREADABLE, &["it has \"linux/s390x\""])
        .unwrap();
}

/// A client that pulls one platform leaves the rest of the index out.
#[test]
fn what_is_not_here_is_missed_only_if_it_is_needed() {
    let case = everything();
    let remove = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        fs::remove_file(case.source.blob_path(digest)).unwrap();
    };
    let listed = case.source().listed();
    remove(&listed[1]);
    remove(&listed[2]);
    let output = case.convert(&[]);
    assert_eq!(output.platforms(), [&*here(), "-"]);
    let failed = case.run("convert", "new", &["--all-platforms"]);
    failed.failed_with(UNREADABLE, &["is missing"]).unwrap();
    let failed = case.run("convert", "new", &["--platform", "s390x"]);
    failed.failed_with(UNREADABLE, &["is missing"]).unwrap();
    assert!(!case.conversion.path("new").exists());

    // The blobs of what is carried over must be there, and be what they say.
    let case = everything();
    let manifest = case.source().read(&case.source().listed()[1]);
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let path = case.source.blob_path(digest);
    fs::write(&path, "another").unwrap();
    let failed = case.run("convert", "new", &[]);
    failed
        .failed_with(UNREADABLE, &[&format!("{digest} is damaged")])
        .unwrap();
    fs::remove_file(&path).unwrap();
    let failed = case.run("convert", "new", &[]);
    failed
        .failed_with(UNREADABLE, &[&format!("{digest} is missing")])
        .unwrap();
    assert!(!case.conversion.path("new").exists());
}
