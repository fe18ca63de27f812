//! Inflating runs of gzip members, on worker threads; and a run that is too large for that, piece by
//! piece on the caller's.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use crate::blob::ReadAt;
use crate::image::{Digest, Hasher};
use crate::layer::buffers::{Buffers, REUSED_BUFFER_BYTES};
use crate::layer::in_order::Costed;
use crate::layer::plan::TOC_NAME;
use crate::layer::verify::rows::{Rows, Run};
use crate::layer::verify::{RowFault, VerifyError, read_at};
use crate::sys::gzip::{MemberError, MemberInflater};

/// Small runs are read and handed over together, up to this many bytes.
const BATCH_BYTES: u64 = 256 << 10;
/// Room for what a batch holds besides its chunks: padding, headers. One that has more is inflated
/// piece by piece.
const SLACK_BYTES: u64 = 256 << 10;
/// What a run that is inflated piece by piece takes in memory.
const PIECES_COST_BYTES: u64 = 1 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// Runs that follow each other, inflated together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) runs: Vec<Run>,
    /// Compressed, and uncompressed as far as the TOC tells.
    bytes: u64,
    /// How it is to be inflated.
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    AtOnce,
    InPieces,
}

/// Puts runs together. A batch that needs more than `limit_bytes` is inflated piece by piece.
pub(super) fn batches(
    runs: impl Iterator<Item = Run>,
    limit_bytes: u64,
) -> impl Iterator<Item = Costed<Batch>> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let mut batch = Batch {
            runs: Vec::new(),
            bytes: 0,
            way: Way::AtOnce,
        };
        while let Some(run) = runs.peek() {
            let bytes = run.blob_bytes().saturating_add(run.expected_bytes);
            if !batch.runs.is_empty() && batch.bytes.saturating_add(bytes) > BATCH_BYTES {
                break;
            }
            batch.bytes = batch.bytes.saturating_add(bytes);
            batch.runs.extend(runs.next());
        }
        if batch.runs.is_empty() {
            return None;
        }
        let mut cost_bytes = batch.bytes.saturating_add(SLACK_BYTES);
        // Buffers are longer by a sixteenth.
        cost_bytes = cost_bytes.saturating_add(cost_bytes / 16);
        if cost_bytes > limit_bytes {
            batch.way = Way::InPieces;
            cost_bytes = PIECES_COST_BYTES;
        }
        Some(Costed {
            job: batch,
            cost_bytes,
        })
    })
}

/// A batch after a worker had it.
pub(super) enum Outcome {
    /// Its chunks have the digests that the TOC gives.
    Inflated(InflatedBatch),
    /// To be inflated piece by piece.
    InPieces(Batch),
}

/// A batch in memory.
pub(super) struct InflatedBatch {
    pub(super) runs: Vec<Run>,
    gzip: Vec<u8>,
    gzip_bytes: usize,
    raw: Vec<u8>,
    /// Where each run ends in `raw`.
    ends: Vec<usize>,
}

impl InflatedBatch {
    pub(super) fn gzip(&self) -> &[u8] {
        &self.gzip[..self.gzip_bytes]
    }

    /// Each run with its uncompressed bytes.
    pub(super) fn inflated_runs(&self) -> impl Iterator<Item = (&Run, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ranges = starts.zip(&self.ends);
        self.runs
            .iter()
            .zip(ranges.map(|(start, &end)| &self.raw[start..end]))
    }

    pub(super) fn give_back(self, buffers: &Buffers) {
        buffers.give_back(self.gzip);
        buffers.give_back(self.raw);
    }
}

/// A worker's state.
pub(super) struct Inflater<'a, B> {
    blob: &'a B,
    rows: &'a Rows<'a>,
    buffers: &'a Buffers,
    members: MemberInflater,
    /// Small batches are inflated here and leave it in their own size.
    small: Vec<u8>,
}

impl<'a, B: ReadAt> Inflater<'a, B> {
    pub(super) fn new(blob: &'a B, rows: &'a Rows<'a>, buffers: &'a Buffers) -> Self {
        Self {
            blob,
            rows,
            buffers,
            members: MemberInflater::default(),
            small: Vec::new(),
        }
    }

    /// Reads and inflates a batch and compares its chunks.
    pub(super) fn batch(&mut self, batch: Batch) -> Result<Outcome, VerifyError> {
        if batch.way == Way::InPieces {
            return Ok(Outcome::InPieces(batch));
        }
        let start = batch.runs[0].blob.start;
        let gzip_bytes = to_index(batch.runs.iter().map(Run::blob_bytes).sum());
        let mut gzip = self.buffers.take(gzip_bytes);
        read_at(self.blob, &mut gzip[..gzip_bytes], start)?;
        let needed = to_index(batch.bytes + SLACK_BYTES) - gzip_bytes;
        let is_small = needed < REUSED_BUFFER_BYTES;
        let mut raw = if is_small {
            self.small.resize(REUSED_BUFFER_BYTES, 0);
            std::mem::take(&mut self.small)
        } else {
            self.buffers.take(needed)
        };
        let inflated = self.runs(&batch, &gzip[..gzip_bytes], &mut raw);
        if is_small {
            self.small = raw;
            raw = Vec::new();
        }
        let Some(ends) = inflated? else {
            return Ok(Outcome::InPieces(batch));
        };
        if is_small {
            raw = self.small[..ends.last().copied().unwrap_or(0)].to_vec();
        }
        Ok(Outcome::Inflated(InflatedBatch {
            runs: batch.runs,
            gzip,
            gzip_bytes,
            raw,
            ends,
        }))
    }

    /// Where each run ends in `raw`; `None` if that is too small.
    fn runs(
        &mut self,
        batch: &Batch,
        gzip: &[u8],
        raw: &mut [u8],
    ) -> Result<Option<Vec<usize>>, VerifyError> {
        let start = batch.runs[0].blob.start;
        let (mut at, mut filled) = (0, 0);
        let mut ends = Vec::with_capacity(batch.runs.len());
        for run in &batch.runs {
            let first = filled;
            let end = to_index(run.blob.end - start);
            while at < end {
                match self.members.member(&gzip[at..end], &mut raw[filled..]) {
                    Ok(member) => {
                        at += member.gzip_bytes;
                        filled += member.raw_bytes;
                    }
                    Err(MemberError::OutputFull) => return Ok(None),
                    Err(error @ MemberError::Corrupt) => {
                        return Err(VerifyError::Member {
                            offset_bytes: start + at as u64,
                            reason: error.to_string(),
                        });
                    }
                }
            }
            for chunk in &self.rows.chunks[run.chunks.clone()] {
                let data = to_index(chunk.inner_bytes)
                    .checked_add(to_index(chunk.len_bytes))
                    .and_then(|end| raw[first..filled].get(to_index(chunk.inner_bytes)..end))
                    .ok_or_else(|| self.rows.fault(chunk.row, RowFault::ShortMember))?;
                if Digest::of(data) != chunk.digest {
                    return Err(self.rows.fault(chunk.row, RowFault::ChunkDigest));
                }
            }
            ends.push(filled);
        }
        Ok(Some(ends))
    }
}

/// Inflates one run piece by piece, compares its chunks, and gives every piece to `piece`. The blob's
/// bytes go to `hasher`.
pub(super) fn in_pieces(
    blob: &impl ReadAt,
    rows: &Rows<'_>,
    run: &Run,
    hasher: &mut Hasher,
    mut piece: impl FnMut(&[u8]) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let failed = Failed::default();
    let corrupt = |error: io::Error| {
        failed.or(VerifyError::Member {
            offset_bytes: run.blob.start,
            reason: error.to_string(),
        })
    };
    let hashed = Hashed {
        blob,
        at_bytes: run.blob.start,
        end_bytes: run.blob.end,
        hasher: Some(hasher),
        failed: &failed,
    };
    let mut gzip = BufReader::with_capacity(PIECE_BYTES, hashed);
    let mut chunks = PieceDigests::new(rows, run);
    let mut buffer = vec![0; PIECE_BYTES];
    while !gzip.fill_buf().map_err(corrupt)?.is_empty() {
        let mut member = GzDecoder::new(&mut gzip);
        loop {
            let len = match member.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(corrupt(error)),
            };
            chunks.piece(&buffer[..len])?;
            piece(&buffer[..len])?;
        }
    }
    chunks.finish()
}

/// Compares the chunks of a run whose bytes come piece by piece.
struct PieceDigests<'a> {
    rows: &'a Rows<'a>,
    chunks: std::ops::Range<usize>,
    hasher: Hasher,
    position: u64,
}

impl<'a> PieceDigests<'a> {
    fn new(rows: &'a Rows<'a>, run: &Run) -> Self {
        Self {
            rows,
            chunks: run.chunks.clone(),
            hasher: Hasher::default(),
            position: 0,
        }
    }

    fn piece(&mut self, mut bytes: &[u8]) -> Result<(), VerifyError> {
        // Chunks are in order and do not overlap.
        while !bytes.is_empty() && !self.chunks.is_empty() {
            let chunk = &self.rows.chunks[self.chunks.start];
            let before = chunk.inner_bytes.saturating_sub(self.position);
            if before > 0 {
                let skipped = to_index(before).min(bytes.len());
                self.position += skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            let left = chunk.inner_bytes.saturating_add(chunk.len_bytes) - self.position;
            let taken = to_index(left).min(bytes.len());
            self.hasher.update(&bytes[..taken]);
            self.position += taken as u64;
            bytes = &bytes[taken..];
            if taken as u64 == left {
                if std::mem::take(&mut self.hasher).finish() != chunk.digest {
                    return Err(self.rows.fault(chunk.row, RowFault::ChunkDigest));
                }
                self.chunks.start += 1;
            }
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<(), VerifyError> {
        match self.rows.chunks[self.chunks].first() {
            None => Ok(()),
            Some(chunk) => Err(self.rows.fault(chunk.row, RowFault::ShortMember)),
        }
    }
}

/// Why the blob under a stream could not be read: a decoder above it tells that as damage.
#[derive(Default)]
pub(super) struct Failed(Cell<Option<VerifyError>>);

impl Failed {
    /// The blob's error if there is one, else `error`.
    pub(super) fn or(&self, error: VerifyError) -> VerifyError {
        self.0.take().unwrap_or(error)
    }
}

/// A stretch of a blob as a stream, hashed on the way.
pub(super) struct Hashed<'a, B> {
    pub(super) blob: &'a B,
    pub(super) at_bytes: u64,
    pub(super) end_bytes: u64,
    pub(super) hasher: Option<&'a mut Hasher>,
    pub(super) failed: &'a Failed,
}

impl<B: ReadAt> Read for Hashed<'_, B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = to_index(self.end_bytes - self.at_bytes);
        let wanted = left.min(buffer.len());
        let len = wanted;
        self.blob
            .read_exact_at(&mut buffer[..len], self.at_bytes)
            .map_err(|source| {
                let kind = source.kind();
                self.failed.0.set(Some(VerifyError::Read {
                    offset_bytes: self.at_bytes,
                    source,
                }));
                io::Error::from(kind)
            })?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..len]);
        }
        self.at_bytes += len as u64;
        Ok(len)
    }
}

/// The JSON inside the TOC's gzip member, which holds one tar entry; at most `limit_bytes` of it.
pub(super) fn toc_json(gzip: impl BufRead, limit_bytes: u64) -> Result<Vec<u8>, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(gzip));
    let io_reason = |error: io::Error| error.to_string();
    let mut entries = archive.entries().map_err(io_reason)?.raw(true);
    let mut entry = entries
        .next()
        .ok_or("it holds no tar entry")?
        .map_err(io_reason)?;
    if &*entry.path_bytes() != TOC_NAME.as_bytes() {
        return Err(format!("its tar entry is not named {TOC_NAME}"));
    }
    let size_bytes = entry.header().entry_size().map_err(io_reason)?;
    if size_bytes > limit_bytes {
        return Err(format!(
            "it is {size_bytes} bytes long; at most {limit_bytes} are read"
        ));
    }
    // Memory is taken by what is written to it: a size that is a lie costs nothing.
    let mut json = Vec::with_capacity(to_index(size_bytes));
    entry.read_to_end(&mut json).map_err(io_reason)?;
    if json.len() as u64 != size_bytes {
        return Err("it is cut off".to_owned());
    }
    Ok(json)
}

pub(super) fn to_index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
