//! Simulate: how long until a container of an image is ready, and what goes through the link until then.
//!
//! Enters: an image's TOCs, a profile, a link. Leaves: a [`Prediction`]. Pure: nothing is read or run here, and the
//! same input gives the same result. The profile's accesses are replayed against the rules of an unmodified Stargz
//! Snapshotter at commit 7cf47cba under containerd 2.2, in its default configuration without background fetch
//! (docs/simulate.md). The rules, and where in the snapshotter's source they stand:
//!
//! - All layers are made known at once, at the first one's mount (`fs/fs.go`, `Mount`): where the blob is and how long
//!   (`fs/remote/resolver.go`, `newHTTPFetcher`), footer, TOC (`estargz/estargz.go`, `Open`). Each layer has connections
//!   of its own.
//! - A blob is fetched in units of 50 000 bytes; the missing ones of a read are one request (`fs/remote/blob.go`,
//!   `ReadAt`, `fetchRange`). So a TOC in the footer's unit needs no request.
//! - Prefetch: everything before the landmark in one request; then all chunks of files whose first chunk lies there
//!   are inflated, hashed and cached, by as many workers as the node has cores (`fs/layer/layer.go`, `prefetch`;
//!   `fs/reader/reader.go`, `cacheWithReader`). What arrives is there for readers at once, unit by unit; what has not
//!   arrived they ask for themselves. A request that takes more than 30 s fails (`service/resolver/registry.go`).
//! - The creation of a container waits for the prefetch of its layers, up to 10 s (`fs/fs.go`, `Check`).
//! - A read of a chunk that is not cached fetches 2 MiB from its member's start on, or to the end of its file, until
//!   its member ends; then the member is inflated as a whole and all chunks in it are cached
//!   (`estargz/estargz.go`, `fileReader.ReadAt`; `fs/reader/reader.go`, `file.ReadAt`).
//! - Layers that are no eStargz are downloaded, three at a time, and unpacked one after the other (containerd).

mod constants;
mod fetched;
mod image;
mod layer_state;
mod link;
mod machine;
mod prediction;
mod read;
mod replay;
mod summary;
mod workload;

#[cfg(test)]
mod tests;

pub use constants::Constants;
pub use image::{Contents, FileModel, ImageModel, Landmark, LayerModel, Member, Row};
pub use link::{Link, LinkError};
pub use prediction::{LayerPrediction, MissedFile, Prediction, UnusedFile};
pub use read::ReadError;

use crate::profile::Profile;

/// How an image gets onto a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulling {
    /// Layers that are eStargz are pulled lazily.
    Lazy,
    /// All layers are downloaded and unpacked, whatever they are.
    Eager,
}

/// Predicts how a container of `image` becomes ready that does what `profile` says.
pub fn simulate(
    image: &ImageModel,
    profile: &Profile,
    link: Link,
    pulling: Pulling,
    constants: &Constants,
) -> Prediction {
    replay::run(image, profile, link, pulling, constants)
}
