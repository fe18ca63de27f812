//! One layer's way: scan → plan → encode → assemble.
//!
//! Enters: a compressed blob. Leaves: an eStargz blob with its digests and TOC. Nothing here
//! touches tokio, a container or an eBPF program.

pub mod entry;
pub mod spool;
