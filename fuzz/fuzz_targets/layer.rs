//! A whole source layer, in whatever compression: decompression and tar.
#![no_main]

use esgz::cancel::Cancel;
use esgz::image::Digest;
use esgz::layer::scan::{Expected, ScanError, Keep, ScanOptions, scan_layer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|blob: &[u8]| {
    let digest = Digest::of(blob);
    let mut expected = Expected {
        digest,
        size_bytes: blob.len() as u64,
        diff_id: digest,
    };
    let options = ScanOptions {
        scratch: std::env::temp_dir(),
        max_layer_bytes: 1 << 20,
        entry_memory: esgz::layer::scan::EntryMemory::new(64 << 20),
        keep: Keep::Spool,
        decode: esgz::layer::scan::DecodeOptions::ONE_THREAD,
    };
    let cancel = Cancel::default();
    // The first error tells the DiffID; with it the tar is read, too.
    if let Err(ScanError::DiffIdMismatch { found, .. }) =
        scan_layer(blob, None, &expected, &options, &[&cancel])
    {
        expected.diff_id = found;
        let _ = scan_layer(blob, None, &expected, &options, &[&cancel]);
    }
});
