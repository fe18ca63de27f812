//! Root file systems that fail, are refused, or are several at once.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::rootfs_parts::{Scratch, pattern};
use esgz::cancel::Cancel;
use esgz::layer::entry::ScannedLayer;
use esgz::layer::spool::Spool;
use esgz::rootfs::{Backend, RootfsError, RootfsMode, RootfsOptions, mount};
use esgz_tests::layers::{LayerBuilder, file};

use super::{mounted, options};

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
