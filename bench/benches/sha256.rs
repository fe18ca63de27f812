//! Digests of up to four streams with the same bytes, of two with their own, and that of the crate sha2. Bytes are
//! those of one stream: at the same rate, two digests are twice the work.
#![allow(missing_docs, reason = "the macros of criterion make public items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use esgz::image::{Digest, Hasher};
use sha2::Digest as _;

const BYTES: usize = 4 << 20;

fn streams<const N: usize>(bytes: &[u8]) -> [Digest; N] {
    // Each has seen something else before: of streams that are alike the compiler makes one.
    let mut hashers: [Hasher; N] = std::array::from_fn(|number| {
        let mut hasher = Hasher::default();
        hasher.update(&[number as u8; 64]);
        hasher
    });
    Hasher::update_all(hashers.each_mut(), bytes);
    hashers.map(Hasher::finish)
}

fn sha256(criterion: &mut Criterion) {
    let bytes: Vec<u8> = (0..BYTES).map(|byte| (byte % 251) as u8).collect();
    let mut bench = criterion.benchmark_group("sha256");
    bench.throughput(Throughput::Bytes(BYTES as u64));
    bench.bench_function("sha2", |bench| {
        bench.iter(|| sha2::Sha256::digest(black_box(&bytes)));
    });
    bench.bench_function("1 stream", |bench| {
        bench.iter(|| streams::<1>(black_box(&bytes)));
    });
    bench.bench_function("2 streams", |bench| {
        bench.iter(|| streams::<2>(black_box(&bytes)));
    });
    bench.bench_function("3 streams", |bench| {
        bench.iter(|| streams::<3>(black_box(&bytes)));
    });
    bench.bench_function("4 streams", |bench| {
        bench.iter(|| streams::<4>(black_box(&bytes)));
    });
    // Half of the bytes each.
    bench.bench_function("2 streams with bytes of their own", |bench| {
        bench.iter(|| {
            let mut hashers = [Hasher::default(), Hasher::default()];
            let (one, two) = black_box(&bytes).split_at(BYTES / 2);
            Hasher::update_two(hashers.each_mut(), [one, two]);
            hashers.map(Hasher::finish)
        });
    });
}

criterion_group! {
    name = digests;
    config = Criterion::default().sample_size(10);
    targets = sha256
}
criterion_main!(digests);
