//! The conformance matrix: every compression × every entry set × chunk sizes, shared members, with and
//! without profile. Each output is opened, verified, read in full and compared with its source by the
//! Go oracle, and compared header by header with what the reference makes of the same source and list.
//!
//! An image has a layer for each entry set, so that one conversion goes through all of them.

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;

use esgz_tests::archive::{Entry, Kind};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder, digest};
use esgz_tests::oracle::{Oracle, image_request};
use esgz_tests::sets::{self, EntrySet};
use serde_json::{Value, json};

/// A chunk that the sets' files have borders at.
const SMALL_CHUNK: usize = 16 << 10;
/// Compressed bytes of a shared member.
const MIN_CHUNK: usize = 20_000;
/// Sets that the reference refuses to convert.
const REFUSED_BY_REFERENCE: [&str; 2] = ["sparse", "global header"];

/// The options of one conversion.
#[derive(Clone, Copy, Debug)]
struct Cell {
    chunk: usize,
    min_chunk: usize,
    with_profile: bool,
}

fn cells() -> impl Iterator<Item = Cell> {
    let chunks = [4 << 20, SMALL_CHUNK].into_iter();
    chunks.flat_map(|chunk| {
        [0, MIN_CHUNK].into_iter().flat_map(move |min_chunk| {
            [false, true].into_iter().map(move |with_profile| Cell {
                chunk,
                min_chunk,
                with_profile,
            })
        })
    })
}

/// Some of a set's entries, of every kind, not in their order.
fn picks(set: &EntrySet) -> Vec<String> {
    let own = [
        "stargz.index.json",
        ".prefetch.landmark",
        ".no.prefetch.landmark",
    ];
    let mut names: Vec<String> = set
        .entries
        .iter()
        .filter(|entry| entry.kind != Kind::Global)
        .filter_map(|entry| std::str::from_utf8(&entry.name).ok())
        .map(clean)
        .filter(|name| !name.is_empty() && !own.contains(&name.as_str()))
        // A record or list is lines; these names cannot stand in one.
        .filter(|name| name.trim() == name && !name.contains('\n'))
        .collect();
    names.sort_by_key(|name| digest(name.as_bytes()));
    names.dedup();
    names.truncate(names.len().div_ceil(2));
    names
}

fn clean(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

/// The reference does not prefetch an entry whose parent directory has no entry; here it is.
fn have_parents(set: &EntrySet, picks: &[String]) -> bool {
    let names: HashSet<String> = set
        .entries
        .iter()
        .map(|entry| clean(&String::from_utf8_lossy(&entry.name)))
        .collect();
    picks.iter().all(|pick| {
        pick.match_indices('/')
            .all(|(slash, _)| names.contains(&pick[..slash]))
    })
}

/// A profile that says so.
fn profile(conversion: &Conversion, sets: &[EntrySet]) -> Value {
    let manifest = conversion.source.manifest();
    let layers = manifest["layers"].as_array().expect("it has layers");
    let layers: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let mut files = Vec::new();
    for (layer, set) in sets.iter().enumerate() {
        for path in picks(set) {
            files.push(json!({
                "path": path, "layer": layer, "size_bytes": 1, "phase": "run",
                "first_touch_seq": files.len(), "first_touch_ms": 0, "opened": true,
                "executed": false, "touched_bytes": 1, "ranges": [[0, 1]],
            }));
        }
    }
    json!({
        "esgz_profile": 1,
        "image": {
            "reference": "test", "manifest": conversion.source.manifest_digest(),
            "platform": "linux/amd64", "layers": layers,
        },
        "workload": {"args": [], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "test", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 0,
        "runs": 1, "files": files,
    })
}

/// Converts `image`, which has a layer for each of `sets`, with every option, and has all outputs
/// judged.
fn check(
    oracle: &Oracle,
    image: &LayoutBuilder,
    sets: &[EntrySet],
    cells: impl Iterator<Item = Cell>,
) {
    let conversion = Conversion::of(image);
    let profile_path = conversion.path("profile.json");
    fs::write(&profile_path, profile(&conversion, sets).to_string()).unwrap();
    let list_path = |layer: usize| conversion.path(&format!("list-{layer}"));
    for (layer, set) in sets.iter().enumerate() {
        fs::write(list_path(layer), picks(set).join("\n")).unwrap();
    }
    let (mut requests, mut names) = (Vec::new(), Vec::new());
    for (number, cell) in cells.enumerate() {
        let (chunk, min_chunk) = (cell.chunk.to_string(), cell.min_chunk.to_string());
        let mut args = vec![
            "--estargz-chunk-size",
            &chunk,
            "--estargz-min-chunk-size",
            &min_chunk,
        ];
        // The blobs are read by the oracle; that esgz can read them, other tests say.
        args.push("--no-verify");
        let profile_path = profile_path.to_str().unwrap();
        if cell.with_profile {
            // Without a level: the tokens of gzip sources are copied.
            args.extend(["--profile", profile_path]);
        } else {
            args.extend(["--estargz-compression-level", "1"]);
        }
        let output = conversion
            .convert(&format!("output-{number}"), &args)
            .unwrap_or_else(|error| panic!("{cell:?}: {error}"));
        let shared: &[&str] = if cell.min_chunk > 0 {
            &["--shared-members"]
        } else {
            &[]
        };
        requests.push(image_request(&output, Some(&conversion.source), shared));
        names.push(format!("{cell:?}"));
        for (layer, set) in sets.iter().enumerate() {
            let refused = REFUSED_BY_REFERENCE.contains(&set.name);
            if refused || cell.with_profile && !have_parents(set, &picks(set)) {
                continue;
            }
            let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
            let source = &conversion.source;
            let mut request = vec![
                "compare".to_owned(),
                text(output.blob_path(&output.layer_digest(layer))),
                text(source.blob_path(&source.layer_digest(layer))),
            ];
            request.extend(
                [
                    "--level",
                    "1",
                    "--chunk-size",
                    &chunk,
                    "--min-chunk-size",
                    &min_chunk,
                ]
                .map(str::to_owned),
            );
            if cell.with_profile {
                request.extend(["--prioritized".to_owned(), text(list_path(layer))]);
            }
            requests.push(request);
            names.push(format!("{cell:?}: {}", set.name));
        }
    }
    let answers = oracle.batch(&requests);
    let failures: Vec<String> = names
        .iter()
        .zip(&answers)
        .filter_map(|(name, answer)| Some(format!("{name}: {}", answer.as_ref().err()?)))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} failed:\n{}",
        failures.len(),
        names.len(),
        failures.join("\n")
    );
    for (name, answer) in names
        .iter()
        .zip(answers)
        .filter(|(name, _)| name.ends_with(": usual"))
    {
        // Headers that the reference encodes as they are lie where the reference puts them.
        let report = answer.expect("no failures");
        assert_eq!(report["sameOffsets"], report["entries"], "{name}");
    }
}

fn check_compression(name: &str, compression: Compression) {
    let Some(oracle) = Oracle::for_test(name) else {
        return;
    };
    let sets = sets::small(SMALL_CHUNK);
    let layers = sets
        .iter()
        .map(|set| Layer::from_tar(set.tar(), compression));
    let image = layers.fold(LayoutBuilder::new(), LayoutBuilder::layer);
    check(&oracle, &image, &sets, cells());
}

#[test]
fn gzip_1() {
    check_compression("conformance::gzip_1", Compression::Gzip(1));
}

#[test]
fn gzip_6() {
    check_compression("conformance::gzip_6", Compression::Gzip(6));
}

#[test]
fn gzip_9() {
    check_compression("conformance::gzip_9", Compression::Gzip(9));
}

#[test]
fn gzip_members() {
    check_compression("conformance::gzip_members", Compression::MultiMember);
}

#[test]
fn gzip_header_fields() {
    check_compression("conformance::gzip_header_fields", Compression::FullHeader);
}

#[test]
fn gzip_stored() {
    check_compression("conformance::gzip_stored", Compression::Stored);
}

#[test]
fn zstd() {
    check_compression("conformance::zstd", Compression::Zstd);
}

#[test]
fn plain() {
    check_compression("conformance::plain", Compression::Plain);
}

/// Layers that the reference made eStargz already, half of them with a list; they are reused, too.
#[test]
fn estargz() {
    let Some(oracle) = Oracle::for_test("conformance::estargz") else {
        return;
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: String| dir.path().join(name).to_str().unwrap().to_owned();
    let mut sets = sets::small(SMALL_CHUNK);
    sets.retain(|set| !REFUSED_BY_REFERENCE.contains(&set.name));
    let mut requests = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        fs::write(path(format!("tar-{number}")), set.tar()).unwrap();
        fs::write(path(format!("list-{number}")), picks(set).join("\n")).unwrap();
        let mut request: Vec<String> = vec![
            "build".to_owned(),
            path(format!("tar-{number}")),
            path(format!("blob-{number}")),
            "--chunk-size".to_owned(),
            SMALL_CHUNK.to_string(),
        ];
        if number % 2 == 0 {
            request.extend(["--prioritized".to_owned(), path(format!("list-{number}"))]);
        }
        requests.push(request);
    }
    let mut image = LayoutBuilder::new();
    for (number, built) in oracle.batch(&requests).into_iter().enumerate() {
        let built = built.unwrap_or_else(|error| panic!("{}: {error}", sets[number].name));
        let blob = fs::read(path(format!("blob-{number}"))).unwrap();
        let mut tar = Vec::new();
        let mut decoder = flate2::bufread::MultiGzDecoder::new(&*blob);
        decoder.read_to_end(&mut tar).unwrap();
        let toc_digest = built["tocDigest"].as_str().unwrap();
        let layer = Layer::from_blob(blob, tar, Compression::Gzip(6));
        image =
            image.layer(layer.annotation("containerd.io/snapshot/stargz/toc.digest", toc_digest));
    }
    check(&oracle, &image, &sets, cells());

    let conversion = Conversion::of(&image);
    let output = conversion.output("reused");
    let finished = Esgz::new("convert")
        .args([conversion.source.reference(), output.reference()])
        .args(["--reuse", "--json"])
        .run();
    let report: Value = serde_json::from_str(&finished.success().unwrap().stdout).unwrap();
    for (set, layer) in sets.iter().zip(report["layers"].as_array().unwrap()) {
        assert_eq!(layer["reused"], true, "{}", set.name);
    }
    oracle
        .image(&output, Some(&conversion.source), &[])
        .unwrap();
}

/// Files around the borders of chunks of 4 MiB.
#[test]
fn large_chunks() {
    let Some(oracle) = Oracle::for_test("conformance::large_chunks") else {
        return;
    };
    let sets = [sets::named("chunk borders")];
    let image = LayoutBuilder::new().layer(Layer::from_tar(sets[0].tar(), Compression::Gzip(1)));
    let cell = |min_chunk, with_profile| Cell {
        chunk: 4 << 20,
        min_chunk,
        with_profile,
    };
    let cells = [cell(0, true), cell(MIN_CHUNK, false), cell(4 << 20, true)];
    check(&oracle, &image, &sets, cells.into_iter());
}

#[test]
fn fifty_thousand_files() {
    let Some(oracle) = Oracle::for_test("conformance::fifty_thousand_files") else {
        return;
    };
    let entry = |i: u64| {
        let name = format!("dir-{}/file-{i}", i % 100);
        Entry::file(name, sets::noise(i, (i % 600) as usize))
    };
    let entries: Vec<Entry> = (0..50_000).map(entry).collect();
    let layer = Layer::new(&entries, Compression::Zstd);
    let conversion = Conversion::of(&LayoutBuilder::new().layer(layer));
    let list = conversion.path("list");
    fs::write(&list, "dir-7/*\n**/file-*11\n").unwrap();
    let plain = conversion.convert("plain", &["--no-verify"]).unwrap();
    let args = [
        "--estargz-min-chunk-size",
        "50000",
        "--prefetch-list",
        list.to_str().unwrap(),
    ];
    let shared = conversion.convert("shared", &args).unwrap();
    let source = Some(&conversion.source);
    let reports = oracle.batch(&[
        image_request(&plain, source, &[]),
        image_request(&shared, source, &["--shared-members"]),
    ]);
    let verified = |index: usize| {
        let report = reports[index]
            .as_ref()
            .unwrap_or_else(|error| panic!("{error}"));
        &report["manifests"][0]["layers"][0]["verify"]
    };
    assert_eq!(verified(0)["files"], 50_000);
    assert_eq!(verified(1)["files"], 50_000);
    let prioritized = verified(1)["prioritized"].as_array().unwrap();
    // 500 in dir-7, and every hundredth that is not in it.
    assert_eq!(prioritized.len(), 1000);
    assert_eq!(prioritized[0], "dir-7/file-10007");
    let members = |index: usize| verified(index)["members"].as_u64().unwrap();
    assert!(
        members(0) > 40 * members(1),
        "{} {}",
        members(0),
        members(1)
    );
}
