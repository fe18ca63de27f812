//! Runtimes that know nothing of eStargz unpack a packed image to the file system of its source: packs are not
//! among the files.

use std::fs;
use std::path::Path;
use std::process::Command;

use esgz_tests::containerd::{Containerd, versions};
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::Layout;
use esgz_tests::tree::Tree;
use esgz_tests::{find_program, privileged, skipped};

use super::conversions::{TOUCHED, image, profile, with_profile};

/// Added to a root directory.
const OWN: [&str; 3] = [
    "stargz.index.json",
    ".prefetch.landmark",
    ".no.prefetch.landmark",
];

fn conversion() -> (Conversion, Layout) {
    let conversion = Conversion::of(&image());
    let profile = profile(&conversion, "profile", TOUCHED);
    let packed = conversion.convert("packed", &with_profile(&profile, &[]));
    (conversion, packed.unwrap())
}

fn reference(layout: &Layout) -> String {
    let tag = layout.tag.as_deref().unwrap();
    format!("{}:{tag}", layout.dir.display())
}

/// What a program prints that has to succeed.
fn printed(command: &mut Command) -> String {
    let done = command.output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {errors}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// Compares the files that one unpacker made of source and output.
fn compare(unpacker: &str, source: &Tree, mut packed: Tree) {
    let mut own = OWN.into_iter();
    assert!(
        own.all(|name| packed.0.remove(Path::new(name)).is_some() || name.starts_with(".no.")),
        "{unpacker} unpacks no landmark or TOC: was it the packed image?"
    );
    let differences = source.differences(&packed);
    assert!(differences.is_empty(), "{unpacker}: {differences:#?}");
    assert!(source.0.len() > 8, "{unpacker}: {source:?}");
}

#[test]
fn umoci_unpacks_the_same_tree() {
    let name = "hot_pack::eager::umoci_unpacks_the_same_tree";
    let Some(_turn) = privileged::exclusive(name) else {
        return;
    };
    if find_program("umoci").is_none() {
        return skipped(name, "umoci is not installed");
    }
    let (conversion, packed) = conversion();
    let unpack = |layout: &Layout, to: &str| {
        let bundle = conversion.path(to);
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &reference(layout)]);
        printed(umoci.arg(&bundle));
        Tree::read(&bundle.join("rootfs")).without_directory_times()
    };
    let source = unpack(&conversion.source, "of-source");
    compare("umoci", &source, unpack(&packed, "of-packed"));
}

/// Podman's storage, by way of buildah: with overlayfs, each layer unpacked as a difference, and without, all into
/// one directory.
#[test]
fn podmans_storage_holds_the_same_tree() {
    let name = "hot_pack::eager::podmans_storage_holds_the_same_tree";
    let Some(_turn) = privileged::exclusive(name) else {
        return;
    };
    if find_program("buildah").is_none() {
        return skipped(name, "buildah is not installed");
    }
    let (conversion, packed) = conversion();
    for driver in ["overlay", "vfs"] {
        // An image is named by its path, in which there must be small letters only.
        let storage = tempfile::Builder::new()
            .prefix(&format!("esgz-test-{driver}-{}", std::process::id()))
            .rand_bytes(0)
            .tempdir_in("/var/tmp")
            .unwrap();
        let buildah = |args: &[&str]| {
            let mut command = Command::new("buildah");
            command.arg("--root").arg(storage.path().join("root"));
            command.arg("--runroot").arg(storage.path().join("run"));
            printed(command.args(["--storage-driver", driver]).args(args))
        };
        let unpack = |layout: &Layout, name: &str| {
            let dir = storage.path().join(name);
            std::os::unix::fs::symlink(&layout.dir, &dir).unwrap();
            let tag = layout.tag.as_deref().unwrap();
            let image = format!("oci:{}:{tag}", dir.display());
            let container = buildah(&["from", "--quiet", &image]);
            let root = buildah(&["mount", &container]);
            let tree = Tree::read(Path::new(&root)).without_directory_times();
            buildah(&["umount", &container]);
            buildah(&["rm", &container]);
            tree
        };
        let source = unpack(&conversion.source, "source");
        let packed = unpack(&packed, "packed");
        compare(&format!("buildah, {driver}"), &source, packed);
        // The driver may keep a mount of its own.
        let _ = Command::new("umount")
            .arg(storage.path().join("root/overlay"))
            .output();
    }
}

#[test]
fn containerd_unpacks_the_same_tree() {
    let name = "hot_pack::eager::containerd_unpacks_the_same_tree";
    let programs = versions(name);
    let Some(_turn) = privileged::exclusive(name) else {
        return;
    };
    let (conversion, packed) = conversion();
    for programs in programs {
        let containerd = Containerd::start(&programs);
        for snapshotter in ["overlayfs", "native"] {
            let unpack = |layout: &Layout, name: &str| {
                containerd.import(layout, name).unwrap();
                let to = conversion.path("mounted");
                fs::create_dir(&to).unwrap();
                let target = to.to_str().unwrap();
                let flags = [
                    "images",
                    "mount",
                    "--snapshotter",
                    snapshotter,
                    name,
                    target,
                ];
                containerd.ctr(&flags).unwrap();
                let tree = Tree::read(&to).without_directory_times();
                let flags = [
                    "images",
                    "unmount",
                    "--rm",
                    "--snapshotter",
                    snapshotter,
                    target,
                ];
                containerd.ctr(&flags).unwrap();
                fs::remove_dir(&to).unwrap();
                containerd.ctr(&["images", "rm", "--sync", name]).unwrap();
                tree
            };
            let source = unpack(&conversion.source, "registry.example/tests/source:1");
            let output = unpack(&packed, "registry.example/tests/packed:1");
            compare(&format!("{programs:?}, {snapshotter}"), &source, output);
        }
    }
}

/// `skopeo copy` reads every layer, and checks each digest against the documents.
#[test]
fn skopeo_copies_a_packed_image() {
    let name = "hot_pack::eager::skopeo_copies_a_packed_image";
    if find_program("skopeo").is_none() {
        return skipped(name, "skopeo is not installed");
    }
    let (conversion, packed) = conversion();
    let to = conversion.path("copied");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--preserve-digests", "--insecure-policy"]);
    skopeo.arg(format!("oci:{}", reference(&packed)));
    printed(skopeo.arg(format!("oci:{}:copied", to.display())));
    for number in 0..2 {
        let digest = packed.layer_digest(number);
        let blob = to
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"));
        assert_eq!(
            fs::read(blob).unwrap(),
            fs::read(packed.blob_path(&digest)).unwrap()
        );
    }
}
