//! Labels of blobs: what the garbage collector follows, and what stays true when a blob is converted. Pure.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::image::RegistryName;

/// What the garbage collector looks for.
const REFERENCE: &str = "containerd.io/gc.ref.content";
/// What it does with a blob.
const COLLECTOR: &str = "containerd.io/gc.";
/// Which repositories of a registry, whose name follows, have a blob.
const ORIGIN: &str = "containerd.io/distribution.source.";
/// No label may be longer, key and value together.
const LABEL_BYTES: usize = 4096;
/// The digest of a layer's uncompressed tar.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// The labels by which a manifest or an index holds what it names, as containerd's own clients write them.
pub fn gc_labels(document: &[u8]) -> HashMap<String, String> {
    let Ok(document) = serde_json::from_slice::<Map<String, Value>>(document) else {
        return HashMap::new();
    };
    let digest = |descriptor: &Value| descriptor.get("digest")?.as_str().map(str::to_owned);
    let mut labels = HashMap::new();
    if let Some(config) = document.get("config").and_then(digest) {
        labels.insert(format!("{REFERENCE}.config"), config);
    }
    for (key, letter) in [("layers", 'l'), ("manifests", 'm'), ("blobs", 'l')] {
        let listed = document.get(key).and_then(Value::as_array);
        let digests = listed.into_iter().flatten().filter_map(digest);
        for (number, digest) in digests.enumerate() {
            labels.insert(format!("{REFERENCE}.{letter}.{number}"), digest);
        }
    }
    labels
}

/// Of the labels of a source's blob, those that are also said of what was made of it.
pub fn kept_labels(mut labels: HashMap<String, String>) -> HashMap<String, String> {
    labels.retain(|key, _| !key.starts_with(COLLECTOR) && key != UNCOMPRESSED);
    labels
}

/// Says that the repository of `origin` has the blob, beside those that do already.
pub fn add_origin(labels: &mut HashMap<String, String>, origin: &RegistryName) {
    let key = format!("{ORIGIN}{}", origin.host());
    let repository = origin.repository();
    let known = labels.get(&key).map_or("", String::as_str);
    if known.split(',').any(|known| known == repository) {
        return;
    }
    let value = match known {
        "" => repository.to_owned(),
        known => format!("{known},{repository}"),
    };
    if key.len() + value.len() <= LABEL_BYTES {
        labels.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(document: &Value, expected: &[(&str, &str)]) {
        let found = gc_labels(document.to_string().as_bytes());
        let expected = expected
            .iter()
            .map(|(key, digest)| (format!("{REFERENCE}.{key}"), (*digest).to_owned()));
        assert_eq!(found, expected.collect());
    }

    #[test]
    fn all_that_is_named_is_held() {
        let manifest = json!({
            "config": { "digest": "c" },
            "layers": [{ "digest": "0" }, { "digest": "1" }],
        });
        check(&manifest, &[("config", "c"), ("l.0", "0"), ("l.1", "1")]);
        let index = json!({ "manifests": [{ "digest": "x" }, {}] });
        check(&index, &[("m.0", "x")]);
        check(&json!([]), &[]);
    }

    #[test]
    fn repositories_are_listed_once() {
        let mut labels = HashMap::new();
        for name in ["h:5000/a:1", "h:5000/b:1", "h:5000/a:2"] {
            add_origin(&mut labels, &name.parse().unwrap());
        }
        let expected = ("containerd.io/distribution.source.h:5000", "a,b");
        assert_eq!(
            labels,
            [(expected.0.to_owned(), expected.1.to_owned())].into()
        );
        let long = format!("h:5000/{}", "c".repeat(4096));
        add_origin(&mut labels, &long.parse().unwrap());
        assert_eq!(labels[expected.0], "a,b");
    }

    #[test]
    fn the_collectors_labels_are_not_kept() {
        let labels = [
            "containerd.io/gc.ref.content.l.0",
            "containerd.io/uncompressed",
            "containerd.io/distribution.source.ghcr.io",
        ];
        let labels = labels.map(|key| (key.to_owned(), String::new()));
        let kept = kept_labels(labels.into());
        let kept: Vec<&String> = kept.keys().collect();
        assert_eq!(kept, ["containerd.io/distribution.source.ghcr.io"]);
    }
}
