//! Blobs that stay as they are.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use crate::blob::{ReadAt, Supply};
use crate::cancel::Cancel;
use crate::convert::ImageError;
use crate::progress::{Meter, Progress, Stage, Step};
use crate::sink::{PassOnError, PassedOn, Sink};
use crate::source::SourceError;

/// Passes blobs on to the destination, unless they are there, and checks that they are what they should be.
/// `what` they are is for messages.
///
/// # Errors
/// When one cannot be read or written, or is another.
pub(super) fn pass_on(
    what: &'static str,
    blobs: Vec<PassedOn>,
    sink: &mut Sink,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let blobs: Vec<PassedOn> = blobs
        .into_iter()
        .map(|PassedOn { id, supply }| {
            let meter = progress.begin(Step::of(Stage::Copy, id.digest, id.size_bytes));
            let shown = Shown {
                supply,
                seen: Arc::new(Mutex::new(Seen {
                    bytes: 0,
                    meter: Some(meter),
                })),
            };
            let supply: Arc<dyn Supply> = Arc::new(shown);
            PassedOn { id, supply }
        })
        .collect();
    sink.pass_on(&blobs, cancel).map_err(|error| match error {
        PassOnError::Damaged { id, found } => SourceError::Damaged {
            what,
            digest: id.digest,
            expected_bytes: id.size_bytes,
            found,
        }
        .into(),
        PassOnError::Read { id, source } | PassOnError::Write { id, source, .. } => {
            ImageError::Copy {
                digest: id.digest,
                place: sink.place().to_owned(),
                source,
            }
        }
        PassOnError::Sink(error) => error.into(),
        PassOnError::Cancelled(cancelled) => cancelled.into(),
    })
}

/// A supply whose bytes are counted as they go by, each once.
#[derive(Debug)]
struct Shown {
    supply: Arc<dyn Supply>,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    bytes: u64,
    /// None at the end.
    meter: Option<Box<dyn Meter>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes seen", self.bytes)
    }
}

impl ReadAt for Shown {
    fn len_bytes(&self) -> u64 {
        self.supply.len_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.supply.read_exact_at(buffer, offset_bytes)
    }
}

impl Supply for Shown {
    fn open_at(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(ShownReader {
            reader: self.supply.open_at(offset_bytes)?,
            at_bytes: offset_bytes,
            len_bytes: self.supply.len_bytes(),
            seen: Arc::clone(&self.seen),
        }))
    }
}

struct ShownReader {
    reader: Box<dyn Read + Send>,
    at_bytes: u64,
    len_bytes: u64,
    seen: Arc<Mutex<Seen>>,
}

impl Read for ShownReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.at_bytes += read as u64;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.at_bytes.saturating_sub(seen.bytes);
        seen.bytes += new;
        if let Some(meter) = seen.meter.take() {
            meter.advance(new);
            if seen.bytes < self.len_bytes {
                seen.meter = Some(meter);
            } else {
                meter.finish();
            }
        }
        Ok(read)
    }
}
