//! A gzip member: libdeflate and zlib-rs agree on what it holds and where it ends.
#![no_main]

use std::io::Read as _;

use esgz::sys::gzip::{MemberError, MemberInflater};
use flate2::bufread::GzDecoder;
use libfuzzer_sys::fuzz_target;

const ROOM_BYTES: usize = 1 << 20;

fuzz_target!(|gzip: &[u8]| {
    let mut ours = vec![0; ROOM_BYTES];
    let found = MemberInflater::default().member(gzip, &mut ours);
    let mut rest = gzip;
    let mut theirs = Vec::new();
    let limit = ROOM_BYTES as u64 + 1;
    let read = GzDecoder::new(&mut rest).take(limit).read_to_end(&mut theirs);
    match found {
        // zlib-rs checks the header's own checksum as well.
        Ok(member) if read.is_ok() => {
            assert_eq!(member.raw_bytes, theirs.len());
            assert_eq!(ours[..member.raw_bytes], theirs);
            assert_eq!(member.gzip_bytes, gzip.len() - rest.len());
        }
        Ok(member) => assert!(gzip[3] & 2 != 0, "{member:?} is an error elsewhere: {read:?}"),
        Err(MemberError::OutputFull) => assert!(theirs.len() > ROOM_BYTES || read.is_err()),
        Err(MemberError::Corrupt) => {
            assert!(read.is_err() || theirs.len() > ROOM_BYTES, "corrupt only here");
        }
    }
});
