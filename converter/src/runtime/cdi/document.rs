//! A CDI specification as its file has it, JSON or YAML. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) cdi_version: String,
    /// `VENDOR/CLASS`.
    pub(super) kind: String,
    #[serde(default)]
    pub(super) devices: Vec<Device>,
    /// For every container that uses one of the devices.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// A device.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a container needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::runtime) struct Edits {
    pub(in crate::runtime) env: Vec<String>,
    pub(in crate::runtime) device_nodes: Vec<Node>,
    pub(in crate::runtime) mounts: Vec<EditedMount>,
    pub(in crate::runtime) hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    pub(in crate::runtime) additional_gids: Vec<u32>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// A device node.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::runtime) struct Node {
    /// In the container; on the host too, where `host_path` is missing.
    pub(super) path: String,
    pub(super) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::runtime) struct EditedMount {
    pub(in crate::runtime) host_path: String,
    pub(in crate::runtime) container_path: String,
    #[serde(rename = "type")]
    pub(in crate::runtime) kind: Option<String>,
    #[serde(default)]
    pub(in crate::runtime) options: Vec<String>,
}

/// A program that the OCI runtime runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::runtime) struct Hook {
    #[serde(rename = "hookName")]
    pub(in crate::runtime) kind: HookKind,
    pub(in crate::runtime) path: String,
    #[serde(default)]
    pub(in crate::runtime) args: Vec<String>,
    #[serde(default)]
    pub(in crate::runtime) env: Vec<String>,
    /// Seconds.
    pub(in crate::runtime) timeout: Option<i64>,
}

/// When a hook is run (OCI runtime specification, "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::runtime) enum HookKind {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookKind {
    /// Its key in a container's configuration.
    pub(in crate::runtime) fn key(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

pub(super) fn from_json(text: &str) -> Result<Document, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

pub(super) fn from_yaml(text: &str) -> Result<Document, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

impl Document {
    /// What is not understood is refused: a container without it might see no device, or too much.
    pub(super) fn check(&self) -> Result<(), String> {
        let major = self.cdi_version.split('.').next();
        if !matches!(major, Some("0" | "1")) {
            return Err(format!("version \"{}\" is not known", self.cdi_version));
        }
        if !self.kind.contains('/') {
            return Err(format!(
                "its kind \"{}\" is not of the form VENDOR/CLASS",
                self.kind
            ));
        }
        let of_devices = self.devices.iter().map(|device| &device.container_edits);
        for edits in of_devices.chain([&self.container_edits]) {
            edits.check()?;
        }
        Ok(())
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        let unknown = self.unknown.iter().find(|(_, value)| !value.is_null());
        if let Some((key, _)) = unknown {
            return Err(format!("containerEdits with \"{key}\" are not supported"));
        }
        let paths = self.device_nodes.iter().map(|node| &node.path);
        let paths = paths.chain(self.mounts.iter().map(|mount| &mount.container_path));
        for path in paths.chain(self.hooks.iter().map(|hook| &hook.path)) {
            if !path.starts_with('/') {
                return Err(format!("the path \"{path}\" is not absolute"));
            }
        }
        Ok(())
    }
}
