use std::io::Write as _;

// The module `tar` shadows the crate.
use ::tar as tar_crate;

use super::*;
use crate::blob::ReadAt as _;
use crate::layer::entry::EntryKind;

fn scan(blob: &[u8], tar: &[u8], limit: u64) -> Result<ScannedLayer, ScanError> {
    let dir = tempfile::tempdir().unwrap();
    let expected = Expected {
        digest: Digest::of(blob),
        size_bytes: blob.len() as u64,
        diff_id: Digest::of(tar),
    };
    let options = ScanOptions {
        scratch: dir.path().to_owned(),
        max_layer_bytes: limit,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Spool,
        decode: DecodeOptions::ONE_THREAD,
    };
    let result = scan_layer(blob, None, &expected, &options, &[]);
    // Whatever is kept of it, the layer is the same.
    let options = ScanOptions {
        keep: Keep::Readable,
        ..options
    };
    let again = Blob::of_bytes(blob.to_vec());
    let readable = scan_layer(blob, Some(&again), &expected, &options, &[]);
    match (&result, &readable) {
        (Ok(spooled), Ok(readable)) => {
            assert_eq!(
                format!("{:?}", spooled.entries),
                format!("{:?}", readable.entries)
            );
            assert_eq!(spooled.end_of_entries_bytes, readable.end_of_entries_bytes);
            let mut bytes = vec![0; tar.len()];
            readable.spool.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == tar, "the tar reads the same");
            let needs_spool = blob.starts_with(&[0x28]) || blob.len() < 4;
            assert_eq!(readable.spool.file().is_some(), needs_spool);
        }
        (Err(spooled), Err(readable)) => assert_eq!(spooled.to_string(), readable.to_string()),
        (spooled, readable) => panic!("{spooled:?} and {readable:?}"),
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "the spool has no name"
    );
    result
}

/// Scans an uncompressed layer; for tests of later stages too.
pub(crate) fn scan_bytes(tar: &[u8]) -> Result<ScannedLayer, ScanError> {
    scan(tar, tar, u64::MAX)
}

/// Scans a compressed layer that can be read again.
pub(crate) fn scan_readable(blob: &[u8], tar: &[u8]) -> ScannedLayer {
    let expected = Expected {
        digest: Digest::of(blob),
        size_bytes: blob.len() as u64,
        diff_id: Digest::of(tar),
    };
    let options = ScanOptions {
        scratch: std::env::temp_dir(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Readable,
        decode: DecodeOptions::ONE_THREAD,
    };
    let again = Blob::of_bytes(blob.to_vec());
    scan_layer(blob, Some(&again), &expected, &options, &[]).unwrap()
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn sample() -> Vec<u8> {
    let mut builder = tar_crate::Builder::new(Vec::new());
    for (name, size) in [("a", 100), ("b/c", 1_500_000), ("d", 0)] {
        let mut header = tar_crate::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_uid(3_000_000);
        header.set_mtime(1_700_000_000);
        builder
            .append_data(&mut header, name, io::repeat(9).take(size))
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn all_compressions_give_the_same_layer() {
    let tar = sample();
    let two_members = [gzip(&tar[..700_000]), gzip(&tar[700_000..])].concat();
    let padded = [gzip(&tar), vec![0; 5000]].concat();
    let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
    for blob in [&tar, &gzip(&tar), &two_members, &padded, &zstd] {
        let layer = scan(blob, &tar, u64::MAX).unwrap();
        assert_eq!(layer.entries.len(), 3);
        assert_eq!(&*layer.entries[1].name, b"b/c");
        assert_eq!(layer.entries[1].size_bytes, 1_500_000);
        assert_eq!(layer.entries[1].uid, 3_000_000);
        assert_eq!(layer.entries[1].mtime.secs, 1_700_000_000);
        assert_eq!(layer.end_of_entries_bytes, tar.len() as u64 - 1024);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let tar = sample();
    let blob = gzip(&tar);
    let check = |blob: &[u8], message: &str| {
        let error = scan(blob, &tar, u64::MAX).unwrap_err();
        let mut line = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            line = format!("{line}: {cause}");
            source = cause.source();
        }
        assert!(line.contains(message), "{line}");
    };
    check(&blob[..blob.len() / 2], "corrupt gzip data");
    check(&[&blob[..], b"garbage"].concat(), "data that is not gzip");
    check(&gzip(&tar[..tar.len() - 600]), "DiffID");
    check(
        &zstd::encode_all(tar.as_slice(), 3).unwrap()[..100],
        "corrupt zstd data",
    );
    let error = scan(&blob, &tar, 10_000).unwrap_err();
    assert!(
        matches!(
            error,
            ScanError::TooLarge {
                limit_bytes: 10_000,
                ..
            }
        ),
        "{error}"
    );
    for len in [100, 550, 5000] {
        let error = scan_bytes(&tar[..len]).unwrap_err();
        assert!(matches!(error, ScanError::Tar { .. }), "{len}: {error}");
    }
}

#[test]
fn a_blob_that_is_not_the_described_one_is_refused() {
    let tar = sample();
    let dir = tempfile::tempdir().unwrap();
    let options = ScanOptions {
        scratch: dir.path().to_owned(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Spool,
        decode: DecodeOptions::ONE_THREAD,
    };
    let good = Expected {
        digest: Digest::of(&tar),
        size_bytes: tar.len() as u64,
        diff_id: Digest::of(&tar),
    };
    let digest = Expected {
        digest: Digest::of(b"x"),
        ..good.clone()
    };
    let error = scan_layer(tar.as_slice(), None, &digest, &options, &[]).unwrap_err();
    assert!(matches!(error, ScanError::DigestMismatch { .. }), "{error}");
    let size = Expected {
        size_bytes: 5,
        ..good
    };
    let error = scan_layer(tar.as_slice(), None, &size, &options, &[]).unwrap_err();
    assert!(
        matches!(
            error,
            ScanError::SizeMismatch {
                expected_bytes: 5,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn an_archive_may_lack_its_end_and_have_more_behind_it() {
    let tar = sample();
    let end = tar.len() - 1024;
    for bytes in [
        &tar[..end],
        &tar[..end + 512],
        &[&tar[..], &[1; 999]].concat(),
    ] {
        assert_eq!(scan_bytes(bytes).unwrap().entries.len(), 3);
    }
    assert!(scan_bytes(b"").unwrap().entries.is_empty());
    assert!(scan_bytes(&[0; 1024]).unwrap().entries.is_empty());
    // One block of zeros with data behind it is damage.
    assert!(scan_bytes(&[&[0; 512], &tar[..]].concat()).is_err());
}

/// A header with the given field bytes, checksum set.
fn raw_header(name: &[u8], typeflag: u8, size: u64, change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut header = tar_crate::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[156] = typeflag;
    change(header.as_mut_bytes());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn one(bytes: &[u8]) -> crate::layer::entry::Entry {
    let mut layer = scan_bytes(bytes).unwrap();
    assert_eq!(layer.entries.len(), 1);
    layer.entries.remove(0)
}

#[test]
fn pax_records_override_the_header() {
    let records =
        b"20 path=a/long/name\n9 uid=77\n17 mtime=-1.250\n9 size=3\n28 SCHILY.xattr.user.k=v\0w\n";
    let records = records.replace_size();
    let entry = one(&[
        raw_header(b"pax", b'x', records.len() as u64, |_| {}),
        padded(&records),
        raw_header(b"short", b'0', 0, |_| {}),
        padded(b"abc"),
    ]
    .concat());
    assert_eq!(&*entry.name, b"a/long/name");
    assert_eq!((entry.uid, entry.size_bytes), (77, 3));
    assert_eq!((entry.mtime.secs, entry.mtime.nanos), (-2, 750_000_000));
    assert_eq!(entry.header.len_bytes, 1536);
}

trait ReplaceSize {
    fn replace_size(&self) -> Vec<u8>;
}

impl ReplaceSize for [u8] {
    /// Sets each record's length right, so that tests need not count.
    fn replace_size(&self) -> Vec<u8> {
        let lines = self.split_inclusive(|&b| b == b'\n');
        lines
            .flat_map(|line| {
                let body = &line[line.iter().position(|&b| b == b' ').unwrap()..];
                let digits = (1..4)
                    .find(|d| (body.len() + d).to_string().len() == *d)
                    .unwrap();
                [(body.len() + digits).to_string().as_bytes(), body].concat()
            })
            .collect()
    }
}

#[test]
fn gnu_names_and_base_256_numbers_are_read() {
    let name = [b'n'; 300];
    let entry = one(&[
        raw_header(b"././@LongLink", b'L', 301, |_| {}),
        padded(&[&name[..], b"\0"].concat()),
        raw_header(b"short", b'0', 0, |block| {
            block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 1, 2, 3, 4]);
            block[136..148].copy_from_slice(&[0xff; 12]);
        }),
    ]
    .concat());
    assert_eq!(&*entry.name, &name);
    assert_eq!(entry.uid, 0x0102_0304);
    assert_eq!(entry.mtime.secs, -1);
}

#[test]
fn sparse_files_of_every_format_are_located() {
    let data = [5_u8; 512];
    let check = |bytes: &[u8]| {
        let entry = one(bytes);
        assert_eq!(&*entry.name, b"sparse");
        assert_eq!(entry.size_bytes, 5000);
        let segments = entry.sparse.unwrap();
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].file_offset_bytes, 1024);
        assert_eq!(segments[0].stored.len_bytes, 512);
        assert_eq!(segments[0].stored.offset_bytes, bytes.len() as u64 - 512);
    };
    let gnu = raw_header(b"sparse", b'S', 512, |block| {
        block[257..265].copy_from_slice(b"ustar  \0");
        block[386..398].copy_from_slice(b"00000002000\0");
        block[398..410].copy_from_slice(b"00000001000\0");
        block[410..422].copy_from_slice(b"00000011610\0");
        block[422..434].copy_from_slice(b"00000000000\0");
        block[483..495].copy_from_slice(b"00000011610\0");
    });
    check(&[&gnu[..], &data].concat());
    let pax = |records: &[u8], map: &[u8]| {
        let records = records.replace_size();
        let size = (map.len() + 512) as u64;
        [
            raw_header(b"pax", b'x', records.len() as u64, |_| {}),
            padded(&records),
            raw_header(b"GNUSparseFile.0/sparse", b'0', size, |_| {}),
            map.to_vec(),
            data.to_vec(),
        ]
        .concat()
    };
    check(&pax(b"0 GNU.sparse.size=5000\n0 GNU.sparse.numblocks=1\n0 GNU.sparse.offset=1024\n0 GNU.sparse.numbytes=512\n0 path=sparse\n", b""));
    check(&pax(
        b"0 GNU.sparse.size=5000\n0 GNU.sparse.name=sparse\n0 GNU.sparse.map=1024,512\n",
        b"",
    ));
    check(&pax(
        b"0 GNU.sparse.major=1\n0 GNU.sparse.minor=0\n0 GNU.sparse.name=sparse\n0 GNU.sparse.realsize=5000\n",
        &padded(b"1\n1024\n512\n"),
    ));
    let bad = pax(
        b"0 GNU.sparse.size=1100\n0 GNU.sparse.name=sparse\n0 GNU.sparse.map=1024,512\n",
        b"",
    );
    assert!(scan_bytes(&bad).is_err());
}

#[test]
fn damaged_headers_are_refused_with_their_offset() {
    let good = raw_header(b"name", b'0', 0, |_| {});
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    let error = scan_bytes(&[&good[..], &flipped].concat()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("offset 512") && source.contains("checksum"),
        "{source}"
    );
    let unknown = raw_header(b"name", b'V', 0, |_| {});
    let error = scan_bytes(&unknown).unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("type 'V'")
    );
    for (name, kind, target) in [("a/../b", b'0', ""), ("a", b'1', "../../b")] {
        let escaping = raw_header(name.as_bytes(), kind, 0, |block| {
            block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        });
        let error = scan_bytes(&escaping).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("leads out of the layer"), "{source}");
    }
    let directory = one(&raw_header(b"name/", 0, 0, |_| {}));
    assert_eq!(directory.kind, EntryKind::Directory);
}

#[test]
fn cancelling_stops_the_scan() {
    let cancel = Cancel::default();
    cancel.cancel();
    let dir = tempfile::tempdir().unwrap();
    let options = ScanOptions {
        scratch: dir.path().to_owned(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Spool,
        decode: DecodeOptions::ONE_THREAD,
    };
    let expected = Expected {
        digest: Digest::of(b""),
        size_bytes: 0,
        diff_id: Digest::of(b""),
    };
    let endless = io::repeat(0);
    let result = scan_layer(endless, None, &expected, &options, &[&cancel]);
    assert!(matches!(result, Err(ScanError::Cancelled(_))));
}
