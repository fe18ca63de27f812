//! Where profiles are: files, and registries.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::{Value, json};

use crate::artifact::{self, ArtifactOptions, Destination, Published, Subject};
use crate::cancel::Cancel;
use crate::cli::created::Created;
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::output::{self, Size};
use crate::cli::wanted::{bad_input, is_for_machine_of, read_input};
use crate::image::{Platform, RegistryName};
use crate::profile::Profile;
use crate::registry::{Listed, RegistryOptions};

/// A place where a profile is, or is to be put: `FILE`, or `docker://[HOST/]PATH[:TAG][@DIGEST]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProfilePlace {
    File(PathBuf),
    Registry(RegistryName),
}

/// For clap.
pub(super) fn place_parser() -> impl TypedValueParser<Value = ProfilePlace> {
    OsStringValueParser::new().try_map(parse)
}

fn parse(text: OsString) -> Result<ProfilePlace, String> {
    let name = text
        .to_str()
        .and_then(|text| text.strip_prefix("docker://"));
    match name.map(str::parse) {
        None => Ok(ProfilePlace::File(text.into())),
        Some(Ok(name)) => Ok(ProfilePlace::Registry(name)),
        Some(Err(_)) => Err("expected docker://[HOST/]PATH[:TAG][@DIGEST]".to_owned()),
    }
}

impl fmt::Display for ProfilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => fmt::Display::fmt(&path.display(), f),
            Self::Registry(name) => write!(f, "docker://{name}"),
        }
    }
}

/// How registries are reached where profiles may be.
pub(super) fn artifact_options(
    registry: &RegistryOptions,
    scratch: &Path,
    cancel: &Cancel,
) -> ArtifactOptions {
    ArtifactOptions {
        registry: registry.clone(),
        scratch: scratch.to_owned(),
        cancel: cancel.clone(),
    }
}

impl ProfilePlace {
    /// All profiles that the place means: of an image in a registry one for each platform that has one.
    pub(super) fn read_all(&self, options: &ArtifactOptions) -> Result<Vec<Profile>, Failure> {
        match self {
            Self::File(path) => {
                let profile = Profile::parse(&read_input(path)?);
                Ok(vec![profile.map_err(|error| bad_input(path, error))?])
            }
            Self::Registry(name) => {
                let found = artifact::find(name, options)?;
                Ok(found.into_iter().map(|found| found.profile).collect())
            }
        }
    }

    /// The profile that the place means; of several, this machine's.
    pub(super) fn read(&self, options: &ArtifactOptions) -> Result<Profile, Failure> {
        let mut profiles = self.read_all(options)?;
        if profiles.len() == 1 {
            return Ok(profiles.remove(0));
        }
        let here = Platform::of_this_machine();
        let is_here = |profile: &Profile| is_for_machine_of(profile, &here);
        match profiles.iter().position(is_here) {
            Some(found) => Ok(profiles.remove(found)),
            None => {
                let known = profiles.iter().map(|profile| &*profile.image.platform);
                let known: Vec<&str> = known.collect();
                let message = format!(
                    "{self} has profiles for {}, and none for {here}; name one by its tag or digest",
                    known.join(", ")
                );
                Err(Failure::message(IMAGE, message))
            }
        }
    }
}

/// Where a profile will be written.
pub(super) enum ProfileOutput {
    File(PathBuf),
    Registry(Box<Destination>),
}

/// A written profile.
pub(super) struct Written {
    pub(super) place: String,
    pub(super) size_bytes: u64,
    /// Where it is in a registry.
    published: Option<Published>,
}

impl ProfileOutput {
    /// Looks whether the profile of `subject` may be written there, before the work begins.
    pub(super) fn open(
        place: &ProfilePlace,
        subject: Subject,
        options: &ArtifactOptions,
    ) -> Result<Self, Failure> {
        match place {
            ProfilePlace::File(path) => Ok(Self::File(path.clone())),
            ProfilePlace::Registry(name) => {
                let destination = Destination::open(name, Some(subject), options)?;
                Ok(Self::Registry(Box::new(destination)))
            }
        }
    }

    /// The same for a profile that is there already.
    pub(super) fn open_for(
        place: &ProfilePlace,
        profile: &Profile,
        options: &ArtifactOptions,
    ) -> Result<Self, Failure> {
        match place {
            ProfilePlace::File(path) => Ok(Self::File(path.clone())),
            ProfilePlace::Registry(name) => {
                let destination = Destination::open_for(name, profile, options)?;
                Ok(Self::Registry(Box::new(destination)))
            }
        }
    }

    pub(super) fn write(self, profile: &Profile) -> Result<Written, Failure> {
        match self {
            Self::File(path) => {
                let document = profile.to_json();
                output::write_file(&path, &document)?;
                Ok(Written {
                    place: path.display().to_string(),
                    size_bytes: document.len() as u64,
                    published: None,
                })
            }
            Self::Registry(destination) => {
                let published = destination.publish(profile, &Created::now().0)?;
                if published.subject.is_none() {
                    tracing::warn!(
                        "the profiled image is not in the repository: the profile is found by its own name alone"
                    );
                }
                Ok(Written {
                    place: published.reference.clone(),
                    size_bytes: published.size_bytes,
                    published: Some(published),
                })
            }
        }
    }
}

impl Written {
    /// For a line of a result.
    pub(super) fn shown(&self) -> String {
        let subject = self
            .published
            .as_ref()
            .and_then(|published| published.subject);
        let refers = subject.map(|(digest, _)| format!(", refers to {digest}"));
        format!(
            "{} ({}{})",
            self.place,
            Size(self.size_bytes),
            refers.unwrap_or_default()
        )
    }

    /// For a result in JSON: none for a file.
    pub(super) fn json(&self) -> Option<Value> {
        let published = self.published.as_ref()?;
        let listed = published.subject.map(|(_, listed)| match listed {
            Listed::ByRegistry => "registry",
            Listed::UnderTag => "tag",
        });
        Some(json!({
            "manifest": published.artifact,
            "subject": published.subject.map(|(digest, _)| digest),
            "listed_by": listed,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_file_unless_it_names_a_registry() {
        let check = |text: &str, expected: &str| {
            assert_eq!(parse(text.into()).unwrap().to_string(), expected);
        };
        check("dir/p.json", "dir/p.json");
        check("docker:/p", "docker:/p");
        check("docker://h:5/a", "docker://h:5/a:latest");
        assert!(matches!(
            parse("docker://h/a:b".into()),
            Ok(ProfilePlace::Registry(_))
        ));
        assert!(parse("docker://A".into()).is_err());
    }
}
