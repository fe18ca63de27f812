//! System and library calls that no dependency wraps. The only module of this crate, besides the ones named in
//! ARCHITECTURE.md, that may hold unsafe code.

pub mod allocator;
pub mod gzip;
pub mod loopdev;
pub mod process;
pub mod tree;
pub mod writeback;
