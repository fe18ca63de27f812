//! The pull: documents, then layers, lazily or as a whole.

use super::{Actor, Creation, Replay};
use crate::layer::footer;
use crate::simulate::layer_state::LayerState;
use crate::simulate::machine::Work;

const FOOTER_BYTES: u64 = footer::FOOTER_BYTES as u64;

/// A layer that is being made known.
#[derive(Debug, Default)]
pub(super) struct Resolving {
    /// Which of its requests is next.
    step: u32,
    /// Bytes that are on their way.
    bytes: u64,
    units: Vec<u32>,
}

/// Layers that are pulled as a whole.
#[derive(Debug, Default)]
pub(super) struct Downloads {
    /// In order; those that were begun, were finished, were unpacked.
    layers: Vec<u32>,
    begun: usize,
    finished: Vec<bool>,
    unpacked: usize,
    unpacking: bool,
}

impl Downloads {
    pub(super) fn of(layers: Vec<u32>) -> Self {
        Self {
            finished: vec![false; layers.len()],
            layers,
            ..Self::default()
        }
    }
}

impl<'a> Replay<'a> {
    /// Manifest by name, manifest, configuration; then all layers at once.
    pub(super) fn pull(&mut self) {
        if self.documents_left < 3 {
            self.bytes += self.constants.response_header_bytes;
        }
        if self.documents_left > 0 {
            self.documents_left -= 1;
            self.requests += 1;
            let round_trips = if self.documents_left == 2 { 2.0 } else { 1.0 };
            let bytes = if self.documents_left == 0 {
                self.document_bytes
            } else {
                0
            };
            self.transfer(Actor::Pull, bytes, round_trips, f64::INFINITY);
            return;
        }
        self.bytes += self.document_bytes;
        for layer in 0..self.resolving {
            self.resolve(layer);
        }
        if self.resolving == 0 {
            self.download();
        }
    }

    /// Where the blob is (two bytes of it), how long it is, its footer, its TOC (`fs/remote/resolver.go`,
    /// `newHTTPFetcher`; `estargz/estargz.go`, `Open`).
    pub(super) fn resolve(&mut self, layer: u32) {
        let (resolving, state) = self.resolving_of(layer);
        if resolving.step > 0 && resolving.step < 5 {
            state.answered(resolving.bytes);
            state.fetched.add(&resolving.units);
        }
        let size = state.model.size_bytes;
        let header = self.constants.response_header_bytes;
        loop {
            let (resolving, state) = self.resolving_of(layer);
            resolving.step += 1;
            resolving.units = match (resolving.step, state.contents) {
                (1 | 2, _) => Vec::new(),
                (3, _) => state
                    .fetched
                    .missing(size.saturating_sub(FOOTER_BYTES)..size),
                (4, Some(contents)) => state.fetched.missing(contents.toc_offset_bytes..size),
                _ => break,
            };
            let bytes = match resolving.step {
                1 => 2,
                _ => state.fetched.len_bytes(&resolving.units),
            };
            if resolving.step > 2 && bytes == 0 {
                continue;
            }
            resolving.bytes = bytes + header;
            let round_trips = self.layers[layer as usize].request();
            self.transfer(Actor::Resolve(layer), bytes, round_trips, f64::INFINITY);
            return;
        }
        let (resolving, state) = self.resolving_of(layer);
        if let Some(contents) = state.contents
            && resolving.step == 5
        {
            let json_bytes = contents.toc_json_bytes as f64;
            let seconds = json_bytes / self.constants.toc_bytes_per_second;
            self.machine
                .start(Actor::Resolve(layer), Work::Compute { seconds });
            return;
        }
        self.resolving -= 1;
        if self.resolving == 0 {
            self.download();
        }
        self.prefetch(layer);
    }

    fn resolving_of(&mut self, layer: u32) -> (&mut Resolving, &mut LayerState<'a>) {
        let index = layer as usize;
        (&mut self.resolves[index], &mut self.layers[index])
    }

    /// Layers that are no eStargz: some are downloaded at a time.
    fn download(&mut self) {
        let downloads = &self.downloads;
        let under_way = downloads.begun
            - downloads
                .finished
                .iter()
                .filter(|&&finished| finished)
                .count();
        let free = (self.constants.downloads as usize).saturating_sub(under_way);
        let rest = &downloads.layers[downloads.begun..];
        let begin: Vec<u32> = rest.iter().copied().take(free).collect();
        self.downloads.begun += begin.len();
        for layer in begin {
            let state = &mut self.layers[layer as usize];
            let bytes = state.model.size_bytes;
            let round_trips = state.request();
            self.transfer(Actor::Download(layer), bytes, round_trips, f64::INFINITY);
        }
        self.pulled_if_done();
    }

    pub(super) fn downloaded(&mut self, layer: u32) {
        let state = &mut self.layers[layer as usize];
        state.answered(state.model.size_bytes + self.constants.response_header_bytes);
        let downloads = &mut self.downloads;
        if let Some(index) = downloads.layers.iter().position(|&known| known == layer) {
            downloads.finished[index] = true;
        }
        self.unpack();
        self.download();
    }

    /// A layer is unpacked when those below it are.
    fn unpack(&mut self) {
        let next = self.downloads.unpacked;
        if self.downloads.unpacking || self.downloads.finished.get(next) != Some(&true) {
            return;
        }
        self.downloads.unpacking = true;
        let layer = self.downloads.layers[next];
        let model = self.layers[layer as usize].model;
        let files = model.contents.as_ref().map_or(0, |all| all.files.len());
        let seconds = model.size_bytes as f64 / self.constants.unpack_bytes_per_second
            + files as f64 * self.constants.unpack_file_seconds;
        self.machine.start(Actor::Unpack, Work::Compute { seconds });
    }

    pub(super) fn unpacked(&mut self) {
        self.downloads.unpacking = false;
        self.downloads.unpacked += 1;
        self.unpack();
        self.pulled_if_done();
    }

    fn pulled_if_done(&mut self) {
        let is_done = self.resolving == 0 && self.downloads.unpacked == self.downloads.layers.len();
        if is_done && self.container == Creation::NotYet {
            self.times.pulled = self.machine.now();
            self.container = Creation::Waiting {
                since: self.machine.now(),
            };
            let until = self.machine.now() + self.constants.prefetch_wait_seconds;
            self.machine.start(Actor::Container, Work::Wait { until });
            self.create_if_prefetched();
        }
    }
}
