//! The profiles that a name in a registry means.

use std::io::Read as _;

use crate::artifact::document::{ARTIFACT_TYPE, Meaning, meaning, newest};
use crate::artifact::{ArtifactError, ArtifactOptions};
use crate::blob::Blob;
use crate::cancel::Cancelled;
use crate::image::{BlobId, Digest, RegistryName};
use crate::profile::Profile;
use crate::registry::{Access, Check, Registry, RegistryError};

/// Real ones have a few megabytes.
const MAX_PROFILE_BYTES: u64 = 64 << 20;

/// A profile that a registry has.
#[derive(Clone, Debug)]
pub struct Found {
    /// The profile.
    pub profile: Profile,
    /// The manifest of its artifact.
    pub artifact: Digest,
}

/// Reads what `name` means: one profile; or of an image its newest, of one for several platforms that of each
/// platform which has one. There is at least one.
///
/// # Errors
/// [`ArtifactError`] says what is there instead.
pub fn find(name: &RegistryName, options: &ArtifactOptions) -> Result<Vec<Found>, ArtifactError> {
    let (scratch, cancel) = (&options.scratch, &options.cancel);
    let registry = Registry::open(name, Access::Pull, &options.registry, scratch, cancel)?;
    let reader = Reader {
        registry: &registry,
        reference: format!("docker://{name}"),
    };
    let reference = match name.digest() {
        Some(digest) => digest.to_string(),
        None => name.tag().unwrap_or("latest").to_owned(),
    };
    let manifest = registry.manifest(&reference)?;
    let images = match meaning(&manifest.bytes, &reader.reference)? {
        Meaning::Profile(layer) => return Ok(vec![reader.profile(manifest.id.digest, layer)?]),
        Meaning::Image => vec![manifest.id.digest],
        Meaning::Platforms(images) => images,
    };
    let found = images.into_iter().map(|image| reader.newest_of(image));
    let found: Vec<Option<Found>> = found.collect::<Result<_, _>>()?;
    let found: Vec<Found> = found.into_iter().flatten().collect();
    if found.is_empty() {
        return Err(ArtifactError::None {
            reference: reader.reference,
        });
    }
    Ok(found)
}

struct Reader<'a> {
    registry: &'a Registry,
    /// For messages.
    reference: String,
}

impl Reader<'_> {
    /// The newest profile that refers to the image.
    fn newest_of(&self, image: Digest) -> Result<Option<Found>, ArtifactError> {
        let referrers = self.registry.referrers(image, ARTIFACT_TYPE)?;
        let Some(newest) = newest(&referrers, &self.reference)? else {
            return Ok(None);
        };
        let digest = newest.id.digest;
        if referrers.len() > 1 {
            tracing::info!(
                "of {} profiles of {} the newest is taken, {digest}",
                referrers.len(),
                self.reference
            );
        }
        let manifest = self.registry.manifest(&digest.to_string())?;
        match meaning(&manifest.bytes, &self.reference)? {
            Meaning::Profile(layer) => self.profile(digest, layer).map(Some),
            Meaning::Image | Meaning::Platforms(_) => Err(ArtifactError::Malformed {
                reference: self.reference.clone(),
                reason: format!("{digest} is listed as a profile and is an image"),
            }),
        }
    }

    fn profile(&self, artifact: Digest, layer: BlobId) -> Result<Found, ArtifactError> {
        let reference = || self.reference.clone();
        if layer.size_bytes > MAX_PROFILE_BYTES {
            return Err(ArtifactError::TooLarge {
                reference: reference(),
                size_bytes: layer.size_bytes,
                limit_bytes: MAX_PROFILE_BYTES,
            });
        }
        let arriving = self.registry.blob(layer, Check::Here)?;
        // What is wrong with the transfer is said best by itself.
        let mut document = Vec::new();
        let read = Blob::arriving(arriving.clone()).read_to_end(&mut document);
        if let Err(source) = read {
            return Err(match arriving.failure() {
                Some(failure) if is_cancelled(&failure) => Cancelled.into(),
                _ => ArtifactError::Read {
                    reference: reference(),
                    source,
                },
            });
        }
        let profile = Profile::parse(&document).map_err(|source| ArtifactError::Profile {
            reference: reference(),
            source,
        })?;
        Ok(Found { profile, artifact })
    }
}

fn is_cancelled(failure: &crate::blob::NotArrived) -> bool {
    matches!(
        failure.get().downcast_ref(),
        Some(RegistryError::Cancelled(_))
    )
}
