//! esgz makes container images start fast: it runs an image's workload once, watches with eBPF
//! which bytes the workload touches, and rewrites the image as eStargz with those bytes in front.
//!
//! A folder is a stage and imports only the output types of earlier stages; see `ARCHITECTURE.md`.
//! Nothing below `cli` reads arguments, environment variables or the current directory.

pub mod artifact;
pub mod attach;
pub mod blob;
pub mod cancel;
pub mod cli;
pub mod convert;
pub mod image;
pub mod layer;
pub mod planner;
pub mod profile;
pub mod profiler;
pub mod progress;
pub mod record;
pub mod registry;
pub mod rootfs;
pub mod runtime;
pub mod scratch;
pub mod simulate;
pub mod sink;
pub mod source;
pub mod sys;
mod unfinished;
pub mod verify;
