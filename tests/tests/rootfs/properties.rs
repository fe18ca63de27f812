//! Any layers, and real ones, mounted both ways.

use crate::rootfs_parts::{Scratch, differences, view};
use esgz::layer::entry::{Entry, EntryKind, ScannedLayer, Timestamp};
use esgz::rootfs::{RootfsMode, check};
use esgz_tests::layers::{LayerBuilder, dir, file, link, special};
use proptest::prelude::*;

use super::{both_ways, check_inodes, mounted};

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
