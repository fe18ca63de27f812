use std::fs;

use super::*;
use crate::image::Digest;
use crate::layer::deflate::{Border, BorderKind};

fn blob(size_bytes: u64) -> BlobId {
    BlobId {
        digest: Digest::of(b"a blob"),
        size_bytes,
    }
}

/// Text-like bytes that differ with the number.
fn history(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"etaoin shrdlu\n. "[(state >> 20) as usize % 16]
    };
    (0..len).map(|_| next()).collect()
}

fn border(number: u64) -> Border {
    Border {
        position_bits: number * 8_000_001 * 8 + 3,
        kind: BorderKind::Block,
    }
}

/// An index with `points` points, 8 MB apart.
fn write(cache: &IndexCache, points: u64) -> (BlobId, u64) {
    let blob = blob((points + 1) * 8_000_001);
    let mut recorder = cache.record(blob).unwrap();
    recorder.border(Border::START, 0, &[]);
    for number in 1..=points {
        recorder.border(
            border(number),
            number * 9_000_000,
            &history(number, 32 << 10),
        );
    }
    (blob, recorder.finish().unwrap())
}

#[test]
fn what_is_recorded_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let cache = IndexCache::new(directory.path().join("not/there"));
    assert!(matches!(cache.open(blob(5)), Err(CacheError::Missing)));
    let (blob, size_bytes) = write(&cache, 20);
    assert_eq!(fs::metadata(cache.path(blob)).unwrap().len(), size_bytes);
    assert!(size_bytes as f64 <= blob.size_bytes as f64 * MAX_SHARE + 256.0);
    let index = cache.open(blob).unwrap();
    assert_eq!(index.len(), 20);
    for number in 1..=20 {
        let point = usize::try_from(number).unwrap() - 1;
        assert_eq!(
            index.point(point),
            Some((border(number), number * 9_000_000))
        );
        assert!(index.history(point).unwrap() == history(number, 32 << 10));
    }
    assert_eq!(index.point(20), None);
    // Nothing else is left behind; a second run replaces the file.
    write(&cache, 20);
    assert_eq!(fs::read_dir(cache.directory()).unwrap().count(), 1);
}

#[test]
fn points_too_close_to_each_other_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let cache = IndexCache::new(directory.path().to_owned());
    let blob = blob(1 << 30);
    // A point a byte would cost more than the blob.
    let mut recorder = cache.record(blob).unwrap().with_spacing(1);
    for number in 1..100_u64 {
        let border = Border {
            position_bits: number * 80_000,
            kind: BorderKind::Block,
        };
        recorder.border(border, number, &history(number, 32 << 10));
    }
    let size_bytes = recorder.finish().unwrap();
    let one = 32 << 10;
    assert!(
        (size_bytes as f64) < 99.0 * 10_000.0 * MAX_SHARE + f64::from(one),
        "{size_bytes}"
    );
    // An index without points is none.
    let other = BlobId {
        digest: Digest::of(b"another blob"),
        size_bytes: 7,
    };
    let recorder = cache.record(other).unwrap();
    assert_eq!(recorder.finish().unwrap(), 0);
    assert!(matches!(cache.open(other), Err(CacheError::Missing)));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// Whatever byte is another, the file is refused, or the history that it is in.
#[test]
fn damage_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let cache = IndexCache::new(directory.path().to_owned());
    let (blob, size_bytes) = write(&cache, 3);
    let path = cache.path(blob);
    let good = fs::read(&path).unwrap();
    let histories = size_bytes as usize - 3 * 40 - 100;
    let mut seed = 1_u64;
    let mut damaged_places: Vec<usize> = (histories..good.len()).collect();
    for _ in 0..200 {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(9);
        damaged_places.push((seed >> 20) as usize % good.len());
    }
    for at in damaged_places {
        let mut damaged = good.clone();
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        let survived = cache.open(blob).is_ok_and(|index| {
            (0..3).all(|point| {
                index
                    .history(point)
                    .is_ok_and(|found| found == history(point as u64 + 1, 32 << 10))
            })
        });
        assert!(!survived, "byte {at} of {}", good.len());
    }
    for len in [0, 1, 50, histories, good.len() - 1] {
        fs::write(&path, &good[..len]).unwrap();
        assert!(cache.open(blob).is_err(), "{len} bytes");
    }
    fs::write(&path, [&good[..], b"x"].concat()).unwrap();
    assert!(cache.open(blob).is_err());
    // Of another blob, or no file at all.
    fs::write(&path, &good).unwrap();
    let other = self::blob(blob.size_bytes + 1);
    assert!(matches!(cache.open(other), Err(CacheError::Damaged(_))));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(cache.open(blob).is_err());
}
