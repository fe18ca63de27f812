//! Properties of a layer's whole way, over generated archives: every kind of entry, every dialect.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;

use esgz::blob::{Blob, ReadAt as _};
use esgz::cancel::Cancel;
use esgz::image::Digest;
use esgz::layer::encode::{Check, Level};
use esgz::layer::entry::{EntryKind, ScannedLayer};
use esgz::layer::placement::Placement;
use esgz::layer::plan::{PlanOptions, plan_layer};
use esgz::layer::scan::{DecodeOptions, EntryMemory, Expected, Keep, ScanOptions, scan_layer};
use esgz::layer::verify::{parse_toc, read_toc, verify_layer};
use esgz::layer::{ConvertOptions, Encoding, Parallel, convert_layer};
use esgz::progress::Silent;
use esgz_tests::archive::{Ending, archive};
use esgz_tests::drafts::{Names, draft, entries};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

fn scan(tar: &[u8]) -> ScannedLayer {
    let expected = Expected {
        digest: Digest::of(tar),
        size_bytes: tar.len() as u64,
        diff_id: Digest::of(tar),
    };
    let options = ScanOptions {
        scratch: std::env::temp_dir(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Spool,
        decode: DecodeOptions::ONE_THREAD,
    };
    scan_layer(tar, None, &expected, &options, &[]).expect("a generated archive is valid")
}

/// The blob's uncompressed stream and its TOC's rows as (name, offset known).
fn convert(layer: &ScannedLayer, picks: &[u32], options: PlanOptions) -> (Vec<u8>, Vec<String>) {
    let plan = plan_layer(layer, &Placement::of_whole(picks.to_vec()), options)
        .expect("every link has a target");
    let parallel = Parallel {
        threads: 2,
        memory_bytes: 1 << 20,
    };
    let encoding = Encoding::Compress(Level::new(1).expect("level 1 exists"));
    let options = ConvertOptions {
        check: Check::Prove,
        parallel,
    };
    let mut blob = Vec::new();
    let finished = convert_layer(
        layer,
        &plan,
        &encoding,
        options,
        &mut blob,
        &Cancel::default(),
        &Silent,
    )
    .unwrap();
    let bytes = Blob::of_bytes(blob.clone());
    let verified = verify_layer(&bytes, parallel, &Cancel::default()).unwrap();
    verified.must_equal(&finished).unwrap();
    let (json, offset) = read_toc(&bytes).unwrap();
    let toc = parse_toc(&json, offset).unwrap();
    let rows = toc.entries.iter().filter(|row| row.kind != "chunk");
    let names = rows.map(|row| row.name.to_string()).collect();
    let mut stream = Vec::new();
    flate2::bufread::MultiGzDecoder::new(&*blob)
        .read_to_end(&mut stream)
        .unwrap();
    assert_eq!(stream.len() as u64, finished.uncompressed_bytes);
    (stream, names)
}

/// The directories above `path`, the root left out.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
    slashes.map(|(slash, _)| &path[..slash])
}

/// What an entry says of itself and holds, without where.
fn meaning(layer: &ScannedLayer, index: usize) -> String {
    let entry = &layer.entries[index];
    let mut contents = vec![0; usize::try_from(entry.size_bytes).unwrap()];
    for segment in entry.data() {
        let at = usize::try_from(segment.file_offset_bytes).unwrap();
        let len = usize::try_from(segment.stored.len_bytes).unwrap();
        let target = &mut contents[at..at + len];
        layer
            .spool
            .read_exact_at(target, segment.stored.offset_bytes)
            .unwrap();
    }
    let mut said = entry.clone();
    (said.header, said.payload, said.sparse) = Default::default();
    format!("{said:?} {}", Digest::of(&contents))
}

fn options() -> impl Strategy<Value = PlanOptions> {
    let chunk = prop_oneof![Just(1024_u32), 1024..5000_u32, Just(4 << 20)];
    let min_chunk = prop_oneof![Just(0_u32), 1..3000_u32];
    (chunk, min_chunk).prop_map(|(chunk_bytes, min_chunk_bytes)| PlanOptions {
        chunk_bytes,
        min_chunk_bytes,
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Without prioritised files the stream is the source's up to its end, the landmark, and the TOC.
    #[test]
    fn the_stream_is_the_sources(
        drafts in vec(draft(), 0..24),
        ending in prop_oneof![Just(Ending::Blocks), Just(Ending::None), Just(Ending::Garbage), Just(Ending::Record)],
        options in options(),
    ) {
        let tar = archive(&entries(&drafts, Names::Unique), ending);
        let layer = scan(&tar);
        prop_assert_eq!(layer.entries.len(), drafts.len());
        let (stream, _) = convert(&layer, &[], options);
        let end = usize::try_from(layer.end_of_entries_bytes).unwrap();
        prop_assert!(stream[..end] == tar[..end]);
        prop_assert!(stream[end..].starts_with(b".no.prefetch.landmark\0"));
        prop_assert!(stream[end + 1024..].starts_with(b"stargz.index.json\0"));
    }

    /// With duplicates and prioritised files: of every path the last entry, once, as it was; parents
    /// before what was prioritised, and targets before links.
    #[test]
    fn every_path_is_there_once(
        drafts in vec(draft(), 1..24),
        picks in vec(any::<Index>(), 0..5),
        options in options(),
    ) {
        let layer = scan(&archive(&entries(&drafts, Names::Repeated), Ending::Blocks));
        let last: HashMap<Vec<u8>, usize> = layer.entries.iter().enumerate()
            .map(|(index, entry)| (entry.path().unwrap(), index)).collect();
        // A link whose target became something that links to it again has no meaning.
        let resolves = |index: usize| {
            let mut at = index;
            for _ in 0..=layer.entries.len() {
                if layer.entries[at].kind != EntryKind::Hardlink {
                    return true;
                }
                match last.get(&layer.entries[at].link_path().unwrap()) {
                    Some(&target) => at = target,
                    None => return false,
                }
            }
            false
        };
        prop_assume!(last.values().all(|&index| resolves(index)));
        let picks: Vec<u32> = picks.iter()
            .map(|pick| u32::try_from(pick.index(layer.entries.len())).unwrap()).collect();
        let (stream, rows) = convert(&layer, &picks, options);

        let output = scan(&stream);
        let names: Vec<String> = output.entries.iter()
            .map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect();
        prop_assert_eq!(&names[..names.len() - 1], &rows[..]);
        let landmark = if picks.is_empty() { ".no.prefetch.landmark" } else { ".prefetch.landmark" };
        let border = names.iter().position(|name| name == landmark).unwrap();
        // With nothing prioritised the landmark is last.
        let prioritized = if picks.is_empty() { 0 } else { border };
        // A file below a hardlink has no honest order: no extractor can make it.
        let is_link = |path: &[u8]| last.get(path).is_some_and(|&at| layer.entries[at].kind == EntryKind::Hardlink);
        let below_links = last.keys().any(|path| parents(path).any(is_link));
        let mut seen = HashSet::new();
        for (index, entry) in output.entries.iter().enumerate() {
            let path = entry.path().unwrap();
            if index == border || index == output.entries.len() - 1 {
                continue;
            }
            let source = last[&path];
            prop_assert_eq!(meaning(&output, index), meaning(&layer, source));
            prop_assert!(seen.insert(path.clone()), "{:?} twice", names[index]);
            if entry.kind == EntryKind::Hardlink {
                prop_assert!(seen.contains(&entry.link_path().unwrap()), "{:?} before its target", names[index]);
            }
            if index < prioritized {
                for parent in parents(&path) {
                    let known = last.contains_key(parent) && !below_links;
                    prop_assert!(!known || seen.contains(parent), "{:?} before its parent", names[index]);
                }
            }
        }
        prop_assert_eq!(seen.len(), last.len());
        for &pick in &picks {
            let path = layer.entries[pick as usize].path().unwrap();
            let at = output.entries.iter().position(|entry| entry.path().unwrap() == path);
            prop_assert!(at.is_some_and(|at| at < border));
        }
        // What is not prioritised keeps its order, but for links whose target was replaced.
        let rest = (prioritized..output.entries.len() - 1).filter(|&index| index != border);
        let rest: Vec<usize> = rest.map(|index| &output.entries[index])
            .filter(|entry| entry.kind != EntryKind::Hardlink)
            .map(|entry| last[&entry.path().unwrap()]).collect();
        let has_links = layer.entries.iter().any(|entry| entry.kind == EntryKind::Hardlink);
        prop_assert!(has_links || rest.is_sorted());
    }

    /// Damaged archives give entries or an error, never a panic; what is read lies in the archive.
    #[test]
    fn damage_is_survived(
        drafts in vec(draft(), 1..8),
        damage in vec((any::<Index>(), any::<u8>()), 1..6),
        cut in any::<Index>(),
        fix_checksums: bool,
    ) {
        let mut tar = archive(&entries(&drafts, Names::Repeated), Ending::Blocks);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
            if fix_checksums {
                let block = at / 512 * 512;
                let header = &mut tar[block..block + 512];
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        tar.truncate(1 + cut.index(tar.len()));
        if let Ok(archive) = esgz::layer::scan::tar::read_entries(tar.as_slice()) {
            for entry in &archive.entries {
                prop_assert!(entry.header.end_bytes() <= tar.len() as u64);
                prop_assert!(entry.payload.end_bytes() <= tar.len() as u64);
                let mut reached = 0;
                for segment in entry.data() {
                    prop_assert!(segment.file_offset_bytes >= reached);
                    reached = segment.file_offset_bytes + segment.stored.len_bytes;
                    prop_assert!(reached <= entry.size_bytes);
                    prop_assert!(segment.stored.end_bytes() <= tar.len() as u64);
                }
            }
        }
    }
}
