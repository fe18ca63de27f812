//! Names of images in registries: `[HOST/]PATH[:TAG][@DIGEST]`, made whole as Docker does.

use std::fmt;
use std::str::FromStr;

use crate::image::{Digest, DockerName, DockerNameError};

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryName {
    name: DockerName,
    /// Whether the tag counts: where the text has neither tag nor digest, `latest` is meant.
    has_tag: bool,
    digest: Option<Digest>,
}

impl RegistryName {
    /// The registry, with its port if it has one.
    pub fn host(&self) -> &str {
        self.name.host()
    }

    /// The repository in the registry.
    pub fn repository(&self) -> &str {
        self.name.path()
    }

    /// The tag; none where only a digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.has_tag.then(|| self.name.tag())
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl FromStr for RegistryName {
    type Err = DockerNameError;

    fn from_str(text: &str) -> Result<Self, DockerNameError> {
        let error = || DockerNameError {
            text: text.chars().take(200).collect(),
        };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        let path_start = name.rfind('/').map_or(0, |at| at + 1);
        Ok(Self {
            has_tag: digest.is_none() || name[path_start..].contains(':'),
            name: name.parse().map_err(|_| error())?,
            digest,
        })
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host(), self.repository())?;
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_tags_digests_or_both() {
        let digest = Digest::of(b"x");
        let check = |text: &str, whole: &str, tag: Option<&str>| {
            let name: RegistryName = text.parse().unwrap();
            assert_eq!(name.to_string(), whole);
            assert_eq!(name.tag(), tag, "{text}");
            assert_eq!(whole.parse(), Ok(name), "{whole}");
        };
        check("x", "docker.io/library/x:latest", Some("latest"));
        check("h:5000/a/b:c", "h:5000/a/b:c", Some("c"));
        let by_digest = format!("h:5000/a@{digest}");
        check(&by_digest, &by_digest, None);
        let both = format!("h:5000/a:t@{digest}");
        check(&both, &both, Some("t"));
        for bad in ["", "@", "h/a@sha256:00", "h/a@", "h/A", "h/a:b@c"] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad}");
        }
    }
}
