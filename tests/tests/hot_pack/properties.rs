//! Properties of packed layers, over random files, ranges, chunk sizes, encoders and threads.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::sync::OnceLock;

use esgz::blob::{Blob, ReadAt as _};
use esgz::cancel::Cancel;
use esgz::image::Digest;
use esgz::layer::encode::{Check, Level};
use esgz::layer::entry::{EntryKind, ScannedLayer};
use esgz::layer::placement::{Giant, Placement};
use esgz::layer::plan::{LayerPlan, PlanOptions, is_reserved, plan_layer};
use esgz::layer::scan::{DecodeOptions, EntryMemory, Expected, Keep, ScanOptions, scan_layer};
use esgz::layer::toc::Toc;
use esgz::layer::toc_packs;
use esgz::layer::verify::{parse_toc, read_toc, verify_layer};
use esgz::layer::{ConvertOptions, Encoding, Parallel, convert_layer};
use esgz::progress::Silent;
use esgz_tests::archive::{Ending, Entry, archive};
use esgz_tests::compress::Compression;
use esgz_tests::oracle::Oracle;
use esgz_tests::sets::noise;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// A file of a layer, and what becomes of it.
#[derive(Clone, Debug)]
struct Draft {
    size: usize,
    fate: Fate,
}

#[derive(Clone, Debug)]
enum Fate {
    OnDemand,
    Whole,
    /// Start and length of each range, in parts of the file.
    Ranges(Vec<(Index, Index)>),
    /// As ranges, and another name of it is prefetched whole.
    RangesAndLink(Vec<(Index, Index)>),
}

fn draft() -> impl Strategy<Value = Draft> {
    let ranges = || vec((any::<Index>(), any::<Index>()), 1..6);
    let fate = prop_oneof![
        2 => Just(Fate::OnDemand),
        1 => Just(Fate::Whole),
        4 => ranges().prop_map(Fate::Ranges),
        1 => ranges().prop_map(Fate::RangesAndLink),
    ];
    // Long ones are where compressed bits are copied.
    let size =
        prop_oneof![2 => 0..5000_usize, 2 => 5000..100_000_usize, 1 => 400_000..1_500_000_usize];
    (size, fate).prop_map(|(size, fate)| Draft { size, fate })
}

fn hot(size: usize, ranges: &[(Index, Index)]) -> Vec<std::ops::Range<u64>> {
    let mut hot: Vec<_> = ranges
        .iter()
        .map(|(start, len)| {
            let start = start.index(size.max(1));
            let end = (start + 1 + len.index(size.max(1) / 2 + 1)).min(size);
            start as u64..end as u64
        })
        .collect();
    hot.sort_by_key(|range| range.start);
    hot
}

struct Source {
    tar: Vec<u8>,
    blob: Blob,
    layer: ScannedLayer,
    placement: Placement,
}

fn source(drafts: &[Draft]) -> Source {
    let mut entries = vec![Entry::dir("d/")];
    let mut placement = Placement::default();
    for (number, draft) in drafts.iter().enumerate() {
        let index = u32::try_from(entries.len()).unwrap();
        entries.push(Entry::file(
            format!("d/file{number}"),
            noise(number as u64, draft.size),
        ));
        let giant = |ranges: &[(Index, Index)]| Giant {
            entry: index,
            hot: hot(draft.size, ranges),
        };
        match &draft.fate {
            Fate::OnDemand => {}
            Fate::Whole => placement.whole.push(index),
            Fate::Ranges(ranges) => placement.giants.push(giant(ranges)),
            Fate::RangesAndLink(ranges) => {
                placement.giants.push(giant(ranges));
                entries.push(Entry::hardlink(
                    format!("link{number}"),
                    format!("d/file{number}"),
                ));
                placement.whole.push(index + 1);
            }
        }
    }
    let tar = archive(&entries, Ending::Blocks);
    let blob = Compression::Gzip(6).compress(&tar);
    let expected = Expected {
        digest: Digest::of(&blob),
        size_bytes: blob.len() as u64,
        diff_id: Digest::of(&tar),
    };
    let options = ScanOptions {
        scratch: std::env::temp_dir(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Readable,
        decode: DecodeOptions::ONE_THREAD,
    };
    let blob = Blob::of_bytes(blob);
    let layer = scan_layer(blob.clone(), Some(&blob), &expected, &options, &[]).unwrap();
    Source {
        tar,
        blob,
        layer,
        placement,
    }
}

fn parallel(threads: usize) -> Parallel {
    Parallel {
        threads,
        memory_bytes: 1 << 20,
    }
}

fn convert(source: &Source, plan: &LayerPlan, copies: bool, threads: usize) -> Vec<u8> {
    let level = Level::new(2).unwrap();
    let encoding = match &source.layer.deflate {
        Some(index) if copies => Encoding::Copy(&source.blob, index, level),
        _ => Encoding::Compress(level),
    };
    let options = ConvertOptions {
        check: Check::Prove,
        parallel: parallel(threads),
    };
    let mut blob = Vec::new();
    let finished = convert_layer(
        &source.layer,
        plan,
        &encoding,
        options,
        &mut blob,
        &Cancel::default(),
        &Silent,
    )
    .unwrap();
    let bytes = Blob::of_bytes(blob.clone());
    let verified = verify_layer(&bytes, parallel(2), &Cancel::default()).unwrap();
    verified.must_equal(&finished).unwrap();
    blob
}

/// Contents of each file by name.
fn contents(layer: &ScannedLayer) -> HashMap<String, Vec<u8>> {
    let files = layer
        .entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Regular);
    let files = files.filter(|entry| !is_reserved(&entry.path().unwrap()));
    files
        .map(|entry| {
            let mut bytes = vec![0; usize::try_from(entry.size_bytes).unwrap()];
            layer
                .spool
                .read_exact_at(&mut bytes, entry.payload.offset_bytes)
                .unwrap();
            (String::from_utf8_lossy(&entry.name).into_owned(), bytes)
        })
        .collect()
}

/// Each file as a reader of the TOC puts it together: chunk by chunk from the members that the rows name.
fn through_toc(blob: &[u8], toc: &Toc<'_>) -> HashMap<String, Vec<u8>> {
    let mut files = HashMap::new();
    let mut current = (String::new(), 0);
    for row in &toc.entries {
        if row.kind == "reg" {
            current = (row.name.to_string(), row.size);
            files.insert(current.0.clone(), Vec::new());
        } else if row.kind != "chunk" {
            continue;
        }
        if current.1 == 0 {
            continue;
        }
        let file = files.get_mut(&current.0).unwrap();
        assert_eq!(file.len() as u64, row.chunk_offset, "{}", current.0);
        let len = match row.chunk_size {
            0 => current.1 - row.chunk_offset,
            len => len,
        };
        let mut member = flate2::bufread::GzDecoder::new(&blob[row.offset as usize..]);
        let mut skipped = vec![0; usize::try_from(row.inner_offset).unwrap()];
        member.read_exact(&mut skipped).unwrap();
        let mut chunk = vec![0; usize::try_from(len).unwrap()];
        member.read_exact(&mut chunk).unwrap();
        assert_eq!(row.chunk_digest, Some(Digest::of(&chunk)), "{}", current.0);
        file.extend(chunk);
    }
    files.retain(|name, _| !is_reserved(name.as_bytes()));
    files
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whoever reads a packed layer, by its TOC or as a tar, gets each file's bytes; the number of threads
    /// changes nothing; the reference reads it all.
    #[test]
    fn every_reader_gets_the_files_bytes(
        drafts in vec(draft(), 1..8),
        chunk_bytes in prop_oneof![1024..5000_u32, 50_000..300_000_u32, Just(4 << 20)],
        min_chunk_bytes in prop_oneof![3 => Just(0_u32), 1 => 1..30_000_u32],
    ) {
        static ORACLE: OnceLock<Option<Oracle>> = OnceLock::new();
        let name = "hot_pack::properties::every_reader_gets_the_files_bytes";
        let oracle = ORACLE.get_or_init(|| Oracle::for_test(name));
        let source = source(&drafts);
        let options = PlanOptions { chunk_bytes, min_chunk_bytes };
        let plan = plan_layer(&source.layer, &source.placement, options).unwrap();
        let expected = contents(&source.layer);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("source"), &source.tar).unwrap();
        for copies in [false, true] {
            if copies && min_chunk_bytes > 0 {
                continue;
            }
            let blob = convert(&source, &plan, copies, 1);
            for threads in [2, 7] {
                prop_assert!(convert(&source, &plan, copies, threads) == blob, "{threads} threads");
            }
            let bytes = Blob::of_bytes(blob.clone());
            let (json, toc_offset) = read_toc(&bytes).unwrap();
            let toc = parse_toc(&json, toc_offset).unwrap();
            prop_assert!(through_toc(&blob, &toc) == expected);
            let found = toc_packs::packed(&toc);
            let planned = plan.prefetch.packed;
            // Which of them is prefetched a TOC does not say where it has the landmark that forbids it.
            prop_assert_eq!(
                (found.files, found.bytes + found.first_bytes, found.chunks),
                (planned.files, planned.bytes + planned.first_bytes, planned.chunks)
            );

            let mut stream = Vec::new();
            flate2::bufread::MultiGzDecoder::new(&*blob).read_to_end(&mut stream).unwrap();
            let extracted = esgz::layer::scan::tar::read_entries(stream.as_slice()).unwrap();
            let mut natural = HashMap::new();
            for entry in extracted.entries.iter().filter(|entry| entry.kind == EntryKind::Regular) {
                if !is_reserved(&entry.path().unwrap()) {
                    let start = usize::try_from(entry.payload.offset_bytes).unwrap();
                    let bytes = stream[start..][..entry.size_bytes as usize].to_vec();
                    natural.insert(String::from_utf8_lossy(&entry.name).into_owned(), bytes);
                }
            }
            prop_assert!(natural == expected);

            if let Some(oracle) = oracle {
                let path = dir.path().join("blob");
                fs::write(&path, &blob).unwrap();
                let digest = Digest::of(&json).to_string();
                let shared: &[&str] = if min_chunk_bytes > 0 { &["--shared-members"] } else { &[] };
                oracle.read(&path, &digest, shared).map_err(TestCaseError::fail)?;
                if min_chunk_bytes == 0 {
                    let source = dir.path().join("source");
                    let report = oracle.verify(&path, &digest, Some(&source));
                    let report = report.map_err(TestCaseError::fail)?;
                    prop_assert_eq!(report["packedFiles"].as_array().unwrap().len() as u64, planned.files);
                    prop_assert_eq!(report["packedBytes"].as_u64(), Some(planned.bytes));
                }
                let prefetched = oracle.prefetch(&path, &digest).map_err(TestCaseError::fail)?;
                // The reference counts a file once for each of its names, and a chunk again that came with another.
                let is_linked = |draft: &&Draft| matches!(draft.fate, Fate::RangesAndLink(_));
                let linked: usize = drafts.iter().filter(is_linked).map(|draft| draft.size).sum();
                let expected = plan.prefetch.bytes + linked as u64;
                if min_chunk_bytes == 0 {
                    prop_assert_eq!(prefetched["bytes"].as_u64(), Some(expected));
                }
            }
        }
    }
}
