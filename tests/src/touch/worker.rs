//! The worker: touches what its script says, one action a line.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Does what `script` says, in the current directory.
///
/// # Errors
/// The first action that fails, or does not exist.
///
/// # Panics
/// Where an action lacks a word.
pub fn work(script: &str) -> anyhow::Result<()> {
    for line in script.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words[i].parse::<u64>();
        match words[0] {
            "open" => drop(File::open(words[1])?),
            "missing" => anyhow::ensure!(File::open(words[1]).is_err()),
            "exec" => drop(Command::new(format!("./{}", words[1])).status()?),
            "exec-true" => drop(Command::new("/bin/true").status()?),
            "pread" => pread(words[1], number(2)?, number(3)?)?,
            "random" => random(
                words[1],
                &[(number(2)?, number(3)?), (number(4)?, number(5)?)],
            )?,
            "read" => pread(words[1], 0, number(2)?)?,
            "sendfile" => {
                let mut offset = number(2)?;
                let (sink, file) = (File::create("/dev/null")?, File::open(words[1])?);
                rustix::fs::sendfile(&sink, &file, Some(&mut offset), number(3)? as usize)?;
            }
            "splice" => {
                let (_read, write) = rustix::pipe::pipe()?;
                let (file, mut offset) = (File::open(words[1])?, number(2)?);
                let flags = rustix::pipe::SpliceFlags::empty();
                let len = number(3)? as usize;
                rustix::pipe::splice(&file, Some(&mut offset), &write, None, len, flags)?;
            }
            "mmap" => {
                let pages = words[3..].iter().map(|page| page.parse::<usize>());
                touch_mapping(
                    words[1],
                    words[2],
                    pages.collect::<Result<Vec<_>, _>>()?.as_slice(),
                )?;
            }
            "append" => drop(File::options().append(true).open(words[1])?),
            "misses" => {
                let long = "x".repeat(200);
                for i in 0..number(1)? {
                    anyhow::ensure!(File::open(format!("{long}/{i}")).is_err());
                }
            }
            "race" => race(words[1], number(2)?)?,
            "storm" => storm(
                words.get(4).unwrap_or(&"."),
                number(1)?,
                number(2)?,
                number(3)?,
            )?,
            _ => super::generator::act(&words)?,
        }
    }
    Ok(())
}

/// One system call, whatever the length.
fn pread(name: &str, offset: u64, len: u64) -> anyhow::Result<()> {
    let file = File::open(name)?;
    let mut buffer = vec![0; len as usize];
    file.read_at(&mut buffer, offset)?;
    Ok(())
}

/// Reads without read-ahead.
fn random(name: &str, parts: &[(u64, u64)]) -> anyhow::Result<()> {
    let file = File::open(name)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    for &(offset, len) in parts {
        file.read_at(&mut vec![0; len as usize], offset)?;
    }
    Ok(())
}

fn touch_mapping(name: &str, advice: &str, pages: &[usize]) -> anyhow::Result<()> {
    let file = File::open(name)?;
    let len = file.metadata()?.len() as usize;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            len,
            ProtFlags::READ,
            MapFlags::PRIVATE,
            &file,
            0,
        )?
    };
    let advice = match advice {
        "random" => Advice::Random,
        "huge" => Advice::LinuxHugepage,
        _ => Advice::Normal,
    };
    // SAFETY: the mapping made above; none of these advices changes its contents.
    unsafe { rustix::mm::madvise(start, len, advice)? };
    for page in pages {
        anyhow::ensure!(page * 4096 < len);
        // SAFETY: the offset lies in the mapping, and nobody truncates the file.
        let byte = unsafe { start.cast::<u8>().add(page * 4096).read_volatile() };
        std::hint::black_box(byte);
    }
    // SAFETY: the mapping made above; no reference into it exists.
    unsafe { rustix::mm::munmap(start.cast::<c_void>(), len)? };
    Ok(())
}

/// Two threads read all of a file of `pages` pages, 20 pages at a time, each from its own descriptor.
fn race(name: &str, pages: u64) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let file = File::open(name)?;
                    let mut buffer = vec![0; 20 * 4096];
                    for first in (0..pages).step_by(20) {
                        file.read_at(&mut buffer, first * 4096)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("panic")))
    })
}

/// `threads` threads open and read the files `f0` to `f<files - 1>` of `directory`, `times` times
/// together.
fn storm(directory: &str, threads: u64, files: u64, times: u64) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || -> anyhow::Result<()> {
                    for i in 0..times / threads {
                        let file = (i * 7 + thread * 61) % files;
                        pread(&format!("{directory}/f{file}"), 0, 1)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("panic")))
    })
}
