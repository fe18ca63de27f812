//! OCI image layouts, made layer by layer.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::{Ending, Entry, archive};
use crate::compress::Compression;

/// `sha256:` and the digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Whose media types an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MediaTypes {
    /// OCI image specification.
    #[default]
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

impl MediaTypes {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, compression: Compression) -> String {
        match self {
            Self::Oci => format!(
                "application/vnd.oci.image.layer.v1.tar{}",
                compression.oci_suffix()
            ),
            Self::Docker => {
                let suffix = compression.oci_suffix().replace('+', ".");
                format!("application/vnd.docker.image.rootfs.diff.tar{suffix}")
            }
        }
    }
}

/// One layer of an image to be.
#[derive(Clone, Debug)]
pub struct Layer {
    tar: Vec<u8>,
    blob: Vec<u8>,
    compression: Compression,
    media_type: Option<String>,
    annotations: Map<String, Value>,
}

impl Layer {
    /// A layer with these entries.
    pub fn new(entries: &[Entry], compression: Compression) -> Self {
        Self::from_tar(archive(entries, Ending::Blocks), compression)
    }

    /// A layer with this archive.
    pub fn from_tar(tar: Vec<u8>, compression: Compression) -> Self {
        let blob = compression.compress(&tar);
        Self::from_blob(blob, tar, compression)
    }

    /// A layer with this blob, whether or not it inflates to `tar`.
    pub fn from_blob(blob: Vec<u8>, tar: Vec<u8>, compression: Compression) -> Self {
        Self {
            tar,
            blob,
            compression,
            media_type: None,
            annotations: Map::new(),
        }
    }

    /// With another media type than its compression asks for.
    #[must_use]
    pub fn media_type(self, media_type: &str) -> Self {
        Self {
            media_type: Some(media_type.to_owned()),
            ..self
        }
    }

    /// With an annotation in its descriptor.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }
}

/// Makes an OCI image layout with one image.
#[derive(Clone, Debug)]
pub struct LayoutBuilder {
    layers: Vec<Layer>,
    config: Value,
    media_types: MediaTypes,
    tag: Option<String>,
    annotations: Map<String, Value>,
    /// Operating system, architecture, and variant, in the configuration.
    platform: (String, String, Option<String>),
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            config: json!({"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/bin/sh"]}),
            media_types: MediaTypes::Oci,
            tag: Some("latest".to_owned()),
            annotations: Map::new(),
            platform: ("linux".to_owned(), "amd64".to_owned(), None),
        }
    }
}

impl LayoutBuilder {
    /// An image without layers, tagged `latest`.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// With this `config` object (Env, Entrypoint, Cmd, User, WorkingDir, …) in its configuration.
    #[must_use]
    pub fn config(self, config: Value) -> Self {
        Self { config, ..self }
    }

    /// With other media types.
    #[must_use]
    pub fn media_types(self, media_types: MediaTypes) -> Self {
        Self {
            media_types,
            ..self
        }
    }

    /// With another tag, or none.
    #[must_use]
    pub fn tag(self, tag: Option<&str>) -> Self {
        Self {
            tag: tag.map(str::to_owned),
            ..self
        }
    }

    /// With an annotation in its manifest.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// For another platform than `linux/amd64`: `os/architecture[/variant]`.
    #[must_use]
    pub fn platform(self, platform: &str) -> Self {
        let mut parts = platform.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (os, architecture) = (next(), next());
        Self {
            platform: (os, architecture, parts.next()),
            ..self
        }
    }

    /// Writes the layout into `dir`, which is made if it is missing.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> Layout {
        let layout = Layout {
            dir: dir.to_owned(),
            tag: self.tag.clone(),
        };
        fs::create_dir_all(dir.join("blobs/sha256")).expect("the layout's directory can be made");
        layout.write_file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));

        let mut layers = Vec::new();
        for layer in &self.layers {
            let media_type = layer.media_type.clone();
            let media_type =
                media_type.unwrap_or_else(|| self.media_types.layer(layer.compression));
            let mut descriptor = layout.put(&layer.blob, &media_type);
            if !layer.annotations.is_empty() {
                descriptor["annotations"] = layer.annotations.clone().into();
            }
            layers.push(descriptor);
        }
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(&layer.tar)).collect();
        let created = "2024-01-02T03:04:05.678Z";
        let history: Vec<Value> = (0..self.layers.len())
            .map(|i| json!({"created": created, "created_by": format!("layer {i}")}))
            .chain([json!({"created": created, "created_by": "CMD", "empty_layer": true})])
            .collect();
        let (os, architecture, variant) = &self.platform;
        let mut config = json!({
            "created": created, "author": "tests", "architecture": architecture, "os": os,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        if let Some(variant) = variant {
            config["variant"] = variant.as_str().into();
        }
        let config = layout.put(config.to_string().as_bytes(), self.media_types.config());
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": self.media_types.manifest(),
            "config": config, "layers": layers,
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = self.annotations.clone().into();
        }
        layout.put_manifest(&manifest);
        layout
    }
}

/// An OCI image layout on disk.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Its directory.
    pub dir: PathBuf,
    /// The image's tag.
    pub tag: Option<String>,
}

impl Layout {
    /// The image's name for `esgz`.
    pub fn reference(&self) -> String {
        let tag = self
            .tag
            .as_ref()
            .map_or(String::new(), |tag| format!(":{tag}"));
        format!("oci:{}{tag}", self.dir.display())
    }

    /// The file of the blob with this digest.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// The parsed `index.json`.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn index(&self) -> Value {
        read_json(&self.dir.join("index.json"))
    }

    /// The digest of the image's manifest: of the tag, or of the only one.
    ///
    /// # Panics
    /// When the index has none.
    pub fn manifest_digest(&self) -> String {
        let index = self.index();
        let manifests = index["manifests"]
            .as_array()
            .expect("an index has manifests");
        let tag = |manifest: &Value| {
            let name = &manifest["annotations"]["org.opencontainers.image.ref.name"];
            name.as_str().map(str::to_owned)
        };
        let found = manifests
            .iter()
            .find(|m| self.tag.is_none() || tag(m) == self.tag);
        let found = found.unwrap_or_else(|| panic!("{} is not in {index}", self.reference()));
        found["digest"]
            .as_str()
            .expect("a descriptor has a digest")
            .to_owned()
    }

    /// The image's manifest.
    pub fn manifest(&self) -> Value {
        read_json(&self.blob_path(&self.manifest_digest()))
    }

    /// The image's configuration.
    pub fn config(&self) -> Value {
        read_json(
            &self.blob_path(
                self.manifest()["config"]["digest"]
                    .as_str()
                    .unwrap_or_default(),
            ),
        )
    }

    /// The digest of the layer with this 0-based index, the base layer first.
    ///
    /// # Panics
    /// When there is none.
    pub fn layer_digest(&self, index: usize) -> String {
        let manifest = self.manifest();
        manifest["layers"][index]["digest"]
            .as_str()
            .expect("the layer exists")
            .to_owned()
    }

    /// Replaces the manifest by an edited one, and the index by one that names it.
    pub fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        edit(&mut manifest);
        self.put_manifest(&manifest);
    }

    /// Writes a blob; returns its descriptor.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn put(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("a blob can be written");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Writes a manifest (or an index) and makes it the layout's only image.
    pub fn put_manifest(&self, manifest: &Value) {
        let media_type = manifest["mediaType"]
            .as_str()
            .unwrap_or(MediaTypes::Oci.manifest());
        self.put_index(self.put(manifest.to_string().as_bytes(), media_type));
    }

    /// Writes an index whose only image has this descriptor, and the layout's tag.
    pub fn put_index(&self, mut descriptor: Value) {
        if let Some(tag) = &self.tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        self.write_file("index.json", &index);
    }

    fn write_file(&self, name: &str, value: &Value) {
        fs::write(self.dir.join(name), value.to_string()).expect("the layout can be written");
    }
}

fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
