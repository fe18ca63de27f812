use crate::blob::Blob;
use crate::cancel::Cancel;
use crate::layer::encode::{Check, Level};
use crate::layer::placement::Placement;
use crate::layer::plan::{PlanOptions, plan_layer};
use crate::layer::scan::tests::scan_bytes;
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
            check: Check::Inflate,
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
