//! Image names as skopeo writes them: a transport, a place, and an optional tag.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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
}

/// A text does not name an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The transport is known but not built in.
    #[error("\"{reference}\": the transport {transport}: is not supported; use oci:DIR[:TAG]")]
    UnsupportedTransport {
        /// The whole text.
        reference: String,
        /// What stands before the first colon.
        transport: String,
    },
    /// The text has no transport, or nothing behind it.
    #[error("\"{reference}\" is not an image name; expected oci:DIR[:TAG]")]
    Malformed {
        /// The whole text.
        reference: String,
    },
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(reference: &str) -> Result<Self, ReferenceError> {
        let malformed = || ReferenceError::Malformed {
            reference: reference.to_owned(),
        };
        let (transport, rest) = reference.split_once(':').ok_or_else(malformed)?;
        if transport != "oci" {
            return Err(match transport {
                "docker" | "oci-archive" | "docker-archive" | "containerd" => {
                    ReferenceError::UnsupportedTransport {
                        reference: reference.to_owned(),
                        transport: transport.to_owned(),
                    }
                }
                _ => malformed(),
            });
        }
        // As skopeo does: the first colon ends the directory, so a tag may hold a colon.
        let (dir, tag) = match rest.split_once(':') {
            Some((dir, tag)) => (dir, Some(tag)),
            None => (rest, None),
        };
        if dir.is_empty() || tag == Some("") {
            return Err(malformed());
        }
        Ok(Self::OciLayout {
            dir: dir.into(),
            tag: tag.map(str::to_owned),
        })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::OciLayout { dir, tag } = self;
        write!(f, "oci:{}", dir.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, dir: &str, tag: Option<&str>) {
        let parsed: ImageRef = text.parse().unwrap();
        assert_eq!(
            parsed,
            ImageRef::OciLayout {
                dir: dir.into(),
                tag: tag.map(str::to_owned)
            }
        );
        assert_eq!(parsed.to_string(), text);
    }

    #[test]
    fn names_are_parsed_as_skopeo_does() {
        check("oci:dir", "dir", None);
        check("oci:/a/b:latest", "/a/b", Some("latest"));
        check("oci:x:host:5000/y:z", "x", Some("host:5000/y:z"));
        for bad in [
            "",
            "oci",
            "oci:",
            "oci::tag",
            "oci:dir:",
            "ghcr.io/a/b:c",
            "docker://a/b",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
