//! A TOC's JSON and the rules among its rows.
#![no_main]

use esgz::layer::verify::{check_rows, parse_toc};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let parsed = parse_toc(json, 1 << 20);
    let checked = check_rows(json, 1 << 20);
    // What is consistent is understood by the other reader, too.
    assert!(checked.is_err() || parsed.is_ok());
});
