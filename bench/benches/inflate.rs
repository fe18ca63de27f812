//! Decoding a whole gzip layer on one thread: ours, which leaves an index, zlib-rs as a stream, and
//! libdeflate into one buffer, which is as fast as it gets. Bytes are uncompressed ones.
#![allow(missing_docs, reason = "the macros of criterion make public items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use esgz::layer::deflate::{Block, Container, Sink, decode};
use esgz_bench::input::{Layer, inflate_zlib};
use libdeflater::Decompressor;

const BLOCK_BYTES: usize = 512 << 10;

/// Lets the decoder use its buffer again.
struct Discard;

impl Sink for Discard {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        Some(block.into_buffer())
    }
}

fn inflate(criterion: &mut Criterion) {
    let Layer { tar, gzip } = Layer::of_files(4, 8 << 20).expect("memory can be written");
    let mut bench = criterion.benchmark_group("inflate");
    bench.throughput(Throughput::Bytes(tar.len() as u64));
    bench.bench_function("esgz", |bench| {
        bench.iter(|| decode(&*gzip, Container::Gzip, u64::MAX, &mut Discard));
    });
    let mut block = vec![0; BLOCK_BYTES];
    bench.bench_function("zlib-rs", |bench| {
        bench.iter(|| inflate_zlib(&gzip, &mut block));
    });
    let mut whole = vec![0; tar.len()];
    let mut decompressor = Decompressor::new();
    bench.bench_function("libdeflate", |bench| {
        bench.iter(|| decompressor.gzip_decompress(&gzip, &mut whole));
    });
}

criterion_group! {
    name = inflating;
    config = Criterion::default().sample_size(10);
    targets = inflate
}
criterion_main!(inflating);
