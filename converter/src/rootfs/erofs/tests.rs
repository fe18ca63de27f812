use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;

use super::reader::{self, Found};
use super::*;
use crate::layer::entry::{DataSegment, EntryKind, Timestamp};
use crate::layer::spool::Extent;
use crate::rootfs::test_entries::{dir, entry, file, hardlink, symlink};
use crate::rootfs::tree::{NodeKind, ROOT};

/// A spool of `blocks` blocks, each byte of which tells where it is.
fn spool(blocks: usize) -> (Spool, Vec<u8>) {
    let bytes: Vec<u8> = (0..blocks * 512)
        .map(|i| (i / 512 * 7 + i % 251) as u8)
        .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let len = bytes.len() as u64;
    (Spool::new(file, len), bytes)
}

fn index(entries: &[Entry], blocks: usize) -> (BTreeMap<Vec<u8>, Found>, Vec<u8>) {
    let (spool, bytes) = spool(blocks);
    let tree = Tree::build(entries).unwrap();
    let source = Source {
        tree: &tree,
        entries,
        spool: &spool,
    };
    let mut image = Cursor::new(Vec::new());
    let written = write_index(&mut image, source, [7; 16]).unwrap();
    let image = image.into_inner();
    assert_eq!(written.stored_bytes(), image.len() as u64);
    let found = reader::read(&image, &bytes);
    check_against_tree(&tree, entries, &bytes, &written, &found);
    (found, image)
}

/// Every path of the tree is found with what its entry says, and no other path is.
fn check_against_tree(
    tree: &Tree,
    entries: &[Entry],
    spool: &[u8],
    written: &Index,
    found: &BTreeMap<Vec<u8>, Found>,
) {
    let mut count = 0;
    let mut pending = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        count += 1;
        let (node, found) = (tree.node(id), &found[&path]);
        let attributes = tree.attributes(id, entries);
        assert_eq!(found.nid, written.inode(id));
        assert_eq!(found.mode & 0o7777, attributes.mode);
        assert_eq!(found.owner, (attributes.uid, attributes.gid));
        assert_eq!(found.mtime, (attributes.mtime.secs, attributes.mtime.nanos));
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = attributes
            .xattrs
            .into_iter()
            .map(|(n, v)| (n.into(), v.into()))
            .collect();
        let entry = node.entry.map(|entry| &entries[entry as usize]);
        match &node.kind {
            NodeKind::Directory(directory) => {
                if directory.opaque {
                    xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
                }
                for (name, &child) in &directory.children {
                    pending.push(([&*path, b"/", name].concat(), child));
                }
            }
            NodeKind::Regular => {
                assert!(found.data == contents(entry.unwrap(), spool), "{path:?}");
            }
            NodeKind::Symlink => assert_eq!(found.data, &*entry.unwrap().link_name),
            NodeKind::Whiteout => assert_eq!(found.device, 0),
            NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => {}
        }
        if tree.directory(id).is_none() {
            assert_eq!(found.links, node.links);
        }
        assert_eq!(found.xattrs, xattrs);
    }
    assert_eq!(count, found.len());
}

fn contents(entry: &Entry, spool: &[u8]) -> Vec<u8> {
    let mut contents = vec![0; entry.size_bytes as usize];
    for segment in entry.data() {
        let len = segment.stored.len_bytes as usize;
        let from = &spool[segment.stored.offset_bytes as usize..][..len];
        contents[segment.file_offset_bytes as usize..][..len].copy_from_slice(from);
    }
    contents
}

fn stored(name: impl AsRef<[u8]>, offset_bytes: u64, len_bytes: u64) -> Entry {
    let payload = Extent {
        offset_bytes,
        len_bytes,
    };
    Entry {
        size_bytes: len_bytes,
        payload,
        ..file(name)
    }
}

#[test]
fn an_index_of_nothing_is_a_root_directory() {
    let (found, image) = index(&[], 2);
    assert_eq!(found.len(), 1);
    assert_eq!(image.len() % 512, 0);
}

#[test]
fn every_kind_is_found_again() {
    let mut block = entry("dev/b", EntryKind::BlockDevice, "");
    (block.dev_major, block.dev_minor) = (259, 70_000);
    let mut big = stored("big", 512, 3000);
    (big.uid, big.gid, big.mode) = (u32::MAX - 1, 70_000, 0o4755);
    big.mtime = Timestamp {
        secs: -1,
        nanos: 999_999_999,
    };
    big.xattrs = vec![
        (b"security.capability"[..].into(), vec![1; 20].into()),
        (b"user.big"[..].into(), vec![2; 60_000].into()),
        (b"user.empty"[..].into(), Box::default()),
    ];
    let entries = [
        dir("./"),
        big,
        hardlink("also-big", "big"),
        block,
        entry("dev/p", EntryKind::Fifo, ""),
        symlink("l", "big"),
        symlink("long", "t".repeat(4000)),
        file("empty"),
        file(".wh.hidden"),
        file("opaque/.wh..wh..opq"),
        stored("misaligned", 700, 1000),
        stored("beyond", 512 * 40 - 100, 50),
    ];
    let (found, _) = index(&entries, 40);
    assert_eq!(found[&b"/dev/b"[..]].device, 259 << 8 | 0x70 | 0x111 << 20);
    assert_eq!(found[&b"/big"[..]].nid, found[&b"/also-big"[..]].nid);
}

#[test]
fn symlinks_of_every_length_lie_in_one_block() {
    let entries: Vec<Entry> = (1..1100)
        .map(|len| symlink(format!("l{len}"), "t".repeat(len)))
        .collect();
    index(&entries, 1);
}

#[test]
fn directories_of_every_size_are_found_again() {
    for count in 0..120 {
        let entries: Vec<Entry> = (0..count).map(|n| file(format!("d/{n:05}"))).collect();
        index(&entries, 1);
    }
    let entries: Vec<Entry> = (0..100_000).map(|n| file(format!("d/{n}"))).collect();
    let (found, image) = index(&entries, 1);
    assert_eq!(found.len(), 100_002);
    assert!(image.len() < 10 << 20, "{}", image.len());
}

/// Run by hand, optimised: prints how long the largest layers take.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "it is there to be read")]
fn half_a_million_entries() {
    let name = |n: u64| {
        format!(
            "usr/lib/package-{:04}/directory-{}/file-{n}",
            n / 100,
            n % 7
        )
    };
    let start = std::time::Instant::now();
    let entries: Vec<Entry> = (0..500_000)
        .map(|n| stored(name(n), 512 * n, 3000))
        .collect();
    eprintln!("entries: {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let tree = Tree::build(&entries).unwrap();
    eprintln!("tree: {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let spool = Spool::new(tempfile::tempfile().unwrap(), 50 << 30);
    let source = Source {
        tree: &tree,
        entries: &entries,
        spool: &spool,
    };
    let mut out = io::BufWriter::new(tempfile::tempfile().unwrap());
    let written = write_index(&mut out, source, [7; 16]).unwrap();
    eprintln!(
        "index: {:?}, {} bytes",
        start.elapsed(),
        written.stored_bytes()
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    eprintln!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap()
    );
}

#[test]
fn names_before_the_dots_and_of_full_length_are_in_order() {
    let names = ["!", "-", "...", ".a", "+", "\u{7f}"];
    let mut entries: Vec<Entry> = names.iter().map(file).collect();
    entries.extend((b'a'..=b'z').map(|letter| file([letter; 255])));
    index(&entries, 1);
}

#[test]
fn an_index_is_the_same_in_every_run() {
    let entries = [stored("a/b", 512, 100), symlink("c", "a"), file(".wh.x")];
    assert_eq!(index(&entries, 4).1, index(&entries, 4).1);
}

const BLOCKS: usize = 64;

fn arbitrary_file() -> impl Strategy<Value = Entry> {
    let dense = (0..BLOCKS as u64, 0..4000u64).prop_map(|(block, len)| {
        let offset = block * 512;
        stored("", offset, len.min(BLOCKS as u64 * 512 - offset))
    });
    // Gaps and lengths in units that are often, but not always, blocks.
    let unit = prop_oneof![3 => Just(512u64), 1 => Just(4096), 1 => Just(100)];
    let stretch = (0..4u64, 0..4u64);
    let sparse = (
        unit,
        0..3u64,
        prop::collection::vec(stretch, 0..5),
        0..5000u64,
    )
        .prop_map(|(unit, first_block, stretches, hole)| {
            let (mut at, mut from) = (0, first_block * 512);
            let mut segments = Vec::new();
            for (gap, len) in stretches {
                let len_bytes = (len * unit).min(BLOCKS as u64 * 512 - from);
                at += gap * unit;
                let stored = Extent {
                    offset_bytes: from,
                    len_bytes,
                };
                segments.push(DataSegment {
                    file_offset_bytes: at,
                    stored,
                });
                at += len_bytes;
                from += len_bytes;
            }
            Entry {
                size_bytes: at + hole,
                sparse: Some(segments.into()),
                ..file("")
            }
        });
    prop_oneof![dense, sparse]
}

fn arbitrary_entry() -> impl Strategy<Value = Entry> {
    let name = prop_oneof![
        4 => "[ab.-]{1,2}(/[ab]{1,2}){0,3}",
        1 => "[ab]/(n){1,250}",
        1 => "(d/)?\\.wh\\.([ab]|\\.wh\\.\\.opq)",
    ];
    let kind = prop_oneof![
        4 => arbitrary_file(),
        2 => Just(dir("")),
        2 => "[ab./]{1,5}|t{1,600}".prop_map(|target| symlink("", target)),
        2 => "[ab]{1,2}(/[ab])?".prop_map(|target| hardlink("", target)),
        1 => Just(entry("", EntryKind::Fifo, "")),
        1 => (0..3u32).prop_map(|n| Entry { dev_minor: n, ..entry("", EntryKind::CharDevice, "") }),
    ];
    let value = prop::collection::vec(any::<u8>(), 0..700);
    let xattrs = prop::collection::btree_map("(user|trusted|security)\\.[a-c]{1,9}", value, 0..4);
    let time = (any::<i64>(), 0..1_000_000_000u32);
    (
        name,
        kind,
        any::<u16>(),
        any::<u32>(),
        any::<u32>(),
        time,
        xattrs,
    )
        .prop_map(
            |(name, entry, mode, uid, gid, (secs, nanos), xattrs)| Entry {
                name: name.into_bytes().into(),
                mode: mode.into(),
                uid,
                gid,
                mtime: Timestamp { secs, nanos },
                xattrs: xattrs
                    .into_iter()
                    .map(|(n, v)| (n.into_bytes().into(), v.into()))
                    .collect(),
                ..entry
            },
        )
}

proptest! {
    #[test]
    fn any_tree_is_found_again(entries in prop::collection::vec(arbitrary_entry(), 0..60)) {
        // Entries that no tree can have are left out, as long as there are any.
        let mut possible: Vec<Entry> = Vec::new();
        for entry in entries {
            possible.push(entry);
            if Tree::build(&possible).is_err() {
                possible.pop();
            }
        }
        index(&possible, BLOCKS);
    }
}
