//! Headers of gzip members (RFC 1952, 2.3), byte by byte.

use libdeflater::Crc;

use super::error::Fault;

const FLAG_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0xe0;

/// A header without optional fields, time and system: what every member of ours begins with.
pub(super) const PLAIN_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// CRC-32 and length.
pub(super) const TRAILER_BYTES: usize = 8;

/// Reads a header from `next` up to its last byte.
pub(super) fn read_header<E: From<Fault>>(
    mut next: impl FnMut() -> Result<u8, E>,
) -> Result<(), E> {
    let mut fixed = [0; 10];
    for byte in &mut fixed {
        *byte = next()?;
    }
    let [first, second, method, flags, ..] = fixed;
    if (first, second) != (0x1f, 0x8b) {
        return Err(Fault::Magic.into());
    }
    if method != 8 {
        return Err(Fault::Method.into());
    }
    if flags & FLAGS_RESERVED != 0 {
        return Err(Fault::Flags.into());
    }
    let mut crc = Crc::new();
    crc.update(&fixed);
    let mut summed = || {
        let byte = next()?;
        if flags & FLAG_CRC != 0 {
            crc.update(&[byte]);
        }
        Ok::<u8, E>(byte)
    };
    if flags & FLAG_EXTRA != 0 {
        let len_bytes = u16::from_le_bytes([summed()?, summed()?]);
        for _ in 0..len_bytes {
            summed()?;
        }
    }
    for flag in [FLAG_NAME, FLAG_COMMENT] {
        if flags & flag != 0 {
            while summed()? != 0 {}
        }
    }
    if flags & FLAG_CRC != 0 {
        let expected = crc.sum().to_le_bytes();
        if [next()?, next()?] != expected[..2] {
            return Err(Fault::HeaderCrc.into());
        }
    }
    Ok(())
}

/// What follows the header of `member`, if that has a name or a comment.
pub(super) fn behind_names(member: &[u8]) -> Result<Option<&[u8]>, Fault> {
    let mut rest = member;
    read_header(|| {
        let (&byte, behind) = rest.split_first().ok_or(Fault::Truncated)?;
        rest = behind;
        Ok::<u8, Fault>(byte)
    })?;
    let flags = member.get(3).copied().unwrap_or_default();
    Ok((flags & (FLAG_NAME | FLAG_COMMENT) != 0).then_some(rest))
}
