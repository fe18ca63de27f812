//! Images of several platforms, with attestations and another artifact beside them.

use std::path::Path;

use serde_json::{Value, json};

use crate::archive::Entry;
use crate::compress::Compression;
use crate::layout::{Layer, Layout, LayoutBuilder, digest};
use crate::sets;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// This machine's platform, as images name it.
pub fn here() -> String {
    esgz::image::Platform::of_this_machine().to_string()
}

/// A platform for which no machine that runs these tests is.
pub const ELSEWHERE: &str = "linux/s390x";

/// A layer that the images of all platforms have.
pub fn shared_layer() -> Layer {
    Layer::new(
        &[Entry::file("shared", sets::noise(40, 50_000))],
        Compression::Gzip(6),
    )
}

/// An image for `platform`: the shared layer below one of its own, with a file `bin/tool`.
pub fn image(platform: &str) -> LayoutBuilder {
    let tool = format!("a program for {platform}").repeat(1000);
    let own = [Entry::dir("bin/"), Entry::file("bin/tool", tool)];
    LayoutBuilder::new()
        .platform(platform)
        .layer(shared_layer())
        .layer(Layer::new(&own, Compression::Gzip(6)))
        .annotation("of", platform)
}

/// Puts images, attestations and indexes into one layout.
#[derive(Clone, Debug)]
pub struct IndexBuilder {
    layout: Layout,
    manifests: Vec<Value>,
}

impl IndexBuilder {
    /// An index that is tagged `latest` once it is finished.
    pub fn new(dir: &Path) -> Self {
        let layout = Layout {
            dir: dir.to_owned(),
            tag: Some("latest".to_owned()),
        };
        Self {
            layout,
            manifests: Vec::new(),
        }
    }

    /// The layout's directory.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// With an image for `platform`, which its descriptor names.
    #[must_use]
    pub fn image(self, platform: &str) -> Self {
        self.built(platform, &image(platform))
    }

    /// With this image, for `platform`.
    #[must_use]
    pub fn built(mut self, platform: &str, image: &LayoutBuilder) -> Self {
        let image = image.clone().write(&self.layout.dir);
        let parts: Vec<&str> = platform.split('/').collect();
        let mut descriptor = image.index()["manifests"][0].clone();
        descriptor["annotations"] = json!({"listed": platform});
        descriptor["platform"] = json!({"os": parts[0], "architecture": parts[1]});
        if let Some(variant) = parts.get(2) {
            descriptor["platform"]["variant"] = json!(variant);
        }
        self.manifests.push(descriptor);
        self
    }

    /// With an attestation of the image before it.
    #[must_use]
    pub fn attestation(mut self) -> Self {
        let of = self.last()["digest"].clone();
        let statement = json!({"predicate": "tests", "subject": of}).to_string();
        let layer = self
            .layout
            .put(statement.as_bytes(), "application/vnd.in-toto+json");
        let manifest = self.manifest(&[layer], None);
        let mut descriptor = self.layout.put(manifest.to_string().as_bytes(), MANIFEST);
        descriptor["annotations"] = json!({
            "vnd.docker.reference.digest": of,
            "vnd.docker.reference.type": "attestation-manifest",
        });
        descriptor["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        self.manifests.push(descriptor);
        self
    }

    /// With an artifact that is no image and has no platform.
    #[must_use]
    pub fn artifact(mut self) -> Self {
        let layer = self.layout.put(b"signature", "application/octet-stream");
        let manifest = self.manifest(&[layer], Some("application/x-signature"));
        let descriptor = self.layout.put(manifest.to_string().as_bytes(), MANIFEST);
        self.manifests.push(descriptor);
        self
    }

    fn manifest(&self, layers: &[Value], artifact_type: Option<&str>) -> Value {
        let config = match artifact_type {
            Some(_) => self.layout.put(b"{}", "application/vnd.oci.empty.v1+json"),
            None => {
                let config = json!({"architecture": "unknown", "os": "unknown",
                    "config": {}, "rootfs": {"type": "layers", "diff_ids": []}});
                let media_type = "application/vnd.oci.image.config.v1+json";
                self.layout.put(config.to_string().as_bytes(), media_type)
            }
        };
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        if let Some(artifact_type) = artifact_type {
            manifest["artifactType"] = json!(artifact_type);
        }
        manifest
    }

    fn last(&self) -> &Value {
        self.manifests.last().expect("something is listed")
    }

    /// With the index `nested` below this one; its blobs lie in the same directory.
    #[must_use]
    pub fn nested(mut self, nested: &Self) -> Self {
        let index = nested.index().to_string();
        self.manifests
            .push(self.layout.put(index.as_bytes(), INDEX));
        self
    }

    /// The last descriptor without its platform.
    #[must_use]
    pub fn without_platform(mut self) -> Self {
        if let Some(Value::Object(descriptor)) = self.manifests.last_mut() {
            descriptor.remove("platform");
        }
        self
    }

    fn index(&self) -> Value {
        json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests,
            "annotations": {"of": "the index"}, "key of the future": [1, 2],
        })
    }

    /// Writes the index, as the layout's only image.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn finish(self) -> Layout {
        let index = self.index();
        self.layout.put_manifest(&index);
        self.layout
    }
}

/// The documents below a layout's tag: the root, and what it lists.
pub struct Documents {
    /// The manifest or index.
    pub root: Value,
    layout: Layout,
}

impl Documents {
    /// Reads the root.
    pub fn of(layout: &Layout) -> Self {
        Self {
            root: layout.manifest(),
            layout: layout.clone(),
        }
    }

    /// Whether the root is an index.
    pub fn is_index(&self) -> bool {
        self.root["manifests"].is_array()
    }

    /// The descriptors that the root lists.
    pub fn listed(&self) -> Vec<Value> {
        self.root["manifests"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// The platforms that the root lists; `index` for an index, `-` where there is none.
    pub fn platforms(&self) -> Vec<String> {
        let name = |descriptor: &Value| {
            if descriptor["mediaType"] == INDEX {
                return "index".to_owned();
            }
            let platform = &descriptor["platform"];
            let part = |key: &str| platform[key].as_str().map(str::to_owned);
            let parts: Vec<String> = ["os", "architecture", "variant"]
                .into_iter()
                .filter_map(part)
                .collect();
            if parts.is_empty() {
                "-".to_owned()
            } else {
                parts.join("/")
            }
        };
        self.listed().iter().map(name).collect()
    }

    /// The index that `descriptor` names.
    #[must_use]
    pub fn below(&self, descriptor: &Value) -> Self {
        Self {
            root: self.read(descriptor),
            layout: self.layout.clone(),
        }
    }

    /// The document that `descriptor` names, checked against its digest.
    ///
    /// # Panics
    /// When it is not there, or another.
    pub fn read(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(&self.bytes(descriptor)).expect("a document is JSON")
    }

    /// The blob that `descriptor` names, checked against its digest and size.
    ///
    /// # Panics
    /// When it is not there, or another.
    pub fn bytes(&self, descriptor: &Value) -> Vec<u8> {
        let name = descriptor["digest"]
            .as_str()
            .expect("a descriptor has a digest");
        let bytes = std::fs::read(self.layout.blob_path(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(digest(&bytes), name);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }
}
