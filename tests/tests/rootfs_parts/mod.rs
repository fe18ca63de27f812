//! What the tests of root file systems share: an image with every kind of file, a file system's
//! view as values, and a scratch directory that checks that nothing was left behind.

#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use esgz::layer::entry::{Entry, EntryKind, ScannedLayer, Timestamp};
use esgz_tests::layers::{LayerBuilder, dir, file, link, special, with_xattrs};

/// Mounts are global to the machine: one test at a time looks at them.
static ALONE: Mutex<()> = Mutex::new(());

/// A scratch directory. When it is dropped, no mount and no loop device may refer to it, and no
/// directory of a root file system may be in it.
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scratch {
    /// None, with a line on stderr, where root file systems cannot be mounted.
    pub(crate) fn privileged(test: &str) -> Option<Self> {
        let reason = if !rustix::process::geteuid().is_root() {
            "not root"
        } else if !fs::exists("/dev/loop-control").unwrap_or(false) {
            "no loop devices"
        } else if !fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .contains("erofs")
        {
            "no EROFS in this kernel"
        } else {
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let directory = tempfile::Builder::new()
                .prefix("rootfs:test,")
                .tempdir_in(target)
                .unwrap();
            return Some(Self {
                directory,
                _alone: alone,
            });
        };
        eprintln!("skipped: {test}: {reason}");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Directories in sysfs of the loop devices over files of this scratch directory.
    pub(crate) fn loop_devices(&self) -> Vec<String> {
        let here = self.path().to_string_lossy().into_owned();
        let mut devices = Vec::new();
        for entry in fs::read_dir("/sys/block").unwrap() {
            let device = entry.unwrap().path();
            let backing = fs::read_to_string(device.join("loop/backing_file"));
            if backing.is_ok_and(|backing| backing.contains(&here)) {
                devices.push(device.to_string_lossy().into_owned());
            }
        }
        devices
    }

    /// Mounts, loop devices and directories of root file systems in this scratch directory.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        let here = self.path().to_string_lossy().into_owned();
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if line.contains(&here) {
                left.push(format!("mount: {line}"));
            }
        }
        left.extend(
            self.loop_devices()
                .into_iter()
                .map(|device| format!("loop device: {device}")),
        );
        for entry in fs::read_dir(self.path()).unwrap() {
            let name = entry.unwrap().file_name();
            if name.as_bytes().starts_with(b"esgz-rootfs-") {
                left.push(format!("directory: {}", name.display()));
            }
        }
        left
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The last user of a loop device may close it a moment after the unmount.
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut left = self.left_behind();
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            left = self.left_behind();
        }
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<String>::new());
        }
    }
}

/// Bytes that differ from place to place, so that a shifted block is noticed.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8) ^ ((i >> 8) as u8).wrapping_mul(31) ^ seed | 1)
        .collect()
}

/// What can be seen of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    rdev: u64,
    /// Not of directories: overlayfs shows 1, whatever is below.
    nlink: u64,
    size: u64,
    contents: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Facts {
    pub(crate) fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    pub(crate) fn xattr_names(&self) -> Vec<&OsStr> {
        self.xattrs.keys().map(OsString::as_os_str).collect()
    }
}

/// Everything below and at `root`.
pub(crate) fn view(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let facts = facts(&full);
        if facts.mode & 0o170_000 == 0o040_000 {
            pending.extend(
                fs::read_dir(&full)
                    .unwrap()
                    .map(|e| path.join(e.unwrap().file_name())),
            );
        }
        all.insert(path, facts);
    }
    all
}

fn facts(path: &Path) -> Facts {
    let stat = fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let contents = if kind.is_file() {
        fs::read(path).unwrap()
    } else if kind.is_symlink() {
        fs::read_link(path).unwrap().into_os_string().into_vec()
    } else {
        Vec::new()
    };
    assert!(!kind.is_socket());
    let of_file = |value| if kind.is_dir() { 0 } else { value };
    Facts {
        mode: stat.mode(),
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        rdev: stat.rdev(),
        nlink: of_file(stat.nlink()),
        size: of_file(stat.len()),
        contents,
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut all = BTreeMap::new();
    for name in names[..len]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
    {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        all.insert(name.to_owned(), value);
    }
    all
}

/// One line for each path that differs.
pub(crate) fn differences(
    a: &BTreeMap<PathBuf, Facts>,
    b: &BTreeMap<PathBuf, Facts>,
) -> Vec<String> {
    let paths: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let short = |facts: Option<&Facts>| {
        facts.map(|f| Facts {
            contents: f.contents.iter().take(16).copied().collect(),
            ..f.clone()
        })
    };
    paths
        .into_iter()
        .filter(|path| a.get(*path) != b.get(*path))
        .map(|path| {
            format!(
                "{path:?}: {:?} {:?}",
                short(a.get(path)),
                short(b.get(path))
            )
        })
        .collect()
}

/// Sizes around the borders of blocks, pages and chunks.
pub(crate) const SIZES: &[usize] = &[
    0, 1, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_072,
    1_048_575, 1_048_576, 1_048_577, 3_000_000,
];

/// How many names the large directory has.
pub(crate) const MANY: usize = 20_000;

fn acl(user: u32) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 6u16, u32::MAX),
        (0x02, 4, user),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Three layers with every kind of file, and with everything that one layer can do to another.
pub(crate) fn every_kind(scratch: &Path) -> Vec<ScannedLayer> {
    [base_layer(), middle_layer(), top_layer()]
        .into_iter()
        .map(|builder| builder.finish(scratch).unwrap())
        .collect()
}

fn base_layer() -> LayerBuilder {
    let mut layer = LayerBuilder::default();
    layer = layer
        .add(
            Entry {
                mode: 0o711,
                ..dir("./")
            },
            b"",
        )
        .add(
            Entry {
                mode: 0o1777,
                ..dir("./tmp/")
            },
            b"",
        )
        .add(
            Entry {
                mode: 0o4755,
                ..file("bin/su")
            },
            &pattern(5000, 3),
        )
        .add(
            Entry {
                mode: 0o2755,
                ..dir("setgid")
            },
            b"",
        )
        .add(
            Entry {
                uid: 4_000_000_000,
                gid: 70_000,
                ..file("ids")
            },
            b"ids",
        )
        .add(
            Entry {
                mtime: Timestamp {
                    secs: -86_400,
                    nanos: 500,
                },
                ..file("old")
            },
            b"",
        )
        .add(
            Entry {
                mtime: Timestamp {
                    secs: 9_000_000_000,
                    nanos: 7,
                },
                ..file("future")
            },
            b"",
        );
    for size in SIZES {
        layer = layer.add(file(format!("sizes/{size}")), &pattern(*size, *size as u8));
    }
    for nth in 0..MANY {
        let name = format!("many/{}{nth}", "n".repeat(nth % 200));
        layer = layer.add(file(name), nth.to_string().as_bytes());
    }
    let names: [&[u8]; 4] = [
        b"names/\xff\xfe",
        b"names/a\nb",
        b"names/!first",
        b"names/ ",
    ];
    for name in names {
        layer = layer.add(file(name), name);
    }
    layer = layer.add(file(format!("names/{}", "m".repeat(255))), b"long");
    let deep = format!("{}{}", "deep/".repeat(100), "d".repeat(200));
    layer = layer.add(file(deep), b"deep");
    for len in [
        1, 63, 64, 65, 383, 384, 447, 448, 449, 511, 512, 513, 1024, 4000,
    ] {
        let name = if len == 4000 {
            "links/long".into()
        } else {
            format!("links/{len}")
        };
        let entry = link(EntryKind::Symlink, name, "t".repeat(len));
        layer = layer.add(entry.clone(), b"");
        let attributes = pattern(len % 300, 9);
        let named = Entry {
            name: [b"x", &*entry.name].concat().into(),
            ..entry
        };
        layer = layer.add(with_xattrs(named, &[("trusted.on-link", &attributes)]), b"");
    }
    layer
        .add(file("hard/1"), &pattern(1234, 8))
        .add(link(EntryKind::Hardlink, "./hard/2", "hard/1"), b"")
        .add(link(EntryKind::Hardlink, "hard-3", "/hard/2"), b"")
        .add(link(EntryKind::Symlink, "hard-to-link", "links/1"), b"")
        .add(
            link(EntryKind::Hardlink, "hard-to-link-2", "hard-to-link"),
            b"",
        )
        .add(special(EntryKind::CharDevice, "dev/null", 1, 3), b"")
        .add(
            special(EntryKind::BlockDevice, "dev/block", 259, 70_000),
            b"",
        )
        .add(
            special(EntryKind::CharDevice, "dev/big", 4095, 1_048_575),
            b"",
        )
        .add(special(EntryKind::Fifo, "dev/fifo", 0, 0), b"")
        .add(file("gone"), b"gone")
        .add(file("gone-dir/x"), b"x")
        .add(file("opaque/low"), b"low")
        .add(file("kept/low"), b"low")
        .add(file("was-dir/x"), b"x")
        .add(file("was-file"), b"x")
        .add(file("remade/low"), b"low")
        .add(file("through/low"), b"low")
        .add(file("twice"), b"first")
        .add(file("twice"), b"second")
}

fn middle_layer() -> LayerBuilder {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (access, default) = (acl(1000), acl(100_000));
    let long_name = format!("user.{}", "n".repeat(250));
    let long_value = pattern(2000, 7);
    LayerBuilder::default()
        .add(file("tmp/inherits"), b"x")
        .add(
            with_xattrs(
                file("xattr/capability"),
                &[("security.capability", capability)],
            ),
            b"\x7f",
        )
        .add(
            with_xattrs(
                Entry {
                    mode: 0o644,
                    ..file("xattr/all")
                },
                &[
                    ("user.empty", b""),
                    ("user.binary", b"\0\xff\n"),
                    (&long_name, b"long name"),
                    ("user.long", &long_value),
                    ("trusted.t", b"t"),
                    ("security.esgz", b"s"),
                    ("system.posix_acl_access", &access),
                ],
            ),
            &pattern(777, 1),
        )
        .add(
            with_xattrs(
                dir("xattr/dir"),
                &[("user.d", b"d"), ("system.posix_acl_default", &default)],
            ),
            b"",
        )
        .add(
            with_xattrs(
                special(EntryKind::Fifo, "xattr/fifo", 0, 0),
                &[("trusted.f", b"f")],
            ),
            b"",
        )
        .add(file(".wh.gone"), b"")
        .add(file(".wh.gone-dir"), b"")
        .add(file("opaque/.wh..wh..opq"), b"")
        .add(file("opaque/high"), b"high")
        .add(file("kept/high"), b"high")
        .add(file("was-dir"), b"now a file")
        .add(file("was-file/x"), b"now a directory")
        .add(file(".wh.remade"), b"")
        .add(file("remade/high"), b"high")
        .add(file("through"), b"a file between two directories")
        .add(file(".wh..wh.aufs"), b"")
}

fn top_layer() -> LayerBuilder {
    LayerBuilder::default()
        .add(file("through/high"), b"high")
        .add(file("hard/2"), b"replaced in the top layer alone")
        .add(with_xattrs(dir("xattr/dir"), &[("user.top", b"top")]), b"")
        .add(file("kept/.wh.nothing"), b"")
}
