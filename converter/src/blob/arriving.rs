//! A blob that is still on its way: a file that grows, and readers that wait for it.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Why a blob did not arrive. Every reader is told.
#[derive(Clone, Debug)]
pub struct NotArrived(Arc<dyn Error + Send + Sync>);

impl fmt::Display for NotArrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for NotArrived {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// The readers' side.
#[derive(Debug)]
pub struct Arriving {
    file: File,
    len_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    begun: bool,
    arrived_bytes: u64,
    ended: Option<Result<(), NotArrived>>,
}

/// The writer's side. Dropped before [`Arrival::finish`], it tells the readers that nothing more will come.
#[derive(Debug)]
pub struct Arrival(Arc<Arriving>);

impl Arriving {
    /// A blob of `len_bytes` that will be in `file`.
    pub fn new(file: File, len_bytes: u64) -> (Arc<Self>, Arrival) {
        let arriving = Arc::new(Self {
            file,
            len_bytes,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        (Arc::clone(&arriving), Arrival(arriving))
    }

    /// Its length when it is complete.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Waits until it is known that the blob exists.
    ///
    /// # Errors
    /// Why it does not.
    pub fn wait_for_begin(&self) -> Result<(), NotArrived> {
        let state = self.wait(|state| state.begun);
        match &state.ended {
            Some(Err(failure)) if !state.begun => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    /// Why it did not arrive, if that is known already.
    pub fn failure(&self) -> Option<NotArrived> {
        match &self.state().ended {
            Some(Err(failure)) => Some(failure.clone()),
            _ => None,
        }
    }

    /// Waits for at least one byte behind `offset_bytes`, and reads what is there. The last byte is given
    /// out when the whole has been checked.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let readable = self.readable_bytes(offset_bytes.saturating_add(1))?;
        let there = usize::try_from(readable - offset_bytes).unwrap_or(usize::MAX);
        let len = there.min(buffer.len());
        self.file.read_at(&mut buffer[..len], offset_bytes)
    }

    /// As [`Self::read_at`], for all of `buffer`.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.readable_bytes(offset_bytes.saturating_add(buffer.len() as u64))?;
        self.file.read_exact_at(buffer, offset_bytes)
    }

    /// Waits until `upto_bytes` can be read. Gives how many can.
    fn readable_bytes(&self, upto_bytes: u64) -> io::Result<u64> {
        let readable = |state: &State| match state.ended {
            Some(Ok(())) => self.len_bytes,
            _ => state.arrived_bytes.min(self.len_bytes.saturating_sub(1)),
        };
        let state = self.wait(|state| readable(state) >= upto_bytes);
        let readable = readable(&state);
        match &state.ended {
            _ if readable >= upto_bytes => Ok(readable),
            Some(Err(failure)) => Err(io::Error::other(failure.clone())),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits for `is_there`, or the end.
    fn wait(&self, is_there: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = self.state();
        self.changed
            .wait_while(state, |state| state.ended.is_none() && !is_there(state))
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// The blob exists.
    pub fn begin(&self) {
        self.0.state().begun = true;
        self.0.changed.notify_all();
    }

    /// Adds the next bytes. `at_bytes` is where they belong, right behind what is there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, bytes: &[u8], at_bytes: u64) -> io::Result<()> {
        self.0.file.write_all_at(bytes, at_bytes)?;
        self.0.state().arrived_bytes = at_bytes + bytes.len() as u64;
        self.0.changed.notify_all();
        Ok(())
    }

    /// Everything has arrived and is what it should be, or will not arrive.
    pub fn finish(self, outcome: Result<(), impl Error + Send + Sync + 'static>) {
        self.end(outcome.map_err(NotArrived::new));
    }

    fn end(&self, outcome: Result<(), NotArrived>) {
        self.0.state().ended.get_or_insert(outcome);
        self.0.changed.notify_all();
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let stopped = io::Error::other("the transfer was stopped");
        self.end(Err(NotArrived::new(stopped)));
    }
}

impl NotArrived {
    /// Because of `failure`.
    pub fn new(failure: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(failure))
    }

    /// The failure itself, for whoever knows what it is.
    pub fn get(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use super::*;
    use crate::blob::{Blob, ReadAt as _};

    fn arriving(len_bytes: u64) -> (Blob, Arrival) {
        let (arriving, arrival) = Arriving::new(tempfile::tempfile().unwrap(), len_bytes);
        (Blob::arriving(arriving), arrival)
    }

    #[test]
    fn readers_wait_for_what_they_read() {
        let (blob, arrival) = arriving(6);
        let writer = std::thread::spawn(move || {
            for at in 0..3 {
                std::thread::sleep(Duration::from_millis(10));
                arrival
                    .write(&b"abcdef"[2 * at..2 * at + 2], 2 * at as u64)
                    .unwrap();
            }
            arrival.finish(Ok::<(), io::Error>(()));
        });
        let mut two = [0; 2];
        blob.read_exact_at(&mut two, 3).unwrap();
        assert_eq!(&two, b"de");
        let mut all = Vec::new();
        blob.clone().read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abcdef");
        blob.part(4, 2).read_exact_at(&mut two, 0).unwrap();
        assert_eq!(&two, b"ef");
        writer.join().unwrap();
    }

    #[test]
    fn the_last_byte_is_not_given_out_unchecked() {
        let (blob, arrival) = arriving(4);
        arrival.write(b"wxyz", 0).unwrap();
        let mut three = [0; 3];
        blob.read_exact_at(&mut three, 0).unwrap();
        arrival.finish(Err(io::Error::other("wrong digest")));
        let mut one = [0];
        let error = blob.read_exact_at(&mut one, 3).unwrap_err();
        assert!(error.to_string().contains("wrong digest"), "{error}");
        blob.read_exact_at(&mut three, 0).unwrap();
    }

    #[test]
    fn a_writer_that_is_gone_is_noticed() {
        let (blob, arrival) = arriving(4);
        drop(arrival);
        assert!(blob.clone().read(&mut [0]).is_err());
    }

    #[test]
    fn an_empty_blob_is_there_at_once() {
        let (blob, arrival) = arriving(0);
        arrival.finish(Ok::<(), io::Error>(()));
        assert_eq!(blob.clone().read(&mut [0]).unwrap(), 0);
    }
}
