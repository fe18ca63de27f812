//! Layers that are written without a plan: the source's tar as it is (`--uncompress`), or the source's
//! blob as it is (`--reuse`).

use std::io::Write;

use crate::blob::ReadAt;
use crate::cancel::Cancel;
use crate::image::{Digest, Hasher};
use crate::layer::ConvertError;
use crate::layer::assemble::FinishedLayer;
use crate::layer::blob::WriteError;
use crate::layer::encode::EncodeError;
use crate::layer::entry::ScannedLayer;
use crate::layer::verify::{VerifyError, must_equal};
use crate::progress::Meter;

/// Bytes that are copied at once.
const BLOCK_BYTES: u64 = 1 << 20;

/// Writes the source's tar to `out`, byte for byte; `meter` sees them.
///
/// # Errors
/// [`ConvertError`]; what was written to `out` until then is of no use.
pub fn copy_tar(
    layer: &ScannedLayer,
    mut out: impl Write,
    cancel: &Cancel,
    meter: &dyn Meter,
) -> Result<FinishedLayer, ConvertError> {
    let mut hasher = Hasher::default();
    let mut buffer = Vec::new();
    let mut offset_bytes = 0;
    while offset_bytes < layer.spool.len_bytes() {
        cancel.check()?;
        let len = (layer.spool.len_bytes() - offset_bytes).min(BLOCK_BYTES);
        buffer.resize(usize::try_from(len).unwrap_or(0), 0);
        layer
            .spool
            .read_exact_at(&mut buffer, offset_bytes)
            .map_err(|source| ConvertError::Encode {
                layer: layer.digest,
                source: EncodeError::Spool {
                    offset_bytes,
                    source,
                },
            })?;
        hasher.update(&buffer);
        out.write_all(&buffer)
            .map_err(|source| ConvertError::Write {
                layer: layer.digest,
                source: WriteError {
                    offset_bytes,
                    source,
                },
            })?;
        meter.advance(len);
        offset_bytes += len;
    }
    let digest = hasher.finish();
    Ok(FinishedLayer {
        digest,
        size_bytes: offset_bytes,
        diff_id: digest,
        toc_digest: None,
        uncompressed_bytes: offset_bytes,
        toc_offset_bytes: 0,
        prefetch_bytes: 0,
        members: 0,
        copied_bytes: 0,
    })
}

/// Reads what was written back.
///
/// # Errors
/// When the bytes in `blob` do not have the digest that they should.
pub fn verify_copy<R: ReadAt>(
    blob: &R,
    expected: Digest,
    cancel: &Cancel,
) -> Result<(), VerifyError> {
    let mut hasher = Hasher::default();
    let mut buffer = Vec::new();
    let mut offset_bytes = 0;
    while offset_bytes < blob.len_bytes() {
        cancel.check()?;
        let len = (blob.len_bytes() - offset_bytes).min(BLOCK_BYTES);
        buffer.resize(usize::try_from(len).unwrap_or(0), 0);
        blob.read_exact_at(&mut buffer, offset_bytes)
            .map_err(|source| VerifyError::Read {
                offset_bytes,
                source,
            })?;
        hasher.update(&buffer);
        offset_bytes += len;
    }
    must_equal("digest", &hasher.finish(), &expected)
}
