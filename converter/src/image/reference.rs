//! Image names as skopeo writes them: a transport, a place, and an optional name within it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::image::{DockerName, RegistryName};

/// Where an image is, or is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// `oci:DIR[:TAG]`, an OCI image layout directory.
    OciLayout {
        /// The layout's directory.
        dir: PathBuf,
        /// `org.opencontainers.image.ref.name` in the index; none selects the only image.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`, a tar of an OCI image layout.
    OciArchive {
        /// The archive.
        file: PathBuf,
        /// As for a layout.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME]` or `docker-archive:FILE:@N`, what `docker save` writes.
    DockerArchive {
        /// The archive.
        file: PathBuf,
        /// Which of its images; none selects the only one.
        name: Option<ArchiveName>,
    },
    /// `docker://[HOST/]PATH[:TAG][@DIGEST]`, an image in a registry.
    Registry(RegistryName),
    /// `containerd:NAME`, or NAME alone: an image in containerd, under just this name.
    Containerd(String),
}

/// An image of a Docker archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveName {
    /// One of its `RepoTags`.
    Tagged(DockerName),
    /// Its 0-based place in `manifest.json`; only for reading.
    Index(usize),
}

/// The forms that a name may have.
const FORMS: &str = "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], \
     docker://[HOST/]PATH[:TAG], containerd:NAME, or a NAME in containerd alone";

/// Transports of other tools: what begins with one is no name in containerd.
const FOREIGN: [&str; 8] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-daemon",
    "file",
    "http",
    "https",
    "ostree",
];

/// A text does not name an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The transport is known but not built in.
    #[error("\"{reference}\": the transport {transport}: is not supported; use {FORMS}")]
    UnsupportedTransport {
        /// The whole text.
        reference: String,
        /// What stands before the first colon.
        transport: String,
    },
    /// The text has no transport, or nothing behind it.
    #[error("\"{reference}\" is not an image name; expected {FORMS}")]
    Malformed {
        /// The whole text.
        reference: String,
    },
    /// What stands behind `docker://` or a Docker archive's file is no name.
    #[error("\"{reference}\": \"{name}\" is not a Docker name; expected [HOST/]PATH[:TAG]{more}")]
    Name {
        /// The whole text.
        reference: String,
        /// The part of it.
        name: String,
        /// What else it might be.
        more: &'static str,
    },
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(reference: &str) -> Result<Self, ReferenceError> {
        let malformed = || ReferenceError::Malformed {
            reference: reference.to_owned(),
        };
        // Without a colon it may be a name in containerd; so may be what no transport stands before.
        let (transport, rest) = reference.split_once(':').unwrap_or((reference, ""));
        if transport == "docker" {
            let name = rest.strip_prefix("//").ok_or_else(malformed)?;
            let parsed = name.parse().map_err(|_| ReferenceError::Name {
                reference: reference.to_owned(),
                name: name.to_owned(),
                more: " or a digest behind @",
            });
            return parsed.map(Self::Registry);
        }
        // As skopeo does: the first colon ends the path, so a name may hold a colon.
        let (path, name) = match rest.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (rest, None),
        };
        let tag = name.map(str::to_owned);
        let place = PathBuf::from(path);
        let parsed = match transport {
            "oci" => Self::OciLayout { dir: place, tag },
            "oci-archive" => Self::OciArchive { file: place, tag },
            "docker-archive" => Self::DockerArchive {
                file: place,
                name: name.map(|name| archive_name(reference, name)).transpose()?,
            },
            "containerd" if is_stored_name(rest) => return Ok(Self::Containerd(rest.to_owned())),
            foreign if FOREIGN.contains(&foreign) => {
                return Err(ReferenceError::UnsupportedTransport {
                    reference: reference.to_owned(),
                    transport: transport.to_owned(),
                });
            }
            transport if transport != "containerd" && is_stored_name(reference) => {
                return Ok(Self::Containerd(reference.to_owned()));
            }
            _ => return Err(malformed()),
        };
        if path.is_empty() || name == Some("") {
            return Err(malformed());
        }
        Ok(parsed)
    }
}

/// Whether an image in containerd may be called this, which takes almost everything; a path is surely
/// meant as something else.
fn is_stored_name(name: &str) -> bool {
    let is_printable = |c: char| !c.is_whitespace() && !c.is_control();
    !name.is_empty() && !name.starts_with(['.', '/']) && name.chars().all(is_printable)
}

fn archive_name(reference: &str, name: &str) -> Result<ArchiveName, ReferenceError> {
    let parsed = match name.strip_prefix('@') {
        Some(number) => number.parse().ok().map(ArchiveName::Index),
        None => name.parse().ok().map(ArchiveName::Tagged),
    };
    parsed.ok_or_else(|| ReferenceError::Name {
        reference: reference.to_owned(),
        name: name.to_owned(),
        more: ", or @N",
    })
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tagged(name) => fmt::Display::fmt(name, f),
            Self::Index(number) => write!(f, "@{number}"),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, place, name) = match self {
            Self::Registry(name) => return write!(f, "docker://{name}"),
            Self::Containerd(name) => return write!(f, "containerd:{name}"),
            Self::OciLayout { dir, tag } => ("oci", dir, tag.clone()),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag.clone()),
            Self::DockerArchive { file, name } => (
                "docker-archive",
                file,
                name.as_ref().map(ArchiveName::to_string),
            ),
        };
        write!(f, "{transport}:{}", place.display())?;
        name.map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &ImageRef, displayed: &str) {
        let parsed: ImageRef = text.parse().unwrap();
        assert_eq!(parsed, *expected);
        assert_eq!(parsed.to_string(), displayed);
    }

    fn oci(text: &str, dir: &str, tag: Option<&str>) {
        let tag = tag.map(str::to_owned);
        let archive = ImageRef::OciArchive {
            file: dir.into(),
            tag: tag.clone(),
        };
        let layout = ImageRef::OciLayout {
            dir: dir.into(),
            tag,
        };
        check(&format!("oci:{text}"), &layout, &format!("oci:{text}"));
        let text = format!("oci-archive:{text}");
        check(&text, &archive, &text);
    }

    #[test]
    fn names_are_parsed_as_skopeo_does() {
        oci("dir", "dir", None);
        oci("/a/b:latest", "/a/b", Some("latest"));
        oci("x:host:5000/y:z", "x", Some("host:5000/y:z"));
        let docker = |name| ImageRef::DockerArchive {
            file: "f.tar".into(),
            name,
        };
        let text = "docker-archive:f.tar";
        check(text, &docker(None), text);
        let name = "docker.io/library/x:1".parse().unwrap();
        check(
            "docker-archive:f.tar:x:1",
            &docker(Some(ArchiveName::Tagged(name))),
            "docker-archive:f.tar:docker.io/library/x:1",
        );
        let text = "docker://h:5000/a/b:c";
        check(
            text,
            &ImageRef::Registry("h:5000/a/b:c".parse().unwrap()),
            text,
        );
        for (text, name) in [
            ("containerd:a/b", "a/b"),
            ("ghcr.io/a/b:c", "ghcr.io/a/b:c"),
            (
                "registry2:5000/golang:1.15.3-esgz",
                "registry2:5000/golang:1.15.3-esgz",
            ),
            ("containerd:oci:x", "oci:x"),
            ("golang", "golang"),
        ] {
            let displayed = format!("containerd:{name}");
            check(text, &ImageRef::Containerd(name.to_owned()), &displayed);
        }
        let text = "docker-archive:f.tar:@2";
        check(text, &docker(Some(ArchiveName::Index(2))), text);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "",
            "oci",
            "oci:",
            "oci::tag",
            "oci:dir:",
            "oci-archive:",
            "oci-archive:f:",
            "docker-archive:",
            "docker-archive:f:",
            "docker-archive:f:@",
            "docker-archive:f:@-1",
            "docker-archive:f:UPPER",
            "docker-archive:f:a@sha256:00",
            "./layout",
            "/layout:tag",
            "a b",
            "dir:a",
            "https://a/b",
            "docker:a/b",
            "docker://",
            "docker://a/B",
            "containerd:",
            "containerd:./a",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
