//! A layer that is encoded while it is scanned becomes what it becomes when it is planned first.

use std::io;

use esgz::blob::Blob;
use esgz::cancel::Cancel;
use esgz::image::Digest;
use esgz::layer::assemble::FinishedLayer;
use esgz::layer::choice::{Choice, Compression, choose};
use esgz::layer::encode::{Check, Level};
use esgz::layer::placement::Placement;
use esgz::layer::plan::{PlanOptions, plan_layer};
use esgz::layer::scan::{
    DecodeOptions, EntryMemory, Expected, Keep, ScanError, ScanOptions, scan_layer,
};
use esgz::layer::{
    AheadError, AheadOptions, ConvertError, ConvertOptions, Encoding, MadeAhead, Parallel,
    convert_layer, scan_ahead,
};
use esgz::progress::Silent;
use esgz_tests::archive::{Ending, Entry, archive};
use esgz_tests::compress::Compression as Source;
use esgz_tests::drafts::{Names, draft, entries};
use esgz_tests::sets::noise;
use proptest::collection::vec;
use proptest::prelude::*;

/// How a layer is made.
#[derive(Clone, Copy, Debug)]
struct How {
    compression: Compression,
    chunk_bytes: u32,
    threads: usize,
    memory_bytes: u64,
}

const KEEP: How = How {
    compression: Compression::Keep { overhead: 0.01 },
    chunk_bytes: PlanOptions::DEFAULT_CHUNK_BYTES,
    threads: 2,
    memory_bytes: 256 << 20,
};

fn scan_options(decode_threads: usize) -> ScanOptions {
    ScanOptions {
        decode: DecodeOptions {
            parallel: Parallel {
                threads: decode_threads,
                memory_bytes: 32 << 20,
            },
            index_cache: None,
        },
        scratch: std::env::temp_dir(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Readable,
    }
}

fn expected(tar: &[u8], blob: &[u8]) -> Expected {
    Expected {
        digest: Digest::of(blob),
        size_bytes: blob.len() as u64,
        diff_id: Digest::of(tar),
    }
}

impl How {
    fn plan(self) -> PlanOptions {
        PlanOptions {
            chunk_bytes: self.chunk_bytes,
            min_chunk_bytes: 0,
        }
    }

    fn convert(self) -> ConvertOptions {
        ConvertOptions {
            check: Check::Prove,
            parallel: Parallel {
                threads: self.threads,
                memory_bytes: self.memory_bytes,
            },
        }
    }

    fn ahead(
        self,
        blob: &[u8],
        expected: &Expected,
        out: impl io::Write + Send,
        cancel: &Cancel,
    ) -> Result<Option<MadeAhead>, AheadError> {
        let scan = scan_options(self.threads);
        let options = AheadOptions {
            scan: &scan,
            plan: self.plan(),
            compression: self.compression,
            convert: self.convert(),
        };
        let again = Blob::of_bytes(blob.to_vec());
        let (_, made) = scan_ahead(blob, &again, expected, options, out, cancel)?;
        Ok(made)
    }

    /// The usual way.
    fn planned(self, tar: &[u8], blob: &[u8]) -> Option<(Vec<u8>, FinishedLayer, Choice)> {
        let again = Blob::of_bytes(blob.to_vec());
        let expected = expected(tar, blob);
        let layer = scan_layer(blob, Some(&again), &expected, &scan_options(1), &[]).unwrap();
        let plan = plan_layer(&layer, &Placement::default(), self.plan()).ok()?;
        let choice = choose(&layer, &plan, &again, self.compression, 1).unwrap();
        let level = choice.level(self.compression);
        let encoding = match (choice, &layer.deflate) {
            (Choice::Copy(_), Some(index)) => Encoding::Copy(&again, index, level),
            _ => Encoding::Compress(level),
        };
        let mut out = Vec::new();
        let finished = convert_layer(
            &layer,
            &plan,
            &encoding,
            self.convert(),
            &mut out,
            &Cancel::default(),
            &Silent,
        );
        Some((out, finished.unwrap(), choice))
    }

    /// Makes the layer both ways, which must agree; what was copied, if it was made ahead.
    fn compare(self, tar: &[u8], blob: &[u8]) -> Option<u64> {
        let mut out = Vec::new();
        let cancel = Cancel::default();
        let made = self.ahead(blob, &expected(tar, blob), &mut out, &cancel);
        let made = made.expect("the archive is valid")?;
        let (blob, finished, choice) = self
            .planned(tar, blob)
            .expect("what is made ahead can be planned");
        assert_eq!(made.choice, choice);
        assert_eq!(made.finished, finished);
        assert!(out == blob, "another blob than the planned one");
        Some(finished.copied_bytes)
    }
}

fn how() -> impl Strategy<Value = How> {
    let chunk = prop_oneof![Just(1024_u32), 1024..5000_u32, Just(4 << 20)];
    let level = (0..10_u8).prop_map(|level| Compression::Level(Level::new(level).unwrap()));
    let keep = Just(Compression::Keep { overhead: 0.01 });
    let memory = prop_oneof![Just(0_u64), Just(10_000), Just(64 << 20)];
    (prop_oneof![level, keep], chunk, 1..4_usize, memory).prop_map(
        |(compression, chunk_bytes, threads, memory_bytes)| How {
            compression,
            chunk_bytes,
            threads,
            memory_bytes,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever stands in the archive; and where no name occurs twice, it is made ahead.
    #[test]
    fn the_same_comes_out(
        drafts in vec(draft(), 0..24),
        are_unique: bool,
        is_estargz: bool,
        ending in prop_oneof![Just(Ending::Blocks), Just(Ending::None), Just(Ending::Garbage), Just(Ending::Record)],
        source in proptest::sample::select(&Source::ALL[..]),
        how in how(),
    ) {
        let names = if are_unique { Names::Unique } else { Names::Repeated };
        let mut entries = entries(&drafts, names);
        if is_estargz {
            entries.insert(0, Entry::file(".no.prefetch.landmark", [15]));
            entries.push(Entry::file("stargz.index.json", "{}"));
        }
        let tar = archive(&entries, ending);
        let made = how.compare(&tar, &source.compress(&tar));
        // With less memory nobody tries.
        let is_possible = how.memory_bytes / 16 >= u64::from(how.chunk_bytes);
        prop_assert!(made.is_some() || !are_unique || !is_possible);
    }
}

/// Letters, noise and zeros, as one large and many small files.
fn large_tar() -> Vec<u8> {
    let mut large = Vec::new();
    for part in 0..40_u64 {
        // Letters without words: no compressor finds more in them than another.
        let letters = noise(part, 400_000);
        large.extend(letters.iter().map(|byte| byte & 0x7f));
        large.extend(&letters[..if part % 3 == 0 { 20_000 } else { 100 }]);
        large.resize(large.len() + if part % 7 == 0 { 30_000 } else { 0 }, 0);
    }
    let small =
        (0..2000).map(|n| Entry::file(format!("small/{n}"), noise(n, 1 + n as usize % 3000)));
    let mut entries = vec![
        Entry::file("large", &large),
        Entry::file("again", &large[7..]),
    ];
    entries.extend(small);
    entries.push(Entry::file("end", &large[..5_000_000]));
    archive(&entries, Ending::Record)
}

#[test]
fn large_files_are_copied_ahead() {
    let tar = large_tar();
    for source in [
        Source::Gzip(1),
        Source::Gzip(6),
        Source::MultiMember,
        Source::Zstd,
    ] {
        let blob = source.compress(&tar);
        let planned = KEEP.planned(&tar, &blob).unwrap();
        let copied = KEEP.compare(&tar, &blob);
        let few = How {
            threads: 1,
            memory_bytes: 1 << 20,
            chunk_bytes: 64 << 10,
            ..KEEP
        };
        assert!(few.compare(&tar, &blob).is_some(), "{source:?}");
        assert!(copied.is_some(), "{source:?}");
        let is_copied = matches!(planned.2, Choice::Copy(_));
        assert_eq!(copied > Some(tar.len() as u64 / 2), is_copied, "{source:?}");
        // At level 1 the codes of this compressor are fixed, and the blocks longer than one waits for.
        let is_good = matches!(source, Source::Gzip(6) | Source::MultiMember);
        assert_eq!(is_copied, is_good, "{source:?} {:?}", planned.2);
    }
}

/// Takes some bytes and then no more.
struct Full(usize);

impl io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn failures_are_told_apart() {
    let tar = large_tar();
    let blob = Source::Gzip(6).compress(&tar);
    let good = expected(&tar, &blob);
    let run = |blob: &[u8], expected: &Expected, out: Full, cancel: &Cancel| {
        KEEP.ahead(blob, expected, out, cancel).unwrap_err()
    };
    let endless = || Full(usize::MAX);
    for room in [0, 100_000, blob.len() / 2] {
        let error = run(&blob, &good, Full(room), &Cancel::default());
        assert!(
            matches!(error, AheadError::Convert(ConvertError::Write { .. })),
            "{error:?}"
        );
    }
    let mut damaged = blob.clone();
    damaged[blob.len() / 2..][..50].reverse();
    let error = run(&damaged, &good, endless(), &Cancel::default());
    assert!(
        matches!(error, AheadError::Scan(ScanError::DigestMismatch { .. })),
        "{error:?}"
    );
    let error = run(
        &damaged,
        &expected(&tar, &damaged),
        endless(),
        &Cancel::default(),
    );
    assert!(
        matches!(error, AheadError::Scan(ScanError::Inflate { .. })),
        "{error:?}"
    );
    let other = Expected {
        diff_id: Digest::of(b""),
        ..good.clone()
    };
    let error = run(&blob, &other, endless(), &Cancel::default());
    assert!(
        matches!(error, AheadError::Scan(ScanError::DiffIdMismatch { .. })),
        "{error:?}"
    );
    let cancel = Cancel::default();
    cancel.cancel();
    let error = run(&blob, &good, endless(), &cancel);
    assert!(
        matches!(
            error,
            AheadError::Scan(ScanError::Cancelled(_))
                | AheadError::Convert(ConvertError::Cancelled(_))
        ),
        "{error:?}"
    );
}
