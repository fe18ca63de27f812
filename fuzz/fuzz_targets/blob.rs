//! A whole eStargz blob, as `esgz verify` reads it.
#![no_main]

use esgz::blob::Blob;
use esgz::cancel::Cancel;
use esgz::layer::Parallel;
use esgz::layer::verify::{VerifyOptions, verify_entries};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|blob: &[u8]| {
    let options = VerifyOptions {
        parallel: Parallel {
            threads: 1,
            memory_bytes: 1 << 20,
        },
        toc_memory_bytes: 16 << 20,
        max_layer_bytes: 8 << 20,
    };
    let mut entries = 0;
    let found = verify_entries(&Blob::of_bytes(blob.to_vec()), options, &Cancel::default(), |_| entries += 1);
    if let Ok(found) = found {
        assert_eq!(found.files, entries);
        assert_eq!(found.size_bytes, blob.len() as u64);
    }
});
