//! What is too large is refused with a clear line; what is large does not need more memory.

use esgz_tests::archive::{Entry, Kind};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt::Estargz;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::sets;
use serde_json::{Value, json};

/// A written or given image is faulty.
const FAULTY: i32 = 5;
/// Source or destination.
const UNREADABLE: i32 = 6;
/// What the program and its threads take with no layer at all, a debug build's code included.
const BASE_BYTES: u64 = 48 << 20;

fn image(entries: &[Entry]) -> LayoutBuilder {
    LayoutBuilder::new().layer(Layer::new(entries, Compression::Gzip(6)))
}

fn peak_memory_bytes(finished: &Finished) -> u64 {
    let report: Value = serde_json::from_str(&finished.stdout).expect("--json prints JSON");
    report["peak_memory_bytes"]
        .as_u64()
        .expect("it is a number")
}

/// Zeros of 1/1000 of their size: refused by `--max-layer-size`, and converted and verified within
/// `--memory` without.
#[test]
fn a_layer_that_inflates_a_thousandfold() {
    const ZEROS_BYTES: usize = 300 << 20;
    const MEMORY_BYTES: u64 = 64 << 20;
    let conversion = Conversion::of(&image(&[Entry::file("zeros", vec![0; ZEROS_BYTES])]));
    let digest = conversion.source.layer_digest(0);
    let finished = conversion
        .command("new")
        .arg("--max-layer-size=100MiB")
        .run();
    let finished = conversion.finish(finished).unwrap();
    finished
        .failed_with(
            UNREADABLE,
            &[&*format!("{digest} is longer than 104857600")],
        )
        .unwrap();
    assert!(!conversion.path("new").exists());

    let args = ["--memory=64MiB", "--json", "--estargz-compression-level=1"];
    let converted = conversion
        .command("output")
        .args(args)
        .run()
        .success()
        .unwrap();
    let peak = peak_memory_bytes(&converted);
    assert!(peak < MEMORY_BYTES + BASE_BYTES, "convert took {peak}");
    let output = conversion.output("output");
    let verify = |args: &[&str]| Esgz::new("verify").arg(output.reference()).args(args).run();
    let verified = verify(&["--memory=64MiB", "--json"]).success().unwrap();
    let peak = peak_memory_bytes(&verified);
    assert!(peak < MEMORY_BYTES + BASE_BYTES, "verify took {peak}");
    let refused = verify(&["--max-layer-size=100MiB"]);
    refused
        .failed_with(FAULTY, &["longer than 104857600"])
        .unwrap();
}

/// Layers are encoded while they are scanned, be there little memory or much.
#[test]
fn much_memory_is_used_as_well_as_little() {
    let files = [1, 2].map(|seed| Entry::file(format!("file{seed}"), sets::noise(seed, 5 << 20)));
    let conversion = Conversion::of(&image(&files));
    for memory in ["512MiB", "8GiB"] {
        let finished = conversion
            .command(memory)
            .args(["--memory", memory, "--threads=2", "--log-level=debug"])
            .run()
            .success()
            .unwrap();
        let said = &finished.stderr;
        assert!(said.contains("is_made=true"), "{memory}: {said}");
    }
}

/// One chunk, and one member, of 300 MiB: it is inflated piece by piece.
#[test]
fn a_chunk_that_is_larger_than_the_memory() {
    const ZEROS_BYTES: usize = 300 << 20;
    let conversion = Conversion::of(&image(&[Entry::file("zeros", vec![0; ZEROS_BYTES])]));
    let output = conversion
        .convert("output", &["--estargz-compression-level=1"])
        .unwrap();
    let mut layer = Estargz::of(&output, 0);
    // The landmark's member, then one of the file's contents.
    let header = Entry::file("zeros", "").encode();
    let mut file_header = tar::Header::new_old();
    file_header.as_mut_bytes().copy_from_slice(&header[..512]);
    file_header.set_size(ZEROS_BYTES as u64);
    file_header.set_cksum();
    let mut landmark = tar::Header::new_ustar();
    landmark.set_path(".no.prefetch.landmark").unwrap();
    landmark.set_size(1);
    landmark.set_cksum();
    let mut members = Compression::Gzip(1).compress(landmark.as_bytes());
    let landmark_at = members.len();
    let mut after_landmark = vec![0; 512];
    after_landmark[0] = 0x0f;
    after_landmark.extend(file_header.as_bytes());
    members.extend(Compression::Gzip(1).compress(&after_landmark));
    let zeros_at = members.len();
    members.extend(Compression::Gzip(1).compress(&vec![0; ZEROS_BYTES]));
    layer.members = members;
    let digest = esgz_tests::layout::digest;
    layer.edit_rows(|rows| {
        // Here the landmark stands in front.
        rows.rotate_right(1);
        let whole = rows[1]["digest"].clone();
        rows.truncate(2);
        rows[0]["offset"] = landmark_at.into();
        assert_eq!(rows[0]["digest"], digest(&[0x0f]));
        rows[1]["offset"] = zeros_at.into();
        rows[1]["chunkDigest"] = whole;
        rows[1].as_object_mut().unwrap().shift_remove("chunkSize");
    });
    layer.put(&output, 0);
    let verified = Esgz::new("verify")
        .args([&*output.reference(), "--memory=64MiB", "--json"])
        .run()
        .success()
        .unwrap();
    let peak = peak_memory_bytes(&verified);
    assert!(peak < (64 << 20) + BASE_BYTES, "verify took {peak}");
    // A wrong digest is found there, too.
    layer.edit_rows(|rows| rows[1]["chunkDigest"] = rows[0]["chunkDigest"].clone());
    layer.put(&output, 0);
    let finished = Esgz::new("verify")
        .args([&*output.reference(), "--memory=64MiB"])
        .run();
    finished.failed_with(FAULTY, &["chunk's digest"]).unwrap();
}

#[test]
fn more_entries_than_memory() {
    let entries: Vec<Entry> = (0..50_000)
        .map(|i| Entry::file(format!("f{i}"), ""))
        .collect();
    let conversion = Conversion::of(&image(&entries));
    let digest = conversion.source.layer_digest(0);
    let finished = conversion.command("new").arg("--memory=16MiB").run();
    let finished = conversion.finish(finished).unwrap();
    let message = format!("{digest} has too many entries");
    finished.failed_with(UNREADABLE, &[&*message]).unwrap();
    assert!(
        finished
            .stderr
            .contains(&format!("{} bytes of memory", 8 << 20))
    );
    assert!(!conversion.path("new").exists());
    // As an eStargz image it is refused by verify, too.
    let output = conversion.convert("output", &[]).unwrap();
    let finished = Esgz::new("verify")
        .args([&*output.reference(), "--memory=16MiB"])
        .run();
    finished.failed_with(FAULTY, &["the TOC"]).unwrap();
}

/// A megabyte of attributes that a global header gives to every entry.
#[test]
fn attributes_that_multiply() {
    let value = vec![b'v'; 1_000_000];
    let mut entries = vec![Entry::new(Kind::Global, "").xattr("user.huge", value)];
    entries.extend((0..5000).map(|i| Entry::file(format!("f{i}"), "")));
    let conversion = Conversion::of(&image(&entries));
    let finished = conversion.command("new").arg("--memory=64MiB").run();
    let finished = conversion.finish(finished).unwrap();
    finished
        .failed_with(UNREADABLE, &["too many entries"])
        .unwrap();
}

/// Global headers that grow without end.
#[test]
fn global_headers_that_add_up() {
    let header = |i: u32| {
        let key = format!("user.{i}");
        Entry::new(Kind::Global, "").xattr(&key, vec![b'v'; 900_000])
    };
    let mut entries: Vec<Entry> = (0..3).map(header).collect();
    entries.push(Entry::file("f", ""));
    let conversion = Conversion::of(&image(&entries));
    let finished = conversion.command("new").run();
    finished
        .failed_with(UNREADABLE, &["global headers are larger"])
        .unwrap();
}

/// A TOC that only claims to be large is not believed.
#[test]
fn a_toc_that_lies_about_its_size() {
    let conversion = Conversion::of(&image(&sets::usual()));
    let output = conversion.convert("output", &[]).unwrap();
    let mut layer = Estargz::of(&output, 0);
    let rows: Vec<Value> = (0..60_000)
        .map(|i| json!({"name": format!("d{i}"), "type": "dir"}))
        .collect();
    layer.edit_rows(|all| all.extend(rows));
    layer.put(&output, 0);
    let finished = Esgz::new("verify")
        .args([&*output.reference(), "--memory=8MiB"])
        .run();
    finished
        .failed_with(FAULTY, &["bytes of memory, the limit is 6291456"])
        .unwrap();
}
