//! Layers of real files as every gzip compressor of the field makes them, cut at other places by copying
//! their bits: with a random list, random chunks, and as they are. The Go oracle reads every result in full
//! and compares it with its source.

use std::collections::HashSet;
use std::fs;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use esgz::blob::Blob;
use esgz::cancel::Cancel;
use esgz::image::Digest;
use esgz::layer::encode::{Check, Level};
use esgz::layer::entry::ScannedLayer;
use esgz::layer::placement::Placement;
use esgz::layer::plan::{PlanOptions, plan_layer};
use esgz::layer::scan::{DecodeOptions, EntryMemory, Expected, Keep, ScanOptions, scan_layer};
use esgz::layer::{ConvertOptions, Encoding, Parallel, convert_layer};
use esgz::profile::{self, Profile};
use esgz::progress::Silent;
use esgz_tests::compressors::{self, Compressed};
use esgz_tests::conversion::Conversion;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::oracle::{Oracle, image_request};
use esgz_tests::skipped;
use serde_json::Value;

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 3) as usize % bound.max(1)
    }
}

/// Files of this machine, sorted by path: programs and texts, of which no more than `bytes`.
fn real_files(bytes: u64) -> Vec<PathBuf> {
    let mut files = Vec::new();
    // Long files are where bits are copied; short ones are between them.
    let wanted = [
        ("/usr/lib", 150_000..1_500_000, bytes * 8 / 10, usize::MAX),
        ("/usr/share", 100..60_000, bytes / 5, 150),
    ];
    for (root, sizes, mut left, mut count) in wanted {
        let mut directories = vec![PathBuf::from(root)];
        let mut seen = 0;
        while let Some(directory) = directories.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let Ok(metadata) = fs::symlink_metadata(&path) else {
                    continue;
                };
                if metadata.is_dir() {
                    directories.push(path);
                } else if metadata.is_file() && sizes.contains(&metadata.len()) {
                    seen += 1;
                    // From many directories.
                    if seen % 3 == 0 && metadata.len() <= left && count > 0 {
                        left -= metadata.len();
                        count -= 1;
                        files.push(path);
                    }
                }
            }
        }
    }
    files
}

fn write_tar(path: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    let mut names = Vec::new();
    for file in files {
        let Ok(contents) = fs::read(file) else {
            continue;
        };
        let name = file.strip_prefix("/").unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        builder
            .append_data(&mut header, name, &contents[..])
            .unwrap();
        names.push(name.to_str().unwrap().to_owned());
    }
    builder.into_inner().unwrap();
    names
}

struct Source {
    name: &'static str,
    compressed: Compressed,
    layer: ScannedLayer,
}

fn scan(compressed: &Compressed, scratch: &Path) -> ScannedLayer {
    let expected = Expected {
        digest: Digest::of(&compressed.blob),
        size_bytes: compressed.blob.len() as u64,
        diff_id: Digest::of(&compressed.tar),
    };
    let options = ScanOptions {
        scratch: scratch.to_owned(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Readable,
        decode: DecodeOptions {
            parallel: Parallel {
                threads: 2,
                memory_bytes: 64 << 20,
            },
            index_cache: None,
        },
    };
    let again = Blob::of_bytes(compressed.blob.clone());
    scan_layer(&compressed.blob[..], Some(&again), &expected, &options, &[]).unwrap()
}

/// How a source is cut.
#[derive(Clone, Debug)]
struct Cut {
    picks: Vec<u32>,
    chunk_bytes: u32,
}

/// Copies what can be copied, whatever it costs; the blob, its TOC's digest, and how much was copied.
fn transcode(source: &Source, cut: &Cut, threads: usize) -> (Vec<u8>, String, u64) {
    let options = PlanOptions {
        chunk_bytes: cut.chunk_bytes,
        min_chunk_bytes: 0,
    };
    let plan = plan_layer(
        &source.layer,
        &Placement::of_whole(cut.picks.clone()),
        options,
    )
    .unwrap();
    let compressed = Blob::of_bytes(source.compressed.blob.clone());
    let index = source.layer.deflate.as_ref().expect("it is gzip");
    let mut blob = Vec::new();
    let finished = convert_layer(
        &source.layer,
        &plan,
        &Encoding::Copy(&compressed, index, Level::FOR_THE_REST),
        ConvertOptions {
            check: Check::Prove,
            parallel: Parallel {
                threads,
                memory_bytes: 64 << 20,
            },
        },
        &mut blob,
        &Cancel::default(),
        &Silent,
    )
    .unwrap_or_else(|error| panic!("{} with {cut:?}: {error}", source.name));
    let toc_digest = finished.toc_digest.unwrap().to_string();
    (blob, toc_digest, finished.copied_bytes)
}

/// Every compressor's layer of some real files; `None` where this machine has too few.
fn sources(dir: &Path, oracle: &Oracle, name: &str) -> Option<Vec<Source>> {
    let files = real_files(3 << 20);
    let names = write_tar(&dir.join("tar"), &files);
    let long = files
        .iter()
        .filter(|file| fs::metadata(file).is_ok_and(|m| m.len() >= 150_000));
    if names.len() < 20 || long.count() < 3 {
        skipped(name, "too few files in /usr/lib and /usr/share");
        return None;
    }
    let small = real_files(600_000);
    write_tar(&dir.join("small"), &small);
    Some(compressed_by_all(dir, oracle, name))
}

/// Every compressor's layer of the files `tar` or, for slow ones, `small` in `dir`.
fn compressed_by_all(dir: &Path, oracle: &Oracle, name: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for compressor in compressors::ALL {
        let tar = dir.join(if compressor.is_slow { "small" } else { "tar" });
        match compressor.compress(&tar, dir, oracle) {
            Ok(compressed) => sources.push(Source {
                name: compressor.name,
                layer: scan(&compressed, dir),
                compressed,
            }),
            Err(reason) => skipped(&format!("{name}: {}", compressor.name), reason),
        }
    }
    sources
}

#[test]
fn every_compressor_and_any_cut() {
    const NAME: &str = "transcode_matrix::every_compressor_and_any_cut";
    let Some(oracle) = Oracle::for_test(NAME) else {
        return;
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(sources) = sources(dir.path(), &oracle, NAME) else {
        return;
    };
    cut_and_compare(&sources, |_| Vec::new(), dir.path(), &oracle);
}

/// Cuts each source with the picks that `first` gives, and twice at random; the oracle compares every result.
fn cut_and_compare(
    sources: &[Source],
    first: impl Fn(&ScannedLayer) -> Vec<u32>,
    dir: &Path,
    oracle: &Oracle,
) {
    let mut numbers = Numbers(0x5eed);
    let (mut requests, mut names) = (Vec::new(), Vec::new());
    for source in sources {
        let entries = source.layer.entries.len();
        let random = |numbers: &mut Numbers| Cut {
            picks: (0..1 + numbers.below(entries / 2))
                .map(|_| u32::try_from(numbers.below(entries)).unwrap())
                .collect(),
            // Mostly chunks that are long enough to be copied.
            chunk_bytes: u32::try_from(130_000 + numbers.below(700_000)).unwrap(),
        };
        let cuts = [
            Cut {
                picks: first(&source.layer),
                chunk_bytes: PlanOptions::DEFAULT_CHUNK_BYTES,
            },
            random(&mut numbers),
            random(&mut numbers),
        ];
        for (number, cut) in cuts.iter().enumerate() {
            let (blob, toc_digest, copied_bytes) = transcode(source, cut, 1 + number);
            if number == 0 {
                let (again, ..) = transcode(source, cut, 3);
                assert!(blob == again, "{} depends on the threads", source.name);
                // What has no matches over a chunk's start, at the least.
                let tar_bytes = source.compressed.tar.len() as u64;
                assert!(
                    copied_bytes > tar_bytes / 3,
                    "{}: {copied_bytes} of {tar_bytes} bytes copied",
                    source.name
                );
            }
            let path = |kind: &str| dir.join(format!("{}-{number}.{kind}", source.name));
            fs::write(path("esgz"), blob).unwrap();
            fs::write(path("source"), &source.compressed.blob).unwrap();
            let text = |path: PathBuf| path.to_str().unwrap().to_owned();
            requests.push(vec![
                "verify".to_owned(),
                text(path("esgz")),
                "--toc-digest".to_owned(),
                toc_digest,
                "--source".to_owned(),
                text(path("source")),
            ]);
            names.push(format!("{}: {cut:?}", source.name));
        }
    }
    for (name, answer) in names.iter().zip(oracle.batch(&requests)) {
        let report = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(report["compared"], true, "{name}");
    }
}

/// The files that a recorded run has touched, of the image it was recorded with, compressed by each of them. For a
/// large image this takes minutes, so it is asked for: `ESGZ_MATRIX_IMAGE` is an OCI layout of gzip layers,
/// `ESGZ_MATRIX_PROFILE` its profile.
#[test]
fn the_files_of_a_profile() {
    const NAME: &str = "transcode_matrix::the_files_of_a_profile";
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let asked = variable("ESGZ_MATRIX_IMAGE").zip(variable("ESGZ_MATRIX_PROFILE"));
    let Some((image, profile)) = asked else {
        skipped(
            NAME,
            "ESGZ_MATRIX_IMAGE and ESGZ_MATRIX_PROFILE are not set",
        );
        return;
    };
    let Some(oracle) = Oracle::for_test(NAME) else {
        return;
    };
    let profile = Profile::parse(&fs::read(profile).unwrap()).unwrap();
    let paths: Vec<&str> = profile
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    // Of a file of gigabytes, its first chunks; for slow compressors little of anything.
    write_part(&image, &dir.path().join("tar"), (5 << 20, 60 << 20), &paths);
    write_part(
        &image,
        &dir.path().join("small"),
        (300 << 10, 2 << 20),
        &paths,
    );
    let sources = compressed_by_all(dir.path(), &oracle, NAME);
    let prioritized = |layer: &ScannedLayer| {
        let mut found = profile::from_paths(paths.iter().copied(), std::slice::from_ref(layer));
        let picks = found.layers.remove(0);
        assert!(picks.len() > 20, "{} of {} paths", picks.len(), paths.len());
        picks
    };
    cut_and_compare(&sources, prioritized, dir.path(), &oracle);
}

/// Writes a tar of the image's files that are in `paths`, and of every tenth other one: of each the first bytes, up to
/// a number, until together they are more than another.
fn write_part(layout: &Path, tar: &Path, (file_bytes, all_bytes): (u64, u64), paths: &[&str]) {
    let paths: HashSet<&str> = paths
        .iter()
        .map(|path| path.trim_start_matches('/'))
        .collect();
    let document = |digest: &Value| {
        let hex = digest["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        layout.join("blobs/sha256").join(hex)
    };
    let parse =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = parse(layout.join("index.json"));
    let manifest = parse(document(&index["manifests"][0]));
    let mut builder = tar::Builder::new(fs::File::create(tar).unwrap());
    let mut left = all_bytes;
    // The uppermost layer has what the image is for.
    for layer in manifest["layers"].as_array().unwrap().iter().rev() {
        let blob = BufReader::new(fs::File::open(document(layer)).unwrap());
        let mut layer = tar::Archive::new(flate2::bufread::MultiGzDecoder::new(blob));
        for (number, entry) in layer.entries().unwrap().enumerate() {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            let is_wanted = paths.contains(path.to_str().unwrap().trim_start_matches("./"));
            let len_bytes = entry.size().min(file_bytes);
            let is_file = entry.header().entry_type().is_file();
            if !is_file || !(is_wanted || number % 10 == 0) || len_bytes > left {
                continue;
            }
            left -= len_bytes;
            let mut header = tar::Header::new_gnu();
            header.set_size(len_bytes);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, path, entry.take(len_bytes))
                .unwrap();
        }
    }
    builder.into_inner().unwrap();
}

/// All of them as layers of one image, through the binary, which decides what is copied; with a list of
/// what to prefetch, and for any number of threads.
#[test]
fn an_image_of_all_compressors() {
    const NAME: &str = "transcode_matrix::an_image_of_all_compressors";
    let Some(oracle) = Oracle::for_test(NAME) else {
        return;
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(sources) = sources(dir.path(), &oracle, NAME) else {
        return;
    };
    let mut image = LayoutBuilder::new();
    for source in &sources {
        let Compressed { blob, tar } = source.compressed.clone();
        let gzip = esgz_tests::compress::Compression::Gzip(6);
        image = image.layer(Layer::from_blob(blob, tar, gzip));
    }
    let conversion = Conversion::of(&image);
    let mut numbers = Numbers(77);
    let entries = &sources[0].layer.entries;
    let list: Vec<String> = (0..entries.len() / 4)
        .map(|_| &entries[numbers.below(entries.len())])
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .collect();
    fs::write(dir.path().join("list"), list.join("\n")).unwrap();
    let list = dir.path().join("list");
    let args = ["--prefetch-list", list.to_str().unwrap(), "--threads"];
    let output = conversion.convert("one", &[&args[..], &["1"]].concat());
    let several = conversion.convert("several", &[&args[..], &["5"]].concat());
    let (output, several) = (output.unwrap(), several.unwrap());
    assert_eq!(output.manifest_digest(), several.manifest_digest());
    let request = image_request(&output, Some(&conversion.source), &[]);
    for answer in oracle.batch(&[request]) {
        answer.unwrap();
    }
}
