//! Every number that a prediction rests on.

/// What the Stargz Snapshotter does by its source, and how fast nodes were measured to be.
///
/// The rules are those of its default configuration at commit 7cf47cba; nobody has to measure them. The rates are
/// [`Constants::measured`]'s, and what they were measured on is said there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    // Rules.
    /// Blobs are fetched and kept in pieces of this many bytes (`fs/remote/resolver.go`, `defaultChunkSize`).
    pub unit_bytes: u64,
    /// What a chunk that is not there fetches at a time (`estargz/estargz.go`, `fileReader.ReadAt`).
    pub peek_bytes: u64,
    /// How long a container's creation waits for a layer's prefetch (`fs/layer/layer.go`,
    /// `defaultPrefetchTimeoutSec`).
    pub prefetch_wait_seconds: f64,
    /// A request that takes longer, its body included, is given up (`service/resolver/registry.go`,
    /// `defaultRequestTimeoutSec`); a prefetch then ends without inflating anything.
    pub request_timeout_seconds: f64,
    /// What is prefetched of a layer that has no landmark (`cmd/ctr-remote/commands/rpull.go`; 0 under
    /// Kubernetes).
    pub default_prefetch_bytes: u64,
    /// Layers that containerd downloads at a time (its `max_concurrent_downloads`).
    pub downloads: u32,
    /// What a fault reads before and behind the page that it needs, of a device that reads 128 KiB ahead, as FUSE does
    /// (`mm/filemap.c`, Linux 6.18).
    pub read_around_bytes: u64,
    /// The longest read that reaches the snapshotter (go-fuse's `MaxWrite` and the kernel's `read_ahead_kb`).
    pub read_bytes: u64,
    /// Header of a response.
    pub response_header_bytes: u64,

    // Rates.
    /// Cores of the node.
    pub cores: u32,
    /// Uncompressed bytes that one core inflates, hashes and writes into the cache in a second.
    pub inflate_bytes_per_second: f64,
    /// Compressed bytes that containerd unpacks onto overlayfs in a second; it unpacks one layer at a time.
    pub unpack_bytes_per_second: f64,
    /// What each regular file costs besides. Of layers without TOC nobody knows how many there are.
    pub unpack_file_seconds: f64,
    /// Bytes of a TOC's JSON that are parsed in a second.
    pub toc_bytes_per_second: f64,
    /// From the call to pull until the first request, and what a pull does without the network.
    pub pull_seconds: f64,
    /// From the call to run a container until its program starts, the prefetch's wait left out.
    pub create_seconds: f64,
    /// What it costs to look a file up through FUSE and to open it.
    pub open_seconds: f64,
    /// What a look-up in vain costs.
    pub missing_seconds: f64,
    /// What one read that is answered from the cache costs.
    pub read_seconds: f64,
    /// The workload's own time, as a part of the time that its profiled run took: that run read from a disk.
    pub workload_share: f64,
}

impl Constants {
    /// For a virtual machine with 2 cores (x86-64, Linux 6.18), containerd 2.2.9, Stargz Snapshotter 7cf47cba: fitted by
    /// `cargo xtask bench simulate --fit` to the runs of six images that were measured on 2026-12-01 at b88f3bd
    /// (bench/runs/2026-12-01-readiness-set and 2026-12-01-readiness-torch; docs/simulate.md). The rates of TOCs and of
    /// look-ups in vain, and the node's cores, were not fitted.
    pub const fn measured() -> Self {
        Self {
            unit_bytes: 50_000,
            peek_bytes: 2 << 20,
            prefetch_wait_seconds: 10.0,
            request_timeout_seconds: 30.0,
            default_prefetch_bytes: 10 << 20,
            downloads: 3,
            read_around_bytes: 64 << 10,
            read_bytes: 128 << 10,
            response_header_bytes: 500,
            cores: 2,
            inflate_bytes_per_second: 125e6,
            unpack_bytes_per_second: 119e6,
            unpack_file_seconds: 0.00016,
            toc_bytes_per_second: 60e6,
            pull_seconds: 0.01,
            create_seconds: 0.043,
            open_seconds: 0.0016,
            missing_seconds: 0.0001,
            read_seconds: 0.00001,
            workload_share: 0.79,
        }
    }
}

impl Default for Constants {
    fn default() -> Self {
        Self::measured()
    }
}
