//! How much memory the entries of all layers may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layer::entry::Entry;

/// What an entry takes besides its names and attributes: the value itself, its allocations, its part
/// of the plan, and its TOC row while that is made.
const ENTRY_BYTES: u64 = 400;

/// A bound that layers which are scanned together share. Clones share it, too.
#[derive(Clone, Debug)]
pub struct EntryMemory {
    limit_bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

impl EntryMemory {
    /// A bound of `limit_bytes`.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            used_bytes: Arc::default(),
        }
    }

    /// No bound.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// The bound.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// How much has been counted.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Counts an entry. False if it does not fit any more.
    pub(super) fn admit(&self, entry: &Entry) -> bool {
        let xattrs = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 64);
        let names = entry.name.len() + entry.link_name.len() + xattrs.sum::<usize>();
        let sparse = entry.sparse.as_ref().map_or(0, |segments| segments.len());
        // Once in the entry and once, or a little more, in the TOC.
        let bytes = ENTRY_BYTES + 2 * names as u64 + 48 * sparse as u64;
        let used = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        used.saturating_add(bytes) <= self.limit_bytes
    }
}
