//! What a simulation found, from the state that it ended in.

use std::collections::BTreeMap;

use crate::simulate::image::Member;
use crate::simulate::layer_state::LayerState;
use crate::simulate::prediction::{LayerPrediction, MissedFile, Prediction, UnusedFile};
use crate::simulate::replay::{Actor, Replay};

pub(super) fn of(replay: &Replay<'_>) -> Prediction {
    // What is on its way has been received in part.
    let mut under_way: BTreeMap<u32, u64> = BTreeMap::new();
    for (actor, bytes) in replay.machine.arriving() {
        if let Some(layer) = layer_of(actor) {
            *under_way.entry(layer).or_default() += bytes;
        }
    }
    let states = (0..).zip(&replay.layers);
    let layers: Vec<LayerPrediction> = states
        .map(|(index, state)| {
            let more = under_way.get(&index).copied().unwrap_or(0);
            layer(state, more)
        })
        .collect();
    let connections = replay.layers.iter().map(LayerState::connections);
    let times = &replay.times;
    Prediction {
        seconds: replay.machine.now(),
        pull_seconds: times.pulled,
        prefetch_wait_seconds: times.prefetch_wait,
        network_wait_seconds: times.network_wait,
        inflate_wait_seconds: times.inflate_wait,
        bytes: replay.bytes + layers.iter().map(|layer| layer.bytes).sum::<u64>(),
        requests: replay.requests + layers.iter().map(|layer| layer.requests).sum::<u64>(),
        // One for the documents.
        connections: 1 + connections.sum::<u64>(),
        layers,
        unused: unused(replay),
        missed: missed(replay),
        unknown_files: replay.steps.unknown_files,
    }
}

fn layer_of(actor: Actor) -> Option<u32> {
    match actor {
        Actor::Resolve(layer)
        | Actor::Download(layer)
        | Actor::Prefetch(layer)
        | Actor::Worker(layer, _) => Some(layer),
        // The workload's own transfer has ended when it is ready.
        Actor::Pull | Actor::Unpack | Actor::Container | Actor::Workload => None,
    }
}

fn layer(state: &LayerState<'_>, under_way_bytes: u64) -> LayerPrediction {
    let prefetch = &state.prefetch;
    let unused_bytes = state.contents.map_or(0, |contents| {
        let members = contents.members.iter();
        members
            .filter(|member| member.offset_bytes < prefetch.end_bytes)
            .filter(|member| !member.rows.iter().any(|&row| state.used[row as usize]))
            .map(Member::len_bytes)
            .sum()
    });
    LayerPrediction {
        digest: state.model.digest,
        size_bytes: state.model.size_bytes,
        lazy: state.contents.is_some(),
        bytes: state.bytes + under_way_bytes,
        requests: state.requests,
        prefetch_bytes: prefetch.end_bytes,
        prefetched_after_seconds: prefetch.over.filter(|_| !prefetch.failed),
        unused_bytes,
        missed_chunks: state.missed_chunks,
        missed_bytes: state.missed_bytes,
    }
}

fn unused(replay: &Replay<'_>) -> Vec<UnusedFile> {
    let mut unused = Vec::new();
    for (layer, state) in (0..).zip(&replay.layers) {
        let Some(contents) = state.contents else {
            continue;
        };
        for (index, file) in (0..).zip(&contents.files) {
            let (mut bytes, mut compressed) = (0, 0);
            for row in contents.rows_of(index) {
                let member = contents.member_of(row);
                if state.used[row as usize] || member.offset_bytes >= state.prefetch.end_bytes {
                    continue;
                }
                bytes += contents.rows[row as usize].chunk_bytes;
                // Of a member that several share, each has its part.
                compressed += member.len_bytes() / member.rows.len() as u64;
            }
            if bytes > 0 {
                unused.push(UnusedFile {
                    layer,
                    path: file.path.clone(),
                    size_bytes: file.size_bytes,
                    unused_bytes: bytes,
                    compressed_bytes: compressed,
                });
            }
        }
    }
    unused.sort_by(|a, b| {
        let key = |file: &UnusedFile| std::cmp::Reverse(file.compressed_bytes);
        key(a).cmp(&key(b)).then_with(|| a.path.cmp(&b.path))
    });
    unused
}

fn missed(replay: &Replay<'_>) -> Vec<MissedFile> {
    let mut files: BTreeMap<(u32, u32), (u64, u64, f64)> = BTreeMap::new();
    for wait in &replay.waits {
        let (chunks, bytes, seconds) = files.entry((wait.layer, wait.file)).or_default();
        *chunks += wait.chunks;
        *bytes += wait.bytes;
        *seconds += wait.seconds;
    }
    let with_bytes = files.into_iter().filter(|(_, (chunks, ..))| *chunks > 0);
    let mut missed: Vec<MissedFile> = with_bytes
        .filter_map(|((layer, file), (chunks, bytes, seconds))| {
            let contents = replay.layers[layer as usize].contents?;
            let file = &contents.files[file as usize];
            Some(MissedFile {
                layer,
                path: file.path.clone(),
                size_bytes: file.size_bytes,
                chunks,
                bytes,
                seconds,
            })
        })
        .collect();
    missed.sort_by(|a, b| {
        let slowest = b.seconds.total_cmp(&a.seconds);
        slowest.then_with(|| a.path.cmp(&b.path))
    });
    missed
}
