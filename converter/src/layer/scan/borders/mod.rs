//! Where a gzip blob's sections may begin: what its format, or an index of it, says.
//!
//! Proposals, no more: what decoding shows decides. Found are the members of eStargz (by its TOC) and of
//! BGZF (by its members' headers), and the points of a cached index. Nothing is searched for: members that
//! nobody lists, and blocks that stand alone as pigz -i makes them, are decoded one after the other.

mod bgzf;
mod estargz;

use crate::blob::Blob;
use crate::layer::deflate::{Border, BorderKind};
use crate::layer::index_cache::CachedIndex;

/// Uncompressed bytes of a section, about.
pub(super) const SECTION_BYTES: u64 = 4 << 20;

/// A border, as somebody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposed {
    pub(super) border: Border,
    /// Number of its point in the index that has its history; `None` where there is no history.
    pub(super) point: Option<usize>,
    /// About how many uncompressed bytes there are up to the next one.
    pub(super) len_bytes: u64,
}

impl Proposed {
    fn member(start_bytes: u64, len_bytes: u64) -> Self {
        Self {
            border: Border {
                position_bits: start_bytes.saturating_mul(8),
                kind: BorderKind::Member,
            },
            point: None,
            len_bytes,
        }
    }
}

/// Borders in the blob's order, the first one at its start.
pub(super) type Borders<'a> = Box<dyn Iterator<Item = Proposed> + 'a>;

/// What the blob itself says of its members.
pub(super) fn of_members(blob: &Blob) -> Option<Borders<'_>> {
    let starts = estargz::Members::find(blob).map(|found| Box::new(found) as Borders<'_>);
    starts.or_else(|| bgzf::Members::find(blob).map(|found| Box::new(found) as Borders<'_>))
}

/// What an index says.
pub(super) fn of_index(index: &CachedIndex) -> Borders<'_> {
    let from = |number: usize| index.point(number);
    let start = from(0).map(|(_, output_bytes)| Proposed::member(0, output_bytes));
    let points = (0..index.len()).filter_map(move |number| {
        let (border, output_bytes) = from(number)?;
        let next_bytes = from(number + 1).map_or(output_bytes, |(_, bytes)| bytes);
        Some(Proposed {
            border,
            point: Some(number),
            len_bytes: next_bytes - output_bytes,
        })
    });
    Box::new(start.into_iter().chain(points))
}

#[cfg(test)]
mod tests;
