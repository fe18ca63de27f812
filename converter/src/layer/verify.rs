//! Verify: reads an eStargz blob once, in parallel, and checks everything it says of itself.
//!
//! Enters: a blob in a file. Leaves: its digests and its TOC's figures, or the first fault. The
//! TOC's offsets cut the blob into runs that begin with a gzip member; workers inflate the runs,
//! and the caller's thread hashes the uncompressed stream in order.

mod check;
mod inflate;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::cancel::{Cancel, Cancelled};
use crate::image::{Digest, Hasher};
use crate::layer::assemble::FinishedLayer;
use crate::layer::footer::{self, FOOTER_BYTES};
use crate::layer::in_order::{Costed, Parallel, in_order};
use crate::layer::toc::Toc;

pub use check::RowFault;

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
    #[error("no eStargz footer at the end of the blob")]
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
        fault: RowFault,
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

/// Reads the TOC's JSON of the blob in `file`, and where its member starts.
///
/// # Errors
/// When there is no valid footer or TOC.
pub fn read_toc(file: &File) -> Result<(Vec<u8>, u64), VerifyError> {
    let size_bytes = blob_size(file)?;
    let Some(footer_at) = size_bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(VerifyError::NoFooter);
    };
    let mut end = [0; FOOTER_BYTES];
    read_at(file, &mut end, footer_at)?;
    let toc_offset_bytes = footer::parse(&end).ok_or(VerifyError::NoFooter)?;
    if toc_offset_bytes >= footer_at {
        return Err(VerifyError::TocOffset { toc_offset_bytes });
    }
    let mut gzip = vec![0; usize::try_from(footer_at - toc_offset_bytes).unwrap_or(usize::MAX)];
    read_at(file, &mut gzip, toc_offset_bytes)?;
    let json = inflate::toc_json(&gzip).map_err(|reason| VerifyError::Toc {
        toc_offset_bytes,
        reason,
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

/// Checks that the blob in `file` ends in a TOC with the digest `expected` whose rows are consistent
/// among themselves. The data is not looked at.
///
/// # Errors
/// [`VerifyError`], the first fault.
pub fn check_toc(file: &File, expected: Digest) -> Result<(), VerifyError> {
    let (json, toc_offset_bytes) = read_toc(file)?;
    must_equal("TOC digest", &Digest::of(&json), &expected)?;
    check::rows(&parse_toc(&json, toc_offset_bytes)?, toc_offset_bytes)?;
    Ok(())
}

/// Checks the whole blob in `file`.
///
/// # Errors
/// [`VerifyError`], the first fault in the blob's order.
pub fn verify_layer(
    file: &File,
    parallel: Parallel,
    cancel: &Cancel,
) -> Result<VerifiedLayer, VerifyError> {
    let size_bytes = blob_size(file)?;
    let (json, toc_offset_bytes) = read_toc(file)?;
    let toc_digest = Digest::of(&json);
    let toc = parse_toc(&json, toc_offset_bytes)?;
    let rows = check::rows(&toc, toc_offset_bytes)?;
    let runs = check::runs(&rows, size_bytes);

    let mut checker = check::FileDigests::new(&rows);
    let (mut blob, mut stream) = (Hasher::default(), Hasher::default());
    let mut uncompressed_bytes = 0;
    in_order(
        parallel,
        cancel,
        runs.iter().map(|run| Costed {
            job: run,
            cost_bytes: run.cost_bytes(),
        }),
        inflate::Inflater::default,
        |inflater, run| inflater.run(file, run, &rows),
        |run: inflate::InflatedRun| {
            blob.update(&run.gzip);
            stream.update(&run.raw);
            uncompressed_bytes += run.raw.len() as u64;
            checker.chunks(run.chunks.clone(), &run.raw)
        },
    )?;
    Ok(VerifiedLayer {
        digest: blob.finish(),
        size_bytes,
        diff_id: stream.finish(),
        uncompressed_bytes,
        toc_digest,
        chunks: rows.chunks.len() as u64,
        files: rows.files,
    })
}

fn blob_size(file: &File) -> Result<u64, VerifyError> {
    let metadata = file.metadata().map_err(|source| VerifyError::Read {
        offset_bytes: 0,
        source,
    })?;
    Ok(metadata.len())
}

fn read_at(file: &File, buffer: &mut [u8], offset_bytes: u64) -> Result<(), VerifyError> {
    file.read_exact_at(buffer, offset_bytes)
        .map_err(|source| VerifyError::Read {
            offset_bytes,
            source,
        })
}
