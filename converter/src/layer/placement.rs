//! Placement: what becomes of a layer's files, as it was decided before the layer is laid out.

use std::ops::Range;

/// Which of a layer's files are prefetched, and how. Entries are indices into
/// [`ScannedLayer::entries`](crate::layer::entry::ScannedLayer::entries).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// Prefetched whole, in this order.
    pub whole: Vec<u32>,
    /// Prefetched in part, in this order.
    pub giants: Vec<Giant>,
    /// Opened or touched, and left to on-demand reads all the same; so is every other entry.
    pub on_demand: Vec<u32>,
}

impl Placement {
    /// With `whole` in front, and nothing else prefetched.
    pub fn of_whole(whole: Vec<u32>) -> Self {
        Self {
            whole,
            ..Self::default()
        }
    }

    /// Whether nothing is prefetched.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.giants.is_empty()
    }
}

/// A big file of which little was touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Giant {
    /// The entry of a regular file.
    pub entry: u32,
    /// Bytes of the file that are prefetched: ascending, disjoint, within the file. A chunk begins with each, also
    /// where one begins as another ends.
    pub hot: Vec<Range<u64>>,
}
