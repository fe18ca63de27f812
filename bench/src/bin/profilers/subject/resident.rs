//! What is in the page cache after a run on a mount without read-ahead: exactly what was touched, without anyone having
//! watched (but for mappings with huge pages). The truth for ranges; it knows no order, and no files that were opened and
//! not read.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::ptr;

use anyhow::{Result, ensure};
use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::{Attached, Seen, SeenFile, Subject};
use crate::scene::Scene;

const PAGE: u64 = 4096;

/// mincore(2) on every file.
pub(crate) struct Resident;

impl Subject for Resident {
    fn name(&self) -> &str {
        "mincore, no read-ahead"
    }

    fn read_ahead_kib(&self) -> u32 {
        0
    }

    fn attach(&self, _scene: &Scene) -> Result<Box<dyn Attached>> {
        Ok(Box::new(Self))
    }
}

impl Attached for Resident {
    fn finish(self: Box<Self>, scene: &Scene) -> Result<Option<Seen>> {
        let mut files = Vec::new();
        for (row, file) in scene.files.iter().enumerate() {
            if file.size_bytes == 0 {
                continue;
            }
            // The workload may have removed it, or put something else in its place.
            let Ok(opened) = scene.open(&file.path, OFlags::RDONLY | OFlags::NONBLOCK) else {
                continue;
            };
            if scene.row(&file.path) != Some(row) {
                continue;
            }
            let pages = resident(&opened, file.size_bytes)?;
            let ranges = ranges(&pages, file.size_bytes);
            if !ranges.is_empty() {
                let ranges = Some(ranges);
                files.push(SeenFile { row, ranges });
            }
        }
        let lost_events = None;
        Ok(Some(Seen { files, lost_events }))
    }
}

/// For each page, whether it is cached.
fn resident(file: &File, size_bytes: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(size_bytes)?;
    let mut pages = vec![0_u8; len.div_ceil(PAGE as usize)];
    ensure!(file.metadata()?.len() >= size_bytes, "the file was cut");
    let protection = ProtFlags::READ;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start =
        unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::PRIVATE, file, 0)? };
    // SAFETY: the mapping made above, and a vector with a byte for each of its pages.
    let result = unsafe { nix::libc::mincore(start, len, pages.as_mut_ptr()) };
    let failure = std::io::Error::last_os_error();
    // SAFETY: the mapping made above; nothing refers to it.
    unsafe { rustix::mm::munmap(start, len)? };
    ensure!(
        result == 0,
        "mincore of descriptor {}: {failure}",
        file.as_raw_fd()
    );
    Ok(pages)
}

/// Offsets and lengths of the stretches of pages that are set, in bytes; the last one ends with the file.
fn ranges(pages: &[u8], size_bytes: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (page, cached) in pages.iter().enumerate() {
        if cached & 1 == 0 {
            continue;
        }
        let offset = page as u64 * PAGE;
        let len = PAGE.min(size_bytes - offset);
        match ranges.last_mut() {
            Some((start, before)) if *start + *before == offset => *before += len,
            _ => ranges.push((offset, len)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_joined_and_end_with_the_file() {
        assert_eq!(ranges(&[1, 1, 0, 1], 12298), [(0, 8192), (12288, 10)]);
        assert_eq!(ranges(&[0, 0], 8192), []);
    }
}
