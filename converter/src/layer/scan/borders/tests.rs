use super::*;

/// A member as bgzip makes it.
fn bgzf_member(bytes: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut deflated = vec![0; compressor.deflate_compress_bound(bytes.len())];
    let len = compressor.deflate_compress(bytes, &mut deflated).unwrap();
    let mut member = vec![
        0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 6, 0, b'B', b'C', 2, 0, 0, 0,
    ];
    member.extend(&deflated[..len]);
    member.extend(crc32fast::hash(bytes).to_le_bytes());
    member.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    let last = u16::try_from(member.len() - 1).unwrap();
    member[16..18].copy_from_slice(&last.to_le_bytes());
    member
}

fn borders(bytes: Vec<u8>) -> Option<Vec<Proposed>> {
    let blob = Blob::of_bytes(bytes);
    of_members(&blob).map(Iterator::collect)
}

#[test]
fn members_of_bgzf_are_found_by_their_headers() {
    let (mut blob, mut starts) = (Vec::new(), Vec::new());
    for number in 0..300_u32 {
        starts.push(blob.len() as u64);
        let bytes: Vec<u8> = (0..60_000_u32).map(|n| ((n * number) >> 7) as u8).collect();
        blob.extend(bgzf_member(&bytes));
    }
    // The empty member at the end.
    blob.extend(bgzf_member(&[]));
    let found = borders(blob.clone()).unwrap();
    assert!((4..6).contains(&found.len()), "{found:?}");
    assert_eq!(found[0].border, Border::START);
    let total: u64 = found.iter().map(|proposed| proposed.len_bytes).sum();
    assert_eq!(total, 300 * 60_000);
    for proposed in &found {
        assert!(starts.contains(&(proposed.border.position_bits / 8)));
        assert_eq!(proposed.border.kind, BorderKind::Member);
        assert!(proposed.len_bytes < SECTION_BYTES + 60_000);
    }
    // Cut off, or with a length that leads nowhere: what was found until then.
    let half = borders(blob[..blob.len() / 2].to_vec()).unwrap();
    assert!(half.len() >= 2 && half.len() < found.len());
    blob[16] = 0;
    blob[17] = 0;
    assert_eq!(borders(blob).unwrap().len(), 1);
}

#[test]
fn members_of_estargz_are_found_by_the_toc() {
    let mib = 1_u64 << 20;
    let rows = [
        (0, 0),
        (100, 3 * mib),
        (200, mib),
        (300, 4 * mib),
        (400, 9 * mib),
        (500, 10),
        (500, 10),
        (600, mib),
    ];
    let rows: Vec<String> = rows
        .iter()
        .map(|(offset, size)| format!(r#"{{"name":"x","offset":{offset},"size":{size}}}"#))
        .collect();
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, rows.join(","));
    let mut tar = vec![0; 512];
    tar.extend(json.as_bytes());
    tar.resize(tar.len() + 1024, 0);
    let mut encoder = flate2::write::GzEncoder::new(vec![0; 5000], flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    let mut blob = encoder.finish().unwrap();
    blob.extend(crate::layer::footer::footer(5000));
    let found = borders(blob.clone()).unwrap();
    let places: Vec<(u64, u64)> = found
        .iter()
        .map(|proposed| (proposed.border.position_bits / 8, proposed.len_bytes))
        .collect();
    assert_eq!(
        places,
        [
            (0, 4 * mib),
            (300, 4 * mib),
            (400, 9 * mib),
            (500, mib + 20)
        ]
    );
    // Without a TOC, or with one that is damaged, nothing is known.
    let len = blob.len();
    assert!(borders(blob[..len - 1].to_vec()).is_none());
    blob[5000] ^= 0xff;
    assert!(borders(blob).is_none());
    assert!(borders(Vec::new()).is_none());
}
