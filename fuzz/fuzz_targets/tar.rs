//! Tar headers: any bytes give entries or an error, and an entry lies within the bytes.
#![no_main]

use esgz::layer::scan::tar::read_entries;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tar: &[u8]| {
    let Ok(archive) = read_entries(tar) else {
        return;
    };
    let len_bytes = tar.len() as u64;
    assert!(archive.end_of_entries_bytes <= len_bytes);
    let mut reached = 0;
    for entry in &archive.entries {
        assert!(entry.header.offset_bytes >= reached);
        assert!(entry.payload.end_bytes() <= len_bytes);
        reached = entry.payload.end_bytes();
        let mut stored = 0;
        for segment in entry.data() {
            assert!(segment.file_offset_bytes >= stored);
            stored = segment.file_offset_bytes + segment.stored.len_bytes;
            assert!(segment.stored.end_bytes() <= len_bytes);
        }
        assert!(stored <= entry.size_bytes);
        assert!(entry.path().is_some());
    }
});
