//! BGZF (SAM/BAM format specification, 4.1): every member says in its header how long it is.

use crate::blob::{Blob, ReadAt as _};
use crate::layer::scan::borders::{Proposed, SECTION_BYTES};

/// Fixed header, XLEN, and the only subfield: `BC`, of two bytes.
const HEADER_BYTES: usize = 18;
/// A member's last four bytes: the length of its bytes.
const LENGTH_BYTES: usize = 4;

/// The members, some megabytes of them together.
pub(super) struct Members<'a> {
    blob: &'a Blob,
    /// The next member that is known, and its length.
    next: Option<(u64, u64)>,
}

impl<'a> Members<'a> {
    /// `None` if the blob does not begin as BGZF does.
    pub(super) fn find(blob: &'a Blob) -> Option<Self> {
        let mut header = [0; HEADER_BYTES];
        blob.read_exact_at(&mut header, 0).ok()?;
        Some(Self {
            blob,
            next: Some((0, member_bytes(&header)?)),
        })
    }

    /// Uncompressed bytes of the member that ends at `end_bytes`, and the length of the next one.
    fn step(&self, end_bytes: u64) -> Option<(u64, Option<u64>)> {
        let mut bytes = [0; LENGTH_BYTES + HEADER_BYTES];
        let at = end_bytes.checked_sub(LENGTH_BYTES as u64)?;
        let there = self.blob.len_bytes().saturating_sub(at);
        let len = bytes.len().min(usize::try_from(there).ok()?);
        self.blob.read_exact_at(&mut bytes[..len], at).ok()?;
        let (length, header) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
        let next = header.first_chunk().and_then(member_bytes);
        Some((u32::from_le_bytes(*length).into(), next))
    }
}

impl Iterator for Members<'_> {
    type Item = Proposed;

    fn next(&mut self) -> Option<Proposed> {
        let (start_bytes, mut member_bytes) = self.next.take()?;
        let (mut end_bytes, mut len_bytes) = (start_bytes, 0_u64);
        loop {
            end_bytes = end_bytes.checked_add(member_bytes)?;
            let step = self.step(end_bytes);
            len_bytes = len_bytes.saturating_add(step.map_or(0, |(len_bytes, _)| len_bytes));
            match step {
                Some((_, Some(next))) if len_bytes >= SECTION_BYTES => {
                    self.next = Some((end_bytes, next));
                    break;
                }
                Some((_, Some(next))) => member_bytes = next,
                _ => break,
            }
        }
        Some(Proposed::member(start_bytes, len_bytes))
    }
}

/// The length of a whole member, as its header says.
fn member_bytes(header: &[u8; HEADER_BYTES]) -> Option<u64> {
    let [
        0x1f,
        0x8b,
        8,
        4,
        _,
        _,
        _,
        _,
        _,
        _,
        6,
        0,
        b'B',
        b'C',
        2,
        0,
        l0,
        l1,
    ] = *header
    else {
        return None;
    };
    Some(u64::from(u16::from_le_bytes([l0, l1])) + 1)
}
