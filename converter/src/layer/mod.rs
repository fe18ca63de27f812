//! One layer's way: scan → plan → encode → assemble.
//!
//! Enters: a compressed blob. Leaves: an eStargz blob with its digests and TOC. Nothing here
//! touches tokio, a container or an eBPF program.

mod ahead;
pub mod assemble;
mod blob;
mod blob_hash;
pub mod buffers;
pub mod choice;
pub mod contents;
pub mod deflate;
mod digests;
pub mod encode;
pub mod entry;
pub mod footer;
pub mod header;
mod in_order;
pub mod index_cache;
mod inflated;
pub mod placement;
pub mod plan;
pub mod reuse;
pub mod scan;
mod shares;
pub mod spool;
pub mod toc;
pub mod toc_packs;
pub mod verbatim;
pub mod verify;

mod convert;

pub use ahead::{AheadError, AheadOptions, MadeAhead, scan_ahead};
pub use convert::{ConvertError, ConvertOptions, Encoding, convert_layer};
pub use in_order::Parallel;
