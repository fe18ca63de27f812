//! A layer's stages, each alone on one thread, but for the scan, which has three. Bytes are
//! uncompressed ones.
#![allow(missing_docs, reason = "the macros of criterion make public items")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esgz::blob::Blob;
use esgz::layer::assemble::Assembler;
use esgz::layer::buffers::Buffers;
use esgz::layer::encode::{Check, Copied, EncodedGroup, Encoder, Gathered, Level};
use esgz::layer::entry::ScannedLayer;
use esgz::layer::placement::Placement;
use esgz::layer::plan::{LayerPlan, PlanOptions, groups, plan_layer};
use esgz::layer::scan::{scan_layer, tar};
use esgz_bench::input::{Layer, scan_options};

/// Few large files, and many small ones.
const SHAPES: [(&str, usize, usize); 2] = [("large", 4, 8 << 20), ("small", 10_000, 1 << 10)];

struct Made {
    name: &'static str,
    layer: Layer,
    scanned: ScannedLayer,
    plan: LayerPlan,
}

fn made() -> Vec<Made> {
    SHAPES
        .into_iter()
        .map(|(name, files, file_bytes)| {
            let layer = Layer::of_files(files, file_bytes).expect("memory can be written");
            let scanned = layer.scan().expect("a made layer is valid");
            let plan = plan_layer(&scanned, &Placement::default(), PlanOptions::default())
                .expect("no links");
            Made {
                name,
                layer,
                scanned,
                plan,
            }
        })
        .collect()
}

fn encode_all(
    made: &Made,
    level: Level,
    copied: Option<&Copied<'_>>,
    buffers: &Buffers,
    mut take: impl FnMut(EncodedGroup),
) {
    let mut encoder = Encoder::new(level, Check::Skip, buffers);
    for group in groups(&made.plan) {
        let gathered = Gathered::read(&made.plan, &group, &made.scanned.spool, buffers);
        let gathered = gathered.expect("the spool can be read");
        let encoded = encoder.encode(gathered, copied, 0);
        take(encoded.expect("the source can be read"));
    }
}

fn scan(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("scan");
    for made in made() {
        let expected = made.layer.expected();
        bench.throughput(Throughput::Bytes(made.layer.tar.len() as u64));
        bench.bench_function(made.name, |bench| {
            bench.iter(|| scan_layer(&*made.layer.gzip, None, &expected, &scan_options(), &[]));
        });
    }
}

/// Headers are read, contents are not: entries count, not bytes.
fn tar_and_plan(criterion: &mut Criterion) {
    for (name, parse) in [("tar", true), ("plan", false)] {
        let mut bench = criterion.benchmark_group(name);
        for made in made() {
            bench.throughput(Throughput::Elements(made.scanned.entries.len() as u64));
            bench.bench_function(made.name, |bench| {
                if parse {
                    bench.iter(|| tar::read_entries(&*made.layer.tar));
                } else {
                    bench.iter(|| {
                        plan_layer(&made.scanned, &Placement::default(), PlanOptions::default())
                    });
                }
            });
        }
    }
}

fn encode(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("encode");
    let buffers = Buffers::default();
    for made in made() {
        bench.throughput(Throughput::Bytes(made.plan.tar_bytes));
        for number in [1, 6, 9] {
            let level = Level::new(number).expect("there are 12 levels");
            bench.bench_function(BenchmarkId::new(made.name, number), |bench| {
                bench.iter(|| {
                    encode_all(&made, level, None, &buffers, |group| {
                        group.recycle(&buffers);
                    });
                });
            });
        }
        let compressed = Blob::of_bytes(made.layer.gzip.clone());
        let index = made.scanned.deflate.as_deref().expect("a gzip layer");
        bench.bench_function(BenchmarkId::new(made.name, "copy"), |bench| {
            bench.iter(|| {
                let copied = Copied {
                    compressed: &compressed,
                    index,
                };
                encode_all(&made, Level::default(), Some(&copied), &buffers, |group| {
                    group.recycle(&buffers);
                });
            });
        });
    }
}

/// Digests of stream, files and chunks; TOC and footer.
fn assemble(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("assemble");
    let buffers = Buffers::default();
    for made in made() {
        let mut encoded = Vec::new();
        let level = Level::new(1).expect("there are 12 levels");
        encode_all(&made, level, None, &buffers, |group| encoded.push(group));
        bench.throughput(Throughput::Bytes(made.plan.tar_bytes));
        bench.bench_function(made.name, |bench| {
            bench.iter_batched_ref(
                || level.compressor(),
                |compressor| {
                    let mut assembler = Assembler::default();
                    for encoded in &encoded {
                        assembler.group(encoded);
                    }
                    assembler.finish(&made.scanned, &made.plan, compressor).tail
                },
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group! {
    name = stages;
    config = Criterion::default().sample_size(10);
    targets = scan, tar_and_plan, encode, assemble
}
criterion_main!(stages);
