//! A pull and a run, event by event.

mod pull;
mod workload;

use crate::profile::Profile;
use crate::simulate::image::ImageModel;
use crate::simulate::layer_state::{LayerState, Need, Reading};
use crate::simulate::machine::{Machine, Outcome, Work};
use crate::simulate::summary;
use crate::simulate::workload::{Steps, steps};
use crate::simulate::{Constants, Link, Prediction, Pulling};

use pull::{Downloads, Resolving};
use workload::Workload;

/// Who does something. Layers are indices into [`Replay::layers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    /// The client: documents, then waiting for its layers.
    Pull,
    /// The snapshotter makes a layer known.
    Resolve(u32),
    /// containerd downloads a layer as a whole.
    Download(u32),
    /// containerd unpacks what was downloaded, layer by layer.
    Unpack,
    /// The request of a layer's prefetch.
    Prefetch(u32),
    /// One of those who inflate what a layer prefetched.
    Worker(u32, u32),
    /// The creation of the container.
    Container,
    /// What runs in it.
    Workload,
}

/// Simulates; see the module above.
pub(super) fn run(
    image: &ImageModel,
    profile: &Profile,
    link: Link,
    pulling: Pulling,
    constants: &Constants,
) -> Prediction {
    let steps = steps(profile, image, constants);
    let mut replay = Replay::new(image, steps, link, pulling, constants);
    replay.machine.start(
        Actor::Pull,
        Work::Compute {
            seconds: constants.pull_seconds,
        },
    );
    while !replay.is_ready {
        let Some((actor, outcome)) = replay.machine.next() else {
            break;
        };
        match actor {
            Actor::Pull => replay.pull(),
            Actor::Resolve(layer) => replay.resolve(layer),
            Actor::Download(layer) => replay.downloaded(layer),
            Actor::Unpack => replay.unpacked(),
            Actor::Prefetch(layer) => replay.prefetched(layer, outcome),
            Actor::Worker(layer, number) => replay.work(layer, number),
            Actor::Container => replay.create(),
            Actor::Workload => replay.workload(),
        }
    }
    summary::of(&replay)
}

/// Everything that changes.
pub(super) struct Replay<'a> {
    pub(super) constants: &'a Constants,
    pub(super) machine: Machine<Actor>,
    /// The image's layers without repetitions.
    pub(super) layers: Vec<LayerState<'a>>,
    /// For each layer of the image, where it stands in `layers`.
    alias: Vec<u32>,
    pub(super) steps: Steps,
    pub(super) times: Times,
    /// Of the documents.
    pub(super) bytes: u64,
    pub(super) requests: u64,
    /// Waits of the workload, by layer and file.
    pub(super) waits: Vec<Wait>,
    document_bytes: u64,
    documents_left: u32,
    resolves: Vec<Resolving>,
    resolving: u32,
    workers: Vec<Vec<Option<Reading>>>,
    downloads: Downloads,
    container: Creation,
    work: Workload,
    is_ready: bool,
}

/// What took how long.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) pulled: f64,
    pub(super) prefetch_wait: f64,
    pub(super) network_wait: f64,
    pub(super) inflate_wait: f64,
}

/// The workload waited, for bytes of a chunk or for its inflating.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) layer: u32,
    pub(super) file: u32,
    /// 1 when it is the first wait for a chunk's bytes.
    pub(super) chunks: u64,
    /// Received meanwhile.
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Creation {
    NotYet,
    Waiting { since: f64 },
    Creating,
}

impl<'a> Replay<'a> {
    fn new(
        image: &'a ImageModel,
        steps: Steps,
        link: Link,
        pulling: Pulling,
        constants: &'a Constants,
    ) -> Self {
        let mut layers: Vec<LayerState<'a>> = Vec::new();
        let mut alias = Vec::with_capacity(image.layers.len());
        for model in &image.layers {
            let known = layers
                .iter()
                .position(|state| state.model.digest == model.digest);
            let index = known.unwrap_or(layers.len());
            if known.is_none() {
                let lazy = pulling == Pulling::Lazy;
                layers.push(LayerState::new(model, lazy, constants));
            }
            alias.push(index as u32);
        }
        let plain = |&layer: &u32| layers[layer as usize].contents.is_none();
        let whole: Vec<u32> = (0..layers.len() as u32).filter(plain).collect();
        let any_lazy = whole.len() < layers.len();
        let count = layers.len();
        Self {
            constants,
            machine: Machine::new(link, constants.cores),
            alias,
            steps,
            times: Times::default(),
            bytes: 0,
            requests: 0,
            waits: Vec::new(),
            document_bytes: image.document_bytes,
            documents_left: 3,
            resolves: (0..count).map(|_| Resolving::default()).collect(),
            resolving: if pulling == Pulling::Lazy && any_lazy {
                count as u32
            } else {
                0
            },
            workers: (0..count).map(|_| Vec::new()).collect(),
            downloads: Downloads::of(whole),
            container: Creation::NotYet,
            work: Workload::default(),
            is_ready: false,
            layers,
        }
    }

    fn transfer(&mut self, actor: Actor, bytes: u64, round_trips: f64, timeout_seconds: f64) {
        let latency_seconds = self.machine.link().round_trip_seconds * round_trips;
        let work = Work::Transfer {
            bytes: bytes + self.constants.response_header_bytes,
            latency_seconds,
            timeout_seconds,
        };
        self.machine.start(actor, work);
    }

    fn prefetch(&mut self, layer: u32) {
        let bytes = self.layers[layer as usize].plan_prefetch(self.constants);
        if bytes == 0 {
            self.inflate(layer);
            return;
        }
        let round_trips = self.layers[layer as usize].request();
        let timeout = self.constants.request_timeout_seconds;
        self.transfer(Actor::Prefetch(layer), bytes, round_trips, timeout);
    }

    fn prefetched(&mut self, layer: u32, outcome: Outcome) {
        let header = self.constants.response_header_bytes;
        let state = &mut self.layers[layer as usize];
        let units = std::mem::take(&mut state.prefetch.units);
        match outcome {
            Outcome::Done => {
                state.answered(state.fetched.len_bytes(&units) + header);
                state.fetched.add(&units);
                self.inflate(layer);
            }
            Outcome::TimedOut(arrived) => {
                state.answered(arrived);
                let arrived = arrived.saturating_sub(header);
                state.fetched.add_arrived(&units, arrived);
                state.prefetch.failed = true;
                self.prefetch_is_over(layer);
            }
        }
    }

    fn inflate(&mut self, layer: u32) {
        let state = &mut self.layers[layer as usize];
        state.plan_inflate();
        let count = state.prefetch.rows.len().min(self.constants.cores as usize);
        state.prefetch.workers = count as u32;
        self.workers[layer as usize] = (0..count).map(|_| None).collect();
        if count == 0 {
            self.prefetch_is_over(layer);
        }
        for number in 0..count as u32 {
            self.work(layer, number);
        }
    }

    /// One of those who inflate goes on.
    fn work(&mut self, layer: u32, number: u32) {
        let actor = Actor::Worker(layer, number);
        let mut begun = self.workers[layer as usize][number as usize].take();
        while let Some(mut reading) = begun.take().or_else(|| {
            let state = &mut self.layers[layer as usize];
            state.next_to_inflate().map(|row| state.read(row))
        }) {
            if self.advance(actor, layer, &mut reading) != Need::Nothing {
                self.workers[layer as usize][number as usize] = Some(reading);
                return;
            }
        }
        let prefetch = &mut self.layers[layer as usize].prefetch;
        prefetch.workers -= 1;
        if prefetch.workers == 0 {
            self.prefetch_is_over(layer);
        }
    }

    /// Goes on with a chunk: gives `actor` what that needs to do.
    fn advance(&mut self, actor: Actor, layer: u32, reading: &mut Reading) -> Need {
        self.note_arrived(layer);
        let state = &mut self.layers[layer as usize];
        let need = state.advance(reading, self.constants);
        match need {
            Need::Nothing => {}
            Need::Inflate(bytes) => {
                let seconds = bytes as f64 / self.constants.inflate_bytes_per_second;
                self.machine.start(actor, Work::Compute { seconds });
            }
            Need::Bytes(bytes) => {
                let round_trips = state.request();
                self.transfer(actor, bytes, round_trips, f64::INFINITY);
            }
        }
        need
    }

    /// What the prefetch has received is there for everybody, unit by unit.
    fn note_arrived(&mut self, layer: u32) {
        let arrived = self.machine.arrived_bytes(Actor::Prefetch(layer));
        let state = &mut self.layers[layer as usize];
        let arrived = arrived.saturating_sub(self.constants.response_header_bytes);
        if arrived > 0 {
            let units = &state.prefetch.units;
            state.fetched.add_arrived(units, arrived);
        }
    }

    fn prefetch_is_over(&mut self, layer: u32) {
        self.layers[layer as usize].prefetch.over = Some(self.machine.now());
        self.create_if_prefetched();
    }

    /// The container is created when all prefetches are over, or its patience is.
    fn create_if_prefetched(&mut self) {
        let mut lazy = self.layers.iter().filter(|state| state.contents.is_some());
        if matches!(self.container, Creation::Waiting { .. })
            && lazy.all(|state| state.prefetch.over.is_some())
        {
            self.machine.cancel(Actor::Container);
            self.create();
        }
    }

    fn create(&mut self) {
        match self.container {
            Creation::Waiting { since } => {
                self.times.prefetch_wait = self.machine.now() - since;
                self.container = Creation::Creating;
                let lazy = self.layers.iter().any(|state| state.contents.is_some());
                let missing = if lazy { self.steps.missing as f64 } else { 0.0 };
                let seconds =
                    self.constants.create_seconds + missing * self.constants.missing_seconds;
                self.machine
                    .start(Actor::Container, Work::Compute { seconds });
            }
            Creation::Creating | Creation::NotYet => self.think(),
        }
    }
}
