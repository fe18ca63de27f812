//! Verify: reads an eStargz blob once, in parallel, and checks everything it says of itself.
//!
//! Enters: a blob that can be read at offsets. Leaves: its digests and its TOC's figures, or the
//! first fault. The TOC's offsets cut the blob into runs that begin with a gzip member; workers
//! inflate the runs and compare their chunks, and the caller's thread hashes the uncompressed stream
//! in order and reads it as a tar, whose headers must say what the TOC's rows say. Memory is bounded
//! for any blob: the TOC's by a limit, the runs' by the budget; a run that is larger is inflated
//! piece by piece.

mod copies;
mod fault;
mod inflate;
mod rows;
mod stream;

use std::io;

use crate::blob::ReadAt;
use crate::cancel::{Cancel, Cancelled};
use crate::image::{Digest, Hasher};
use crate::layer::assemble::FinishedLayer;
use crate::layer::buffers::Buffers;
use crate::layer::entry::Entry;
use crate::layer::footer::{self, FOOTER_BYTES};
use crate::layer::in_order::{Parallel, in_order};
use crate::layer::scan::TarError;
use crate::layer::toc::Toc;

use inflate::{Failed, Hashed, Inflater, Outcome};
use rows::Rows;
use stream::ReadBack;

pub use fault::RowFault;

/// A TOC whose JSON is longer is refused: a million files take about a third of it.
pub const MAX_TOC_BYTES: u64 = 1 << 30;

/// How a blob is checked.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Threads, and memory for what is under way.
    pub parallel: Parallel,
    /// Memory for the TOC: a blob whose TOC needs more is refused.
    pub toc_memory_bytes: u64,
    /// A blob that is longer when inflated is refused.
    pub max_layer_bytes: u64,
}

/// An entry of a blob's tar that is as the TOC says.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedEntry<'a> {
    /// The tar entry; offsets are in the uncompressed stream.
    pub entry: &'a Entry,
    /// Digest of a regular file's contents.
    pub digest: Option<Digest>,
}

/// What a blob was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// Digest of the whole uncompressed stream.
    pub diff_id: Digest,
    /// Length of the whole uncompressed stream.
    pub uncompressed_bytes: u64,
    /// Digest of the TOC's JSON.
    pub toc_digest: Digest,
    /// Chunks whose digest was compared.
    pub chunks: u64,
    /// Rows of the TOC that are files, directories and so on.
    pub files: u64,
}

impl VerifiedLayer {
    /// Compares what was read back with what was written.
    ///
    /// # Errors
    /// [`VerifyError::Mismatch`] names the first difference.
    pub fn must_equal(&self, written: &FinishedLayer) -> Result<(), VerifyError> {
        let digests = [
            ("digest", self.digest, written.digest),
            ("DiffID", self.diff_id, written.diff_id),
        ];
        let toc = written.toc_digest;
        let toc = toc.map(|expected| ("TOC digest", self.toc_digest, expected));
        for (what, found, expected) in digests.into_iter().chain(toc) {
            must_equal(what, &found, &expected)?;
        }
        must_equal(
            "uncompressed size",
            &self.uncompressed_bytes,
            &written.uncompressed_bytes,
        )
    }
}

/// # Errors
/// [`VerifyError::Mismatch`] if the two differ.
pub fn must_equal<T: PartialEq + ToString>(
    what: &'static str,
    found: &T,
    expected: &T,
) -> Result<(), VerifyError> {
    if found == expected {
        return Ok(());
    }
    Err(VerifyError::Mismatch {
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// What is wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The blob could not be read.
    #[error("reading the blob at offset {offset_bytes}")]
    Read {
        /// Where.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no eStargz footer at the end.
    #[error("not an eStargz layer: no footer at the end of the blob")]
    NoFooter,
    /// The footer points outside the blob.
    #[error("the footer puts the TOC at offset {toc_offset_bytes}, past the blob's end")]
    TocOffset {
        /// What the footer says.
        toc_offset_bytes: u64,
    },
    /// The TOC's tar entry, or its JSON, cannot be understood.
    #[error("the TOC at offset {toc_offset_bytes} is damaged: {reason}")]
    Toc {
        /// Where its member starts.
        toc_offset_bytes: u64,
        /// What is wrong.
        reason: String,
    },
    /// The TOC needs more memory than allowed.
    #[error(
        "the TOC of {rows} rows needs {needed_bytes} bytes of memory, the limit is {limit_bytes}"
    )]
    TocMemory {
        /// Rows; 0 if it was not parsed.
        rows: u64,
        /// For JSON and rows.
        needed_bytes: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// Neither landmark, or not in its place.
    #[error("no landmark: neither .prefetch.landmark nor .no.prefetch.landmark is in the TOC")]
    NoLandmark,
    /// The uncompressed stream is no tar.
    #[error("the layer holds no valid tar")]
    Tar {
        /// What and where.
        #[source]
        source: TarError,
    },
    /// A tar entry has no row.
    #[error("the tar entry \"{name}\" at uncompressed offset {offset_bytes} has no TOC row")]
    NotInToc {
        /// The entry's name.
        name: String,
        /// Where its header starts.
        offset_bytes: u64,
    },
    /// Something follows the archive's last entry.
    #[error("data behind the end of the tar, at uncompressed offset {offset_bytes}")]
    AfterEnd {
        /// Where.
        offset_bytes: u64,
    },
    /// The blob is longer than allowed when inflated.
    #[error("longer than {limit_bytes} bytes when decompressed")]
    TooLarge {
        /// The limit in force.
        limit_bytes: u64,
    },
    /// No gzip member starts where the TOC says, or it is corrupt.
    #[error("no valid gzip member at offset {offset_bytes}: {reason}")]
    Member {
        /// Where.
        offset_bytes: u64,
        /// What is wrong.
        reason: String,
    },
    /// A row of the TOC is wrong in itself, or about the data.
    #[error("TOC row {row} (\"{name}\"): {fault}")]
    Row {
        /// 0-based index of the row.
        row: usize,
        /// The row's name.
        name: String,
        /// What is wrong.
        fault: Box<RowFault>,
    },
    /// Something that was known before differs.
    #[error("{what} is {found}, expected {expected}")]
    Mismatch {
        /// `TOC digest`, `DiffID`, `digest`, …
        what: &'static str,
        /// Found in the blob.
        found: String,
        /// Known before.
        expected: String,
    },
    /// The user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Reads the TOC's JSON of `blob`, and where its member starts.
///
/// # Errors
/// When there is no valid footer or TOC.
pub fn read_toc(blob: &impl ReadAt) -> Result<(Vec<u8>, u64), VerifyError> {
    read_toc_within(blob, MAX_TOC_BYTES)
}

fn read_toc_within(blob: &impl ReadAt, limit_bytes: u64) -> Result<(Vec<u8>, u64), VerifyError> {
    let size_bytes = blob.len_bytes();
    let Some(footer_at) = size_bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(VerifyError::NoFooter);
    };
    let mut end = [0; FOOTER_BYTES];
    read_at(blob, &mut end, footer_at)?;
    let toc_offset_bytes = footer::parse(&end).ok_or(VerifyError::NoFooter)?;
    if toc_offset_bytes >= footer_at {
        return Err(VerifyError::TocOffset { toc_offset_bytes });
    }
    let failed = Failed::default();
    let gzip = Hashed {
        blob,
        at_bytes: toc_offset_bytes,
        end_bytes: footer_at,
        hasher: None,
        failed: &failed,
    };
    let json = inflate::toc_json(io::BufReader::new(gzip), limit_bytes).map_err(|reason| {
        failed.or(VerifyError::Toc {
            toc_offset_bytes,
            reason,
        })
    })?;
    Ok((json, toc_offset_bytes))
}

/// Parses the TOC's JSON.
///
/// # Errors
/// When it is no TOC of version 1.
pub fn parse_toc(json: &[u8], toc_offset_bytes: u64) -> Result<Toc<'_>, VerifyError> {
    let damaged = |reason: String| VerifyError::Toc {
        toc_offset_bytes,
        reason,
    };
    let toc: Toc<'_> = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if toc.version != 1 {
        return Err(damaged(format!("unknown version {}", toc.version)));
    }
    Ok(toc)
}

/// Checks that `blob` ends in a TOC with the digest `expected` whose rows are consistent
/// among themselves. The data is not looked at.
///
/// # Errors
/// [`VerifyError`], the first fault.
pub fn check_toc(blob: &impl ReadAt, expected: Digest) -> Result<(), VerifyError> {
    let (json, toc_offset_bytes) = read_toc(blob)?;
    must_equal("TOC digest", &Digest::of(&json), &expected)?;
    check_rows(&json, toc_offset_bytes)
}

/// Checks that a TOC's rows are consistent among themselves.
///
/// # Errors
/// [`VerifyError`], the first fault.
pub fn check_rows(json: &[u8], toc_offset_bytes: u64) -> Result<(), VerifyError> {
    Rows::parse(json, toc_offset_bytes, u64::MAX).map(drop)
}

/// Checks the whole `blob`.
///
/// # Errors
/// [`VerifyError`], the first fault in the blob's order.
pub fn verify_layer(
    blob: &(impl ReadAt + Sync),
    parallel: Parallel,
    cancel: &Cancel,
) -> Result<VerifiedLayer, VerifyError> {
    let options = VerifyOptions {
        parallel,
        toc_memory_bytes: u64::MAX,
        max_layer_bytes: u64::MAX,
    };
    verify_entries(blob, options, cancel, |_| {})
}

/// As [`verify_layer`]; gives each entry but the TOC's to `visit`, in the tar's order. What was given
/// is only true if the whole call succeeds.
///
/// # Errors
/// [`VerifyError`], the first fault in the blob's order.
pub fn verify_entries(
    blob: &(impl ReadAt + Sync),
    options: VerifyOptions,
    cancel: &Cancel,
    visit: impl FnMut(VerifiedEntry<'_>),
) -> Result<VerifiedLayer, VerifyError> {
    let size_bytes = blob.len_bytes();
    let toc_limit_bytes = options.toc_memory_bytes.min(MAX_TOC_BYTES);
    let (json, toc_offset_bytes) = read_toc_within(blob, toc_limit_bytes)?;
    let toc_digest = Digest::of(&json);
    let rows = Rows::parse(&json, toc_offset_bytes, options.toc_memory_bytes)?;

    // What a buffer's turn does not use of the memory for it.
    let idle_bytes = usize::try_from(options.parallel.memory_bytes / 8).unwrap_or(usize::MAX);
    let buffers = Buffers::within(idle_bytes);
    let mut hasher = Hasher::default();
    let mut stream = ReadBack::new(&rows, options.max_layer_bytes, visit);
    in_order(
        options.parallel,
        cancel,
        inflate::batches(rows.runs(size_bytes), options.parallel.memory_bytes / 2),
        || Inflater::new(blob, &rows, &buffers),
        Inflater::batch,
        |outcome| {
            match outcome {
                Outcome::Inflated(batch) => {
                    hasher.update(batch.gzip());
                    for (run, raw) in batch.inflated_runs() {
                        let start_bytes = stream.begin(run);
                        stream.bytes(raw)?;
                        stream.end(run, start_bytes)?;
                    }
                    batch.give_back(&buffers);
                }
                Outcome::InPieces(batch) => {
                    for run in &batch.runs {
                        let start_bytes = stream.begin(run);
                        inflate::in_pieces(blob, &rows, run, &mut hasher, |piece| {
                            cancel.check()?;
                            stream.bytes(piece)
                        })?;
                        stream.end(run, start_bytes)?;
                    }
                }
            }
            Ok(())
        },
    )?;
    let totals = stream.finish()?;
    Ok(VerifiedLayer {
        digest: hasher.finish(),
        size_bytes,
        diff_id: totals.diff_id,
        uncompressed_bytes: totals.uncompressed_bytes,
        toc_digest,
        chunks: rows.chunks.len() as u64,
        files: rows.entries,
    })
}

fn read_at(blob: &impl ReadAt, buffer: &mut [u8], offset_bytes: u64) -> Result<(), VerifyError> {
    blob.read_exact_at(buffer, offset_bytes)
        .map_err(|source| VerifyError::Read {
            offset_bytes,
            source,
        })
}
