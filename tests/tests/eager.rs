//! Runtimes that know nothing of eStargz unpack an output to the file system of its source.

use std::fs;
use std::path::Path;
use std::process::Command;

use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::tree::Tree;
use esgz_tests::{find_program, sets, skipped};

/// Unpackers refuse what these sets hold, in any image: names that are no UTF-8, or too long for a
/// file system, device numbers out of range.
const NOT_UNPACKABLE: [&str; 4] = [
    "long names",
    "odd names",
    "devices and pipes",
    "landmarks and TOC of an earlier conversion",
];

/// The sets as layers; umoci knows neither typeflag `S` nor `g`.
fn image() -> LayoutBuilder {
    let unknown = ["sparse", "global header"];
    let mut image = LayoutBuilder::new();
    for set in &sets::all() {
        if !unknown.contains(&set.name) && !NOT_UNPACKABLE.contains(&set.name) {
            image = image.layer(Layer::from_tar(set.tar(), Compression::Gzip(6)));
        }
    }
    image
}

/// The tree that umoci makes of an image, without what eStargz adds to the root directory.
fn unpack(layout: &Layout, bundle: &Path) -> Tree {
    let image = format!(
        "{}:{}",
        layout.dir.display(),
        layout.tag.as_deref().unwrap()
    );
    let output = Command::new("umoci")
        .args(["unpack", "--image", &image])
        .arg(bundle)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rootfs = bundle.join("rootfs");
    for name in [
        "stargz.index.json",
        ".prefetch.landmark",
        ".no.prefetch.landmark",
    ] {
        // Whichever is there.
        let _ = fs::remove_file(rootfs.join(name));
    }
    Tree::read(&rootfs).without_directory_times()
}

#[test]
fn umoci_unpacks_the_same_tree() {
    let name = "eager::umoci_unpacks_the_same_tree";
    if find_program("umoci").is_none() {
        return skipped(name, "umoci is not installed");
    }
    let Some(_alone) = esgz_tests::privileged::exclusive(name) else {
        return;
    };
    let conversion = Conversion::of(&image());
    let source = unpack(&conversion.source, &conversion.path("source-bundle"));
    assert!(
        source.0.len() > 50,
        "only {} files were unpacked",
        source.0.len()
    );
    let record = conversion.record(&[(3, "usr/lib/libc.so.6"), (3, "etc/passwd")]);
    for (output, args) in [
        ("plain", vec![]),
        ("ordered", vec!["--record-in", record.to_str().unwrap()]),
    ] {
        let layout = conversion.convert(output, &args).unwrap();
        let tree = unpack(&layout, &conversion.path(&format!("{output}-bundle")));
        let differences = source.differences(&tree);
        assert!(
            differences.is_empty(),
            "{output}:\n{}",
            differences.join("\n")
        );
    }
}

#[test]
fn skopeo_copies_an_output() {
    if find_program("skopeo").is_none() {
        return skipped("eager::skopeo_copies_an_output", "skopeo is not installed");
    }
    let conversion = Conversion::of(&image());
    let output = conversion.convert("output", &[]).unwrap();
    let copy = conversion.output("copy");
    let run = Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--insecure-policy",
            &output.reference(),
            &copy.reference(),
        ])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert_eq!(copy.manifest_digest(), output.manifest_digest());
    for index in 0..output.manifest()["layers"].as_array().unwrap().len() {
        assert!(
            copy.blob_path(&output.layer_digest(index)).is_file(),
            "layer {index}"
        );
    }
}

/// GNU tar and bsdtar extract an output's layers as they extract the source's.
#[test]
fn tar_programs_extract_the_same_tree() {
    let name = "eager::tar_programs_extract_the_same_tree";
    let Some(_alone) = esgz_tests::privileged::exclusive(name) else {
        return;
    };
    let programs: Vec<_> = ["tar", "bsdtar"]
        .into_iter()
        .filter(|p| find_program(p).is_some())
        .collect();
    if programs.is_empty() {
        return skipped(name, "neither tar nor bsdtar is installed");
    }
    // Both complain of these ends, in the source.
    let left_out = [
        "garbage behind the end",
        "without end blocks",
        "empty without end blocks",
    ];
    for set in sets::all() {
        if NOT_UNPACKABLE.contains(&set.name) || left_out.contains(&set.name) {
            continue;
        }
        let layer = Layer::from_tar(set.tar(), Compression::Gzip(6));
        let conversion = Conversion::of(&LayoutBuilder::new().layer(layer));
        let output = conversion.convert("output", &[]).unwrap();
        for program in &programs {
            let extract = |layout: &Layout, to: &str| {
                let (blob, dir) = (
                    layout.blob_path(&layout.layer_digest(0)),
                    conversion.path(to),
                );
                fs::create_dir(&dir).unwrap();
                let mut command = Command::new(program);
                command.arg("-xzpf").arg(blob).arg("-C").arg(&dir);
                command.args(["--xattrs", "--numeric-owner"]);
                if *program == "tar" {
                    command.arg("--xattrs-include=*");
                }
                let run = command.output().unwrap();
                let errors = String::from_utf8_lossy(&run.stderr);
                assert!(run.status.success(), "{program}: {}: {errors}", set.name);
                for name in [
                    "stargz.index.json",
                    ".prefetch.landmark",
                    ".no.prefetch.landmark",
                ] {
                    let _ = fs::remove_file(dir.join(name));
                }
                Tree::read(&dir).without_directory_times()
            };
            let source = extract(&conversion.source, &format!("{program}-source"));
            let ours = extract(&output, &format!("{program}-output"));
            let differences = source.differences(&ours);
            assert!(
                differences.is_empty(),
                "{program}: {}:\n{}",
                set.name,
                differences.join("\n")
            );
        }
    }
}
