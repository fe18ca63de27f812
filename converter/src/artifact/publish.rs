//! A profile on its way into a registry.

use crate::artifact::document::{EMPTY_CONFIG, Meaning, artifact, meaning};
use crate::artifact::{ArtifactError, ArtifactOptions};
use crate::blob::Blob;
use crate::image::{BlobId, Digest, RegistryName};
use crate::profile::Profile;
use crate::registry::{Access, Listed, Registry, RegistryError, Uploads};

/// The manifest of the image that was profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its digest and size.
    pub id: BlobId,
    /// Its media type.
    pub media_type: String,
}

/// A place for a profile, which may be written to.
#[derive(Debug)]
pub struct Destination {
    uploads: Uploads,
    name: RegistryName,
    subject: Option<Subject>,
    /// Its own; none where the name means the image.
    tag: Option<String>,
}

/// A profile that is in a registry now.
#[derive(Clone, Debug)]
pub struct Published {
    /// The manifest of its artifact.
    pub artifact: Digest,
    /// Its name, for people.
    pub reference: String,
    /// The image to which it refers, and how those who have the image find it.
    pub subject: Option<(Digest, Listed)>,
    /// Length of the document.
    pub size_bytes: u64,
}

impl Destination {
    /// Looks whether the profile of `subject` can be put under `name`. A tag that is free, or a profile's, will
    /// be its own; where the name means the image itself, the profile will only refer to it. The empty
    /// configuration is sent now: whoever may not write is told before the work begins.
    ///
    /// # Errors
    /// When the name is something else's, or the registry does not let us.
    pub fn open(
        name: &RegistryName,
        subject: Option<Subject>,
        options: &ArtifactOptions,
    ) -> Result<Self, ArtifactError> {
        let (scratch, cancel) = (&options.scratch, &options.cancel);
        let registry = Registry::open(name, Access::Push, &options.registry, scratch, cancel)?;
        let tag = own_tag(&registry, subject.as_ref())?;
        let mut uploads = Uploads::new(registry);
        uploads.push(
            BlobId::of(EMPTY_CONFIG),
            Blob::of_bytes(EMPTY_CONFIG.to_vec()),
        )?;
        uploads.finish()?;
        Ok(Self {
            uploads,
            name: name.clone(),
            subject,
            tag,
        })
    }

    /// As [`Self::open`] for a profile whose image is known by its digest alone: it is asked of the repository.
    ///
    /// # Errors
    /// As there.
    pub fn open_for(
        name: &RegistryName,
        profile: &Profile,
        options: &ArtifactOptions,
    ) -> Result<Self, ArtifactError> {
        let subject = if profile.image.by_path {
            // It is no single image's.
            None
        } else {
            let (scratch, cancel) = (&options.scratch, &options.cancel);
            let registry = Registry::open(name, Access::Pull, &options.registry, scratch, cancel)?;
            match registry.manifest(&profile.image.manifest.to_string()) {
                Ok(manifest) => Some(Subject {
                    id: manifest.id,
                    media_type: manifest.media_type,
                }),
                Err(RegistryError::Missing { .. }) => None,
                Err(error) => return Err(error.into()),
            }
        };
        Self::open(name, subject, options)
    }

    /// Puts the profile there. `created` is a time in RFC 3339.
    ///
    /// # Errors
    /// When the registry does not take it; the tag is as it was then.
    pub fn publish(mut self, profile: &Profile, created: &str) -> Result<Published, ArtifactError> {
        let document = profile.to_json();
        let layer = BlobId::of(&document);
        let subject = self.subject.as_ref();
        let subject = subject.map(|subject| (&*subject.media_type, subject.id));
        let artifact = artifact(profile, layer, subject, created);
        self.uploads.push(layer, Blob::of_bytes(document))?;
        self.uploads.finish()?;
        let subject = subject.map(|(_, id)| id.digest);
        let listed = self.uploads.put_artifact(
            &artifact.manifest,
            self.tag.as_deref(),
            subject,
            &artifact.descriptor,
        )?;
        let (host, repository) = (self.name.host(), self.name.repository());
        let digest = artifact.id.digest;
        Ok(Published {
            artifact: digest,
            reference: match &self.tag {
                Some(tag) => format!("docker://{host}/{repository}:{tag}"),
                None => format!("docker://{host}/{repository}@{digest}"),
            },
            subject: subject.zip(listed),
            size_bytes: layer.size_bytes,
        })
    }
}

/// The tag that the profile will have.
fn own_tag(
    registry: &Registry,
    subject: Option<&Subject>,
) -> Result<Option<String>, ArtifactError> {
    let name = registry.name();
    let reference = format!("docker://{name}");
    let untagged = |reason| ArtifactError::Untagged {
        reference: reference.clone(),
        reason,
    };
    let asked = match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    let there = match registry.manifest(&asked) {
        Ok(there) => Some(there),
        Err(RegistryError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let meaning = there
        .as_ref()
        .map(|there| meaning(&there.bytes, &reference));
    let id = there.as_ref().map(|there| there.id.digest);
    let is_subject = match (subject, &meaning) {
        (Some(subject), Some(Ok(Meaning::Platforms(images)))) => {
            images.contains(&subject.id.digest)
        }
        (Some(subject), _) => id == Some(subject.id.digest),
        (None, _) => false,
    };
    match (meaning, name.digest(), subject) {
        _ if is_subject => Ok(None),
        (None | Some(Ok(Meaning::Profile(_))), None, _) => Ok(Some(asked)),
        (Some(_), _, Some(subject)) => Err(ArtifactError::Taken {
            reference: reference.clone(),
            subject: subject.id.digest,
        }),
        (None, Some(_), _) => Err(untagged("nothing has this digest")),
        (Some(_), _, None) => Err(untagged("the profiled image is not in the repository")),
    }
}
