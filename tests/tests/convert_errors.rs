//! Bad input and bad destinations: one clear line, the documented exit code, nothing written and
//! nothing left behind.

use std::fs;
use std::path::Path;

use esgz_tests::archive::{Ending, archive};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::sets;
use esgz_tests::tree::Tree;

/// Neither the source nor the destination is at fault.
const OTHER: i32 = 1;
/// Usage errors.
const USAGE: i32 = 2;
/// The source or the destination cannot be read or written.
const UNREADABLE: i32 = 6;

fn two_layers() -> LayoutBuilder {
    let links = sets::named("links").entries;
    LayoutBuilder::new()
        .layer(Layer::new(&sets::usual(), Compression::Gzip(6)))
        .layer(Layer::new(&links, Compression::Gzip(6)))
}

/// Puts `fault` into an image and converts it: into a place that does not exist, and over an
/// image that does. The error must hold one of `names`, which `fault` returns.
fn check(what: &str, fault: impl Fn(&Layout) -> Vec<String>) {
    let conversion = Conversion::of(&two_layers());
    // A good image stands at the second destination, with another file beside it.
    let existing = conversion.output("existing");
    LayoutBuilder::new()
        .tag(Some("esgz"))
        .layer(Layer::new(&sets::usual(), Compression::Gzip(1)))
        .write(&existing.dir);
    fs::write(existing.dir.join("note"), "not of esgz").unwrap();
    let before = Tree::read(&existing.dir).without_times();

    let names = fault(&conversion.source);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in ["new", "existing"] {
        let finished = conversion.finish(conversion.command(name).run());
        let failed = finished.and_then(|finished| finished.failed_with(UNREADABLE, &names));
        failed.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert!(
        !conversion.output("new").dir.exists(),
        "{what}: something was written"
    );
    let differences = before.differences(&Tree::read(&existing.dir).without_times());
    assert!(
        differences.is_empty(),
        "{what}: the destination changed: {differences:?}"
    );
}

/// The blob that a fault is in, by its digest's first digits; its path holds them too.
fn blob(digest: &str) -> Vec<String> {
    vec![digest[7..19].to_owned()]
}

#[test]
fn damaged_blobs() {
    check("flipped byte", |layout| {
        corrupt::flip_byte(layout, 1, 100);
        blob(&layout.layer_digest(1))
    });
    check("flipped last byte", |layout| {
        let digest = layout.layer_digest(1);
        let last = fs::metadata(layout.blob_path(&digest)).unwrap().len() - 1;
        corrupt::flip_byte(layout, 1, last);
        blob(&digest)
    });
    check("truncated", |layout| {
        corrupt::truncate(layout, 0);
        blob(&layout.layer_digest(0))
    });
    check("wrong digest", |layout| {
        corrupt::wrong_digest(layout, 1);
        blob(corrupt::NO_BLOB)
    });
    check("wrong size", |layout| {
        corrupt::wrong_size(layout, 1);
        blob(&layout.layer_digest(1))
    });
    check("missing blob", |layout| {
        corrupt::missing_blob(layout, 1);
        blob(&layout.layer_digest(1))
    });
    check("wrong DiffID", |layout| {
        corrupt::wrong_diff_id(layout, 1);
        [blob(&layout.layer_digest(1)), blob(corrupt::NO_BLOB)].concat()
    });
}

#[test]
fn damaged_metadata() {
    check("no oci-layout", |layout| {
        fs::remove_file(layout.dir.join("oci-layout")).unwrap();
        vec![layout.dir.display().to_string()]
    });
    check("no index.json", |layout| {
        fs::remove_file(layout.dir.join("index.json")).unwrap();
        vec!["index.json".to_owned()]
    });
    check("index.json is cut", |layout| {
        fs::write(layout.dir.join("index.json"), "{\"schemaVersion\":2,\"mani").unwrap();
        vec!["index.json".to_owned()]
    });
    check("no such tag", |layout| {
        let other = fs::read_to_string(layout.dir.join("index.json")).unwrap();
        fs::write(
            layout.dir.join("index.json"),
            other.replace("latest", "other"),
        )
        .unwrap();
        vec!["latest".to_owned()]
    });
    check("missing config", |layout| {
        let digest = layout.manifest()["config"]["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        fs::remove_file(layout.blob_path(&digest)).unwrap();
        blob(&digest)
    });
    check("config is changed", |layout| {
        let digest = layout.manifest()["config"]["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = layout.blob_path(&digest);
        fs::write(
            &path,
            fs::read_to_string(&path).unwrap().replace("amd64", "arm64"),
        )
        .unwrap();
        blob(&digest)
    });
    check("manifest is cut", |layout| {
        let digest = layout.manifest_digest();
        fs::write(layout.blob_path(&digest), "{").unwrap();
        blob(&digest)
    });
    check("ten megabytes of brackets", |layout| {
        corrupt::nested_json(layout);
        let index = layout.index();
        blob(index["manifests"][0]["digest"].as_str().unwrap())
    });
    check("fewer DiffIDs than layers", |layout| {
        let mut config = layout.config();
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
        let media_type = layout.manifest()["config"]["mediaType"]
            .as_str()
            .unwrap()
            .to_owned();
        let descriptor = layout.put(config.to_string().as_bytes(), &media_type);
        let names = blob(descriptor["digest"].as_str().unwrap());
        layout.edit_manifest(|manifest| manifest["config"] = descriptor);
        names
    });
}

#[test]
fn layers_that_are_what_their_digest_says_and_still_bad() {
    let replace = |what: &str, bytes: Vec<u8>| {
        check(what, |layout| {
            corrupt::replace_layer(layout, 1, &bytes);
            vec![corrupt::short(&bytes)]
        });
    };
    let tar = archive(&sets::usual(), Ending::Blocks);
    replace("damaged deflate stream", corrupt::damaged_gzip(&tar));
    let whole = Compression::Gzip(6).compress(&tar);
    replace("cut gzip", whole[..whole.len() - 5].to_vec());
    replace("gzip header alone", whole[..10].to_vec());
    replace(
        "cut tar",
        Compression::Gzip(6).compress(&corrupt::cut_tar()),
    );
    replace(
        "wrong header checksum",
        Compression::Gzip(6).compress(&corrupt::bad_checksum_tar()),
    );
    replace("no archive", b"<html>404 not found</html>".repeat(100));
    replace(
        "cut zstd",
        Compression::Zstd.compress(&tar)[..5000].to_vec(),
    );
    replace("an empty blob", Vec::new());
}

#[test]
fn layers_that_are_refused() {
    let conversion = Conversion::of(&LayoutBuilder::new().layer(corrupt::escaping_layer()));
    let finished = conversion
        .finish(conversion.command("output").run())
        .unwrap();
    finished
        .failed_with(UNREADABLE, &["a/../../../etc/passwd"])
        .unwrap();
    assert!(!conversion.path("output").exists());

    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    let layer = Layer::new(&sets::usual(), Compression::Gzip(6)).media_type(encrypted);
    let conversion = Conversion::of(&LayoutBuilder::new().layer(layer));
    let finished = conversion
        .finish(conversion.command("output").run())
        .unwrap();
    finished.failed_with(UNREADABLE, &["encrypted"]).unwrap();
    assert!(!conversion.path("output").exists());
}

#[test]
fn places_that_cannot_be_read_or_written() {
    let conversion = Conversion::of(&two_layers());
    let source = conversion.source.reference();
    let run = |source: &str, output: &str| Esgz::new("convert").args([source, output]).run();
    let output = conversion.output("output").reference();
    run("oci:/nowhere/at/all", &output)
        .failed_with(UNREADABLE, &["/nowhere/at/all"])
        .unwrap();
    let scratch = conversion.path("scratch").display().to_string();
    run(&format!("oci:{scratch}"), &output)
        .failed_with(UNREADABLE, &[&scratch])
        .unwrap();
    assert!(!conversion.path("output").exists());

    let file = conversion.path("file");
    fs::write(&file, "a file, no directory").unwrap();
    let name = file.display().to_string();
    run(&source, &format!("oci:{name}"))
        .failed_with(UNREADABLE, &[&name])
        .unwrap();
    run(&source, &format!("oci:{name}/below"))
        .failed_with(UNREADABLE, &[&name])
        .unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "a file, no directory");
    // A file system that takes no directories, root or not.
    run(&source, "oci:/proc/esgz")
        .failed_with(UNREADABLE, &["/proc"])
        .unwrap();
    // A directory with other things in it is no image layout.
    let other = conversion.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("index.json"), "{ this is no index").unwrap();
    let name = other.display().to_string();
    run(&source, &format!("oci:{name}"))
        .failed_with(UNREADABLE, &[&name])
        .unwrap();
    assert_eq!(esgz_tests::conversion::names(&other), ["index.json"]);

    let scratch = ["--scratch", "/nowhere/scratch"];
    let finished = Esgz::new("convert")
        .args(scratch)
        .args([&source, &output])
        .run();
    finished.failed_with(OTHER, &["/nowhere/scratch"]).unwrap();
    let finished = Esgz::new("convert")
        .args([&*source, &output, "--record-in", "/nowhere/r"])
        .run();
    finished.failed_with(UNREADABLE, &["/nowhere/r"]).unwrap();
    assert!(!conversion.path("output").exists());
}

#[test]
fn a_full_disk() {
    let name = "convert_errors::a_full_disk";
    let Some(_alone) = esgz_tests::privileged::exclusive(name) else {
        return;
    };
    let conversion = Conversion::of(&two_layers());
    let small = conversion.path("small");
    fs::create_dir(&small).unwrap();
    let mount = |program: &str, args: &[&str]| {
        std::process::Command::new(program)
            .args(args)
            .arg(&small)
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mount("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs"]) {
        return esgz_tests::skipped(name, "tmpfs cannot be mounted");
    }
    let finished = conversion.finish(conversion.command("small/output").run());
    let left = Tree::read(&small).0;
    assert!(mount("umount", &[]));
    finished
        .unwrap()
        .failed_with(UNREADABLE, &["small/output"])
        .unwrap();
    assert!(left.is_empty(), "left on the full disk: {left:?}");
}

#[test]
fn wrong_usage() {
    let check = |args: &[&str]| {
        let finished = Esgz::new("convert").args(args).run();
        assert_eq!(
            finished.code,
            Some(USAGE),
            "{}: {}",
            finished.command,
            finished.stderr
        );
        assert!(!finished.stderr.is_empty(), "{}", finished.command);
        assert_eq!(finished.stdout, "", "{}", finished.command);
    };
    check(&[]);
    check(&["oci:source"]);
    check(&["oci:source", "oci:"]);
    check(&["oci:source", "oci:output", "more"]);
    check(&["oci:source", "oci:output", "--no-such-flag"]);
    check(&[
        "oci:source",
        "oci:output",
        "--estargz-compression-level",
        "99",
    ]);
    check(&[
        "oci:source",
        "oci:output",
        "--estargz-compression-level",
        "high",
    ]);
    check(&["oci:source", "oci:output", "--threads", "0"]);
    check(&["oci:source", "oci:output", "--threads", "-1"]);
    let finished = Esgz::new("no-such-command").run();
    assert_eq!(finished.code, Some(USAGE));
    assert!(!Path::new("output").exists());
}

/// An image beside the destination's tag stays; the tag itself is replaced.
#[test]
fn other_images_in_the_destination_stay() {
    let conversion = Conversion::of(&two_layers());
    let shared = conversion.path("shared");
    let layer = Layer::new(&sets::usual(), Compression::Gzip(1));
    let other = LayoutBuilder::new()
        .tag(Some("other"))
        .layer(layer)
        .write(&shared);
    let before = other.manifest_digest();
    let ours = conversion.convert("shared", &[]).unwrap();
    assert_eq!(other.manifest_digest(), before);
    assert!(other.blob_path(&other.layer_digest(0)).is_file());
    let first = ours.manifest_digest();
    let record = conversion.record(&[(0, "bin/sh")]);
    conversion
        .convert("shared", &["--record-in", record.to_str().unwrap()])
        .unwrap();
    assert_ne!(ours.manifest_digest(), first);
    assert_eq!(ours.index()["manifests"].as_array().unwrap().len(), 2);
}
