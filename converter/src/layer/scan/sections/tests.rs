//! Layers that are scanned by one thread, by several, with and without an index: they are the same.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use crossbeam::channel::unbounded;

use super::*;
use crate::blob::ReadAt as _;
use crate::image::{BlobId, Digest};
use crate::layer::entry::ScannedLayer;
use crate::layer::index_cache::IndexCache;
use crate::layer::scan::{
    DecodeOptions, EntryMemory, Expected, Keep, ScanError, ScanOptions, scan_layer,
};

/// A tar of files that compress like programs and texts do, some of them long.
fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = 7_u64;
    for number in 0..40 {
        let len = if number % 10 == 3 { 3_000_000 } else { 70_000 };
        let mut bytes = Vec::with_capacity(len + 300);
        while bytes.len() < len {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(9);
            let back = 1 + (state >> 40) as usize % 20_000;
            if back < bytes.len() && state >> 60 < 9 {
                let start = bytes.len() - back;
                bytes.extend_from_within(start..start + back.min(90));
            } else {
                bytes.extend((state & !0x8080_8080).to_le_bytes());
            }
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("file{number}"), &bytes[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// As eStargz, with the rows that matter.
fn estargz(tar: &[u8]) -> Vec<u8> {
    let (mut blob, mut rows) = (Vec::new(), Vec::new());
    for part in tar.chunks(300_000) {
        rows.push(format!(
            r#"{{"offset":{},"size":{}}}"#,
            blob.len(),
            part.len()
        ));
        blob.extend(gzip(part));
    }
    let toc_at = blob.len() as u64;
    let mut toc = vec![0; 512];
    toc.extend(format!(r#"{{"version":1,"entries":[{}]}}"#, rows.join(",")).bytes());
    blob.extend(gzip(&toc));
    blob.extend(crate::layer::footer::footer(toc_at));
    blob
}

struct Case {
    blob: Vec<u8>,
    /// What the blob means.
    bytes: Vec<u8>,
}

impl Case {
    fn id(&self) -> BlobId {
        BlobId {
            digest: Digest::of(&self.blob),
            size_bytes: self.blob.len() as u64,
        }
    }

    fn scan(
        &self,
        threads: usize,
        cache: Option<&Path>,
        keep: Keep,
    ) -> Result<ScannedLayer, ScanError> {
        let scratch = tempfile::tempdir().unwrap();
        let expected = Expected {
            digest: Digest::of(&self.blob),
            size_bytes: self.blob.len() as u64,
            diff_id: Digest::of(&self.bytes),
        };
        let options = ScanOptions {
            scratch: scratch.path().to_owned(),
            max_layer_bytes: self.bytes.len() as u64,
            entry_memory: EntryMemory::unlimited(),
            keep,
            decode: DecodeOptions {
                parallel: Parallel {
                    threads,
                    memory_bytes: 30 << 20,
                },
                index_cache: cache.map(|cache| IndexCache::new(cache.to_owned())),
            },
        };
        let again = Blob::of_bytes(self.blob.clone());
        scan_layer(&self.blob[..], Some(&again), &expected, &options, &[])
    }

    /// Scans, and compares with what one thread makes of it.
    fn check(&self, first: &ScannedLayer, threads: usize, cache: Option<&Path>) {
        for keep in [Keep::Readable, Keep::Spool] {
            let layer = self.scan(threads, cache, keep).unwrap();
            assert_eq!(
                format!("{:?}", layer.entries),
                format!("{:?}", first.entries)
            );
            let (found, wanted) = (layer.deflate.unwrap(), first.deflate.clone().unwrap());
            assert!(found.is_equivalent(&wanted), "another index");
            let mut bytes = vec![0; self.bytes.len()];
            layer.spool.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == self.bytes, "the tar reads the same");
            let end = self.bytes.len() - 700_000;
            layer
                .spool
                .read_exact_at(&mut bytes[end..], end as u64)
                .unwrap();
            assert!(bytes == self.bytes, "and from the middle");
        }
    }
}

/// How many sections there were, and how many proposals were wrong.
fn sections(blob: &[u8], proposer: Proposer<'_>) -> (u64, u64) {
    let (sender, receiver) = unbounded();
    let buffers = Buffers::default();
    let onward = Onward {
        sender: &sender,
        buffers: &buffers,
        limit_bytes: u64::MAX,
        is_index_wanted: true,
    };
    let parallel = Parallel {
        threads: 3,
        memory_bytes: 64 << 20,
    };
    let blob = Blob::of_bytes(blob.to_vec());
    let joined = inflate_sections(&blob, proposer, onward, parallel, &[]).unwrap();
    drop(receiver);
    (joined.sections, joined.misses)
}

#[test]
fn members_are_decoded_by_any_number_of_threads() {
    let tar = sample();
    let blob = estargz(&tar);
    // The TOC is part of the stream.
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(&blob[..])
        .read_to_end(&mut bytes)
        .unwrap();
    let case = Case { blob, bytes };
    let first = case.scan(1, None, Keep::Readable).unwrap();
    for threads in [2, 3, 7] {
        case.check(&first, threads, None);
    }
    let blob = Blob::of_bytes(case.blob.clone());
    let proposer = Proposer::Members(borders::of_members(&blob).unwrap());
    let (sections, misses) = sections(&case.blob, proposer);
    assert!(sections >= 3, "{sections}");
    assert_eq!(misses, 0);
}

#[test]
fn an_index_lets_any_number_of_threads_decode() {
    let cache = tempfile::tempdir().unwrap();
    let bytes = sample();
    let case = Case {
        blob: gzip(&bytes),
        bytes,
    };
    let first = case.scan(1, Some(cache.path()), Keep::Readable).unwrap();
    let path = IndexCache::new(cache.path().to_owned()).path(case.id());
    let good = fs::read(&path).unwrap();
    for threads in [1, 2, 5] {
        case.check(&first, threads, Some(cache.path()));
    }
    assert!(fs::read(&path).unwrap() == good, "it stays as it is");
    let open = || IndexCache::new(cache.path().to_owned()).open(case.id());
    assert_eq!(
        sections(&case.blob, Proposer::Index(open().unwrap())),
        (open().unwrap().len() as u64, 0)
    );

    // Damaged anywhere: the layer is the same, and the next index is whole.
    let (mut state, mut repaired) = (3_u64, 0);
    for round in 0..30 {
        let mut damaged = good.clone();
        for _ in 0..=round % 3 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(9);
            let at = (state >> 20) as usize % damaged.len();
            damaged[at] ^= 1 << (state >> 61);
        }
        if round % 5 == 0 {
            damaged.truncate((state >> 20) as usize % good.len());
        }
        fs::write(&path, &damaged).unwrap();
        let layer = case.scan(2, Some(cache.path()), Keep::Readable).unwrap();
        assert_eq!(
            format!("{:?}", layer.entries),
            format!("{:?}", first.entries)
        );
        assert!(
            layer
                .deflate
                .unwrap()
                .is_equivalent(first.deflate.as_ref().unwrap())
        );
        if !path.exists() {
            case.scan(2, Some(cache.path()), Keep::Readable).unwrap();
        }
        // The last history is that of a part whose length nobody knows: it is not used.
        let now = fs::read(&path).unwrap();
        repaired += u32::from(now == good);
        assert!(now == good || now == damaged, "round {round}");
    }
    assert!(repaired > 10, "{repaired}");
}

/// A file that is sound in itself, and made for another stream.
#[test]
fn a_forged_index_changes_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let bytes = sample();
    let case = Case {
        blob: gzip(&bytes),
        bytes,
    };
    let first = case.scan(1, None, Keep::Readable).unwrap();
    let forged = IndexCache::new(cache.path().to_owned());
    for kind in [0, 1] {
        let mut recorder = forged.record(case.id()).unwrap();
        for number in 1..4_u64 {
            let border = Border {
                position_bits: number * case.blob.len() as u64 * 2 + kind,
                kind: crate::layer::deflate::BorderKind::Block,
            };
            recorder.border(border, number * 5_000_000, &vec![9; 32 << 10]);
        }
        assert!(recorder.finish().unwrap() > 0);
        let index = forged.open(case.id()).unwrap();
        let (_, misses) = sections(&case.blob, Proposer::Index(index));
        assert!(misses > 0);
        case.check(&first, 3, Some(cache.path()));
    }
}

#[test]
fn faults_are_those_of_one_thread() {
    let cache = tempfile::tempdir().unwrap();
    let bytes = sample();
    let good = Case {
        blob: gzip(&bytes),
        bytes,
    };
    good.scan(1, Some(cache.path()), Keep::Readable).unwrap();
    let cached = IndexCache::new(cache.path().to_owned());
    for at in [5000, good.blob.len() / 2, good.blob.len() - 6] {
        let mut blob = good.blob.clone();
        blob[at] ^= 0x10;
        let bad = Case {
            blob,
            bytes: good.bytes.clone(),
        };
        let alone = bad.scan(1, None, Keep::Readable).unwrap_err();
        // An index for this blob whose points are those of the other.
        let opened = cached.open(good.id()).unwrap();
        let mut recorder = cached.record(bad.id()).unwrap();
        for number in 0..opened.len() {
            let (border, output_bytes) = opened.point(number).unwrap();
            recorder.border(border, output_bytes, &opened.history(number).unwrap());
        }
        assert!(recorder.finish().unwrap() > 0);
        let several = bad.scan(3, Some(cache.path()), Keep::Readable).unwrap_err();
        let text = |error: &ScanError| {
            let cause = std::error::Error::source(error).map(|cause| {
                let deeper = std::error::Error::source(cause).map(ToString::to_string);
                format!("{cause}: {deeper:?}")
            });
            format!("{error}: {cause:?}")
        };
        assert_eq!(text(&several), text(&alone));
        let _ = fs::remove_file(cached.path(bad.id()));
    }
    // Too long for the limit.
    let short = Case {
        blob: good.blob.clone(),
        bytes: good.bytes[..1_000_000].to_vec(),
    };
    for cache in [None, Some(cache.path())] {
        let error = short.scan(3, cache, Keep::Readable).unwrap_err();
        assert!(matches!(error, ScanError::TooLarge { .. }), "{error}");
    }
}
