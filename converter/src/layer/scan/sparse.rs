//! Maps of sparse files: GNU's old format, and PAX formats 0.0, 0.1 and 1.0 (GNU tar manual,
//! "Storing Sparse Files"). Pure.

use crate::layer::scan::pax::Records;
use crate::layer::scan::tar::{BLOCK_BYTES, Reader, SparseMap, TarError, number, until_nul};
use crate::layer::spool::{Extent, ReadAt};

/// A map with more stretches than this is refused: about 64 MB of memory.
const MAX_STRETCHES: usize = 4 << 20;

/// Reads the map of an `S` entry, which starts in its header and goes on in blocks behind it.
pub(super) fn gnu_header<R: ReadAt + ?Sized>(
    header: &[u8; 512],
    reader: &mut Reader<'_, R>,
) -> Result<SparseMap, TarError> {
    let offset_bytes = reader.position_of_last_block();
    let invalid = || TarError::Header {
        offset_bytes,
        reason: "bad sparse map",
    };
    let unsigned = |field: &[u8]| {
        number(field)
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(invalid)
    };
    let mut stretches = Vec::new();
    let mut take = |table: &[u8]| -> Result<(), TarError> {
        for pair in table.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            stretches.push((unsigned(&pair[..12])?, unsigned(&pair[12..])?));
        }
        if stretches.len() > MAX_STRETCHES {
            Err(invalid())
        } else {
            Ok(())
        }
    };
    take(&header[386..482])?;
    let mut extended = header[482];
    while extended != 0 {
        let block = reader.block()?;
        take(&block[..504])?;
        extended = block[504];
    }
    Ok(SparseMap {
        size_bytes: unsigned(&header[483..495])?,
        stretches,
        map_bytes: 0,
    })
}

/// The map that PAX records, or the head of the payload, give a regular file; `None` if it is
/// not sparse.
pub(super) fn pax_map<R: ReadAt + ?Sized>(
    records: &Records,
    payload: Extent,
    reader: &Reader<'_, R>,
) -> Result<Option<SparseMap>, TarError> {
    let invalid = || TarError::Header {
        offset_bytes: payload.offset_bytes,
        reason: "bad sparse map",
    };
    let unsigned = |text: &str| text.parse::<u64>().map_err(|_| invalid());
    let version = (
        records.text("GNU.sparse.major"),
        records.text("GNU.sparse.minor"),
    );
    if version == (Some("1"), Some("0")) {
        let size = records.text("GNU.sparse.realsize").ok_or_else(invalid)?;
        let (stretches, map_bytes) = payload_map(payload, reader)?;
        return Ok(Some(SparseMap {
            size_bytes: unsigned(size)?,
            stretches,
            map_bytes,
        }));
    }
    let numbers: Vec<&[u8]> = if let Some(map) = records.bytes("GNU.sparse.map") {
        map.split(|&b| b == b',').collect()
    } else if !records.sparse_stretches.is_empty() {
        records.sparse_stretches.iter().map(Vec::as_slice).collect()
    } else {
        return Ok(None);
    };
    let size = records.text("GNU.sparse.size").ok_or_else(invalid)?;
    let numbers = numbers
        .into_iter()
        .map(|digits| {
            std::str::from_utf8(digits)
                .map_err(|_| invalid())
                .and_then(unsigned)
        })
        .collect::<Result<Vec<u64>, _>>()?;
    if numbers.len() % 2 != 0 {
        return Err(invalid());
    }
    let stretches = numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect();
    Ok(Some(SparseMap {
        size_bytes: unsigned(size)?,
        stretches,
        map_bytes: 0,
    }))
}

/// Format 1.0: decimal lines at the head of the payload, padded to a block.
fn payload_map<R: ReadAt + ?Sized>(
    payload: Extent,
    reader: &Reader<'_, R>,
) -> Result<(Vec<(u64, u64)>, u64), TarError> {
    let invalid = || TarError::Header {
        offset_bytes: payload.offset_bytes,
        reason: "bad sparse map",
    };
    let mut text = Vec::new();
    let mut consumed = 0;
    let mut lines = 0;
    let mut wanted = None;
    loop {
        while let Some(len) = text[consumed..].iter().position(|&b| b == b'\n') {
            let line = &text[consumed..consumed + len];
            if line.is_empty() || until_nul(line).len() != line.len() {
                return Err(invalid());
            }
            if wanted.is_none() {
                let count: usize = std::str::from_utf8(line)
                    .ok()
                    .and_then(|t| t.parse().ok())
                    .filter(|&count| count <= MAX_STRETCHES)
                    .ok_or_else(invalid)?;
                wanted = Some(1 + 2 * count);
            }
            consumed += len + 1;
            lines += 1;
            if Some(lines) == wanted {
                let numbers = text[..consumed]
                    .split(|&b| b == b'\n')
                    .skip(1)
                    .take(lines - 1)
                    .map(|line| std::str::from_utf8(line).ok().and_then(|t| t.parse().ok()))
                    .collect::<Option<Vec<u64>>>()
                    .ok_or_else(invalid)?;
                let stretches = numbers
                    .chunks_exact(2)
                    .map(|pair| (pair[0], pair[1]))
                    .collect();
                return Ok((stretches, (consumed as u64).next_multiple_of(BLOCK_BYTES)));
            }
        }
        let have = text.len() as u64;
        if have + BLOCK_BYTES > payload.len_bytes || text.len() - consumed > 64 {
            return Err(invalid());
        }
        reader.require(have + BLOCK_BYTES, || "a sparse map".to_owned())?;
        text.extend(reader.peek(payload.offset_bytes + have, BLOCK_BYTES)?);
    }
}
