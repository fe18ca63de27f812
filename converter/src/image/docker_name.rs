//! Docker's names of images, `[HOST/]PATH[:TAG]`, made whole as Docker does (distribution/reference,
//! `ParseNormalizedNamed` and `TagNameOnly`).

use std::fmt;
use std::str::FromStr;

/// A full name with a tag, such as `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerName {
    repository: String,
    tag: String,
}

/// A text is not a name with a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a Docker name; expected [HOST/]PATH[:TAG]")]
pub struct DockerNameError {
    /// The text as it was found.
    pub text: String,
}

impl DockerName {
    /// The tag alone.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The registry, with its port if it has one.
    pub fn host(&self) -> &str {
        self.parts().0
    }

    /// The repository in the registry.
    pub fn path(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.repository
            .split_once('/')
            .expect("a whole name begins with its host")
    }
}

impl FromStr for DockerName {
    type Err = DockerNameError;

    fn from_str(text: &str) -> Result<Self, DockerNameError> {
        let error = || DockerNameError {
            text: text.chars().take(200).collect(),
        };
        // A colon before the last slash is a port's.
        let path_start = text.rfind('/').map_or(0, |at| at + 1);
        let (repository, tag) = match text[path_start..].rfind(':') {
            Some(at) => (&text[..path_start + at], &text[path_start + at + 1..]),
            None => (text, "latest"),
        };
        let (host, path) = match repository.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            _ => ("docker.io", repository),
        };
        let host = if host == "index.docker.io" {
            "docker.io"
        } else {
            host
        };
        if !path.split('/').all(is_component) || !is_tag(tag) || !host.bytes().all(is_host_byte) {
            return Err(error());
        }
        let library = if host == "docker.io" && !path.contains('/') {
            "library/"
        } else {
            ""
        };
        Ok(Self {
            repository: format!("{host}/{library}{path}"),
            tag: tag.to_owned(),
        })
    }
}

impl fmt::Display for DockerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

fn is_host(text: &str) -> bool {
    text == "localhost"
        || text.contains(['.', ':'])
        || text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']')
}

/// Lower-case letters and digits, with single separators between.
fn is_component(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_inner(first)
        && is_inner(last)
        && bytes
            .iter()
            .all(|&byte| is_inner(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_whole() {
        let check = |text: &str, whole: &str| {
            let name: DockerName = text.parse().unwrap();
            assert_eq!(name.to_string(), whole);
            assert_eq!(whole.parse(), Ok(name), "{whole}");
        };
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("a/b", "docker.io/a/b:latest");
        check("index.docker.io/a/b:c", "docker.io/a/b:c");
        check("docker.io/x", "docker.io/library/x:latest");
        check("localhost/x", "localhost/x:latest");
        check("host:5000/x/y_z:V-1", "host:5000/x/y_z:V-1");
        for bad in [
            "",
            ":tag",
            "a:",
            "A",
            "a//b",
            "a/",
            "/a",
            "a:b c",
            "a@sha256:00",
            "-a",
            "ho st/a",
        ] {
            assert!(bad.parse::<DockerName>().is_err(), "{bad}");
        }
    }
}
