//! The footer: what is understood is what would be written.
#![no_main]

use esgz::layer::footer::{FOOTER_BYTES, footer, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; FOOTER_BYTES]| {
    if let Some(offset_bytes) = parse(&bytes) {
        assert!(footer(offset_bytes).eq_ignore_ascii_case(&bytes));
    }
});
