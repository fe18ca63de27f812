//! Blobs that stay as they are.

use std::io::{Read as _, Write as _};

use crate::blob::Blob;
use crate::cancel::Cancel;
use crate::convert::ImageError;
use crate::image::{BlobId, Hasher};
use crate::progress::{Progress, Stage, Step};
use crate::sink::Sink;
use crate::source::SourceError;

const BLOCK_BYTES: usize = 1 << 20;

/// Copies a blob to the destination unless it is there, and checks that it is the one that `id` names.
///
/// # Errors
/// When it cannot be read or written, or is another.
pub(crate) fn copy_blob(
    what: &'static str,
    open: impl FnOnce() -> Result<Blob, SourceError>,
    id: BlobId,
    sink: &mut Sink,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    if sink.has(id)? {
        tracing::debug!("{} is at its destination already", id.digest);
        return Ok(());
    }
    let mut blob = open()?;
    let mut staged = sink.stage()?;
    let copy_error = |source| ImageError::Copy {
        digest: id.digest,
        place: sink.place().to_owned(),
        source,
    };
    let meter = progress.begin(Step::of(Stage::Copy, id.digest, id.size_bytes));
    let mut hasher = Hasher::default();
    let mut block = vec![0; BLOCK_BYTES];
    let mut size_bytes = 0;
    loop {
        cancel.check()?;
        let read = match blob.read(&mut block) {
            Ok(read) => read,
            Err(error) => {
                cancel.check()?;
                return Err(copy_error(error));
            }
        };
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
        size_bytes += read as u64;
        staged.write_all(&block[..read]).map_err(copy_error)?;
        meter.advance(read as u64);
    }
    let found = BlobId {
        digest: hasher.finish(),
        size_bytes,
    };
    if found != id {
        return Err(ImageError::Source(SourceError::Damaged {
            what,
            digest: id.digest,
            expected_bytes: id.size_bytes,
            found,
        }));
    }
    sink.add(id, staged)?;
    meter.finish();
    Ok(())
}
