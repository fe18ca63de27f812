//! What this machine allows on an image: the parts of a conversion, each in a bare loop.
//!
//! `limits oci:DIR[:TAG] LEVEL THREADS [SCRATCH [PART…]]` prints one line of JSON. Data comes from the
//! page cache; the largest layer is used for what is serial, all layers for the rest. `compress_members`
//! includes reading the members from the scanned layer; `compress_alone` is the compressor's share of it.
#![allow(clippy::print_stdout, reason = "its result is its output")]

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use esgz::blob::{Blob, ReadAt as _};
use esgz::cancel::Cancel;
use esgz::convert::scan_image;
use esgz::layer::buffers::Buffers;
use esgz::layer::deflate::{Block, Container, Sink, decode};
use esgz::layer::encode::{Check, Copied, Encoder, Gathered, Level, read_member};
use esgz::layer::entry::ScannedLayer;
use esgz::layer::placement::Placement;
use esgz::layer::plan::{LayerPlan, Member, PlanOptions, groups, plan_layer};
use esgz::layer::scan::{DecodeOptions, EntryMemory, Keep, ScanOptions};

use esgz::source::{self, OpenOptions, Selection, SourceImage};
use serde_json::{Map, Value, json};
use sha2::Digest as _;

const BLOCK_BYTES: usize = 1 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [image, level, threads, rest @ ..] = args.as_slice() else {
        return Err(anyhow!(
            "usage: limits oci:DIR[:TAG] LEVEL THREADS [SCRATCH [PART…]]"
        ));
    };
    let level: u8 = level.parse().context("LEVEL")?;
    let level = Level::new(level).context("LEVEL is above 12")?;
    let threads: usize = threads.parse().context("THREADS")?;
    let scratch = rest
        .first()
        .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let open_options = OpenOptions {
        scratch: scratch.clone(),
        max_unpacked_bytes: u64::MAX,
        registry: esgz::registry::RegistryOptions::default(),
    };
    let cancel = Cancel::default();
    let source = source::open(
        &image.parse()?,
        &Selection::ThisMachine,
        &open_options,
        &cancel,
    )?;
    let source = source.into_image()?;
    let options = ScanOptions {
        scratch: scratch.clone(),
        max_layer_bytes: u64::MAX,
        entry_memory: EntryMemory::unlimited(),
        keep: Keep::Spool,
        decode: DecodeOptions::ONE_THREAD,
    };
    let layers = scan_image(&source, &options, threads, &cancel)?;
    let plans = layers
        .iter()
        .map(|layer| {
            Ok(plan_layer(
                layer,
                &Placement::default(),
                PlanOptions::default(),
            )?)
        })
        .collect::<Result<Vec<_>>>()?;
    let tar_bytes: u64 = layers.iter().map(|layer| layer.spool.len_bytes()).sum();

    let mut limits = Map::new();
    let mut add = |name: &str, bytes: u64, seconds: f64| {
        let rate = bytes as f64 / 1e6 / seconds;
        limits.insert(
            name.to_owned(),
            json!({ "seconds": round(seconds), "mb_per_second": round(rate) }),
        );
    };
    let parts = rest.get(1..).unwrap_or_default();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if is_wanted("read_members") {
        let (read, _) = over_members(&layers, &plans, threads, &|| (), &|(), _| Ok(0))?;
        add("read_members", tar_bytes, read);
    }
    let mut gzip_bytes = None;
    if is_wanted("compress_members") {
        let busy_nanoseconds = AtomicU64::new(0);
        let (compress, bytes) = over_members(
            &layers,
            &plans,
            threads,
            &|| (level.compressor(), Vec::new()),
            &|(compressor, out): &mut (_, Vec<u8>), raw| {
                let bound = compressor.gzip_compress_bound(raw.len());
                if out.len() < bound {
                    out.resize(bound, 0);
                }
                let started = Instant::now();
                let len = compressor.gzip_compress(raw, out)?;
                let busy = u64::try_from(started.elapsed().as_nanos())?;
                busy_nanoseconds.fetch_add(busy, Ordering::Relaxed);
                Ok(len as u64)
            },
        )?;
        add("compress_members", tar_bytes, compress);
        let busy_seconds = busy_nanoseconds.into_inner() as f64 / 1e9;
        add("compress_alone", tar_bytes, busy_seconds / threads as f64);
        gzip_bytes = Some(bytes);
    }
    let mut copied_gzip_bytes = None;
    if is_wanted("copy_members") {
        let (seconds, bytes) = copy_members(&source, &layers, &plans, threads)?;
        add("copy_members", tar_bytes, seconds);
        copied_gzip_bytes = Some(bytes);
    }
    let largest = (0..layers.len())
        .max_by_key(|&index| layers[index].size_bytes)
        .context("the image has no layer")?;
    let layer_bytes = layers[largest].spool.len_bytes();
    if is_wanted("sha256_layer") {
        add("sha256_layer", layer_bytes, sha256(&layers[largest])?);
    }
    if is_wanted("inflate_layer") {
        let blob = source.open_layer(&source.layers[largest])?;
        add("inflate_layer", layer_bytes, inflate(blob)?);
    }
    if is_wanted("decode_layer") {
        let blob = source.open_layer(&source.layers[largest])?;
        add("decode_layer", layer_bytes, decode_layer(blob)?);
    }
    if is_wanted("write_blob") {
        let blob_bytes = layers[largest].size_bytes;
        add(
            "write_blob",
            blob_bytes,
            write(blob_bytes, &scratch, Synced::Yes)?,
        );
    }
    if is_wanted("write_layer") {
        add(
            "write_layer",
            layer_bytes,
            write(layer_bytes, &scratch, Synced::No)?,
        );
    }
    let result = json!({
        "tar_bytes": tar_bytes,
        "members": plans.iter().map(|plan| plan.members.len()).sum::<usize>(),
        "gzip_bytes": gzip_bytes,
        "copied_gzip_bytes": copied_gzip_bytes,
        "threads": threads,
        "limits": Value::Object(limits),
    });
    println!("{result}");
    Ok(())
}

/// Seconds that `work` takes on every planned member, on `threads` threads, and the sum of what it
/// gives.
fn over_members<S>(
    layers: &[ScannedLayer],
    plans: &[LayerPlan],
    threads: usize,
    state: &(impl Fn() -> S + Sync),
    work: &(impl Fn(&mut S, &[u8]) -> Result<u64> + Sync),
) -> Result<(f64, u64)> {
    let jobs: Vec<(usize, &Member)> = plans
        .iter()
        .enumerate()
        .flat_map(|(layer, plan)| plan.members.iter().map(move |member| (layer, member)))
        .collect();
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let sum = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<u64> {
                    let (mut raw, mut state, mut sum) = (Vec::new(), state(), 0);
                    while let Some(&(layer, member)) =
                        jobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        raw.resize(member.len_bytes as usize, 0);
                        read_member(&plans[layer], member, &layers[layer].spool, &mut raw)?;
                        sum += work(&mut state, &raw)?;
                    }
                    Ok(sum)
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
            .sum::<Result<u64>>()
    })?;
    Ok((started.elapsed().as_secs_f64(), sum))
}

/// One thread: the digest of the uncompressed tar.
fn sha256(layer: &ScannedLayer) -> Result<f64> {
    let started = Instant::now();
    let mut hasher = sha2::Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut at = 0;
    while at < layer.spool.len_bytes() {
        let len = (layer.spool.len_bytes() - at).min(BLOCK_BYTES as u64) as usize;
        layer.spool.read_exact_at(&mut block[..len], at)?;
        hasher.update(&block[..len]);
        at += len as u64;
    }
    std::hint::black_box(hasher.finalize());
    Ok(started.elapsed().as_secs_f64())
}

/// One thread: the blob inflated as a stream.
fn inflate(blob: Blob) -> Result<f64> {
    let started = Instant::now();
    let mut decoder =
        flate2::bufread::MultiGzDecoder::new(std::io::BufReader::with_capacity(BLOCK_BYTES, blob));
    let mut block = vec![0; BLOCK_BYTES];
    while decoder.read(&mut block)? > 0 {}
    Ok(started.elapsed().as_secs_f64())
}

/// Whether what was written is on the disk when the time is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Synced {
    Yes,
    No,
}

/// One thread: as many bytes written to a file.
fn write(len_bytes: u64, scratch: &PathBuf, synced: Synced) -> Result<f64> {
    let mut file = tempfile::tempfile_in(scratch)?;
    let block = vec![1; BLOCK_BYTES];
    let started = Instant::now();
    let mut at = 0;
    while at < len_bytes {
        let len = (len_bytes - at).min(BLOCK_BYTES as u64) as usize;
        file.write_all(&block[..len])?;
        at += len as u64;
    }
    if synced == Synced::Yes {
        file.sync_data()?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Gives every block back.
struct Forget;

impl Sink for Forget {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        Some(block.into_buffer())
    }
}

/// One thread: the blob through esgz's own decoder, with its index.
fn decode_layer(blob: Blob) -> Result<f64> {
    let started = Instant::now();
    std::hint::black_box(decode(blob, Container::Gzip, u64::MAX, &mut Forget)?);
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds that all members take on `threads` threads where the source's tokens are copied, reading them
/// included, and their bytes. Layers that are not gzip are compressed.
fn copy_members(
    source: &SourceImage,
    layers: &[ScannedLayer],
    plans: &[LayerPlan],
    threads: usize,
) -> Result<(f64, u64)> {
    let buffers = Buffers::default();
    let (mut seconds, mut bytes) = (0.0, 0);
    for ((layer, plan), of) in layers.iter().zip(plans).zip(&source.layers) {
        let blob = source.open_layer(of)?;
        let groups = groups(plan);
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        bytes += thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| -> Result<u64> {
                        let copied = layer.deflate.as_ref().map(|index| Copied {
                            compressed: &blob,
                            index,
                        });
                        let level = Level::FOR_THE_REST;
                        let mut encoder = Encoder::new(level, Check::Skip, &buffers);
                        let mut sum = 0;
                        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let gathered = Gathered::read(plan, group, &layer.spool, &buffers)?;
                            let encoded = encoder.encode(gathered, copied.as_ref(), 0)?;
                            sum += encoded.gzip_len_bytes();
                            encoded.recycle(&buffers);
                        }
                        Ok(sum)
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
                .sum::<Result<u64>>()
        })?;
        seconds += started.elapsed().as_secs_f64();
    }
    Ok((seconds, bytes))
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
