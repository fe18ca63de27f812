//! What a simulation tells.

use serde::Serialize;

use crate::image::Digest;

/// How a container of an image becomes ready over one link. Seconds since the call to pull, bytes and requests
/// through the link.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Until the workload has done what its profile says.
    pub seconds: f64,
    /// Until the pull was over.
    pub pull_seconds: f64,
    /// How long the container's creation waited for prefetches.
    pub prefetch_wait_seconds: f64,
    /// How long the workload waited for the network.
    pub network_wait_seconds: f64,
    /// How long the workload waited for chunks to be inflated.
    pub inflate_wait_seconds: f64,
    /// Bytes that were received until then, headers included.
    pub bytes: u64,
    /// Requests that were sent until then.
    pub requests: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Of the layers, base first; a layer that comes twice stands once.
    pub layers: Vec<LayerPrediction>,
    /// Prefetched files of which something was not used, what cost most first.
    pub unused: Vec<UnusedFile>,
    /// Files of which chunks were fetched while the workload waited, what cost most first.
    pub missed: Vec<MissedFile>,
    /// Files of the profile that the image does not have.
    pub unknown_files: u64,
}

/// A layer's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerPrediction {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size.
    pub size_bytes: u64,
    /// Whether it is pulled lazily; else it is downloaded and unpacked.
    pub lazy: bool,
    /// Bytes received for it, headers included.
    pub bytes: u64,
    /// Requests for it.
    pub requests: u64,
    /// Compressed bytes to prefetch.
    pub prefetch_bytes: u64,
    /// When they were there, and inflated as far as readers do that; none if that took until the end or failed.
    pub prefetched_after_seconds: Option<f64>,
    /// Compressed bytes of the prefetched members of which nothing was used.
    pub unused_bytes: u64,
    /// Chunks that were not there when the workload needed them.
    pub missed_chunks: u64,
    /// Bytes received for these.
    pub missed_bytes: u64,
}

/// A file that was prefetched without need.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnusedFile {
    /// Which layer has it.
    pub layer: u32,
    /// Cleaned path.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// Uncompressed bytes of the prefetched chunks that nobody read.
    pub unused_bytes: u64,
    /// Compressed bytes of these.
    pub compressed_bytes: u64,
}

/// A file that was waited for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissedFile {
    /// Which layer has it.
    pub layer: u32,
    /// Cleaned path.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// Chunks that were not there.
    pub chunks: u64,
    /// Bytes received for them.
    pub bytes: u64,
    /// How long the workload waited for them, inflating included.
    pub seconds: f64,
}
