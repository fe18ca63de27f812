//! Images: names for the descriptors of manifests and indexes.

use std::collections::HashMap;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    CreateImageRequest, GetImageRequest, Image, UpdateImageRequest,
};
use containerd_client::types::Descriptor;
use prost_types::FieldMask;
use serde_json::{Map, Value, json};
use tonic::Code;

use crate::containerd::{Containerd, ContainerdError};

/// What an image's name means.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredImage {
    /// The descriptor of its manifest or index.
    pub target: Map<String, Value>,
    /// The image's own labels.
    pub labels: HashMap<String, String>,
}

impl Containerd {
    /// Looks an image up.
    ///
    /// # Errors
    /// [`ContainerdError::NoImage`] if there is none.
    pub fn image(&self, name: &str) -> Result<StoredImage, ContainerdError> {
        let inner = &self.inner;
        let what = format!("image {name}");
        let found = self.wait(inner.call("looking up", &what, || async {
            let name = name.to_owned();
            let mut client = ImagesClient::new(inner.channel.clone());
            client.get(inner.request(GetImageRequest { name })).await
        }));
        let image = match found {
            Err(error) if error.code() == Some(Code::NotFound) => None,
            found => found?.image,
        };
        let no_image = || ContainerdError::NoImage {
            name: name.to_owned(),
            namespace: inner.namespace.clone(),
        };
        let image = image.ok_or_else(no_image)?;
        let target = image.target.ok_or_else(no_image)?;
        Ok(StoredImage {
            target: from_message(target),
            labels: image.labels,
        })
    }

    /// Gives an image its name; one that has it already means this from then on, and keeps its other labels.
    ///
    /// # Errors
    /// When containerd refuses.
    pub fn put_image(
        &self,
        name: &str,
        target: &Map<String, Value>,
        labels: &HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let inner = &self.inner;
        let what = format!("image {name}");
        let image = Image {
            name: name.to_owned(),
            labels: labels.clone(),
            target: Some(to_message(target)),
            created_at: None,
            updated_at: None,
        };
        self.wait(async {
            let created = inner.call("creating", &what, || async {
                let request = CreateImageRequest {
                    image: Some(image.clone()),
                    source_date_epoch: None,
                };
                let mut client = ImagesClient::new(inner.channel.clone());
                client.create(inner.request(request)).await
            });
            match created.await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(Code::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
            let labels = labels.keys().map(|key| format!("labels.{key}"));
            let paths: Vec<String> = labels.chain(["target".to_owned()]).collect();
            let updated = inner.call("updating", &what, || async {
                let request = UpdateImageRequest {
                    image: Some(image.clone()),
                    update_mask: Some(FieldMask {
                        paths: paths.clone(),
                    }),
                    source_date_epoch: None,
                };
                let mut client = ImagesClient::new(inner.channel.clone());
                client.update(inner.request(request)).await
            });
            updated.await.map(|_| ())
        })
    }
}

fn from_message(descriptor: Descriptor) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("mediaType".to_owned(), json!(descriptor.media_type));
    map.insert("digest".to_owned(), json!(descriptor.digest));
    map.insert("size".to_owned(), json!(descriptor.size));
    if !descriptor.annotations.is_empty() {
        // In one order, whatever the map's is.
        let mut annotations: Vec<_> = descriptor.annotations.into_iter().collect();
        annotations.sort();
        let annotations = annotations
            .into_iter()
            .map(|(key, value)| (key, json!(value)));
        map.insert(
            "annotations".to_owned(),
            Value::Object(annotations.collect()),
        );
    }
    map
}

pub(super) fn to_message(descriptor: &Map<String, Value>) -> Descriptor {
    let text = |key: &str| {
        let value = descriptor.get(key).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let annotations = descriptor.get("annotations").and_then(Value::as_object);
    let annotations = annotations.into_iter().flatten();
    Descriptor {
        media_type: text("mediaType"),
        digest: text("digest"),
        size: descriptor
            .get("size")
            .and_then(Value::as_i64)
            .unwrap_or_default(),
        annotations: annotations
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_back_as_they_were() {
        let descriptor = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", "0".repeat(64)),
            "size": 7,
            "annotations": { "a": "b", "c": "d" },
        });
        let descriptor = descriptor.as_object().unwrap();
        assert_eq!(from_message(to_message(descriptor)), *descriptor);
    }
}
