//! Platforms as containerd names them: `os/architecture[/variant]`, or one of the two alone
//! (containerd's `platforms` package, `Parse` and `Normalize`).

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

/// An operating system, a machine architecture, and a variant of it, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// A text names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a platform; expected OS/ARCHITECTURE[/VARIANT], or one of the first two alone"
)]
pub struct PlatformError {
    /// The text as it was found.
    pub text: String,
}

const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// A platform in its normal form.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let (architecture, variant) = normalize(architecture, variant);
        Self {
            os,
            architecture,
            variant,
        }
    }

    /// The platform that this program was built for, as Go, and so OCI, names it.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, "")
    }

    /// What an object with the keys `os`, `architecture` and `variant` says: a descriptor's
    /// `platform`, or an image's configuration. `None` if it has none of the first two.
    pub fn of_object(object: &Map<String, Value>) -> Option<Self> {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
        let (os, architecture) = (text("os"), text("architecture"));
        if os.is_empty() && architecture.is_empty() {
            return None;
        }
        Some(Self::new(os, architecture, text("variant")))
    }

    /// Whether this is `unknown/unknown`, which stands at manifests that are no images (BuildKit,
    /// docs/attestations/attestation-storage.md).
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether programs for `other` are for this system and architecture, whatever the variant.
    pub fn has_machine_of(&self, other: &Self) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError {
            text: text.chars().take(200).collect(),
        };
        let is_word = |part: &&str| {
            let is_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            !part.is_empty() && part.bytes().all(is_byte)
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(is_word) {
            return Err(error());
        }
        match parts.as_slice() {
            [one] => {
                let here = Self::of_this_machine();
                let system = Self::new(one, &here.architecture, &here.variant);
                if SYSTEMS.contains(&system.os.as_str()) {
                    return Ok(system);
                }
                let machine = Self::new(&here.os, one, "");
                if ARCHITECTURES.contains(&machine.architecture.as_str()) {
                    return Ok(machine);
                }
                Err(error())
            }
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &str| {
            if text.is_empty() {
                "unknown".to_owned()
            } else {
                text.to_owned()
            }
        };
        let (os, architecture) = (or_unknown(&self.os), or_unknown(&self.architecture));
        write!(f, "{os}/{architecture}")?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

fn normalize(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = (
        architecture.to_ascii_lowercase(),
        variant.to_ascii_lowercase(),
    );
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_parsed_and_normalised_as_containerd_does() {
        let here = Platform::of_this_machine();
        let check = |text: &str, expected: &str| {
            let platform: Platform = text.parse().unwrap();
            assert_eq!(platform.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(platform), "{expected}");
        };
        check("linux/amd64", "linux/amd64");
        check("Linux/x86_64", "linux/amd64");
        check("linux/amd64/v1", "linux/amd64");
        check("linux/amd64/v3", "linux/amd64/v3");
        check("linux/aarch64", "linux/arm64");
        check("linux/arm64/v8", "linux/arm64");
        check("linux/arm", "linux/arm/v7");
        check("linux/armhf", "linux/arm/v7");
        check("linux/armel", "linux/arm/v6");
        check("linux/arm/6", "linux/arm/v6");
        check("linux/i386", "linux/386");
        check("macos/arm64", "darwin/arm64");
        check("windows", &format!("windows/{}", here.architecture));
        check("aarch64", &format!("{}/arm64", here.os));
        check("s390x", &format!("{}/s390x", here.os));
        for bad in [
            "",
            "/",
            "linux/",
            "plan10",
            "a/b/c/d",
            "lin ux/amd64",
            "linux//v7",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn objects_without_a_platform_have_none() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let check = |value: Value, expected: Option<&str>| {
            let found = Platform::of_object(&object(value)).map(|p| p.to_string());
            assert_eq!(found.as_deref(), expected);
        };
        check(serde_json::json!({}), None);
        check(serde_json::json!({"os": "linux"}), Some("linux/unknown"));
        check(
            serde_json::json!({"os": "linux", "architecture": "arm", "variant": "v6"}),
            Some("linux/arm/v6"),
        );
    }
}
