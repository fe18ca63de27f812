//! `bystander DIR`: a process outside of the watched cgroup. It does a fixed amount of two sorts of work and prints, as
//! JSON, how long each took by the clock and in CPU time: the fastest of some slices, times their number. What hooks cost
//! they cost at each call; a neighbour of the machine takes its time now and then, and half as much again.
//!
//! *reading*: opens a file of 64 KiB, reads and hashes it. *opening*: opens and closes a file, the least that an open can
//! be, so the most that hooks of system calls can add.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const FILES: usize = 64;
/// Of each sort, in turns.
const SLICES: usize = 24;
/// In a slice.
const READS: usize = 1000;
/// In a slice.
const OPENS: usize = 40_000;

/// Works, and prints what it took.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let [dir] = args else {
        bail!("usage: bystander DIR");
    };
    let dir = Path::new(dir);
    let paths: Vec<_> = (0..FILES)
        .map(|i| dir.join(format!("bystander-{i}")))
        .collect();
    for (i, path) in paths.iter().enumerate() {
        fs::write(path, vec![i as u8; 64 << 10])
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (mut reading, mut opening) = (Fastest::default(), Fastest::default());
    for _ in 0..SLICES {
        reading.slice(|| {
            let mut digest = Sha256::new();
            for i in 0..READS {
                digest.update(fs::read(&paths[i % FILES])?);
            }
            std::hint::black_box(digest.finalize());
            Ok(())
        })?;
        opening.slice(|| {
            for i in 0..OPENS {
                drop(File::open(&paths[i % FILES])?);
            }
            Ok(())
        })?;
    }
    println!(
        "{}",
        json!({"reading": reading.to_json(), "opening": opening.to_json()})
    );
    for path in &paths {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// The fastest slice by the clock, and the one that took the least CPU time.
struct Fastest {
    wall_seconds: f64,
    cpu_seconds: f64,
}

impl Default for Fastest {
    fn default() -> Self {
        Self {
            wall_seconds: f64::INFINITY,
            cpu_seconds: f64::INFINITY,
        }
    }
}

impl Fastest {
    fn slice(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let cpu_now = || {
            let now = clock_gettime(ClockId::ProcessCPUTime);
            now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
        };
        let (started, cpu) = (Instant::now(), cpu_now());
        work()?;
        self.wall_seconds = self.wall_seconds.min(started.elapsed().as_secs_f64());
        self.cpu_seconds = self.cpu_seconds.min(cpu_now() - cpu);
        Ok(())
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "wall_seconds": self.wall_seconds * SLICES as f64,
            "cpu_seconds": self.cpu_seconds * SLICES as f64,
        })
    }
}
