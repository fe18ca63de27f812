use crate::blob::Blob;
use crate::cancel::Cancel;
use crate::layer::buffers::Buffers;
use crate::layer::encode::random::tests::noise;
use crate::layer::encode::{Check, Encoder, Level};
use crate::layer::placement::{Giant, Placement};
use crate::layer::plan::{PlanOptions, plan_layer};
use crate::layer::scan::tests::{scan_bytes, scan_readable};
use crate::layer::verify::{parse_toc, read_toc, verify_layer};
use crate::layer::{ConvertOptions, Encoding, Parallel, convert_layer};
use crate::progress::Silent;

/// Files of up to 3 KB and one of three chunks, some of them prefetched.
#[test]
fn small_chunks_share_members_whatever_the_threads() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut contents = Vec::new();
    for n in 0..400_u32 {
        contents.clear();
        let len = if n == 200 { 25_000 } else { (n * 37) % 3000 };
        contents.extend((0..len).map(|at| (at * at / 7 + n) as u8));
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("file{n}"), &*contents)
            .unwrap();
    }
    let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
    let mut blobs = Vec::new();
    for (min_chunk_bytes, threads) in [(0, 1), (4000, 1), (4000, 2), (4000, 7)] {
        let options = PlanOptions {
            chunk_bytes: 10_000,
            min_chunk_bytes,
        };
        let plan = plan_layer(&layer, &Placement::of_whole(vec![7, 300, 5]), options).unwrap();
        let parallel = Parallel {
            threads,
            memory_bytes: 1 << 20,
        };
        let level = Level::default();
        let mut blob = Vec::new();
        let options = ConvertOptions {
            check: Check::Prove,
            parallel,
        };
        let finished = convert_layer(
            &layer,
            &plan,
            &Encoding::Compress(level),
            options,
            &mut blob,
            &Cancel::default(),
            &Silent,
        )
        .unwrap();
        verify_layer(&Blob::of_bytes(blob.clone()), parallel, &Cancel::default())
            .unwrap()
            .must_equal(&finished)
            .unwrap();
        if threads == 1 && min_chunk_bytes > 0 {
            let (json, toc_offset) = read_toc(&Blob::of_bytes(blob.clone())).unwrap();
            let toc = parse_toc(&json, toc_offset).unwrap();
            let landmark = toc.entries.iter().find(|row| row.name.contains("landmark"));
            assert_eq!(landmark.map(|row| row.inner_offset), Some(0));
            assert!(toc.entries.iter().any(|row| row.inner_offset > 0));
            let mut offsets: Vec<u64> = toc.entries.iter().map(|row| row.offset).collect();
            offsets.retain(|&offset| offset > 0);
            offsets.push(toc_offset);
            offsets.dedup();
            // All but the last before the landmark and the last of all have the minimum.
            let small = offsets.windows(2).filter(|pair| pair[1] - pair[0] < 4000);
            assert!(small.count() <= 2, "{offsets:?}");
            assert!(offsets.len() > 10, "{offsets:?}");
        }
        blobs.push((finished.members, blob));
    }
    assert!(blobs[0].0 > 4 * blobs[1].0, "{} {}", blobs[0].0, blobs[1].0);
    assert!(blobs[0].1.len() > blobs[1].1.len());
    assert!(blobs[1..].windows(2).all(|pair| pair[0] == pair[1]));
}

/// Of 100 values in no order: compressing leaves 84 % of them.
fn hardly_compressible(len: u32) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 % 100
    };
    (0..len).map(next).collect()
}

#[test]
fn packed_chunks_that_hardly_compress_are_stored() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, contents: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, contents).unwrap();
    };
    let noise = hardly_compressible(900_000);
    add("noise", &noise);
    add("text", &b"few bytes, many times. ".repeat(40_000));
    let tar = builder.into_inner().unwrap();
    let mut gzip = vec![0; Level::default().compressor().gzip_compress_bound(tar.len())];
    let made = Level::default().compressor().gzip_compress(&tar, &mut gzip);
    gzip.truncate(made.unwrap());
    let hot = vec![0..16_384, 16_384..320_000, 400_000..700_000];
    let giant = |entry| Giant {
        entry,
        hot: hot.clone(),
    };
    let placement = Placement {
        giants: vec![giant(0), giant(1)],
        ..Placement::default()
    };
    let source = Blob::of_bytes(gzip.clone());
    let layer = scan_readable(&gzip, &tar);
    let index = layer.deflate.as_ref().unwrap();
    let parallel = Parallel {
        threads: 2,
        memory_bytes: 64 << 20,
    };
    let options = ConvertOptions {
        check: Check::Prove,
        parallel,
    };
    let level = Level::default();
    for (encoding, min_chunk_bytes) in [
        (Encoding::Compress(level), 0),
        (Encoding::Compress(level), 50_000),
        (Encoding::Copy(&source, index, level), 0),
    ] {
        let cut = PlanOptions {
            min_chunk_bytes,
            ..PlanOptions::default()
        };
        let plan = plan_layer(&layer, &placement, cut).unwrap();
        let mut blob = Vec::new();
        let cancel = Cancel::default();
        let finished = convert_layer(
            &layer, &plan, &encoding, options, &mut blob, &cancel, &Silent,
        );
        let blob = Blob::of_bytes(blob);
        let found = verify_layer(&blob, parallel, &cancel).unwrap();
        found.must_equal(&finished.unwrap()).unwrap();
        let (json, toc_offset) = read_toc(&blob).unwrap();
        let toc = parse_toc(&json, toc_offset).unwrap();
        let mut offsets: Vec<u64> = toc.entries.iter().map(|row| row.offset).collect();
        offsets.push(toc_offset);
        offsets.sort_unstable();
        let mut seen = [0, 0, 0];
        let mut name = "";
        for row in &toc.entries {
            name = if row.name.is_empty() {
                name
            } else {
                &*row.name
            };
            let next = offsets[offsets.partition_point(|&offset| offset <= row.offset)];
            let len_bytes = match row.chunk_offset {
                700_000 => 200_000,
                _ => row.chunk_size.max(1),
            };
            let percent = (next - row.offset) * 100 / len_bytes;
            let (kind, expected) = match (name, row.inner_offset, row.chunk_offset) {
                ("noise", 1, 1..) => (0, 100..=101),
                ("text", 1, 1..) => (1, 0..=10),
                // In the file's own entry, with no copies of others behind it.
                ("noise", _, 700_000) => (2, 80..=95),
                _ => continue,
            };
            assert!(
                expected.contains(&percent),
                "{name} at {}: {percent} %",
                row.chunk_offset
            );
            seen[kind] += 1;
        }
        assert!(seen.iter().all(|&rows| rows > 0), "{seen:?}");
    }
}

#[test]
fn what_looks_random_is_compressed_at_level_1_or_stored() {
    let gzip = |raw: &[u8], level| {
        let mut compressor = Level::new(level).unwrap().compressor();
        let mut gzip = vec![0; compressor.gzip_compress_bound(raw.len())];
        let len = compressor.gzip_compress(raw, &mut gzip).unwrap();
        gzip.truncate(len);
        gzip
    };
    // Words that came before, in another order: no value is more frequent, and levels differ.
    let words = noise(40_000, 1);
    let order = noise(200_000, 2);
    let random: Vec<u8> = order
        .chunks_exact(2)
        .flat_map(|pair| {
            let at = usize::from(u16::from_le_bytes([pair[0], pair[1]])) % (words.len() - 5);
            words[at..][..5].to_vec()
        })
        .collect();
    let text: Vec<u8> = random.iter().map(|byte| byte & 0x3f).collect();
    // A run in between is little of it: level 1 would save 0.3 %.
    let mut noise = noise(300_000, 3);
    noise[100_100..101_000].fill(7);
    assert!(gzip(&noise, 1).len() < 299_300);
    let buffers = Buffers::default();
    let levels = [
        (0, 0, 0),
        (1, 1, 0),
        (2, 1, 0),
        (6, 1, 0),
        (9, 1, 0),
        (10, 10, 10),
        (12, 12, 12),
    ];
    for (level, for_random, for_noise) in levels {
        let mut encoder = Encoder::new(Level::new(level).unwrap(), Check::Inflate, &buffers);
        assert!(level == 1 || gzip(&random, level) != gzip(&random, 1));
        for (raw, expected) in [(&random, for_random), (&noise, for_noise), (&text, level)] {
            let mut made = vec![0; encoder.compressor.gzip_compress_bound(raw.len())];
            let len = encoder.compress(raw, &mut made);
            made.truncate(len);
            assert!(made == gzip(raw, expected), "{level}");
        }
    }
}
