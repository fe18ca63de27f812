//! Layers of several platforms: shared ones, archives, and what is prefetched of which.

use std::fs;
use std::path::Path;

use esgz_tests::esgz::Esgz;
use esgz_tests::platforms::{Documents, ELSEWHERE, here};
use esgz_tests::{machine, privileged};
use serde_json::{Value, json};

use super::{Case, UNREADABLE, USAGE, check_index, everything};

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
