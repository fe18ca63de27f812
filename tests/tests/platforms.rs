//! Images of several platforms: what is selected, what is carried over, and what is said of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layer, Layout, LayoutBuilder, MediaTypes};
use esgz_tests::platforms::{Documents, ELSEWHERE, IndexBuilder, here, image};
use esgz_tests::{find_program, machine, privileged, sets, skipped};
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

#[test]
fn a_layer_that_platforms_share_is_scanned_and_converted_once() {
    let case = Case::new(|index| index.image(&here()).image(ELSEWHERE).image("linux/arm/v7"));
    let output = case.conversion.output("output");
    let command = Esgz::new("convert").into_command();
    let mut command = std::process::Command::new(command.get_program());
    command.args(["convert", "--log-level=debug", "--all-platforms", "--json"]);
    command.args([case.source.reference(), output.reference()]);
    let finished = command.output().unwrap();
    let log = String::from_utf8_lossy(&finished.stderr);
    assert!(finished.status.success(), "{log}");
    let scanned = log.lines().filter(|line| line.contains("scanned")).count();
    assert_eq!(scanned, 4, "one shared layer and three others: {log}");
    let report: Value = serde_json::from_slice(&finished.stdout).unwrap();
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 6);
    assert_eq!(layers[0], layers[2]);
    assert_eq!(layers[0], layers[4]);
    assert_eq!(report["platforms"].as_array().unwrap().len(), 3);
    assert_eq!(report["destination"]["manifest"], output.manifest_digest());
}

#[test]
fn archives_hold_several_platforms_or_say_that_they_cannot() {
    let case = everything();
    let path = case.conversion.path("out.tar");
    let source = case.source.reference();
    let convert = |output: String, args: &[&str]| {
        let scratch = case.conversion.path("scratch");
        let command = Esgz::new("convert").arg("--scratch").arg(scratch);
        command.args([&*source, &*output]).args(args).run()
    };
    let oci = format!("oci-archive:{}:t", path.display());
    convert(oci.clone(), &["--all-platforms"])
        .success()
        .unwrap();
    let layout = esgz_tests::packed::unpack(&path, &case.conversion.path("unpacked"), Some("t"));
    check_index(&case.source(), &Documents::of(&layout));
    let again = fs::read(&path).unwrap();
    convert(oci, &["--all-platforms", "--threads", "3"])
        .success()
        .unwrap();
    assert!(again == fs::read(&path).unwrap(), "the same bytes");

    let docker = format!(
        "docker-archive:{}:t",
        case.conversion.path("docker.tar").display()
    );
    let failed = convert(docker.clone(), &["--all-platforms"]);
    failed
        .failed_with(UNREADABLE, &["a Docker archive holds one image, not 4"])
        .unwrap();
    assert!(!case.conversion.path("docker.tar").exists());
    convert(docker.clone(), &[]).success().unwrap();
    Esgz::new("verify").arg(docker).run().success().unwrap();
}

/// A profile is for its platform; a list of files is for all.
#[test]
fn profiles_and_platforms() {
    let case = Case::new(|index| index.image(&here()).image(ELSEWHERE));
    let manifest = &case.source().listed()[0];
    let layers: Vec<Value> = case.source().read(manifest)["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].clone())
        .collect();
    let profile = json!({
        "esgz_profile": 1,
        "image": {"reference": "oci:x", "manifest": manifest["digest"], "platform": here(), "layers": layers},
        "workload": {"args": [], "env": [], "user": "0:0", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "6.12", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 1,
        "runs": 1, "missing": [],
        "files": [{
            "path": "bin/tool", "layer": 1, "size_bytes": 27000, "phase": "run",
            "first_touch_seq": 1, "first_touch_ms": 1, "opened": true, "executed": false,
            "touched_bytes": 4096, "ranges": [[0, 4096]],
        }],
    });
    let file = case.conversion.path("profile.json");
    fs::write(&file, profile.to_string()).unwrap();
    let record = case.conversion.path("record");
    let line = json!({"path": "bin/tool", "manifestDigest": manifest["digest"], "layerIndex": 1});
    fs::write(&record, format!("{line}\n")).unwrap();
    let check = |flag: &str, file: &Path, more: &[&str], expected: [u64; 2]| {
        let file = file.display().to_string();
        case.convert(&[&["--all-platforms", flag, &file], more].concat());
        assert_eq!(prefetched(&case), expected, "{flag} {more:?}");
    };
    check("--profile", &file, &[], [1, 0]);
    check("--profile", &file, &["--profile-other-platforms"], [1, 1]);
    check("--record-in", &record, &[], [1, 1]);
    // The only image that was selected takes the profile.
    let name = file.display().to_string();
    case.convert(&["--platform", "s390x", "--profile", &name]);
    let output = case.conversion.output("output").reference();
    let finished = Esgz::new("inspect").args([&*output, "--json"]).run();
    let report: Value = serde_json::from_str(&finished.success().unwrap().stdout).unwrap();
    assert_eq!(report["layers"][1]["prefetch"]["files"], 1);
}

/// How many files of their second layers this machine's image and the other prefetch.
fn prefetched(case: &Case) -> [u64; 2] {
    let output = case.conversion.output("output").reference();
    let args = [&*output, "--json", "--all-platforms"];
    let finished = Esgz::new("inspect").args(args).run().success().unwrap();
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    [0, 1].map(|image: usize| {
        let layer = &report["images"][image]["layers"][1];
        layer["prefetch"]["files"].as_u64().unwrap()
    })
}

#[test]
fn only_this_machines_image_is_run() {
    let Some(_turn) = privileged::workload("platforms::only_this_machines_image_is_run") else {
        return;
    };
    let run = machine::image()
        .platform(&here())
        .config(json!({"Env": ["PATH=/bin"], "Entrypoint": ["/bin/true"]}));
    let case = Case::new(|index| {
        // The same files, as if they were for another platform.
        let other = run.clone().platform(ELSEWHERE);
        index
            .built(ELSEWHERE, &other)
            .built(&here(), &run)
            .attestation()
    });
    let files = |args: &[&str]| -> Vec<bool> {
        let _ = fs::remove_dir_all(case.conversion.output("output").dir);
        let finished = case.run("optimize", "output", args).success().unwrap();
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        let output = case.conversion.output("output");
        Esgz::new("verify")
            .arg(output.reference())
            .run()
            .success()
            .unwrap();
        let layers = report["layers"].as_array().unwrap();
        let images = report["platforms"].as_array().unwrap().iter();
        let mut start = 0;
        images
            .map(|image| {
                let end = start + usize::try_from(image["layers"].as_u64().unwrap()).unwrap();
                let layers = &layers[std::mem::replace(&mut start, end)..end];
                layers.iter().any(|layer| layer["prefetch"]["files"] != 0)
            })
            .collect()
    };
    assert_eq!(files(&["--json"]), [true]);
    assert_eq!(files(&["--json", "--all-platforms"]), [false, true]);
    let others = ["--json", "--all-platforms", "--profile-other-platforms"];
    assert_eq!(files(&others), [true, true]);
    let documents = Documents::of(&case.conversion.output("output"));
    assert_eq!(
        documents.platforms(),
        [ELSEWHERE, &here(), "unknown/unknown"]
    );
    let failed = case.run("optimize", "new", &["--platform", "s390x"]);
    failed.failed_with(USAGE, &["this machine runs"]).unwrap();
    let profile = case.conversion.path("profile");
    let failed = Esgz::new("record")
        .args([&*case.source.reference(), "--platform", "s390x", "-o"])
        .arg(&profile)
        .run();
    failed.failed_with(USAGE, &["this machine runs"]).unwrap();
    assert!(!profile.exists());
    let finished = Esgz::new("record")
        .args([&*case.source.reference(), "--all-platforms", "-o"])
        .arg(&profile)
        .run();
    finished.success().unwrap();
    let profile: Value = serde_json::from_slice(&fs::read(&profile).unwrap()).unwrap();
    assert_eq!(profile["image"]["platform"], here());
}

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
