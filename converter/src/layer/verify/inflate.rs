//! Inflating runs of gzip members, on worker threads.

use std::io::{self, Read as _};
use std::ops::Range;

use crate::blob::ReadAt;
use crate::image::Digest;
use crate::layer::plan::TOC_NAME;
use crate::layer::verify::check::{RowFault, Rows, Run, to_index};
use crate::layer::verify::{VerifyError, read_at};

/// A TOC larger than this is refused: a million files take about a fifth of it.
const MAX_TOC_BYTES: u64 = 1 << 30;

/// A run after inflating; its chunks have the digests that the TOC gives.
pub(super) struct InflatedRun {
    pub(super) chunks: Range<usize>,
    pub(super) gzip: Vec<u8>,
    pub(super) raw: Vec<u8>,
}

/// A worker's state.
#[derive(Default)]
pub(super) struct Inflater;

impl Inflater {
    /// Reads and inflates one run and compares its chunks.
    pub(super) fn run(
        &mut self,
        blob: &impl ReadAt,
        run: &Run,
        rows: &Rows,
    ) -> Result<InflatedRun, VerifyError> {
        let mut gzip = vec![0; to_index(run.blob.end - run.blob.start)];
        read_at(blob, &mut gzip, run.blob.start)?;
        let mut raw = Vec::with_capacity(to_index(run.expected_bytes.min(64 << 20)) + (16 << 10));
        // Members are inflated by their own checksums' measure, the whole run of them.
        flate2::bufread::MultiGzDecoder::new(gzip.as_slice())
            .read_to_end(&mut raw)
            .map_err(|error| VerifyError::Member {
                offset_bytes: run.blob.start,
                reason: error.to_string(),
            })?;
        for chunk in &rows.chunks[run.chunks.clone()] {
            let start = to_index(chunk.inner_bytes);
            let data = start
                .checked_add(to_index(chunk.len_bytes))
                .and_then(|end| raw.get(start..end))
                .ok_or_else(|| rows.fault(chunk, RowFault::ShortMember))?;
            if Digest::of(data) != chunk.digest {
                return Err(rows.fault(chunk, RowFault::ChunkDigest));
            }
        }
        Ok(InflatedRun {
            chunks: run.chunks.clone(),
            gzip,
            raw,
        })
    }
}

/// The JSON inside the TOC's gzip member, which holds one tar entry.
pub(super) fn toc_json(gzip: &[u8]) -> Result<Vec<u8>, String> {
    let mut archive = tar::Archive::new(flate2::bufread::GzDecoder::new(gzip));
    let io_reason = |error: io::Error| error.to_string();
    let mut entries = archive.entries().map_err(io_reason)?;
    let mut entry = entries
        .next()
        .ok_or("it holds no tar entry")?
        .map_err(io_reason)?;
    if &*entry.path_bytes() != TOC_NAME.as_bytes() {
        return Err(format!("its tar entry is not named {TOC_NAME}"));
    }
    if entry.size() > MAX_TOC_BYTES {
        return Err(format!("it is larger than {MAX_TOC_BYTES} bytes"));
    }
    let mut json = Vec::with_capacity(to_index(entry.size()));
    entry.read_to_end(&mut json).map_err(io_reason)?;
    if json.len() as u64 != entry.size() {
        return Err("it is cut off".to_owned());
    }
    Ok(json)
}
