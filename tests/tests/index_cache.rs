//! `--index-cache`: a second conversion decodes on all cores; whatever is in the cache, and however many
//! threads there are, the result is the same to the byte.

use std::fs;
use std::path::PathBuf;

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Finished;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::oracle::{Oracle, image_request};

/// Bytes that compress to half, and differ with the seed.
fn contents(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 300);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let back = 1 + (state >> 40) as usize % 30_000;
        if back < bytes.len() && state & 3 > 0 {
            let start = bytes.len() - back;
            bytes.extend_from_within(start..start + back.min(17));
        } else {
            bytes.extend((state & !0x8080_8080).to_le_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

/// Two layers of some points each, one that is shorter than a point, and one that is no gzip.
fn image() -> Conversion {
    let layer = |seed: u64, files: u64, len: usize, compression| {
        let entries: Vec<Entry> = (0..files)
            .map(|file| Entry::file(format!("d{seed}/f{file}"), contents(seed + file, len)))
            .collect();
        Layer::new(&entries, compression)
    };
    Conversion::of(
        &LayoutBuilder::new()
            .layer(layer(100, 5, 4_000_000, Compression::Gzip(6)))
            .layer(layer(200, 40, 400_000, Compression::MultiMember))
            .layer(layer(300, 2, 1_000_000, Compression::Gzip(6)))
            .layer(layer(400, 1, 1_000_000, Compression::Zstd)),
    )
}

struct Cached {
    conversion: Conversion,
    cache: PathBuf,
    count: usize,
}

impl Cached {
    fn new() -> Self {
        let conversion = image();
        let cache = conversion.path("cache");
        Self {
            conversion,
            cache,
            count: 0,
        }
    }

    fn run(&mut self, threads: &str, args: &[&str]) -> (String, Finished) {
        self.count += 1;
        let name = format!("output-{}", self.count);
        let command = self.conversion.command(&name).args(args);
        let command = command.args(["--log-level", "warn", "--threads", threads]);
        let command = command.arg("--index-cache").arg(&self.cache);
        let finished = command.run().success().unwrap();
        let finished = self.conversion.finish(finished).unwrap();
        (self.conversion.output(&name).manifest_digest(), finished)
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let read = |name: String| {
            let path = self.cache.join(name);
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        };
        names(&self.cache).into_iter().map(read).collect()
    }
}

#[test]
fn the_result_is_the_same_with_and_without() {
    let mut cached = Cached::new();
    let plain = cached.conversion.convert("plain", &["--threads", "1"]);
    let plain = plain.unwrap();
    let (cold, _) = cached.run("2", &[]);
    assert_eq!(cold, plain.manifest_digest());
    let files = cached.files();
    assert_eq!(files.len(), 2, "of the gzip layers that are long enough");
    let source = &cached.conversion.source;
    let largest = source.manifest()["layers"][0]["size"].as_u64().unwrap();
    for (path, bytes) in &files {
        assert!(
            (bytes.len() as u64) < largest / 100 + 256 + (33 << 10),
            "{} has {} bytes",
            path.display(),
            bytes.len()
        );
    }
    for threads in ["1", "2", "5"] {
        let (warm, finished) = cached.run(threads, &[]);
        assert_eq!(warm, cold, "{threads} threads");
        assert_eq!(finished.stderr, "");
    }
    let (listed, _) = cached.run("3", &["--estargz-chunk-size", "300KiB"]);
    assert_ne!(listed, cold, "another plan");
    assert!(
        cached.files() == files,
        "a cache that fits is left as it is"
    );

    if let Some(oracle) = Oracle::for_test("index_cache::the_result_is_the_same_with_and_without") {
        let output = cached.conversion.output("output-2");
        let request = image_request(&output, Some(&cached.conversion.source), &[]);
        for answer in oracle.batch(&[request]) {
            answer.unwrap();
        }
    }
}

#[test]
fn what_is_damaged_is_not_used() {
    let mut cached = Cached::new();
    let (cold, _) = cached.run("2", &[]);
    let files = cached.files();
    let mut state = 0x5eed_u64;
    let mut warned = 0;
    for round in 0..8 {
        for (number, (path, good)) in files.iter().enumerate() {
            let mut bytes = good.clone();
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(9);
            let at = (state >> 20) as usize % bytes.len();
            match round {
                0 => bytes.truncate(at),
                1 => bytes.clear(),
                // That of the other layer.
                2 => bytes.clone_from(&files[1 - number].1),
                _ => bytes[at] ^= 1 << (state >> 61),
            }
            fs::write(path, bytes).unwrap();
        }
        let (found, finished) = cached.run("3", &[]);
        assert_eq!(found, cold, "round {round}");
        let lines = finished.stderr.lines();
        warned += lines.filter(|line| line.contains("is not used")).count();
        assert!(warned > 0, "round {round} without a warning");
    }
    assert!(warned >= 10, "{warned} warnings");
}

#[test]
fn several_writers_and_no_directory() {
    let mut cached = Cached::new();
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let command = cached.conversion.command(&format!("writer-{number}"));
            let command = command.arg("--index-cache").arg(&cached.cache);
            std::thread::spawn(move || command.run().success())
        })
        .collect();
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    assert_eq!(cached.files().len(), 2);
    let (warm, finished) = cached.run("2", &[]);
    assert_eq!(finished.stderr, "");
    for number in 0..3 {
        let output = cached.conversion.output(&format!("writer-{number}"));
        assert_eq!(output.manifest_digest(), warm);
    }
    // A directory that cannot be made is a warning.
    let file = cached.conversion.path("file");
    fs::write(&file, "").unwrap();
    cached.cache = file.join("cache");
    let (found, finished) = cached.run("2", &[]);
    assert_eq!(found, warm);
    assert!(
        finished.stderr.contains("is not used"),
        "{}",
        finished.stderr
    );
}
