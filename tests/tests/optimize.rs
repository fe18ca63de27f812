//! `esgz optimize` on an image of this machine's programs, from the run to the written layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::Layout;
use esgz_tests::machine::{self, BIG, BIG_BYTES, BIG_RANGES, MAIN_PRINTS, UNREAD};
use esgz_tests::oracle::Oracle;
use esgz_tests::privileged;
use esgz_tests::residue::residue;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Runs `esgz optimize` with a profile and a record, and checks that nothing is left behind.
fn optimize(conversion: &Conversion, name: &str, args: &[&str]) -> Result<Layout, String> {
    let command = conversion
        .optimize(name)
        .arg("--profile-out")
        .arg(conversion.path(&format!("{name}.json")))
        .arg("--record-out")
        .arg(conversion.path(&format!("{name}.record")))
        .args(args);
    conversion.finish(command.run().success()?)?;
    Ok(conversion.output(name))
}

fn files(profile: &Value) -> &Vec<Value> {
    profile["files"].as_array().expect("a profile has files")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The row of the file `path`.
fn file<'a>(profile: &'a Value, path: &str) -> &'a Value {
    let found: Vec<_> = files(profile)
        .iter()
        .filter(|file| text(file, "path") == path)
        .collect();
    assert_eq!(found.len(), 1, "{path} in {profile:#}");
    found[0]
}

fn paths(profile: &Value) -> Vec<&str> {
    files(profile)
        .iter()
        .map(|file| text(file, "path"))
        .collect()
}

/// What must hold of every profile.
fn assert_well_formed(profile: &Value, source: &Layout) {
    assert_eq!(profile["esgz_profile"], 1);
    assert_eq!(profile["image"]["manifest"], source.manifest_digest());
    let layers = source.manifest()["layers"].as_array().unwrap().len();
    for index in 0..layers {
        assert_eq!(
            profile["image"]["layers"][index],
            source.layer_digest(index)
        );
    }
    assert_eq!(profile["complete"], true, "{profile:#}");
    assert_eq!(profile["lost_events"], 0);
    assert_eq!(profile["collector"]["tier"], "filemap");
    let numbers = |key: &str| -> Vec<u64> {
        let files = files(profile).iter();
        files.map(|file| file[key].as_u64().unwrap()).collect()
    };
    assert!(numbers("first_touch_seq").is_sorted_by(|a, b| a < b));
    assert!(numbers("first_touch_ms").is_sorted());
    let unique: BTreeSet<_> = paths(profile).into_iter().collect();
    assert_eq!(
        unique.len(),
        files(profile).len(),
        "a path stands twice in {profile:#}"
    );
    for file in files(profile) {
        let (mut end, mut sum) = (0, 0);
        let size = file["size_bytes"].as_u64().unwrap();
        for range in file["ranges"].as_array().unwrap() {
            let (offset, len) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
            let aligned = offset % 4096 == 0 && (len % 4096 == 0 || offset + len == size);
            let ascending = offset > end || (offset == 0 && end == 0);
            assert!(aligned && ascending && len > 0, "{file}");
            (end, sum) = (offset + len, sum + len);
        }
        assert!(end <= size, "{file}");
        assert_eq!(file["touched_bytes"], sum, "{file}");
        assert!(!text(file, "path").starts_with('/'));
    }
}

#[test]
fn the_profile_is_what_the_workload_did() {
    let name = "optimize::the_profile_is_what_the_workload_did";
    let Some(profile) = profile_of_the_workload(name, &[]) else {
        return;
    };
    assert_eq!(profile["collector"]["not_known"], json!(["missing"]));
    assert_eq!(profile["missing"], json!([]));
}

#[test]
fn names_that_are_missing_are_known_on_request() {
    let name = "optimize::names_that_are_missing_are_known_on_request";
    let Some(profile) = profile_of_the_workload(name, &["--missing"]) else {
        return;
    };
    assert_eq!(profile["collector"].get("not_known"), None);
    let missing = profile["missing"].as_array().unwrap();
    assert!(missing.contains(&json!("opt/data/gone")), "{missing:?}");
    let unread = [&json!(UNREAD), &json!("opt/data/hard")];
    assert!(
        !missing.iter().any(|path| unread.contains(&path)),
        "{missing:?}"
    );
}

/// The profile, in which all is right but what is missing, which the caller looks at. None where it cannot be made.
fn profile_of_the_workload(name: &str, args: &[&str]) -> Option<Value> {
    let _turn = privileged::workload(name)?;
    let conversion = Conversion::of(&machine::image());
    let command = conversion.record_run("profile").arg("--json").args(args);
    let finished = conversion.finish(command.run().success().unwrap()).unwrap();
    assert_eq!(finished.stderr, MAIN_PRINTS);
    let profile = conversion.json("profile");
    assert_well_formed(&profile, &conversion.source);
    assert_eq!(profile["ended"], "exit");
    assert_eq!(profile["exit_code"], 0);
    assert_eq!(profile["workload"]["args"], json!(["/opt/main"]));

    let ranges: Vec<_> = BIG_RANGES
        .iter()
        .map(|(at, len)| json!([at, len]))
        .collect();
    let big = file(&profile, BIG);
    assert_eq!(big["ranges"], json!(ranges));
    assert_eq!(big["size_bytes"], BIG_BYTES);
    assert_eq!(
        (&big["opened"], &big["executed"]),
        (&json!(true), &json!(false))
    );
    let unread = file(&profile, UNREAD);
    assert_eq!(
        (&unread["opened"], &unread["ranges"]),
        (&json!(true), &json!([]))
    );

    let [sh, cat, dd] = ["sh", "cat", "dd"].map(machine::program);
    for path in [&*sh, &*cat, &*dd] {
        assert_eq!(file(&profile, path)["executed"], true, "{path}");
    }
    // The program, its interpreter and its linker are read before the kernel reports the execution.
    for path in [BIG, UNREAD, "opt/data/new", "opt/main", &*sh] {
        assert_eq!(file(&profile, path)["phase"], "run", "{path}");
    }
    for path in machine::libraries_of_sh() {
        assert_eq!(file(&profile, &path)["phase"], "run", "{path}");
        let is_linker = path.contains("/ld-");
        assert_eq!(file(&profile, &path)["executed"], is_linker, "{path}");
    }
    assert_eq!(file(&profile, "opt/main")["executed"], true);
    for path in ["opt/main", &*sh, &*cat, &*dd] {
        assert_ne!(file(&profile, path)["ranges"], json!([]), "{path}");
    }
    let libraries = machine::libraries_of_sh();
    assert!(libraries.iter().any(|path| path.contains("libc")));
    assert!(libraries.iter().any(|path| path.contains("ld-")));
    for path in &libraries {
        assert_ne!(file(&profile, path)["ranges"], json!([]), "{path}");
    }
    // A hardlink is the entry that holds the bytes.
    assert_eq!(file(&profile, "opt/data/small")["layer"], 0);
    assert_eq!(file(&profile, "opt/data/new")["layer"], 1);
    assert_eq!(file(&profile, "opt/main")["layer"], 1);
    let paths = paths(&profile);
    for path in [
        "opt/data/never",
        "opt/data/hard",
        "opt/data/gone",
        "opt/tool",
    ] {
        assert!(!paths.contains(&path), "{path} in {paths:?}");
    }
    let made = ["tmp/out", "tmp/gone"];
    assert!(!paths.iter().any(|path| made.contains(path)), "{paths:?}");

    let order = [
        "opt/main",
        &*sh,
        UNREAD,
        &*cat,
        "opt/data/small",
        &*dd,
        BIG,
        "opt/data/new",
    ];
    let known: Vec<&str> = paths
        .iter()
        .copied()
        .filter(|path| order.contains(path))
        .collect();
    assert_eq!(known, order);
    Some(profile)
}

#[test]
fn what_was_touched_comes_first() {
    let name = "optimize::what_was_touched_comes_first";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let output = optimize(&conversion, "output", &[]).unwrap();
    let verify = Esgz::new("verify").arg(output.reference()).run();
    verify.success().unwrap();
    let profile = conversion.json("output.json");
    assert_well_formed(&profile, &conversion.source);

    let record = fs::read_to_string(conversion.path("output.record")).unwrap();
    let manifest = conversion.source.manifest_digest();
    let line = |file: &Value| {
        format!(
            "{{\"path\":{},\"manifestDigest\":\"{manifest}\",\"layerIndex\":{}}}\n",
            file["path"], file["layer"]
        )
    };
    let expected: String = files(&profile).iter().map(line).collect();
    assert_eq!(record, expected);

    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    let report = oracle
        .image(&output, Some(&conversion.source), &[])
        .unwrap();
    for layer in 0..2 {
        let expected = prefetched(&profile, layer);
        let verified = &report["manifests"][0]["layers"][layer]["verify"];
        assert_eq!(verified["prioritized"], json!(expected), "layer {layer}");
        assert!(!expected.contains(&UNREAD.to_owned()));
    }
}

/// What must stand before the landmark of a layer: each touched file behind its parents.
fn prefetched(profile: &Value, layer: usize) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut add = |path: &str| {
        if !order.iter().any(|known| known == path) {
            order.push(path.to_owned());
        }
    };
    let touched = files(profile).iter().filter(|file| {
        file["layer"] == layer && !file["ranges"].as_array().is_none_or(Vec::is_empty)
    });
    for file in touched {
        let path = text(file, "path");
        for (slash, _) in path.match_indices('/') {
            add(&path[..slash]);
        }
        add(path);
    }
    order
}

#[test]
fn every_way_to_mount_gives_the_same_files() {
    let Some(_turn) = privileged::workload("optimize::every_way_to_mount_gives_the_same_files")
    else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let files_of = |name: &str, args: &[&str]| -> BTreeMap<String, Value> {
        optimize(&conversion, name, args).unwrap();
        let profile = conversion.json(&format!("{name}.json"));
        assert_well_formed(&profile, &conversion.source);
        let partial = &profile["collector"]["ranges"];
        assert_eq!(partial == "partial", name == "unpack");
        let row = |file: &Value| {
            let keys = ["layer", "size_bytes", "opened", "executed", "phase"];
            (
                text(file, "path").to_owned(),
                json!(keys.map(|key| &file[key])),
            )
        };
        files(&profile).iter().map(row).collect()
    };
    let auto = files_of("auto", &[]);
    assert_eq!(files_of("erofs", &["--rootfs=erofs"]), auto);
    assert_eq!(files_of("unpack", &["--rootfs=unpack"]), auto);
    assert_eq!(files_of("exact", &["--exact"]), auto);
}

#[test]
fn every_collector_finds_the_same_files() {
    let Some(_turn) = privileged::workload("optimize::every_collector_finds_the_same_files") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let record = |name: &str, args: &[&str]| -> Value {
        let command = conversion.record_run(name).args(args);
        let finished = command.run().success().unwrap();
        conversion.finish(finished).unwrap();
        let profile = conversion.json(name);
        assert_eq!(profile["complete"], true, "{name}: {profile:#}");
        assert_eq!(profile["collector"]["tier"], name);
        profile
    };
    let filemap = record("filemap", &[]);
    assert_eq!(filemap["collector"]["not_known"], json!(["missing"]));
    let missing = record("filemap", &["--missing"]);
    assert_eq!(missing["collector"].get("not_known"), None);
    let of = |profile: &Value| -> BTreeMap<String, Value> {
        let row = |file: &Value| {
            let keys = ["layer", "size_bytes", "executed"].map(|key| &file[key]);
            (text(file, "path").to_owned(), json!(keys))
        };
        // The runtime itself looks into passwd and group; this process is not watched by all.
        let files = files(profile).iter().map(row);
        files
            .filter(|(path, _)| !path.starts_with("etc/"))
            .collect()
    };
    assert_eq!(of(&missing), of(&filemap));
    let page_cache = record("page-cache", &["--collector=page-cache"]);
    assert_eq!(of(&page_cache), of(&filemap));
    let ranges: Vec<_> = BIG_RANGES
        .iter()
        .map(|(at, len)| json!([at, len]))
        .collect();
    assert_eq!(file(&page_cache, BIG)["ranges"], json!(ranges));
    for (name, missing) in [("open", true), ("fanotify", false)] {
        let profile = record(name, &[&format!("--collector={name}")]);
        assert_eq!(of(&profile), of(&filemap), "{name}");
        assert_eq!(profile["collector"]["ranges"], "whole");
        assert_eq!(profile["collector"]["not_known"][0], "ranges");
        for file in files(&profile) {
            assert_eq!(file["touched_bytes"], file["size_bytes"], "{name}: {file}");
        }
        let known = profile["missing"].as_array().unwrap();
        assert_eq!(known.contains(&json!("opt/data/gone")), missing, "{name}");
        assert_eq!(file(&profile, "opt/main")["executed"], true, "{name}");
        assert_eq!(file(&profile, "opt/main")["phase"], "run", "{name}");
    }
}

#[test]
fn threads_change_no_byte() {
    let Some(_turn) = privileged::workload("optimize::threads_change_no_byte") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let optimized = optimize(&conversion, "optimized", &[]).unwrap();
    let profile = conversion.path("optimized.json").display().to_string();
    for threads in ["1", "2", "7"] {
        let args = ["--profile", &profile, "--threads", threads];
        let converted = conversion.convert(threads, &args).unwrap();
        assert_eq!(
            converted.manifest_digest(),
            optimized.manifest_digest(),
            "{threads} threads"
        );
    }
}

#[test]
fn lost_events_are_an_error() {
    let Some(_turn) = privileged::workload("optimize::lost_events_are_an_error") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let storm = "echo up; sleep 0.2; set -- 0 1 2 3 4 5 6 7 8 9
        for a do for b do for c do n=\"$n /gone/$a$b$c\"; done; done; done
        cat $n 2> /tmp/errors; true";
    let run = |more: &[&str]| {
        let mut command = conversion
            .optimize("output")
            .arg("--profile-out")
            .arg(conversion.path("profile"))
            .args(["--ring-size", "4096", "--json", "--entrypoint"])
            .arg(json!(["/bin/sh", "-c", storm]).to_string())
            .args(more)
            .into_command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut up = [0; 3];
        let stderr = child.stderr.as_mut().unwrap();
        stderr.read_exact(&mut up).unwrap();
        // While esgz is stopped nobody empties the ring.
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        thread::sleep(Duration::from_millis(1500));
        kill(pid, Signal::SIGCONT).unwrap();
        let output = child.wait_with_output().unwrap();
        let left = residue(pid.as_raw().cast_unsigned(), &conversion.path("scratch"));
        assert!(left.is_empty(), "{left:?}");
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, errors) = run(&[]);
    assert_eq!(code, Some(4), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("incomplete"), "{errors}");
    assert!(!conversion.path("output").exists());
    let profile = conversion.json("profile");
    assert_eq!(profile["complete"], false);
    assert!(profile["lost_events"].as_u64().unwrap() > 0);
    assert_eq!(run(&["--allow-incomplete"]), (Some(0), String::new()));
    assert!(conversion.path("output").exists());
}
