//! What all commands share that read an image.

use std::path::PathBuf;
use std::thread;

use crate::cancel::Cancel;
use crate::cli::args::{PlatformArgs, ReadingArgs};
use crate::cli::containerd::Remotes;
use crate::cli::failure::Failure;
use crate::image::ImageRef;
use crate::layer::Parallel;
use crate::layer::scan::{DecodeOptions, EntryMemory, Keep, ScanOptions};
use crate::source::{self, OpenOptions, Selection, Source};

/// For commands that have no flag for it.
const MAX_UNPACKED_BYTES: u64 = 256 << 30;
const USUAL_MEMORY_BYTES: u64 = 512 << 20;

pub(super) fn scan_options(args: &ReadingArgs) -> ScanOptions {
    ScanOptions {
        scratch: args.scratch.clone().unwrap_or_else(default_scratch),
        max_layer_bytes: args.max_layer_size,
        entry_memory: EntryMemory::new(args.memory / 2),
        keep: Keep::Readable,
        decode: DecodeOptions {
            // Of the half for buffers: another half of it is the encoder's.
            parallel: Parallel {
                threads: threads(args),
                memory_bytes: args.memory / 4,
            },
            index_cache: None,
        },
    }
}

/// For commands that have no flags for it: the defaults of those that have.
pub(super) fn usual_scan_options() -> ScanOptions {
    ScanOptions {
        scratch: default_scratch(),
        max_layer_bytes: MAX_UNPACKED_BYTES,
        entry_memory: EntryMemory::new(USUAL_MEMORY_BYTES / 2),
        keep: Keep::Readable,
        decode: DecodeOptions {
            parallel: Parallel {
                threads: all_cores(),
                memory_bytes: USUAL_MEMORY_BYTES / 4,
            },
            index_cache: None,
        },
    }
}

pub(super) fn threads(args: &ReadingArgs) -> usize {
    args.threads.map_or_else(all_cores, usize::from)
}

pub(super) fn all_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

pub(super) fn default_scratch() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// What the flags select; `unless` they say nothing.
fn selection(args: &PlatformArgs, unless: Selection) -> Selection {
    if args.all_platforms {
        Selection::All
    } else if args.platform.is_empty() {
        unless
    } else {
        Selection::These(args.platform.clone())
    }
}

/// Opens an image whose layers will be scanned.
pub(super) fn open(
    reference: &ImageRef,
    platforms: &PlatformArgs,
    scan: &ScanOptions,
    remotes: Remotes,
    cancel: &Cancel,
) -> Result<Source, Failure> {
    let selection = selection(platforms, Selection::ThisMachine);
    let options = OpenOptions {
        scratch: scan.scratch.clone(),
        max_unpacked_bytes: scan.max_layer_bytes,
        registry: remotes.registry,
        containerd: remotes.containerd,
    };
    Ok(source::open(reference, &selection, &options, cancel)?)
}

/// Opens an image to look at it; `unless` flags select platforms.
pub(super) fn open_to_look(
    reference: &ImageRef,
    platforms: &PlatformArgs,
    unless: Selection,
    remotes: Remotes,
    cancel: &Cancel,
) -> Result<Source, Failure> {
    let options = OpenOptions {
        scratch: default_scratch(),
        max_unpacked_bytes: MAX_UNPACKED_BYTES,
        registry: remotes.registry,
        containerd: remotes.containerd,
    };
    let selection = selection(platforms, unless);
    Ok(source::open(reference, &selection, &options, cancel)?)
}
