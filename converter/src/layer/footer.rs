//! The eStargz footer (eStargz specification, "Footer"): an empty gzip member whose extra field
//! tells where the TOC starts. Pure.

/// Length of the footer in bytes.
pub const FOOTER_BYTES: usize = 51;
/// Length of the footer of legacy stargz, which has no subfield header.
pub const LEGACY_FOOTER_BYTES: usize = 47;

/// Gzip header with FEXTRA, then XLEN = 26 and the subfield `SG` of 22 bytes.
const HEAD: [u8; 16] = [
    0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0,
];
/// An empty final stored block, then CRC-32 and ISIZE of nothing.
const TAIL: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
const MAGIC: &[u8; 6] = b"STARGZ";

/// The footer of a blob whose TOC member starts at `toc_offset_bytes`.
pub fn footer(toc_offset_bytes: u64) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    footer[..16].copy_from_slice(&HEAD);
    footer[16..32].copy_from_slice(format!("{toc_offset_bytes:016x}").as_bytes());
    footer[32..38].copy_from_slice(MAGIC);
    footer[38..].copy_from_slice(&TAIL);
    footer
}

/// Where the TOC member of a blob that ends in `end` starts; `None` if these are no footer's bytes.
pub fn parse(end: &[u8; FOOTER_BYTES]) -> Option<u64> {
    if end[..16] != HEAD || &end[32..38] != MAGIC || end[38..] != TAIL {
        return None;
    }
    let digits = &end[16..32];
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any offset comes back; what parses has our bytes, but for the digits' case.
        #[test]
        fn nothing_else_parses(offset: u64, at in 0..FOOTER_BYTES, byte: u8) {
            let bytes = footer(offset);
            prop_assert_eq!(parse(&bytes), Some(offset));
            let mut changed = bytes;
            changed[at] = byte;
            if let Some(other) = parse(&changed) {
                changed[16..32].make_ascii_lowercase();
                prop_assert_eq!(footer(other), changed);
            }
        }
    }

    #[test]
    fn footers_round_trip_and_every_byte_matters() {
        for offset in [0, 1, 0x1234_5678_9abc, u64::MAX] {
            let bytes = footer(offset);
            assert_eq!(parse(&bytes), Some(offset));
            for at in (0..16).chain(32..FOOTER_BYTES) {
                let mut damaged = bytes;
                damaged[at] ^= 1;
                assert_eq!(parse(&damaged), None, "byte {at}");
            }
        }
        let mut signed = footer(1);
        signed[16] = b'+';
        assert_eq!(parse(&signed), None);
    }
}
