//! The profile: what a workload touched, in order.
//!
//! Enters: observations of a run, a document that an earlier run wrote, or a list of paths. Leaves: the profile
//! document, for a list the entries to prefetch, and for a profile the entries that it means. Pure.

mod build;
mod diff;
mod document;
mod export;
mod glob;
mod merge;
mod prefetch_list;
mod record;
mod select;

pub use build::{Origin, Run, from_observations};
pub use diff::{ChangedFile, Difference, diff, kendall_tau};
pub use document::{
    BoundFile, Collector, Ended, Image, Phase, Profile, ProfileError, ProfiledFile, Workload,
};
pub use export::{to_nydus, to_paths, to_soci};
pub use merge::{MergeError, SameFile, merge};
pub use prefetch_list::PrefetchList;
pub use record::{RecordError, RecordLine, parse_record, to_record};
pub use select::{Located, Prioritized, from_list, from_paths, locate};
