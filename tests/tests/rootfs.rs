//! Root file systems, mounted by both ways and compared. Needs root, loop devices and overlayfs.

mod rootfs_parts;

mod rootfs {
    mod attributes;
    mod ends;
    mod properties;

    use super::{both_ways, check_inodes, mounted, options};
}

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;

use esgz::cancel::Cancel;
use esgz::layer::entry::{Entry, EntryKind, ScannedLayer};
use esgz::rootfs::{
    Backend, EntryProblem, MountedRootfs, RootfsError, RootfsMode, RootfsOptions, TreeError, mount,
};
use esgz_tests::layers::{LayerBuilder, dir, file, link};
use rootfs_parts::{Scratch, differences, every_kind, pattern, view};

fn options(scratch: &Scratch, mode: RootfsMode) -> RootfsOptions {
    RootfsOptions {
        mode,
        scratch: scratch.path().to_path_buf(),
        read_ahead_kib: 64,
    }
}

fn mounted(scratch: &Scratch, layers: &[ScannedLayer], mode: RootfsMode) -> MountedRootfs {
    let layers: Vec<&ScannedLayer> = layers.iter().collect();
    mount(&layers, &options(scratch, mode), &Cancel::default()).unwrap()
}

/// Mounts `layers` both ways, checks that the views are equal, and gives one to `check`.
fn both_ways(scratch: &Scratch, layers: &[ScannedLayer], check: impl Fn(&MountedRootfs)) {
    let erofs = mounted(scratch, layers, RootfsMode::Erofs);
    let unpacked = mounted(scratch, layers, RootfsMode::Unpack);
    assert_eq!(
        (erofs.backend(), unpacked.backend()),
        (Backend::Erofs, Backend::Unpack)
    );
    assert_eq!(
        differences(&view(erofs.path()), &view(unpacked.path())),
        Vec::<String>::new()
    );
    check_inodes(&erofs, layers);
    check_inodes(&unpacked, layers);
    check(&erofs);
    check(&unpacked);
    erofs.unmount().unwrap();
    unpacked.unmount().unwrap();
}

/// Every regular file of the view has one line in `opened_as`, and that names an entry of its size.
fn check_inodes(rootfs: &MountedRootfs, layers: &[ScannedLayer]) {
    let opened = rootfs.opened_as();
    let mut inodes = BTreeSet::new();
    for (path, facts) in &view(rootfs.path()) {
        if !facts.is_file() {
            continue;
        }
        let stat = fs::symlink_metadata(rootfs.path().join(path)).unwrap();
        inodes.insert(stat.ino());
        let device = rustix::fs::major(stat.dev()) << 20 | rustix::fs::minor(stat.dev());
        let found = opened.binary_search_by_key(&(device, stat.ino()), |f| (f.device, f.inode));
        let found =
            opened[found.unwrap_or_else(|_| panic!("{} is not in the list", path.display()))];
        let entry: &Entry = &layers[found.file.layer as usize].entries[found.file.entry as usize];
        assert_eq!(
            (entry.size_bytes, found.size_bytes),
            (stat.len(), stat.len())
        );
        let lower = rootfs
            .files()
            .iter()
            .filter(|file| file.file == found.file)
            .count();
        assert_eq!(lower, 1, "{}", path.display());
    }
    assert!(
        rootfs
            .files()
            .is_sorted_by_key(|file| (file.device, file.inode))
    );
    assert_eq!(
        opened.len(),
        inodes.len(),
        "no file that is not in the view"
    );
    assert!(rootfs.files().len() >= opened.len());
}

#[test]
fn both_ways_show_the_same_files_of_every_kind() {
    let Some(scratch) = Scratch::privileged("both_ways_show_the_same_files_of_every_kind") else {
        return;
    };
    let layers = every_kind(scratch.path());
    both_ways(&scratch, &layers, |rootfs| {
        let path = |name: &str| rootfs.path().join(name);
        let stat = |name: &str| fs::symlink_metadata(path(name)).unwrap();
        assert_eq!(
            stat("").permissions().mode() & 0o7777,
            0o711,
            "the root's own mode"
        );
        assert_eq!(
            stat("tmp").permissions().mode() & 0o7777,
            0o1777,
            "inherited by layer 1"
        );
        assert_eq!(stat("bin/su").permissions().mode() & 0o7777, 0o4755);
        assert_eq!(
            (stat("ids").uid(), stat("ids").gid()),
            (4_000_000_000, 70_000)
        );
        assert_eq!(
            (stat("old").mtime(), stat("old").mtime_nsec()),
            (-86_400, 500)
        );
        assert_eq!(
            (stat("future").mtime(), stat("future").mtime_nsec()),
            (9_000_000_000, 7)
        );
        assert_eq!(stat("hard/1").nlink(), 3);
        assert_eq!(stat("hard/1").ino(), stat("hard-3").ino());
        assert!(stat("dev/fifo").file_type().is_fifo());
        let device = stat("dev/block").rdev();
        assert_eq!(
            (rustix::fs::major(device), rustix::fs::minor(device)),
            (259, 70_000)
        );
        for size in rootfs_parts::SIZES {
            assert!(
                fs::read(path(&format!("sizes/{size}"))).unwrap() == pattern(*size, *size as u8)
            );
        }
        assert_eq!(
            fs::read_dir(path("many")).unwrap().count(),
            rootfs_parts::MANY
        );
        assert_eq!(
            fs::read_link(path("links/long")).unwrap().as_os_str().len(),
            4000
        );
        for gone in [
            "gone",
            "gone-dir",
            "opaque/low",
            "was-dir/x",
            "remade/low",
            "through/low",
        ] {
            assert!(fs::symlink_metadata(path(gone)).is_err(), "{gone}");
        }
        for there in [
            "opaque/high",
            "was-file/x",
            "remade/high",
            "kept/low",
            "kept/high",
            "was-dir",
        ] {
            assert!(fs::symlink_metadata(path(there)).is_ok(), "{there}");
        }
        // The view is writable, set-id files can be copied up, and writes stay in it.
        fs::write(path("sizes/513"), "new").unwrap();
        fs::rename(path("bin/su"), path("bin/sudo")).unwrap();
        assert_eq!(fs::read(path("sizes/513")).unwrap(), b"new");
    });
}

#[test]
fn a_layer_cannot_write_outside_its_root() {
    let Some(scratch) = Scratch::privileged("a_layer_cannot_write_outside_its_root") else {
        return;
    };
    let victim = scratch.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let symlink = |name: &str, target: &[u8]| link(EntryKind::Symlink, name, target);
    let absolute = victim.as_os_str().as_encoded_bytes();
    let layer = LayerBuilder::default()
        .add(symlink("x", b"/"), b"")
        .add(file("x/etc/evil"), b"evil")
        .add(symlink("up", b"../../../../../../../.."), b"")
        .add(file("up/esgz-evil"), b"evil")
        .add(symlink("abs", absolute), b"")
        .add(file("abs/evil"), b"evil")
        .add(symlink("final", b"/etc/passwd"), b"")
        .add(file("final"), b"replaced")
        .add(symlink("chain", b"x/etc"), b"")
        .add(file("chain/evil2"), b"evil")
        .add(link(EntryKind::Hardlink, "hard", "chain/evil2"), b"")
        .finish(scratch.path())
        .unwrap();
    both_ways(&scratch, &[layer], |rootfs| {
        for name in ["etc/evil", "esgz-evil", "etc/evil2", "hard"] {
            assert_eq!(
                fs::read(rootfs.path().join(name)).unwrap(),
                b"evil",
                "{name}"
            );
        }
        let inside = rootfs
            .path()
            .join(victim.strip_prefix("/").unwrap())
            .join("evil");
        assert_eq!(fs::read(inside).unwrap(), b"evil");
        assert_eq!(fs::read(rootfs.path().join("final")).unwrap(), b"replaced");
    });
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert!(!fs::exists("/etc/evil").unwrap() && !fs::exists("/esgz-evil").unwrap());

    let refused = |entry: Entry, expected: EntryProblem| {
        let layer = LayerBuilder::default()
            .add(entry, b"")
            .finish(scratch.path())
            .unwrap();
        for mode in [RootfsMode::Erofs, RootfsMode::Unpack, RootfsMode::Auto] {
            match mount(&[&layer], &options(&scratch, mode), &Cancel::default()) {
                Err(RootfsError::Layer {
                    source: TreeError::Entry { problem, .. },
                    layer: 0,
                }) => {
                    assert_eq!(problem, expected);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    refused(file("../../evil"), EntryProblem::LeavesRoot);
    refused(
        link(EntryKind::Hardlink, "l", "../evil"),
        EntryProblem::LeavesRoot,
    );
}

#[test]
fn layers_without_files_and_images_without_layers_mount() {
    let name = "layers_without_files_and_images_without_layers_mount";
    let Some(scratch) = Scratch::privileged(name) else {
        return;
    };
    let empty = || LayerBuilder::default().finish(scratch.path()).unwrap();
    both_ways(&scratch, &[], |rootfs| assert!(rootfs.files().is_empty()));
    both_ways(&scratch, &[empty()], |rootfs| {
        assert!(view(rootfs.path()).len() <= 1);
    });
    let root = || Entry {
        mode: 0o700,
        uid: 5,
        ..dir("./")
    };
    let only_root = LayerBuilder::default()
        .add(root(), b"")
        .finish(scratch.path())
        .unwrap();
    let one = LayerBuilder::default()
        .add(file("a"), b"a")
        .finish(scratch.path())
        .unwrap();
    both_ways(&scratch, &[empty(), one, only_root, empty()], |rootfs| {
        let stat = fs::metadata(rootfs.path()).unwrap();
        assert_eq!((stat.permissions().mode() & 0o7777, stat.uid()), (0o700, 5));
        assert_eq!(fs::read(rootfs.path().join("a")).unwrap(), b"a");
    });
}

#[test]
fn an_opaque_root_hides_the_layers_below() {
    let Some(scratch) = Scratch::privileged("an_opaque_root_hides_the_layers_below") else {
        return;
    };
    let low = LayerBuilder::default()
        .add(file("low"), b"")
        .finish(scratch.path())
        .unwrap();
    let high = LayerBuilder::default()
        .add(file(".wh..wh..opq"), b"")
        .add(file("high"), b"")
        .finish(scratch.path())
        .unwrap();
    both_ways(&scratch, &[low, high], |rootfs| {
        let names: Vec<_> = view(rootfs.path()).into_keys().collect();
        assert_eq!(
            names,
            [std::path::Path::new(""), std::path::Path::new("high")]
        );
    });
}

#[test]
fn as_many_layers_as_images_may_have_mount() {
    let Some(scratch) = Scratch::privileged("as_many_layers_as_images_may_have_mount") else {
        return;
    };
    let layers: Vec<ScannedLayer> = (0..127)
        .map(|layer: usize| {
            LayerBuilder::default()
                .add(
                    file(format!("own/{layer}")),
                    &pattern(layer * 37, layer as u8),
                )
                .add(file("shared"), layer.to_string().as_bytes())
                .finish(scratch.path())
                .unwrap()
        })
        .collect();
    both_ways(&scratch, &layers, |rootfs| {
        assert_eq!(fs::read(rootfs.path().join("shared")).unwrap(), b"126");
        assert_eq!(rootfs.opened_as().len(), 128);
    });
}
