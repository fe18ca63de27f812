//! The profile: what a workload touched, in order.
//!
//! Enters: observations of a run, or a document that an earlier run wrote. Leaves: the profile
//! document, and for each layer the entries to prefetch. Pure.

mod build;
mod document;
mod record;
mod select;

pub use build::{Run, from_observations};
pub use document::{Collector, Ended, Image, Phase, Profile, ProfileError, ProfiledFile, Workload};
pub use record::{RecordError, RecordLine, parse_record, to_record};
pub use select::{Prioritized, from_paths, from_profile};
