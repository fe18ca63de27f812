//! ctr-remote's record.
#![no_main]

use esgz::profile::parse_record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(lines) = parse_record(bytes) {
        assert!(lines.len() <= bytes.len());
    }
});
