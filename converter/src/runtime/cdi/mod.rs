//! Devices by the Container Device Interface (CDI, specification 1.0): files that vendors' tools write say what
//! a container needs to use a device.

mod document;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use document::{Device, Document};
pub(super) use document::{Edits, HookKind};

use crate::runtime::RuntimeError;
use crate::runtime::options::Devices;

/// The device name that stands for all devices of its kind.
const ALL: &str = "all";

/// A device node for the container, with its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: String,
    /// `c`, `b` or `p`.
    pub(super) kind: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Of `r`, `w` and `m`, what the cgroup allows.
    pub(super) access: String,
}

/// A device as one specification describes it.
#[derive(Debug)]
struct Known {
    edits_of_all: Edits,
    device: Device,
    /// Which file says so.
    path: PathBuf,
    /// Position of its directory.
    priority: usize,
}

/// What the wanted devices need: the edits of each specification in use, once, and of each device.
pub(super) fn edits(wanted: &Devices) -> Result<Vec<Edits>, RuntimeError> {
    if wanted.names.is_empty() {
        return Ok(Vec::new());
    }
    let known = read_all(&wanted.spec_dirs)?;
    let mut chosen: Vec<&Known> = Vec::new();
    for name in &wanted.names {
        let malformed = |reason| RuntimeError::Malformed {
            what: "device",
            value: name.clone(),
            reason,
        };
        let (kind, device) = name
            .split_once('=')
            .filter(|(kind, device)| kind.contains('/') && !device.is_empty())
            .ok_or_else(|| malformed("is not of the form VENDOR/CLASS=NAME"))?;
        let of_kind = || known.iter().filter(|((known, _), _)| known == kind);
        let mut found: Vec<&Known> = of_kind()
            .filter(|((_, known), _)| known == device)
            .map(|(_, known)| known)
            .collect();
        if found.is_empty() && device == ALL {
            found = of_kind().map(|(_, known)| known).collect();
        }
        if found.is_empty() {
            let directories: Vec<_> = wanted
                .spec_dirs
                .iter()
                .map(|d| d.display().to_string())
                .collect();
            return Err(RuntimeError::UnknownDevice {
                name: name.clone(),
                directories: directories.join(", "),
            });
        }
        for known in found {
            if !chosen.iter().any(|other| std::ptr::eq(*other, known)) {
                chosen.push(known);
            }
        }
    }
    let mut edits = Vec::new();
    let mut used: Vec<&Path> = Vec::new();
    for known in chosen {
        if !used.contains(&&*known.path) {
            used.push(&known.path);
            edits.push(known.edits_of_all.clone());
        }
        edits.push(known.device.container_edits.clone());
    }
    Ok(edits)
}

/// Every device of every specification, by kind and name.
fn read_all(directories: &[PathBuf]) -> Result<BTreeMap<(String, String), Known>, RuntimeError> {
    let mut all: BTreeMap<(String, String), Known> = BTreeMap::new();
    for (priority, directory) in directories.iter().enumerate() {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|source| RuntimeError::io("reading", directory, source))?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Some(document) = read(&path)? else {
                continue;
            };
            for device in document.devices {
                let key = (document.kind.clone(), device.name.clone());
                if let Some(other) = all.get(&key)
                    && other.priority == priority
                {
                    let reason = format!(
                        "{} describes the device {}={}, too",
                        other.path.display(),
                        key.0,
                        key.1
                    );
                    return Err(RuntimeError::io("reading", &path, io::Error::other(reason)));
                }
                let known = Known {
                    edits_of_all: document.container_edits.clone(),
                    device,
                    path: path.clone(),
                    priority,
                };
                all.insert(key, known);
            }
        }
    }
    Ok(all)
}

/// The specification in a file; other files are none of ours.
fn read(path: &Path) -> Result<Option<Document>, RuntimeError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let parse: fn(&str) -> Result<Document, String> = match extension {
        Some("json") => document::from_json,
        Some("yaml" | "yml") => document::from_yaml,
        _ => return Ok(None),
    };
    let failed = |source| RuntimeError::io("reading the device specification", path, source);
    let text = fs::read_to_string(path).map_err(failed)?;
    let document = parse(&text).map_err(|reason| failed(io::Error::other(reason)))?;
    document
        .check()
        .map_err(|reason| failed(io::Error::other(reason)))?;
    Ok(Some(document))
}

/// A node with the numbers of the host's, where the specification does not say them.
pub(super) fn resolve(node: &document::Node) -> Result<DeviceNode, RuntimeError> {
    let on_host = node.host_path.as_ref().unwrap_or(&node.path);
    let (kind, major, minor) = match (&node.kind, node.major, node.minor) {
        (Some(kind), Some(major), Some(minor)) => (kind.clone(), major, minor),
        (kind, major, minor) => {
            let failed = |source| RuntimeError::io("reading the device", on_host, source);
            let metadata = fs::metadata(on_host).map_err(failed)?;
            let file_type = metadata.file_type();
            let found = if file_type.is_char_device() {
                "c"
            } else if file_type.is_block_device() {
                "b"
            } else {
                return Err(failed(io::Error::other("it is no device")));
            };
            let device = metadata.rdev();
            (
                kind.clone().unwrap_or_else(|| found.to_owned()),
                major.unwrap_or_else(|| rustix::fs::major(device)),
                minor.unwrap_or_else(|| rustix::fs::minor(device)),
            )
        }
    };
    Ok(DeviceNode {
        path: node.path.clone(),
        kind,
        major,
        minor,
        mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
        access: node.permissions.clone().unwrap_or_else(|| "rwm".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","containerEdits":{"env":["ALL=1"]},
        "devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/null"}]}},
                   {"name":"1","containerEdits":{"env":["ONE=1"]}}]}"#;
    const YAML: &str = "---\ncdiVersion: \"0.6.0\"\nkind: nvidia.com/gpu\ndevices:\n- name: \"1\"\n  containerEdits:\n    \
        env:\n    - ONE=later\n    additionalGids: [44]\n    hooks:\n    - hookName: createContainer\n      path: /h\n      \
        args: [h, a]\n    mounts:\n    - hostPath: /a\n      containerPath: /b\n      options: [ro, nosuid]\n";

    fn devices(directories: &[&Path], names: &[&str]) -> Devices {
        Devices {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            spec_dirs: directories.iter().map(|&path| path.to_owned()).collect(),
        }
    }

    #[test]
    fn devices_are_found_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("1"), directory.path().join("2"));
        fs::create_dir_all(&first).unwrap();
        fs::write(first.join("a.json"), JSON).unwrap();
        fs::write(first.join("readme.txt"), "no specification").unwrap();
        let env = |names: &[&str]| -> Vec<String> {
            let found = edits(&devices(&[&first, &second], names)).unwrap();
            found.iter().flat_map(|edits| edits.env.clone()).collect()
        };
        assert_eq!(env(&["nvidia.com/gpu=1"]), ["ALL=1", "ONE=1"]);
        assert_eq!(
            env(&["nvidia.com/gpu=all", "nvidia.com/gpu=1"]),
            ["ALL=1", "ONE=1"]
        );
        assert_eq!(env(&[]), [""; 0]);
        let found = edits(&devices(&[&first], &["nvidia.com/gpu=0"])).unwrap();
        let node = resolve(&found[1].device_nodes[0]).unwrap();
        assert_eq!(
            (&*node.kind, node.major, node.minor, &*node.access),
            ("c", 1, 3, "rwm")
        );

        // The later directory has the last word.
        fs::create_dir_all(&second).unwrap();
        fs::write(second.join("b.yaml"), YAML).unwrap();
        assert_eq!(env(&["nvidia.com/gpu=1"]), ["ONE=later"]);
        let found = edits(&devices(&[&second], &["nvidia.com/gpu=1"])).unwrap();
        let one = &found[1];
        assert_eq!(one.additional_gids, [44]);
        assert_eq!(one.hooks[0].kind, HookKind::CreateContainer);
        assert_eq!(one.mounts[0].container_path, "/b");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let error = |names: &[&str]| {
            let error = edits(&devices(&[path], names)).unwrap_err();
            match &error {
                RuntimeError::Io { source, .. } => format!("{error}: {source}"),
                _ => error.to_string(),
            }
        };
        assert!(error(&["0"]).contains("VENDOR/CLASS=NAME"));
        assert!(error(&["nvidia.com/gpu=0"]).contains("nvidia.com/gpu=0"));
        fs::write(path.join("a.json"), JSON).unwrap();
        fs::write(path.join("b.json"), JSON).unwrap();
        assert!(error(&["nvidia.com/gpu=0"]).contains("a.json"));
        fs::remove_file(path.join("b.json")).unwrap();
        for (from, to, reason) in [
            ("0.5.0", "9.0.0", "9.0.0"),
            ("nvidia.com/gpu", "gpu", "kind"),
            (
                "\"env\":[\"ONE=1\"]",
                "\"intelRdt\":{\"closID\":\"x\"}",
                "intelRdt",
            ),
            (
                "{\"path\":\"/dev/null\"}",
                "{\"path\":\"dev/null\"}",
                "absolute",
            ),
        ] {
            let changed = JSON.replacen(from, to, 1);
            assert_ne!(changed, JSON);
            fs::write(path.join("a.json"), changed).unwrap();
            let said = error(&["nvidia.com/gpu=0"]);
            assert!(said.contains(reason), "{to}: {said}");
        }
    }
}
