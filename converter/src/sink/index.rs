//! The index of a layout. Pure.

use serde_json::{Map, Value, json};

use crate::image::manifest::{INDEX, REF_NAME};

/// The contents of `oci-layout`.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The index with the image added; an entry of the same name is replaced.
pub(super) fn extend_index(
    index: Option<Map<String, Value>>,
    mut descriptor: Map<String, Value>,
    tag: Option<&str>,
) -> Map<String, Value> {
    let mut index = index.unwrap_or_else(|| {
        let mut index = Map::new();
        index.insert("schemaVersion".to_owned(), json!(2));
        index.insert("mediaType".to_owned(), json!(INDEX));
        index.insert("manifests".to_owned(), json!([]));
        index
    });
    if let Some(tag) = tag {
        let annotations = descriptor.entry("annotations").or_insert_with(|| json!({}));
        annotations[REF_NAME] = json!(tag);
    }
    if let Some(Value::Array(manifests)) = index.get_mut("manifests") {
        let name = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(str::to_owned);
        let digest = descriptor.get("digest").cloned().unwrap_or_default();
        manifests.retain(|entry| match tag {
            Some(tag) => name(entry).as_deref() != Some(tag),
            // Without a name the image takes the place of the unnamed one, as skopeo has it.
            None => name(entry).is_some() && entry["digest"] != digest,
        });
        manifests.push(descriptor.into());
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_replaces_the_one_of_its_name() {
        let entry = |digest: &str| {
            let mut entry = Map::new();
            entry.insert("digest".to_owned(), json!(digest));
            entry
        };
        let index = extend_index(None, entry("1"), Some("a"));
        let index = extend_index(Some(index), entry("2"), None);
        let index = extend_index(Some(index), entry("3"), Some("a"));
        let index = extend_index(Some(index), entry("4"), None);
        let digests: Vec<&str> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["digest"].as_str().unwrap())
            .collect();
        assert_eq!(digests, ["3", "4"]);
    }
}
