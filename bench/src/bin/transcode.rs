//! Decoding and cutting a gzip file, in bare loops on one thread.
//!
//! `transcode FILE ROUNDS [MIB [CHUNK_BYTES…]]` decodes the first MIB (1024) of uncompressed bytes with
//! our decoder, zlib-rs as a stream, and libdeflate into one buffer, in turns; it prints the medians in
//! MB/s of CPU time in user mode. With chunk sizes it makes members of such chunks of the same bytes.
#![allow(clippy::print_stdout, reason = "its result is its output")]

use std::fs::File;
use std::io::Read;

use anyhow::{Context as _, Result, anyhow, ensure};
use esgz::layer::deflate::{
    Block, Container, DecodeError, Index, Run, Sink, Source, Transcoder, decode,
};
use esgz::layer::encode::Level;
use flate2::bufread::MultiGzDecoder;
use libdeflater::{Crc, DecompressionError, Decompressor};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

const BLOCK_BYTES: usize = 512 << 10;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, rounds, rest @ ..] = args.as_slice() else {
        return Err(anyhow!("usage: transcode FILE ROUNDS [MIB [CHUNK_BYTES…]]"));
    };
    let rounds: usize = rounds.parse().context("ROUNDS")?;
    let mib: usize = rest.first().map_or(Ok(1024), |mib| mib.parse())?;
    ensure!(rounds > 0, "ROUNDS is 0");
    let mut compressed = Vec::new();
    // No gzip stream is longer than its bytes, but for headers.
    File::open(file)
        .with_context(|| format!("opening {file}"))?
        .take((mib as u64 + 1) << 20)
        .read_to_end(&mut compressed)?;

    let mut bytes = vec![0; mib << 20];
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        let whole = libdeflate(&compressed, &mut bytes)?;
        bytes.truncate(whole.bytes);
        let turns = [
            ours(&compressed, whole.bytes)?,
            zlib(&compressed, whole.bytes)?,
            whole,
        ];
        for (rates, turn) in rates.iter_mut().zip(turns) {
            rates.push(turn.bytes as f64 / 1e6 / turn.seconds);
        }
        println!("round {round}: {:.0?}", rates.each_ref().map(|r| r[round]));
    }
    let [ours, zlib, libdeflate] = rates.map(median);
    println!(
        "decode, MB/s: ours {ours:.0}, zlib-rs {zlib:.0}, libdeflate {libdeflate:.0}; ratios {:.3}, {:.3}",
        ours / zlib,
        ours / libdeflate
    );
    for chunk_bytes in rest.iter().skip(1) {
        cut(
            &compressed,
            &bytes,
            chunk_bytes.parse().context("CHUNK_BYTES")?,
        )?;
    }
    Ok(())
}

struct Turn {
    bytes: usize,
    seconds: f64,
}

/// CPU seconds that this thread spent in user mode.
fn user_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    Ok(usage.user_time().num_microseconds() as f64 / 1e6)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Counts bytes and keeps a finished index, if the stream is decoded to its end.
#[derive(Default)]
struct Counter(usize);

impl Sink for Counter {
    fn block(&mut self, block: Block) -> Option<Vec<u8>> {
        self.0 += block.bytes().len();
        Some(block.into_buffer())
    }
}

fn ours(compressed: &[u8], limit: usize) -> Result<Turn> {
    let started = user_seconds()?;
    let mut counter = Counter::default();
    match decode(compressed, Container::Gzip, limit as u64, &mut counter) {
        Ok(_) | Err(DecodeError::TooLarge { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let seconds = user_seconds()? - started;
    Ok(Turn {
        bytes: counter.0,
        seconds,
    })
}

fn zlib(compressed: &[u8], limit: usize) -> Result<Turn> {
    let started = user_seconds()?;
    let mut decoder = MultiGzDecoder::new(compressed);
    let mut block = vec![0; BLOCK_BYTES];
    let mut bytes = 0;
    while bytes < limit {
        match decoder.read(&mut block)? {
            0 => break,
            len => bytes += len,
        }
    }
    let seconds = user_seconds()? - started;
    Ok(Turn { bytes, seconds })
}

/// Of a stream that is longer than the buffer, its beginning; then the checksum is made here.
fn libdeflate(compressed: &[u8], bytes: &mut [u8]) -> Result<Turn> {
    let mut decompressor = Decompressor::new();
    let started = user_seconds()?;
    let len = match decompressor.gzip_decompress(compressed, bytes) {
        Ok(len) => len,
        Err(DecompressionError::InsufficientSpace) => {
            let mut crc = Crc::new();
            crc.update(bytes);
            std::hint::black_box(crc.sum());
            bytes.len()
        }
        Err(error) => return Err(error.into()),
    };
    let seconds = user_seconds()? - started;
    Ok(Turn {
        bytes: len,
        seconds,
    })
}

/// Makes members of all chunks and says what that costs.
fn cut(compressed: &[u8], bytes: &[u8], chunk_bytes: usize) -> Result<()> {
    let index = whole_index(compressed)?;
    let source = Source {
        compressed,
        index: &index,
    };
    let mut transcoder = Transcoder::new(Level::default().compressor());
    let (mut member, mut output_bytes, mut copied_bytes) = (Vec::new(), 0, 0);
    let started = user_seconds()?;
    for (number, part) in bytes.chunks(chunk_bytes).enumerate() {
        let run = Run {
            start: 0,
            len_bytes: part.len(),
            source_bytes: (number * chunk_bytes) as u64,
        };
        member.clear();
        copied_bytes += transcoder
            .member(part, &[run], &source, &mut member, None)?
            .copied_bytes;
        output_bytes += member.len();
    }
    let seconds = user_seconds()? - started;
    println!(
        "chunks of {chunk_bytes}: {:.0} MB/s, copied {:.2} %, output {output_bytes} bytes, {:.3} % of the source",
        bytes.len() as f64 / 1e6 / seconds,
        copied_bytes as f64 * 100.0 / bytes.len() as f64,
        output_bytes as f64 * 100.0 / compressed.len() as f64,
    );
    Ok(())
}

fn whole_index(compressed: &[u8]) -> Result<Index> {
    let decoded = decode(
        compressed,
        Container::Gzip,
        u64::MAX,
        &mut Counter::default(),
    )
    .context("chunks are made of a file that fits whole in MIB")?;
    Ok(decoded.index)
}
