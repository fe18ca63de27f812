//! `bystander DIR`: a process outside of the watched cgroup. It does a fixed amount of two sorts of work and prints, as
//! JSON, how long each took by the clock and in CPU time.
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
const READS: usize = 20_000;
const OPENS: usize = 600_000;

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
    let reading = timed(|| {
        let mut digest = Sha256::new();
        for i in 0..READS {
            digest.update(fs::read(&paths[i % FILES])?);
        }
        std::hint::black_box(digest.finalize());
        Ok(())
    })?;
    let opening = timed(|| {
        for i in 0..OPENS {
            drop(File::open(&paths[i % FILES])?);
        }
        Ok(())
    })?;
    println!("{}", json!({"reading": reading, "opening": opening}));
    for path in &paths {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<serde_json::Value> {
    let cpu_now = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let (started, cpu) = (Instant::now(), cpu_now());
    work()?;
    Ok(json!({
        "wall_seconds": started.elapsed().as_secs_f64(),
        "cpu_seconds": cpu_now() - cpu,
    }))
}
