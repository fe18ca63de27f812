//! The deflate decoder against zlib-rs, and members cut out of whatever is a valid stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| esgz::layer::deflate::fuzz_one(data));
