//! What of times, modes, attributes and holes is shown alike.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;

use crate::rootfs_parts::{Scratch, pattern, view};
use esgz::layer::entry::{Entry, EntryKind, Timestamp};
use esgz::rootfs::RootfsMode;
use esgz_tests::layers::{LayerBuilder, dir, file, link, special, with_xattrs};

use super::{both_ways, mounted};

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
