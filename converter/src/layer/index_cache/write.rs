//! Writes an index file while the layer is decoded for the first time.

use std::fs::Permissions;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zerocopy::IntoBytes as _;

use crate::image::BlobId;
use crate::layer::deflate::Border;
use crate::layer::index_cache::MAX_SHARE;
use crate::layer::index_cache::format::{Point, Trailer};

/// Uncompressed bytes from a point to the next, at least. Decoding one such stretch takes some
/// milliseconds, so that any number of cores has something to do.
const SPACING_BYTES: u64 = 4 << 20;
/// Histories are short and many: a better level makes them hardly smaller.
const ZSTD_LEVEL: i32 = 3;

/// Collects points; the file appears when it is finished.
pub struct Recorder {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    blob: BlobId,
    compressor: zstd::bulk::Compressor<'static>,
    points: Vec<Point>,
    /// Bytes of histories so far.
    written_bytes: u64,
    spacing_bytes: u64,
    /// The first failure: nothing is written from there on.
    failure: Option<io::Error>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("path", &self.path)
            .field("points", &self.points.len())
            .finish_non_exhaustive()
    }
}

impl Recorder {
    pub(super) fn new(directory: &Path, path: PathBuf, blob: BlobId) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::new(
                tempfile::Builder::new()
                    .prefix(".esgz-index-")
                    .permissions(Permissions::from_mode(0o644))
                    .tempfile_in(directory)?,
            ),
            path,
            blob,
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            points: Vec::new(),
            written_bytes: 0,
            spacing_bytes: SPACING_BYTES,
            failure: None,
        })
    }

    #[cfg(test)]
    pub(super) fn with_spacing(self, spacing_bytes: u64) -> Self {
        Self {
            spacing_bytes,
            ..self
        }
    }

    /// Sees a border with `output_bytes` uncompressed bytes before it, the last of which are `history`.
    /// Failures are kept for [`Recorder::finish`].
    pub fn border(&mut self, border: Border, output_bytes: u64, history: &[u8]) {
        let last = self.points.last();
        let since = output_bytes - last.map_or(0, |point| point.output_bytes.get());
        if since < self.spacing_bytes || self.failure.is_some() {
            return;
        }
        if let Err(error) = self.add(border, output_bytes, history) {
            self.failure = Some(error);
        }
    }

    fn add(&mut self, border: Border, output_bytes: u64, history: &[u8]) -> io::Result<()> {
        let mut point = Point::new(border, output_bytes);
        let frame = if history.is_empty() {
            Vec::new()
        } else {
            self.compressor.compress(history)?
        };
        // Counted with its place in the table. A point that is too much is left out; a later one will do.
        let size_bytes = (frame.len() + size_of::<Point>()) as u64;
        let table_bytes = (self.points.len() * size_of::<Point>()) as u64;
        let share = border.position_bits as f64 / 8.0 * MAX_SHARE;
        let is_first = self.points.is_empty();
        if !is_first && (self.written_bytes + table_bytes + size_bytes) as f64 > share {
            return Ok(());
        }
        point.offset_bytes = self.written_bytes.into();
        point.frame_bytes = narrow(frame.len())?.into();
        point.history_bytes = narrow(history.len())?.into();
        point.crc = crc32fast::hash(&frame).into();
        self.file.write_all(&frame)?;
        self.written_bytes += frame.len() as u64;
        self.points.push(point);
        Ok(())
    }

    /// Makes the file visible under its name: the whole of it, whoever else writes it at the same time. An
    /// index without points is not kept. How many bytes it has.
    ///
    /// # Errors
    /// When it cannot be written; no file is left then.
    pub fn finish(mut self) -> io::Result<u64> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        if self.points.is_empty() {
            return Ok(0);
        }
        let table = self.points.as_bytes();
        let trailer = Trailer::new(self.blob, self.written_bytes, table);
        self.file.write_all(table)?;
        self.file.write_all(trailer.as_bytes())?;
        let file = self
            .file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        // Not synced: what a crash leaves of it has another checksum.
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(self.written_bytes + (table_len(&self.points) + size_of::<Trailer>()) as u64)
    }
}

fn table_len(points: &[Point]) -> usize {
    points.as_bytes().len()
}

fn narrow(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::ErrorKind::InvalidData.into())
}
