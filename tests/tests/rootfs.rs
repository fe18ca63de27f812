//! Root file systems, mounted by both ways and compared. Needs root, loop devices and overlayfs.

mod rootfs_parts;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};

use esgz::cancel::Cancel;
use esgz::layer::entry::{Entry, EntryKind, ScannedLayer, Timestamp};
use esgz::layer::spool::Spool;
use esgz::rootfs::{
    Backend, EntryProblem, MountedRootfs, RootfsError, RootfsMode, RootfsOptions, TreeError, check,
    mount,
};
use esgz_tests::layers::{LayerBuilder, dir, file, link, special, with_xattrs};
use proptest::prelude::*;
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
fn sparse_files_read_alike() {
    let Some(scratch) = Scratch::privileged("sparse_files_read_alike") else {
        return;
    };
    let stretch = |offset: u64, len: usize| (offset, pattern(len, offset as u8));
    type Stretches = Vec<(u64, Vec<u8>)>;
    let cases: &[(&str, u64, u64, Stretches)] = &[
        ("all-hole", 1 << 20, 0, vec![]),
        ("hole-first", 1 << 16, 0, vec![stretch(1 << 15, 1 << 15)]),
        ("hole-last", 1 << 16, 512, vec![stretch(0, 4096)]),
        (
            "blocks",
            20_480,
            512,
            vec![stretch(0, 512), stretch(1024, 1024), stretch(19_968, 512)],
        ),
        ("odd-end", 10_000, 0, vec![stretch(4096, 5904)]),
        (
            "misaligned",
            10_000,
            0,
            vec![stretch(100, 1000), stretch(5000, 77)],
        ),
        ("misaligned-map", 10_000, 100, vec![stretch(0, 1000)]),
        (
            "huge",
            1 << 40,
            512,
            vec![stretch(512, 512), stretch((1 << 40) - 512, 512)],
        ),
    ];
    let mut builder = LayerBuilder::default();
    for (name, size, map, stretches) in cases {
        builder = builder.add_sparse(file(name), *size, *map, stretches);
    }
    let layers = [builder.finish(scratch.path()).unwrap()];
    for mode in [RootfsMode::Erofs, RootfsMode::Unpack] {
        let rootfs = mounted(&scratch, &layers, mode);
        for (name, size, _, stretches) in cases {
            let path = rootfs.path().join(name);
            assert_eq!(fs::metadata(&path).unwrap().len(), *size, "{name}");
            let read = |offset: u64, len: usize| {
                let mut buffer = vec![0xff; len];
                fs::File::open(&path)
                    .unwrap()
                    .read_exact_at(&mut buffer, offset)
                    .unwrap();
                buffer
            };
            if *size <= 1 << 20 {
                let mut expected = vec![0; *size as usize];
                for (offset, bytes) in stretches {
                    expected[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                assert!(read(0, *size as usize) == expected, "{mode:?} {name}");
            }
            for (offset, bytes) in stretches {
                assert!(
                    read(*offset, bytes.len()) == *bytes,
                    "{mode:?} {name} {offset}"
                );
            }
        }
        assert!(rootfs.index_bytes() < 1 << 41);
        rootfs.unmount().unwrap();
    }
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

#[test]
fn the_read_ahead_of_both_devices_is_as_asked_and_restored() {
    let name = "the_read_ahead_of_both_devices_is_as_asked_and_restored";
    let Some(scratch) = Scratch::privileged(name) else {
        return;
    };
    let layers = [LayerBuilder::default()
        .add(file("a"), &pattern(8192, 1))
        .finish(scratch.path())
        .unwrap()];
    let settings = |devices: &[String]| -> Vec<String> {
        let read = |device: &String| fs::read_to_string(format!("{device}/queue/read_ahead_kb"));
        let text = devices.iter().map(read).map(Result::unwrap);
        text.map(|text| text.trim().to_owned()).collect()
    };
    for kib in [0, 64] {
        let options = RootfsOptions {
            read_ahead_kib: kib,
            ..options(&scratch, RootfsMode::Erofs)
        };
        let rootfs = mount(&[&layers[0]], &options, &Cancel::default()).unwrap();
        let device = rootfs.files()[0].device;
        assert_eq!(device >> 20, 7, "loop devices have major 7");
        let devices = scratch.loop_devices();
        let index = format!("/sys/block/loop{}", device & 0xfffff);
        assert!(
            devices.len() == 2 && devices.contains(&index),
            "{devices:?}"
        );
        assert_eq!(settings(&devices), [kib.to_string(), kib.to_string()]);
        rootfs.unmount().unwrap();
        assert!(settings(&devices).iter().all(|now| *now != kib.to_string()));
    }
}

#[test]
fn nothing_is_left_after_a_failure_midway() {
    let Some(scratch) = Scratch::privileged("nothing_is_left_after_a_failure_midway") else {
        return;
    };
    let good = LayerBuilder::default()
        .add(file("a"), b"a")
        .finish(scratch.path())
        .unwrap();
    let mut bad = LayerBuilder::default()
        .add(file("b"), b"b")
        .finish(scratch.path())
        .unwrap();
    // Not a file that a loop device takes, nor one that can be read at an offset.
    let (reader, _writer) = std::io::pipe().unwrap();
    bad.spool = Spool::new(fs::File::from(std::os::fd::OwnedFd::from(reader)), 4096);
    let layers = [&bad, &good];
    let attempt = |mode| mount(&layers, &options(&scratch, mode), &Cancel::default());
    assert!(matches!(
        attempt(RootfsMode::Erofs),
        Err(RootfsError::Loop { .. })
    ));
    assert!(matches!(
        attempt(RootfsMode::Unpack),
        Err(RootfsError::Io { .. })
    ));
    assert!(
        matches!(attempt(RootfsMode::Auto), Err(RootfsError::Io { .. })),
        "auto tries both"
    );
    let cancel = Cancel::default();
    cancel.cancel();
    let cancelled = mount(&layers, &options(&scratch, RootfsMode::Auto), &cancel);
    assert!(matches!(cancelled, Err(RootfsError::Cancelled(_))));
}

#[test]
fn nothing_is_left_after_a_panic_or_while_files_are_open() {
    let name = "nothing_is_left_after_a_panic_or_while_files_are_open";
    let Some(scratch) = Scratch::privileged(name) else {
        return;
    };
    let layers = [LayerBuilder::default()
        .add(file("a"), b"a")
        .finish(scratch.path())
        .unwrap()];
    for mode in [RootfsMode::Erofs, RootfsMode::Unpack] {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _rootfs = mounted(&scratch, &layers, mode);
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(panicked.is_err());
        let rootfs = mounted(&scratch, &layers, mode);
        let path = rootfs.path().to_path_buf();
        let open = fs::File::open(path.join("a")).unwrap();
        let is_left = |what: &str| {
            scratch
                .left_behind()
                .iter()
                .any(|left| left.starts_with(what))
        };
        assert!(is_left("mount") && is_left("directory"), "control");
        assert_eq!(is_left("loop device"), mode == RootfsMode::Erofs, "control");
        rootfs.unmount().unwrap();
        assert!(!path.exists());
        drop(open);
    }
}

#[test]
fn times_and_modes_of_the_header_alone_count() {
    let Some(scratch) = Scratch::privileged("times_and_modes_of_the_header_alone_count") else {
        return;
    };
    let mtime = Timestamp {
        secs: 1_000_000_000,
        nanos: 999_999_999,
    };
    let layer = LayerBuilder::default()
        .add(
            Entry {
                mtime,
                mode: 0o40_555,
                ..dir("d")
            },
            b"",
        )
        .add(
            Entry {
                mtime,
                mode: 0o100_000,
                ..file("d/none")
            },
            b"x",
        )
        .add(
            Entry {
                mtime,
                ..link(EntryKind::Symlink, "d/l", "none")
            },
            b"",
        )
        .add(
            Entry {
                mtime,
                ..special(EntryKind::Fifo, "d/p", 0, 0)
            },
            b"",
        )
        .finish(scratch.path())
        .unwrap();
    both_ways(&scratch, &[layer], |rootfs| {
        for name in ["d", "d/none", "d/l", "d/p"] {
            let stat = fs::symlink_metadata(rootfs.path().join(name)).unwrap();
            assert_eq!(
                (stat.mtime(), stat.mtime_nsec()),
                (1_000_000_000, 999_999_999),
                "{name}"
            );
        }
    });
}

#[test]
fn dropped_attributes_are_counted_alike() {
    let Some(scratch) = Scratch::privileged("dropped_attributes_are_counted_alike") else {
        return;
    };
    let attributes: &[(&str, &[u8])] = &[
        ("trusted.overlay.redirect", b"/etc"),
        ("com.apple.quarantine", b"x"),
        ("system.posix_acl_access", b"not an ACL"),
        ("user.kept", b"x"),
    ];
    let layer = LayerBuilder::default()
        .add(with_xattrs(dir("d"), attributes), b"")
        .finish(scratch.path())
        .unwrap();
    both_ways(&scratch, &[layer], |rootfs| {
        assert_eq!(rootfs.dropped_xattrs(), 3);
        assert_eq!(
            view(rootfs.path())[std::path::Path::new("d")].xattr_names(),
            ["user.kept"]
        );
    });
}

#[test]
fn auto_unpacks_where_loop_devices_refuse_and_says_why() {
    let name = "auto_unpacks_where_loop_devices_refuse_and_says_why";
    let Some(scratch) = Scratch::privileged(name) else {
        return;
    };
    let mut layer = LayerBuilder::default()
        .add(file("zeros"), &[0; 1000])
        .finish(scratch.path())
        .unwrap();
    let auto = |layer: &ScannedLayer| {
        let options = options(&scratch, RootfsMode::Auto);
        mount(&[layer], &options, &Cancel::default()).unwrap()
    };
    let rootfs = auto(&layer);
    assert_eq!(
        (rootfs.backend(), rootfs.fallback_reason()),
        (Backend::Erofs, None)
    );
    rootfs.unmount().unwrap();
    // Can be read like a spool, but not attached to a loop device.
    layer.spool = Spool::new(fs::File::open("/dev/zero").unwrap(), 4096);
    let rootfs = auto(&layer);
    assert_eq!(rootfs.backend(), Backend::Unpack);
    let reason = rootfs.fallback_reason().unwrap();
    assert!(reason.contains("/dev/loop"), "{reason}");
    assert_eq!(fs::read(rootfs.path().join("zeros")).unwrap(), [0; 1000]);
    rootfs.unmount().unwrap();
}

#[test]
fn without_privilege_the_refused_operation_is_named() {
    let name = "without_privilege_the_refused_operation_is_named";
    let Some(scratch) = Scratch::privileged(name) else {
        return;
    };
    let layer = LayerBuilder::default()
        .add(file("a"), b"a")
        .finish(scratch.path())
        .unwrap();
    // Linux keeps capabilities for each thread.
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| {
            rustix::thread::set_capabilities(
                None,
                rustix::thread::CapabilitySets {
                    effective: rustix::thread::CapabilitySet::DAC_OVERRIDE,
                    permitted: rustix::thread::CapabilitySet::DAC_OVERRIDE,
                    inheritable: rustix::thread::CapabilitySet::empty(),
                },
            )
            .unwrap();
            for mode in [RootfsMode::Auto, RootfsMode::Erofs, RootfsMode::Unpack] {
                match mount(&[&layer], &options(&scratch, mode), &Cancel::default()) {
                    Err(RootfsError::NotPrivileged { path, .. }) => {
                        assert!(path.starts_with(scratch.path()));
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        refused.join().unwrap();
    });
}

#[test]
fn root_file_systems_mounted_at_once_do_not_take_each_others_devices() {
    let name = "root_file_systems_mounted_at_once_do_not_take_each_others_devices";
    let Some(scratch) = Scratch::privileged(name) else {
        return;
    };
    let layer = |nth: u8| {
        let builder = LayerBuilder::default().add(file("own"), &[nth; 700]);
        builder.finish(scratch.path()).unwrap()
    };
    let layers: Vec<ScannedLayer> = (0..6).map(layer).collect();
    std::thread::scope(|scope| {
        for (nth, layer) in layers.iter().enumerate() {
            let scratch = &scratch;
            scope.spawn(move || {
                for _ in 0..10 {
                    let options = options(scratch, RootfsMode::Erofs);
                    let rootfs = mount(&[layer], &options, &Cancel::default()).unwrap();
                    let own = fs::read(rootfs.path().join("own")).unwrap();
                    assert_eq!(own, [nth as u8; 700]);
                    rootfs.unmount().unwrap();
                }
            });
        }
    });
}

fn arbitrary_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let name = prop_oneof![
        6 => "[abc]{1}(/[abcd]{1}){0,3}",
        1 => "([ab]/){0,2}\\.wh\\.([abcd]|\\.wh\\.\\.opq)",
    ];
    let kind = prop_oneof![
        4 => Just(file("")),
        2 => Just(dir("")),
        1 => "(\\.\\./)?/?[abcd](/[abcd])?".prop_map(|to| link(EntryKind::Symlink, "", to)),
        1 => "[abc](/[abcd]){0,2}".prop_map(|to| link(EntryKind::Hardlink, "", to)),
        1 => Just(special(EntryKind::Fifo, "", 0, 0)),
        1 => (0..3u32).prop_map(|minor| special(EntryKind::CharDevice, "", 0, minor)),
    ];
    let xattrs =
        prop::collection::btree_map("(user|trusted|security)\\.[a-c]", "[a-z]{0,40}", 0..3);
    let attributes = (0..0o10000u32, 0..3u32, -9..9i64, xattrs);
    let data = prop::collection::vec(any::<u8>(), 0..3000);
    (name, kind, attributes, data).prop_map(|(name, entry, (mode, uid, secs, xattrs), data)| {
        let data = if entry.kind == EntryKind::Regular {
            data
        } else {
            Vec::new()
        };
        let entry = Entry {
            name: name.into_bytes().into(),
            mode,
            uid,
            mtime: Timestamp { secs, nanos: 5 },
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| (name.into_bytes().into(), value.into_bytes().into()))
                .collect(),
            ..entry
        };
        (entry, data)
    })
}

#[test]
fn both_ways_show_the_same_of_any_layers() {
    let Some(scratch) = Scratch::privileged("both_ways_show_the_same_of_any_layers") else {
        return;
    };
    let layer = prop::collection::vec(arbitrary_entry(), 1..25);
    let image = prop::collection::vec(layer, 1..5);
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(32),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&image, |image| {
        let mut layers = Vec::new();
        for entries in image {
            // Entries that no tree can have are left out.
            let mut possible: Vec<(Entry, Vec<u8>)> = Vec::new();
            for entry in entries {
                possible.push(entry);
                if !is_possible(&scratch, &possible) {
                    possible.pop();
                }
            }
            layers.push(built(&scratch, &possible));
        }
        both_ways(&scratch, &layers, |_| {});
        Ok(())
    });
    result.unwrap();
}

fn built(scratch: &Scratch, entries: &[(Entry, Vec<u8>)]) -> ScannedLayer {
    let mut builder = LayerBuilder::default();
    for (entry, data) in entries {
        builder = builder.add(entry.clone(), data);
    }
    builder.finish(scratch.path()).unwrap()
}

fn is_possible(scratch: &Scratch, entries: &[(Entry, Vec<u8>)]) -> bool {
    let layer = built(scratch, entries);
    check(&[&layer]).is_ok()
}

/// Run by hand: `ESGZ_LAYERS=base.tar:next.tar cargo test --release --test rootfs -- --ignored`.
/// ESGZ_MODES=erofs leaves unpacking out, ESGZ_COMPARE=1 compares the views in memory, ESGZ_RUN is
/// a shell command to run in the root directory of the view.
#[test]
#[ignore = "needs uncompressed layers of a real image in ESGZ_LAYERS"]
#[allow(clippy::print_stderr, reason = "it is there to be read")]
fn real_layers() {
    use std::time::Instant;
    let Some(scratch) = Scratch::privileged("real_layers") else {
        return;
    };
    let paths = std::env::var("ESGZ_LAYERS").unwrap();
    let layers: Vec<ScannedLayer> = paths
        .split(':')
        .map(|path| esgz_tests::layers::read_tar(path.as_ref()).unwrap())
        .collect();
    let bytes: u64 = layers.iter().map(|layer| layer.size_bytes).sum();
    let entries: usize = layers.iter().map(|layer| layer.entries.len()).sum();
    eprintln!("{} layers, {bytes} bytes, {entries} entries", layers.len());
    let modes = match std::env::var("ESGZ_MODES").as_deref() {
        Ok("erofs") => vec![RootfsMode::Erofs],
        _ => vec![RootfsMode::Erofs, RootfsMode::Unpack],
    };
    let mut views = Vec::new();
    for mode in modes {
        for _ in 0..3 {
            let start = Instant::now();
            let rootfs = mounted(&scratch, &layers, mode);
            let took = start.elapsed();
            let start = Instant::now();
            let (files, opened) = (rootfs.files().len(), rootfs.opened_as().len());
            let index_bytes = rootfs.index_bytes();
            rootfs.unmount().unwrap();
            eprintln!(
                "{mode:?}: {took:?} to mount, {index_bytes} bytes of index, {files} files, \
                 {opened} visible, {:?} to unmount",
                start.elapsed()
            );
            if mode == RootfsMode::Unpack {
                break;
            }
        }
        if let Ok(command) = std::env::var("ESGZ_RUN") {
            let rootfs = mounted(&scratch, &layers, mode);
            let start = Instant::now();
            let mut shell = std::process::Command::new("sh");
            let status = shell
                .args(["-c", &command])
                .current_dir(rootfs.path())
                .status();
            assert!(status.unwrap().success());
            eprintln!("{mode:?}: {command}: {:?}", start.elapsed());
        }
        if std::env::var_os("ESGZ_COMPARE").is_some() {
            let rootfs = mounted(&scratch, &layers, mode);
            views.push(view(rootfs.path()));
            check_inodes(&rootfs, &layers);
        }
    }
    if let [a, b] = &views[..] {
        assert_eq!(differences(a, b), Vec::<String>::new());
    }
}
