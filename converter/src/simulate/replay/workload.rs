//! The workload: it thinks, opens files and reads them, one after the other.

use super::{Actor, Replay, Wait};
use crate::simulate::layer_state::{Need, Reading};
use crate::simulate::machine::Work;

/// Where the workload is.
#[derive(Debug, Default)]
pub(super) struct Workload {
    /// The next step.
    step: usize,
    /// Rows that the step before reads, and how many are read.
    rows: Vec<u32>,
    layer: u32,
    at: usize,
    reading: Option<Reading>,
    /// Since when it waits, and for what.
    since: f64,
    need: Option<Need>,
    /// The last chunk for which something was fetched.
    missed: Option<(u32, u32)>,
}

impl Replay<'_> {
    /// The workload's own time before its next step, or after the last one.
    pub(super) fn think(&mut self) {
        let constants = self.constants;
        let seconds = match self.steps.steps.get(self.work.step) {
            None => self.steps.last_seconds,
            Some(step) => {
                let lazily = step.read.as_ref().filter(|read| {
                    let layer = self.alias[read.layer as usize];
                    self.layers[layer as usize].contents.is_some()
                });
                let served = lazily.map_or(0.0, |read| {
                    let lengths = read.ranges.iter().map(|range| range.end - range.start);
                    let reads: u64 = lengths.map(|len| len.div_ceil(constants.read_bytes)).sum();
                    constants.open_seconds + reads as f64 * constants.read_seconds
                });
                step.think_seconds + served
            }
        };
        self.machine
            .start(Actor::Workload, Work::Compute { seconds });
    }

    pub(super) fn workload(&mut self) {
        if self.work.reading.is_some() {
            self.note_waited();
            if !self.read_on() {
                return;
            }
        } else {
            let Some(step) = self.steps.steps.get(self.work.step) else {
                self.is_ready = true;
                return;
            };
            self.work.rows.clear();
            self.work.at = 0;
            if let Some(read) = &step.read {
                self.work.layer = self.alias[read.layer as usize];
                let state = &self.layers[self.work.layer as usize];
                if let Some(contents) = state.contents {
                    let rows = contents.rows_of(read.file).filter(|&row| {
                        let chunk = contents.rows[row as usize];
                        let start = chunk.chunk_offset_bytes;
                        let end = start + chunk.chunk_bytes;
                        let mut ranges = read.ranges.iter();
                        ranges.any(|range| range.start < end && start < range.end)
                    });
                    self.work.rows.extend(rows);
                }
            }
            if !self.read_on() {
                return;
            }
        }
        self.work.step += 1;
        self.think();
    }

    /// Reads the step's rows; whether all are read now.
    fn read_on(&mut self) -> bool {
        let layer = self.work.layer;
        while let Some(&row) = self.work.rows.get(self.work.at) {
            let state = &mut self.layers[layer as usize];
            state.used[row as usize] = true;
            let begun = self.work.reading.take();
            let mut reading = begun.unwrap_or_else(|| state.read(row));
            let need = self.advance(Actor::Workload, layer, &mut reading);
            if need != Need::Nothing {
                self.work.reading = Some(reading);
                self.work.since = self.machine.now();
                self.work.need = Some(need);
                return false;
            }
            self.work.at += 1;
        }
        true
    }

    /// The workload has waited for bytes or for a chunk to be inflated.
    fn note_waited(&mut self) {
        let seconds = self.machine.now() - self.work.since;
        let Some(row) = self.work.reading.as_ref().map(|reading| reading.row) else {
            return;
        };
        let layer = self.work.layer;
        let state = &mut self.layers[layer as usize];
        let file = state.contents.map_or(0, |all| all.rows[row as usize].file);
        let mut wait = Wait {
            layer,
            file,
            chunks: 0,
            bytes: 0,
            seconds,
        };
        if let Some(Need::Bytes(bytes)) = self.work.need {
            self.times.network_wait += seconds;
            wait.bytes = bytes + self.constants.response_header_bytes;
            wait.chunks = u64::from(self.work.missed != Some((layer, row)));
            self.work.missed = Some((layer, row));
            state.missed_chunks += wait.chunks;
            state.missed_bytes += wait.bytes;
        } else {
            self.times.inflate_wait += seconds;
        }
        self.waits.push(wait);
    }
}
