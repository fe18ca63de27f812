//! The entry sets that the conformance matrix goes through: small archives, each about one thing.

use serde_json::json;

use crate::archive::{Dialect, Ending, Entry, Kind, Sparse, SparseFormat, archive};
use crate::compress::Compression;
use crate::layout::{Layer, LayoutBuilder};

/// A named archive.
pub struct EntrySet {
    /// What it is about.
    pub name: &'static str,
    /// Its entries.
    pub entries: Vec<Entry>,
    /// How it ends.
    pub ending: Ending,
}

impl EntrySet {
    fn new(name: &'static str, entries: Vec<Entry>) -> Self {
        Self {
            name,
            entries,
            ending: Ending::Blocks,
        }
    }

    /// The archive's bytes.
    pub fn tar(&self) -> Vec<u8> {
        archive(&self.entries, self.ending)
    }
}

/// Bytes that compress a little: the same for the same `seed` and `len`, on every machine.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = state.to_le_bytes();
        // Short repeats give matches; the rest are literals.
        let repeats = if word[0] < 40 { 6 } else { 1 };
        for _ in 0..repeats {
            bytes.extend(&word[1..7]);
        }
    }
    bytes.truncate(len);
    bytes
}

/// All small sets.
pub fn all() -> Vec<EntrySet> {
    let with_ending = |name, ending| EntrySet {
        ending,
        ..EntrySet::new(name, usual())
    };
    vec![
        EntrySet::new("empty", Vec::new()),
        EntrySet {
            ending: Ending::None,
            ..EntrySet::new("empty without end blocks", Vec::new())
        },
        EntrySet::new("one empty file", vec![Entry::file("empty", "")]),
        EntrySet::new("usual", usual()),
        with_ending("padded to a record", Ending::Record),
        with_ending("without end blocks", Ending::None),
        with_ending("garbage behind the end", Ending::Garbage),
        EntrySet::new("chunk borders", chunk_borders(4 << 20)),
        EntrySet::new("links", links()),
        EntrySet::new("devices and pipes", devices()),
        EntrySet::new("extended attributes", xattrs()),
        EntrySet::new("long names", long_names()),
        EntrySet::new("numbers", numbers()),
        EntrySet::new("times", times()),
        EntrySet::new("duplicates", duplicates()),
        EntrySet::new("whiteouts", whiteouts()),
        EntrySet::new("odd names", odd_names()),
        EntrySet::new("sparse", sparse()),
        EntrySet::new("global header", global_header()),
        EntrySet::new("landmarks and TOC of an earlier conversion", leftovers()),
    ]
}

/// The set with this name.
///
/// # Panics
/// When there is none.
pub fn named(name: &str) -> EntrySet {
    let found = all().into_iter().find(|set| set.name == name);
    found.unwrap_or_else(|| panic!("there is no entry set {name:?}"))
}

/// An image of several layers, one of them twice, with annotations and a full configuration.
pub fn several_layers() -> LayoutBuilder {
    let base = Layer::new(&usual(), Compression::Gzip(6));
    let top = [
        Entry::dir("etc/"),
        Entry::file("etc/passwd", "changed"),
        Entry::file("etc/.wh.empty", ""),
    ];
    LayoutBuilder::new()
        .config(json!({
            "Env": ["PATH=/bin", "EMPTY="], "Entrypoint": ["/bin/sh"], "Cmd": ["-c", "true"],
            "User": "1000:1000", "WorkingDir": "/tmp", "Labels": {"key": "value"},
            "ExposedPorts": {"80/tcp": {}}, "Image": "sha256:of-the-builder", "StopSignal": "SIGINT",
        }))
        .annotation("org.opencontainers.image.source", "https://example.org/")
        .layer(base.clone().annotation("org.example.layer", "base"))
        .layer(Layer::new(&links(), Compression::Zstd))
        .layer(base)
        .layer(Layer::new(&top, Compression::Plain))
}

/// A small root file system.
pub fn usual() -> Vec<Entry> {
    vec![
        Entry::dir("bin/"),
        Entry::file("bin/sh", noise(1, 120_000)).mode(0o755),
        Entry::file("bin/su", noise(2, 30_000))
            .mode(0o4755)
            .owner_names("root", "root"),
        Entry::dir("etc/"),
        Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n").owner_names("root", "root"),
        Entry::file("etc/empty", ""),
        Entry::symlink("lib", "usr/lib"),
        Entry::dir("tmp/").mode(0o1777),
        Entry::dir("usr/"),
        Entry::dir("usr/lib/"),
        Entry::file("usr/lib/libc.so.6", noise(3, 400_000))
            .mode(0o755)
            .owner(1000, 1000),
        Entry::file(
            "usr/lib/implied/parents/only",
            "directories that no entry makes",
        ),
    ]
}

/// As [`all`], with the borders of chunks of `chunk` bytes instead of 4 MiB: small enough for many
/// conversions.
pub fn small(chunk: usize) -> Vec<EntrySet> {
    let mut sets = all();
    for set in &mut sets {
        if set.name == "chunk borders" {
            set.entries = chunk_borders(chunk);
        }
    }
    sets
}

fn chunk_borders(chunk: usize) -> Vec<Entry> {
    // Text of one letter: the sizes matter, not the bytes.
    let file = |name: &str, len: usize| Entry::file(name, vec![b'x'; len]);
    let mut entries: Vec<Entry> = [1, 511, 512, 513, 32_768, 65_536]
        .iter()
        .map(|&len| Entry::file(format!("small-{len}"), noise(len as u64, len)))
        .collect();
    entries.extend([
        file("below", chunk - 1),
        file("exact", chunk),
        file("above", chunk + 1),
        file("two", 2 * chunk),
        Entry::file("noise", noise(9, 2 * chunk + 70_001)),
        Entry::file("last", "behind the big ones"),
    ]);
    entries
}

fn links() -> Vec<Entry> {
    vec![
        Entry::file("target", noise(4, 5000)).mode(0o600),
        Entry::hardlink("b-link", "target").mode(0o600),
        Entry::hardlink("./c-link", "./target").mode(0o600),
        Entry::hardlink("d-link", "/b-link").mode(0o600),
        Entry::symlink("relative", "./target"),
        Entry::symlink("absolute", "/target"),
        Entry::symlink("dangling", "../../nowhere"),
        Entry::symlink("itself", "itself"),
        Entry::file("empty", ""),
        Entry::hardlink("empty-link", "empty"),
        Entry::dir("dir/"),
        Entry::hardlink("dir/link", "target").mode(0o600),
    ]
}

fn devices() -> Vec<Entry> {
    vec![
        Entry::device(Kind::Char, "dev/null", 1, 3).mode(0o666),
        Entry::device(Kind::Block, "dev/sda1", 8, 1)
            .mode(0o660)
            .owner(0, 6),
        Entry::device(Kind::Char, "dev/high", 4095, 1_048_575),
        Entry::new(Kind::Fifo, "run/pipe").mode(0o600),
    ]
}

fn xattrs() -> Vec<Entry> {
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    vec![
        Entry::file("ping", noise(5, 3000))
            .mode(0o755)
            .xattr("security.capability", capability),
        Entry::file("user", "x")
            .xattr("user.empty", "")
            .xattr("user.name", "value=with=equals\n"),
        Entry::dir("dir/").xattr("user.binary", [0, 255, 10, 61, 0]),
        Entry::file("long", "x").xattr("user.long", noise(6, 900)),
    ]
}

fn long_names() -> Vec<Entry> {
    let name = |len: usize, last: &str| {
        let mut name = "directory/".repeat((len - 1) / 10);
        name.push_str(&"n".repeat(len - name.len()));
        format!("{name}{last}")
    };
    let mut entries = vec![
        Entry::file(name(99, ""), "99"),
        Entry::file(name(100, ""), "100"),
        Entry::file(name(101, ""), "101"),
        Entry::file(name(200, "u"), "prefix field").dialect(Dialect::Ustar),
        Entry::dir(name(149, "/")),
        Entry::file(name(255, "p"), "PAX"),
        Entry::file(name(255, "g"), "GNU").dialect(Dialect::Gnu),
        Entry::file(name(1500, "p"), "PAX"),
        Entry::file(name(1500, "g"), "GNU").dialect(Dialect::Gnu),
        Entry::symlink("pax-symlink", name(300, "")),
        Entry::symlink("gnu-symlink", name(300, "")).dialect(Dialect::Gnu),
    ];
    entries.push(Entry::hardlink("pax-hardlink", name(1500, "p")));
    entries.push(Entry::hardlink("gnu-hardlink", name(1500, "g")).dialect(Dialect::Gnu));
    entries.push(Entry::hardlink(name(400, "link"), name(1500, "g")).dialect(Dialect::Gnu));
    entries
}

fn numbers() -> Vec<Entry> {
    vec![
        Entry::file("pax-ids", "x").owner(3_000_000_000, 2_097_152),
        Entry::file("gnu-ids", "x")
            .owner(3_000_000_000, 2_097_152)
            .dialect(Dialect::Gnu),
        Entry::file("largest-octal", "x").owner(2_097_151, 2_097_151),
        Entry::file("type-in-mode", "x").mode(0o100_644),
        Entry::dir("type-in-mode-dir/").mode(0o040_700),
        Entry::file("no-mode", "x").mode(0),
        Entry::file("all-modes", "x").mode(0o7777),
    ]
}

fn times() -> Vec<Entry> {
    vec![
        Entry::file("zero", "x").mtime(0, 0),
        Entry::file("one", "x").mtime(1, 0),
        Entry::file("before-1970", "x").mtime(-86_400, 0),
        Entry::file("gnu-before-1970", "x")
            .mtime(-86_400, 0)
            .dialect(Dialect::Gnu),
        Entry::file("below-half", "x").mtime(1_700_000_000, 499_999_999),
        Entry::file("half", "x").mtime(1_700_000_000, 500_000_000),
        Entry::file("almost-next", "x").mtime(1_700_000_000, 999_999_999),
        Entry::file("before-1970-fraction", "x").mtime(-2, 250_000_000),
        Entry::file("before-1970-half", "x").mtime(-2, 500_000_000),
        Entry::file("after-2038", "x").mtime(5_000_000_000, 0),
        Entry::file("after-2242", "x")
            .mtime(9_000_000_000, 0)
            .dialect(Dialect::Gnu),
    ]
}

fn duplicates() -> Vec<Entry> {
    vec![
        Entry::dir("dir/").mode(0o700),
        Entry::file("dir/file", "first"),
        Entry::file("dir/shrinks", noise(7, 100_000)),
        Entry::dir("./dir/").mode(0o755),
        Entry::file("./dir/file", "second, and longer").mode(0o600),
        Entry::file("dir/shrinks", "small"),
        Entry::file("changes", "a file at first"),
        Entry::symlink("changes", "dir/file"),
        Entry::file("dir/file", "third").owner(7, 7),
    ]
}

fn whiteouts() -> Vec<Entry> {
    vec![
        Entry::dir("etc/"),
        Entry::file("etc/.wh.passwd", ""),
        Entry::dir("opt/"),
        Entry::file("opt/.wh..wh..opq", ""),
        Entry::file("opt/new", "new"),
        Entry::file(".wh.gone", ""),
    ]
}

fn odd_names() -> Vec<Entry> {
    vec![
        Entry::dir("./"),
        Entry::file("./dot", "x"),
        Entry::file("/slash", "x"),
        Entry::file("double//slash", "x"),
        Entry::file("a/./b", "x"),
        Entry::file(" spaces and\ttabs ", "x"),
        Entry::file("new\nline", "x"),
        Entry::file("quote\"back\\slash", "x"),
        Entry::file("<html>&amp;\u{2028}", "x"),
        Entry::file("gr\u{fc}\u{df}e-\u{65e5}\u{672c}-\u{1f980}", "x"),
        Entry::file(b"latin1-\xfc\xff", "x"),
        Entry::file("...", "x"),
        Entry::file("..name", "x"),
        Entry::file("name..", "x"),
    ]
}

fn sparse() -> Vec<Entry> {
    let segments = |count: u64| {
        (0..count)
            .map(|i| (8192 * i + 4096, noise(i, 512 * (1 + i as usize % 3))))
            .collect::<Vec<_>>()
    };
    let file = |name: &str, format, segments, size_bytes| {
        Entry::sparse(
            name,
            Sparse {
                format,
                segments,
                size_bytes,
            },
        )
        .mode(0o755)
    };
    use SparseFormat::{GnuOld, Pax10};
    vec![
        file("gnu", GnuOld, segments(3), 100_000),
        file("gnu-extended", GnuOld, segments(60), 500_000),
        file("gnu-hole-only", GnuOld, Vec::new(), 70_000),
        file("pax", Pax10, segments(3), 100_000),
        file("pax-many", Pax10, segments(60), 500_000),
        file("pax-hole-only", Pax10, Vec::new(), 70_000),
        file(
            "pax-more-than-a-chunk",
            Pax10,
            vec![(5 << 20, noise(8, 5120))],
            (5 << 20) + 5120,
        ),
        Entry::file("behind", "not sparse"),
    ]
}

fn global_header() -> Vec<Entry> {
    let mut entries = vec![
        Entry::new(Kind::Global, "pax_global_header")
            .record("comment", "0123456789012345678901234567890123456789"),
    ];
    entries.extend(usual());
    entries
}

fn leftovers() -> Vec<Entry> {
    let mut entries = vec![Entry::file(".no.prefetch.landmark", [0x0f])];
    entries.extend(usual());
    entries.push(Entry::file(".prefetch.landmark", [0x0f]));
    entries.push(
        Entry::file("stargz.index.json", r#"{"version":1,"entries":[]}"#)
            .mode(0)
            .mtime(0, 0),
    );
    entries
}
