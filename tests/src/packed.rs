//! Images in archives, as `docker save`, skopeo and others write them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::layout::{Layout, digest};

/// A tar of files and links, with their names as they are.
pub struct Packed(tar::Builder<Vec<u8>>);

impl Default for Packed {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Packed {
    /// With one more file. `name` may be one that no honest archive has.
    ///
    /// # Panics
    /// When `name` is longer than 100 bytes.
    #[must_use]
    pub fn file(mut self, name: &str, contents: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        self.0
            .append(&header, contents)
            .expect("memory can be written");
        self
    }

    /// With a symlink or a hardlink.
    ///
    /// # Panics
    /// When a name is no path.
    #[must_use]
    pub fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o777);
        self.0
            .append_link(&mut header, name, target)
            .expect("memory can be written");
        self
    }

    /// The archive.
    ///
    /// # Panics
    /// It does not, in memory.
    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory can be written")
    }
}

/// The files of an OCI layout, with `prefix` before their names.
///
/// # Panics
/// When the layout cannot be read.
pub fn oci_archive(layout: &Layout, prefix: &str) -> Packed {
    let read =
        |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut packed = Packed::default();
    for name in ["index.json", "oci-layout"] {
        packed = packed.file(&format!("{prefix}{name}"), &read(&layout.dir.join(name)));
    }
    for name in crate::conversion::names(&layout.dir.join("blobs/sha256")) {
        let name = format!("blobs/sha256/{name}");
        packed = packed.file(&format!("{prefix}{name}"), &read(&layout.dir.join(&name)));
    }
    packed
}

/// How the layers of a Docker archive are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DockerForm {
    /// `<id>/layer.tar`, a repeated layer as a symlink (Docker until 24).
    Directories,
    /// An OCI layout with `manifest.json` (Docker since 25).
    Layout,
}

/// A Docker archive with one image of these plain layers and this configuration.
pub fn docker_archive(form: DockerForm, tags: &[&str], layers: &[Vec<u8>]) -> Packed {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "tests"}],
    })
    .to_string();
    let id = digest(config.as_bytes())[7..].to_owned();
    let mut packed = Packed::default();
    let mut names: Vec<String> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        match form {
            DockerForm::Directories => {
                let name = format!("{number:064x}/layer.tar");
                let first = layers.iter().position(|other| other == layer);
                packed = match first.filter(|first| *first < number) {
                    Some(first) => {
                        let target = format!("../{first:064x}/layer.tar");
                        packed.link(EntryType::Symlink, &name, &target)
                    }
                    None => packed.file(&name, layer),
                };
                names.push(name);
            }
            DockerForm::Layout => {
                let name = format!("blobs/sha256/{}", &digest(layer)[7..]);
                if !names.contains(&name) {
                    packed = packed.file(&name, layer);
                }
                names.push(name);
            }
        }
    }
    let config_name = match form {
        DockerForm::Directories => format!("{id}.json"),
        DockerForm::Layout => format!("blobs/sha256/{id}"),
    };
    packed = packed.file(&config_name, config.as_bytes());
    if form == DockerForm::Layout {
        packed = with_index(packed, &config, layers);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    packed.file("manifest.json", manifest.to_string().as_bytes())
}

fn with_index(packed: Packed, config: &str, layers: &[Vec<u8>]) -> Packed {
    let descriptor = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let config_type = "application/vnd.oci.image.config.v1+json";
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor(layer, layer_type))
        .collect();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": descriptor(config.as_bytes(), config_type), "layers": layers,
        "annotations": {"from": "the index"},
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [descriptor(manifest.as_bytes(), manifest_type)],
    });
    let name = format!("blobs/sha256/{}", &digest(manifest.as_bytes())[7..]);
    packed
        .file(&name, manifest.as_bytes())
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string().as_bytes())
}

/// Unpacks an archive of an OCI layout into `dir`.
///
/// # Panics
/// When it cannot.
pub fn unpack(archive: &Path, dir: &Path, tag: Option<&str>) -> Layout {
    let file =
        fs::File::open(archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    tar::Archive::new(file)
        .unpack(dir)
        .expect("an archive can be unpacked");
    Layout {
        dir: dir.to_owned(),
        tag: tag.map(str::to_owned),
    }
}
