//! What a long command is doing, for whoever watches.
//!
//! Stands beside the stages' folders: the functions that join stages report through it, in blocks or
//! groups, never file by file. Who draws what is seen from here is a [`Progress`]; the library has
//! [`Silent`] alone.

use std::fmt;
use std::io::{self, Read};

use crate::blob::ReadAt;
use crate::image::Digest;

/// A stage of a command, as a user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A layer's blob is read and inflated; bytes of the blob.
    Scan,
    /// The workload runs; no bytes, and the terminal is the workload's.
    Run,
    /// A layer is made anew; bytes of its uncompressed stream, or, where it is made while it is read, of
    /// the blob.
    Encode,
    /// A blob is carried over as it is; its bytes.
    Copy,
    /// A blob is read back and checked; its bytes.
    Verify,
}

impl Stage {
    /// The stage's word, which is also that of `--json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Run => "run",
            Self::Encode => "encode",
            Self::Copy => "copy",
            Self::Verify => "verify",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A piece of work that is seen as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub stage: Stage,
    /// The source's layer, or the blob, it is done to; none for a run.
    pub digest: Option<Digest>,
    /// How many bytes it has, in the stage's sense; 0 where that means nothing.
    pub total_bytes: u64,
}

impl Step {
    /// Work on the layer or blob `digest`, of `total_bytes` bytes.
    pub fn of(stage: Stage, digest: Digest, total_bytes: u64) -> Self {
        Self {
            stage,
            digest: Some(digest),
            total_bytes,
        }
    }

    /// The run of a workload.
    pub const RUN: Self = Self {
        stage: Stage::Run,
        digest: None,
        total_bytes: 0,
    };
}

/// Sees steps begin, from any thread and several at once.
pub trait Progress: Sync + fmt::Debug {
    /// `step` begins. It ends with the meter: by [`Meter::finish`], or, if it failed, by its drop.
    fn begin(&self, step: Step) -> Box<dyn Meter>;
}

/// Sees one step go on.
pub trait Meter: Send + Sync {
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);

    /// All is done.
    fn finish(self: Box<Self>);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Step) -> Box<dyn Meter> {
        Box::new(Self)
    }
}

impl Meter for Silent {
    fn advance(&self, _: u64) {}

    fn finish(self: Box<Self>) {}
}

/// Bytes that are counted as they are read, each as often as it is.
pub struct Metered<'a, B> {
    inner: B,
    meter: &'a dyn Meter,
}

impl<'a, B> Metered<'a, B> {
    /// What is read of `inner` is told to `meter`.
    pub fn new(inner: B, meter: &'a dyn Meter) -> Self {
        Self { inner, meter }
    }
}

impl<B: Read> Read for Metered<'_, B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.meter.advance(read as u64);
        Ok(read)
    }
}

impl<B: ReadAt> ReadAt for Metered<'_, B> {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset_bytes)?;
        self.meter.advance(buffer.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::blob::Blob;

    #[derive(Default)]
    struct Sum(AtomicU64);

    impl Meter for Sum {
        fn advance(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }

        fn finish(self: Box<Self>) {}
    }

    #[test]
    fn what_is_read_is_counted_and_what_fails_is_not() {
        let sum = Sum::default();
        let mut blob = Metered::new(Blob::of_bytes(vec![7; 100]), &sum);
        let mut ten = [0; 10];
        blob.read_exact(&mut ten).unwrap();
        assert_eq!(sum.0.load(Ordering::Relaxed), 10);
        blob.read_exact_at(&mut ten, 90).unwrap();
        blob.read_exact_at(&mut ten, 91).unwrap_err();
        assert_eq!(sum.0.load(Ordering::Relaxed), 20);
        assert_eq!(blob.len_bytes(), 100);
        blob.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(sum.0.load(Ordering::Relaxed), 110);
    }
}
