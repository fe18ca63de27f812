//! Borders of blocks and members: where a stream can be decoded from, without looking into a block.

/// A place where a block or a gzip member begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Border {
    /// Compressed position. A member's is at a byte.
    pub position_bits: u64,
    /// What begins there.
    pub kind: BorderKind,
}

/// What begins at a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BorderKind {
    /// A gzip member. No match reaches back behind its start.
    Member,
    /// A block of a member whose header lies before.
    Block,
}

impl Border {
    /// The start of a gzip stream.
    pub const START: Self = Self {
        position_bits: 0,
        kind: BorderKind::Member,
    };
}
