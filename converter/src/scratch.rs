//! Whether the scratch directory has room for an image's layers, asked before work begins.
//!
//! How long a layer is when inflated is only known afterwards. What it needs at least is known, so
//! that no image which fits is refused; what it probably needs is a warning.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::manifest::UNCOMPRESSED_SIZE;
use crate::layer::scan::Keep;
use crate::source::{SourceImage, SourceLayer};

/// The scratch directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// It does not exist, or cannot be looked at.
    #[error("scratch directory {}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layers cannot fit.
    #[error(
        "scratch directory {} has {free_bytes} bytes free, the uncompressed layers need at least \
         {needed_bytes}",
        path.display()
    )]
    TooSmall {
        /// The directory.
        path: PathBuf,
        /// What there is.
        free_bytes: u64,
        /// The least that is needed.
        needed_bytes: u64,
    },
}

/// Room for uncompressed layers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Needed {
    /// Whatever the layers hold, not less.
    pub least_bytes: u64,
    /// As stated by annotations, or as layers usually are.
    pub likely_bytes: u64,
}

impl Needed {
    /// What a blob needs. `stated_bytes` is what its descriptor says of its uncompressed size, which
    /// nobody has checked yet.
    fn of_blob(blob_bytes: u64, media_type: &str, stated_bytes: Option<u64>) -> Self {
        let is_plain = media_type.ends_with("tar");
        // Stored blocks add 5 bytes to 64 KiB, frames of zstd less, and every gzip member 18.
        let least_bytes = if is_plain {
            blob_bytes
        } else {
            blob_bytes - blob_bytes / 16
        };
        let factor = if is_plain { 1 } else { 2 };
        Self {
            least_bytes,
            likely_bytes: stated_bytes.unwrap_or(blob_bytes.saturating_mul(factor)),
        }
    }

    /// What is needed of that for a layer which has to be readable afterwards: of gzip and plain blobs
    /// no more than a history for every megabyte ([`Keep::Readable`]).
    fn kept(self, keep: Keep, media_type: &str) -> Self {
        if keep == Keep::Spool || media_type.ends_with("zstd") {
            return self;
        }
        Self {
            least_bytes: 0,
            likely_bytes: self.likely_bytes / 32,
        }
    }

    /// The compressed blob lies there, too.
    fn with_the_blob(self, blob_bytes: u64) -> Self {
        Self {
            least_bytes: self.least_bytes.saturating_add(blob_bytes),
            likely_bytes: self.likely_bytes.saturating_add(blob_bytes),
        }
    }

    /// What `layers` of `image` need together.
    pub fn of_layers(image: &SourceImage, layers: &[&SourceLayer], keep: Keep) -> Self {
        let mut needed = Self::default();
        for layer in layers {
            let same = |other: &&SourceLayer| other.blob == layer.blob;
            let descriptors = image.layers.iter().zip(image.manifest.parsed.layers());
            let descriptor = descriptors.into_iter().find(|(other, _)| same(other));
            let stated = descriptor
                .and_then(|(_, descriptor)| descriptor.annotations().as_ref())
                .and_then(|all| all.get(UNCOMPRESSED_SIZE))
                .and_then(|size| size.parse().ok());
            let blob = Self::of_blob(layer.blob.size_bytes, &layer.media_type, stated)
                .kept(keep, &layer.media_type);
            let blob = if image.is_remote() {
                blob.with_the_blob(layer.blob.size_bytes)
            } else {
                blob
            };
            needed.least_bytes = needed.least_bytes.saturating_add(blob.least_bytes);
            needed.likely_bytes = needed.likely_bytes.saturating_add(blob.likely_bytes);
        }
        needed
    }
}

/// Compares what `needed` says with the free space of `scratch`; warns if it will hardly do.
///
/// # Errors
/// [`ScratchError::TooSmall`] if it cannot do.
pub fn check(scratch: &Path, needed: Needed) -> Result<(), ScratchError> {
    let path = || scratch.to_owned();
    let space = rustix::fs::statvfs(scratch).map_err(|error| ScratchError::Unusable {
        path: path(),
        source: error.into(),
    })?;
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    if free_bytes < needed.least_bytes {
        return Err(ScratchError::TooSmall {
            path: path(),
            free_bytes,
            needed_bytes: needed.least_bytes,
        });
    }
    if free_bytes < needed.likely_bytes {
        tracing::warn!(
            "scratch directory {} has {free_bytes} bytes free, the uncompressed layers will need \
             about {}",
            scratch.display(),
            needed.likely_bytes
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_never_more_than_a_layer_can_be() {
        let check = |blob, media_type, stated, least_bytes, likely_bytes| {
            let found = Needed::of_blob(blob, media_type, stated);
            let expected = Needed {
                least_bytes,
                likely_bytes,
            };
            assert_eq!(found, expected, "{media_type}");
        };
        check(
            1000,
            "application/vnd.oci.image.layer.v1.tar",
            None,
            1000,
            1000,
        );
        check(
            1600,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            None,
            1500,
            3200,
        );
        check(
            1600,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            Some(9),
            1500,
            9,
        );
    }

    #[test]
    fn a_directory_without_room_is_refused() {
        let dir = std::env::temp_dir();
        let needed = |least_bytes| Needed {
            least_bytes,
            likely_bytes: least_bytes,
        };
        assert!(check(&dir, needed(1)).is_ok());
        assert!(matches!(
            check(&dir, needed(u64::MAX)),
            Err(ScratchError::TooSmall { .. })
        ));
        assert!(matches!(
            check(&dir.join("missing"), needed(0)),
            Err(ScratchError::Unusable { .. })
        ));
    }
}
