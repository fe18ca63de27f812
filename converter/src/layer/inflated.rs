//! A gzip layer's uncompressed bytes without a copy of them: decoded again where they are wanted.
//!
//! The scan leaves a point every megabyte or so: where decoding can begin again, and the 32 KiB
//! before it, which go to a file. The stretch from a point to the next is decoded as a whole, checked
//! against the checksum that the scan saw, and kept for a while: neighbours are read by other workers.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libdeflater::Crc;

use crate::blob::{Blob, ReadAt};
use crate::layer::deflate::{
    Block, Container, DecodeError, Resume, Scratch, Sink, decode, decode_from,
};

/// Bytes from a point to the next, at least.
const STRETCH_BYTES: u64 = 1 << 20;
/// The decoder gives no longer blocks: a stretch may be longer by one.
const BLOCK_BYTES: u64 = 640 << 10;
/// The longest history of a point.
const HISTORY_BYTES: u64 = 32 << 10;
/// Decoded stretches that are kept.
const KEPT: usize = 16;

/// Where a stretch begins, and what it must be.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// None at the stream's start.
    resume: Option<Resume>,
    output_bytes: u64,
    /// Checksum of the stretch that begins here.
    crc: u32,
}

/// Collects points while a stream is decoded for the first time.
#[derive(Debug)]
pub(super) struct Points {
    points: Vec<Point>,
    histories: File,
    crc: CrcOf,
    output_bytes: u64,
}

/// Not `Debug` by itself.
struct CrcOf(Crc);

impl std::fmt::Debug for CrcOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0.sum())
    }
}

impl Points {
    /// Histories go to a file without a name in `scratch`.
    pub(super) fn new(scratch: &Path) -> io::Result<Self> {
        let start = Point {
            resume: None,
            output_bytes: 0,
            crc: 0,
        };
        Ok(Self {
            points: vec![start],
            histories: tempfile::tempfile_in(scratch)?,
            crc: CrcOf(Crc::new()),
            output_bytes: 0,
        })
    }

    /// Takes the next block of the stream.
    pub(super) fn block(&mut self, block: &Block) -> io::Result<()> {
        let bytes = block.bytes();
        self.crc.0.update(bytes);
        self.output_bytes += bytes.len() as u64;
        let Some(resume) = block.resume() else {
            return Ok(());
        };
        let begun = self.points.last().map_or(0, |point| point.output_bytes);
        let history = bytes
            .len()
            .checked_sub(resume.history_bytes as usize)
            .and_then(|start| bytes.get(start..));
        // A block shorter than the history is the first of a short stream: the next one will do.
        let (true, Some(history)) = (self.output_bytes - begun >= STRETCH_BYTES, history) else {
            return Ok(());
        };
        self.end_stretch();
        let mut record = history.to_vec();
        record.resize(HISTORY_BYTES as usize, 0);
        self.histories.write_all(&record)?;
        self.points.push(Point {
            resume: Some(resume),
            output_bytes: self.output_bytes,
            crc: 0,
        });
        Ok(())
    }

    fn end_stretch(&mut self) {
        let crc = std::mem::replace(&mut self.crc, CrcOf(Crc::new()));
        if let Some(point) = self.points.last_mut() {
            point.crc = crc.0.sum();
        }
    }

    /// The bytes of `compressed`, which is the stream that the points are of.
    pub(super) fn finish(mut self, compressed: Blob) -> Inflated {
        self.end_stretch();
        Inflated {
            compressed,
            points: self.points,
            histories: self.histories,
            len_bytes: self.output_bytes,
            kept: Mutex::default(),
            scratch: Mutex::default(),
            buffers: Mutex::default(),
        }
    }
}

/// The uncompressed bytes of a gzip stream.
pub(super) struct Inflated {
    compressed: Blob,
    /// Ascending; the first is the stream's start.
    points: Vec<Point>,
    histories: File,
    len_bytes: u64,
    /// Stretches by number, the oldest first.
    kept: Mutex<VecDeque<(usize, Arc<Stretch>)>>,
    scratch: Mutex<Vec<Scratch>>,
    /// Of stretches that are not kept any more, to be used again.
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// Filled by whoever wants it first; others wait.
type Stretch = Mutex<Option<Arc<Vec<u8>>>>;

impl std::fmt::Debug for Inflated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflated")
            .field("len_bytes", &self.len_bytes)
            .field("points", &self.points.len())
            .finish_non_exhaustive()
    }
}

impl ReadAt for Inflated {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let end = offset_bytes.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let behind = |point: &Point| point.output_bytes <= offset_bytes;
        let mut number = self.points.partition_point(behind) - 1;
        let mut done = 0;
        while done < buffer.len() {
            let stretch = self.stretch(number)?;
            let begin = self.points[number].output_bytes;
            let from = usize::try_from(offset_bytes + done as u64 - begin).unwrap_or(usize::MAX);
            let bytes = stretch.get(from..).unwrap_or_default();
            let len = bytes.len().min(buffer.len() - done);
            buffer[done..done + len].copy_from_slice(&bytes[..len]);
            done += len;
            number += 1;
        }
        Ok(())
    }
}

impl Inflated {
    /// Memory for the points, and for what is kept while so many read at once, each through the end of
    /// one stretch and the start of the next.
    pub(super) fn held_bytes(&self, readers: u64) -> u64 {
        let stretches = (KEPT as u64 + 2 * readers) * (STRETCH_BYTES + BLOCK_BYTES);
        let points = self.points.len() * size_of::<Point>();
        stretches + readers * 2 * BLOCK_BYTES + points as u64
    }

    /// Forgets what is kept for readers: there will be none for a while.
    pub(super) fn forget(&self) {
        lock(&self.kept).clear();
        lock(&self.scratch).clear();
        lock(&self.buffers).clear();
    }

    fn stretch(&self, number: usize) -> io::Result<Arc<Vec<u8>>> {
        let stretch = {
            let mut kept = lock(&self.kept);
            let found = kept.iter().find(|(kept, _)| *kept == number);
            if let Some((_, stretch)) = found {
                Arc::clone(stretch)
            } else {
                if kept.len() >= KEPT {
                    // Unless somebody still reads it.
                    let oldest = kept
                        .pop_front()
                        .and_then(|(_, oldest)| Arc::into_inner(oldest));
                    let bytes = oldest.and_then(|oldest| oldest.into_inner().ok().flatten());
                    lock(&self.buffers).extend(bytes.and_then(Arc::into_inner));
                }
                let stretch = Arc::<Stretch>::default();
                kept.push_back((number, Arc::clone(&stretch)));
                stretch
            }
        };
        let mut bytes = lock(&stretch);
        if let Some(bytes) = &*bytes {
            return Ok(Arc::clone(bytes));
        }
        let decoded = self.decode(number)?;
        *bytes = Some(Arc::clone(&decoded));
        Ok(decoded)
    }

    fn decode(&self, number: usize) -> io::Result<Arc<Vec<u8>>> {
        let point = self.points[number];
        let next = self.points.get(number + 1);
        let end = next.map_or(self.len_bytes, |next| next.output_bytes);
        let wanted = usize::try_from(end - point.output_bytes).unwrap_or(usize::MAX);
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let mut bytes = lock(&self.buffers).pop().unwrap_or_default();
        bytes.clear();
        bytes.reserve_exact(wanted);
        let mut sink = Collect {
            bytes: &mut bytes,
            wanted,
        };
        match &point.resume {
            None => {
                let whole = decode(
                    self.compressed.clone(),
                    Container::Gzip,
                    u64::MAX,
                    &mut sink,
                );
                match whole {
                    Ok(_) | Err(DecodeError::SinkClosed) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Some(resume) => {
                let mut history = [0; HISTORY_BYTES as usize];
                let history = &mut history[..resume.history_bytes as usize];
                self.histories
                    .read_exact_at(history, (number as u64 - 1) * HISTORY_BYTES)?;
                decode_from(&self.compressed, resume, history, &mut scratch, &mut sink)
            }
        }
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let mut crc = Crc::new();
        crc.update(&bytes);
        if bytes.len() != wanted || crc.sum() != point.crc {
            let reason = "the compressed layer changed while it was in use";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        lock(&self.scratch).push(scratch);
        Ok(Arc::new(bytes))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the first `wanted` bytes.
struct Collect<'a> {
    bytes: &'a mut Vec<u8>,
    wanted: usize,
}

impl Sink for Collect<'_> {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        let left = self.wanted - self.bytes.len();
        let bytes = block.bytes();
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(left)]);
        (self.bytes.len() < self.wanted).then(|| block.into_buffer())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// Collects everything, and the points.
    struct Whole {
        points: Points,
        bytes: Vec<u8>,
    }

    impl Sink for Whole {
        fn block(&mut self, block: Block) -> Option<Vec<u8>> {
            self.points.block(&block).unwrap();
            self.bytes.extend_from_slice(block.bytes());
            Some(block.into_buffer())
        }
    }

    /// Text-like bytes, noise and runs, so that there are blocks of all kinds.
    fn sample(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut bytes = Vec::with_capacity(len + 5000);
        while bytes.len() < len {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(99);
            let run = (state >> 52) as usize + 1;
            match state >> 40 & 3 {
                0 => bytes.extend(std::iter::repeat_n((state >> 33) as u8, run)),
                1 => bytes.extend((0..run).map(|n| (state.rotate_left(n as u32) >> 11) as u8)),
                _ => {
                    let back = (state >> 20) as usize % bytes.len().max(1);
                    let from = bytes.len() - back;
                    let run = run.min(back);
                    bytes.extend_from_within(from..from + run);
                }
            }
        }
        bytes.truncate(len);
        bytes
    }

    fn inflated(gzip: &[u8]) -> (Inflated, Vec<u8>) {
        let mut whole = Whole {
            points: Points::new(&std::env::temp_dir()).unwrap(),
            bytes: Vec::new(),
        };
        decode(gzip, Container::Gzip, u64::MAX, &mut whole).unwrap();
        (
            whole.points.finish(Blob::of_bytes(gzip.to_vec())),
            whole.bytes,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Any stretch of any stream, of several members and levels, reads as the whole does.
        #[test]
        fn any_stretch_reads_the_same(
            parts in prop::collection::vec((0..3_000_000_usize, any::<u64>(), 0..10_u32), 1..4),
            reads in prop::collection::vec((any::<prop::sample::Index>(), 0..5_000_000_usize), 1..20),
        ) {
            let mut gzip = Vec::new();
            for (len, seed, level) in parts {
                let mut encoder = GzEncoder::new(&mut gzip, Compression::new(level));
                encoder.write_all(&sample(len, seed)).unwrap();
                encoder.finish().unwrap();
            }
            let (inflated, bytes) = inflated(&gzip);
            prop_assert_eq!(inflated.len_bytes(), bytes.len() as u64);
            for (start, len) in reads {
                let start = start.index(bytes.len() + 1);
                let len = len.min(bytes.len() - start);
                let mut buffer = vec![0; len];
                if len % 3 == 0 {
                    inflated.forget();
                }
                inflated.read_exact_at(&mut buffer, start as u64).unwrap();
                prop_assert!(buffer == bytes[start..start + len], "{start} {len}");
            }
            prop_assert!(inflated.read_exact_at(&mut [0], bytes.len() as u64).is_err());
        }
    }

    #[test]
    fn a_source_that_changes_is_noticed() {
        let bytes = sample(3_000_000, 7);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(&bytes).unwrap();
        let gzip = encoder.finish().unwrap();
        let (mut inflated, _) = inflated(&gzip);
        let mut changed = gzip.clone();
        let middle = gzip.len() / 2;
        changed[middle..middle + 100].reverse();
        inflated.compressed = Blob::of_bytes(changed);
        let mut buffer = vec![0; bytes.len()];
        let error = inflated.read_exact_at(&mut buffer, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
