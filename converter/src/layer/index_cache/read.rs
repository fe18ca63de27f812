//! Reads an index file: the table as a whole, a history where it is wanted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::image::BlobId;
use crate::layer::deflate::Border;
use crate::layer::index_cache::CacheError;
use crate::layer::index_cache::format::{HISTORY_BYTES, Point, Trailer};

/// An opened index whose table is sound.
#[derive(Debug)]
pub struct CachedIndex {
    file: File,
    points: Vec<Point>,
}

impl CachedIndex {
    pub(super) fn open(path: &Path, blob: BlobId) -> Result<Self, CacheError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CacheError::Missing,
            _ => error.into(),
        })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(CacheError::Damaged("it is no regular file"));
        }
        let mut trailer = Trailer::new_zeroed();
        let trailer_at = metadata.len().checked_sub(size_of::<Trailer>() as u64);
        let trailer_at = trailer_at.ok_or(CacheError::Damaged("it is too short"))?;
        file.read_exact_at(trailer.as_mut_bytes(), trailer_at)?;
        trailer.check(blob).map_err(CacheError::Damaged)?;
        let (table_at, table_bytes) = (trailer.table_offset_bytes.get(), trailer.table_bytes.get());
        if table_at.checked_add(table_bytes) != Some(trailer_at) {
            return Err(CacheError::Damaged("it is cut off or too long"));
        }
        if table_bytes > blob.size_bytes || !table_bytes.is_multiple_of(POINT_BYTES) {
            return Err(CacheError::Damaged("its table is no table"));
        }
        let count = usize::try_from(table_bytes / POINT_BYTES).unwrap_or(usize::MAX);
        let mut points = vec![Point::new_zeroed(); count];
        file.read_exact_at(points.as_mut_bytes(), table_at)?;
        trailer
            .check_table(points.as_bytes())
            .map_err(CacheError::Damaged)?;
        check_points(&points, table_at, blob).map_err(CacheError::Damaged)?;
        Ok(Self { file, points })
    }

    /// How many points there are.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// A point's border, and the uncompressed bytes before it.
    pub fn point(&self, number: usize) -> Option<(Border, u64)> {
        let point = self.points.get(number)?;
        Some((point.border()?, point.output_bytes.get()))
    }

    /// The history before a point.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn history(&self, number: usize) -> Result<Vec<u8>, CacheError> {
        let point = self
            .points
            .get(number)
            .ok_or(CacheError::Damaged("no such point"))?;
        let history_bytes = point.history_bytes.get() as usize;
        if history_bytes == 0 {
            return Ok(Vec::new());
        }
        let mut frame = vec![0; point.frame_bytes.get() as usize];
        self.file
            .read_exact_at(&mut frame, point.offset_bytes.get())?;
        if crc32fast::hash(&frame) != point.crc.get() {
            return Err(CacheError::Damaged("wrong checksum of a history"));
        }
        let history = zstd::bulk::decompress(&frame, history_bytes)?;
        if history.len() != history_bytes {
            return Err(CacheError::Damaged("wrong length of a history"));
        }
        Ok(history)
    }
}

/// What the checksum does not promise of a file that somebody else made.
fn check_points(points: &[Point], table_at: u64, blob: BlobId) -> Result<(), &'static str> {
    let mut last = (0, 0);
    for point in points {
        let border = point.border().ok_or("an unknown kind of border")?;
        let place = (border.position_bits, point.output_bytes.get());
        if place.0 <= last.0 || place.1 < last.1 {
            return Err("points out of order");
        }
        if place.0 / 8 >= blob.size_bytes {
            return Err("a point behind the blob's end");
        }
        let (history, frame) = (point.history_bytes.get(), point.frame_bytes.get());
        if history > HISTORY_BYTES || frame > 2 * HISTORY_BYTES {
            return Err("a history that is too long");
        }
        let end = point.offset_bytes.get().checked_add(u64::from(frame));
        if end.is_none_or(|end| end > table_at) {
            return Err("a history outside of the file");
        }
        last = place;
    }
    Ok(())
}

const POINT_BYTES: u64 = size_of::<Point>() as u64;
const _: () = assert!(POINT_BYTES == 40, "as the format says");
