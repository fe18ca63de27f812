//! Sparse files in tar, as GNU tar has written them over the years.

use crate::archive::{Sparse, SparseFormat};
use crate::header::{Header, octal, push_padded};

/// Writes the map of `sparse` into the header or the records, and returns the payload.
pub(crate) fn write(
    sparse: &Sparse,
    name: &[u8],
    header: &mut Header,
    records: &mut Vec<(String, Vec<u8>)>,
) -> Vec<u8> {
    let stored = || {
        sparse
            .segments
            .iter()
            .flat_map(|(_, bytes)| bytes.iter().copied())
    };
    let map: Vec<(u64, u64)> = sparse
        .segments
        .iter()
        .map(|(offset, bytes)| (*offset, bytes.len() as u64))
        .chain([(sparse.size_bytes, 0)])
        .collect();
    match sparse.format {
        SparseFormat::GnuOld => {
            header.block[156] = b'S';
            let encode = |segments: &[(u64, u64)]| -> Vec<u8> {
                segments
                    .iter()
                    .flat_map(|(offset, len)| [octal(12, *offset), octal(12, *len)].concat())
                    .collect()
            };
            let (first, rest) = map.split_at(map.len().min(4));
            let bytes = encode(first);
            header.block[386..386 + bytes.len()].copy_from_slice(&bytes);
            header.block[482] = u8::from(!rest.is_empty());
            header.number(483..495, sparse.size_bytes);
            for (index, chunk) in rest.chunks(21).enumerate() {
                let mut block = encode(chunk);
                block.resize(512, 0);
                block[504] = u8::from((index + 1) * 21 < rest.len());
                header.extension.extend(block);
            }
            stored().collect()
        }
        SparseFormat::Pax10 => {
            let mut text = format!("{}\n", map.len());
            for (offset, len) in &map {
                text.push_str(&format!("{offset}\n{len}\n"));
            }
            let mut payload = Vec::new();
            push_padded(&mut payload, text.as_bytes());
            payload.extend(stored());
            for (key, value) in [
                ("GNU.sparse.major", b"1".to_vec()),
                ("GNU.sparse.minor", b"0".to_vec()),
                ("GNU.sparse.name", name.to_vec()),
                (
                    "GNU.sparse.realsize",
                    sparse.size_bytes.to_string().into_bytes(),
                ),
            ] {
                records.push((key.to_owned(), value));
            }
            header.text(
                0..100,
                &[b"GNUSparseFile.0/", &name[..name.len().min(80)]].concat(),
            );
            payload
        }
    }
}
