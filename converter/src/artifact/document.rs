//! What a profile looks like in a registry: an image manifest with an artifact type, an empty configuration,
//! the profile as its only layer, and the profiled image as its subject (OCI image specification 1.1,
//! manifest.md, "Guidelines for Artifact Usage"). Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::artifact::ArtifactError;
use crate::image::manifest::{MANIFEST, to_json};
use crate::image::{BlobId, Digest, Platform};
use crate::profile::Profile;
use crate::registry::Referrer;

/// What the artifact is.
pub const ARTIFACT_TYPE: &str = "application/vnd.esgz.profile.v1+json";
/// What its layer is: a profile document (docs/profile.md).
pub const PROFILE_TYPE: &str = "application/vnd.esgz.profile.v1+json";
/// The configuration of an artifact that has none.
pub(super) const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const CREATED: &str = "org.opencontainers.image.created";
/// The name under which other tools write the layer to a file.
const TITLE: &str = "org.opencontainers.image.title";
const WORKLOAD: &str = "vnd.esgz.profile.workload";
const PLATFORM: &str = "vnd.esgz.profile.platform";
/// Of a long command line the rest is not said.
const MAX_WORKLOAD_CHARACTERS: usize = 200;

/// An artifact's manifest, and what an index of referrers says of it.
#[derive(Debug)]
pub(super) struct Artifact {
    pub(super) manifest: Vec<u8>,
    pub(super) id: BlobId,
    pub(super) descriptor: Map<String, Value>,
}

/// For `profile`, whose document is the blob `layer`. `subject` is the media type and id of the image's
/// manifest, `created` a time in RFC 3339.
pub(super) fn artifact(
    profile: &Profile,
    layer: BlobId,
    subject: Option<(&str, BlobId)>,
    created: &str,
) -> Artifact {
    let descriptor = |media_type: &str, id: BlobId| json!({"mediaType": media_type, "digest": id.digest, "size": id.size_bytes});
    let mut profile_layer = descriptor(PROFILE_TYPE, layer);
    profile_layer["annotations"] = json!({ TITLE: "profile.json" });
    let words = profile.workload.args.join(" ");
    let workload: String = words.chars().take(MAX_WORKLOAD_CHARACTERS).collect();
    let annotations = json!({
        CREATED: created,
        PLATFORM: profile.image.platform,
        WORKLOAD: workload,
    });
    let mut manifest = Map::new();
    manifest.insert("schemaVersion".to_owned(), json!(2));
    manifest.insert("mediaType".to_owned(), json!(MANIFEST));
    manifest.insert("artifactType".to_owned(), json!(ARTIFACT_TYPE));
    let config = descriptor(EMPTY_TYPE, BlobId::of(EMPTY_CONFIG));
    manifest.insert("config".to_owned(), config);
    manifest.insert("layers".to_owned(), json!([profile_layer]));
    if let Some((media_type, id)) = subject {
        manifest.insert("subject".to_owned(), descriptor(media_type, id));
    }
    manifest.insert("annotations".to_owned(), annotations.clone());
    let manifest = to_json(&manifest);
    let id = BlobId::of(&manifest);
    let mut listed = Map::new();
    listed.insert("mediaType".to_owned(), json!(MANIFEST));
    listed.insert("digest".to_owned(), json!(id.digest));
    listed.insert("size".to_owned(), json!(id.size_bytes));
    listed.insert("artifactType".to_owned(), json!(ARTIFACT_TYPE));
    listed.insert("annotations".to_owned(), annotations);
    Artifact {
        manifest,
        id,
        descriptor: listed,
    }
}

/// What a name in a registry can mean.
#[derive(Debug, PartialEq)]
pub(super) enum Meaning {
    /// A profile, in the blob with this id.
    Profile(BlobId),
    /// An image for one platform.
    Image,
    /// The manifests of an image's platforms.
    Platforms(Vec<Digest>),
}

/// A manifest, as far as it matters here.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Manifest {
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Map<String, Value>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

/// What the manifest `bytes` is. `reference` is its name, for messages.
pub(super) fn meaning(bytes: &[u8], reference: &str) -> Result<Meaning, ArtifactError> {
    let malformed = |reason: String| ArtifactError::Malformed {
        reference: reference.to_owned(),
        reason,
    };
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if let Some(listed) = manifest.manifests {
        let platforms = listed.iter().filter_map(platform_manifest);
        return Ok(Meaning::Platforms(platforms.collect()));
    }
    let config = manifest.config.as_ref().map(|config| &*config.media_type);
    let stated = manifest.artifact_type.as_deref().or(config);
    if stated == Some(ARTIFACT_TYPE) {
        let mut layers = manifest.layers.iter();
        let (Some(layer), None) = (layers.next(), layers.next()) else {
            let reason = format!("it has {} layers, not one", manifest.layers.len());
            return Err(malformed(reason));
        };
        if layer.media_type != PROFILE_TYPE {
            let reason = format!("its layer is of the type \"{}\"", layer.media_type);
            return Err(malformed(reason));
        }
        let digest = layer.digest.parse();
        return Ok(Meaning::Profile(BlobId {
            digest: digest
                .map_err(|_| malformed("its layer's digest cannot be used".to_owned()))?,
            size_bytes: layer.size,
        }));
    }
    let is_image = manifest.artifact_type.is_none()
        && config
            .is_some_and(|kind| kind.contains("image.config") || kind.contains("container.image"));
    if is_image {
        return Ok(Meaning::Image);
    }
    Err(ArtifactError::Type {
        reference: reference.to_owned(),
        found: stated
            .or(manifest.media_type.as_deref())
            .unwrap_or("unknown")
            .to_owned(),
    })
}

/// Of an index's entry, the manifest, unless it belongs to no platform (attestations).
fn platform_manifest(descriptor: &Map<String, Value>) -> Option<Digest> {
    let platform = descriptor.get("platform").and_then(Value::as_object);
    if platform
        .and_then(Platform::of_object)
        .is_some_and(|platform| platform.is_unknown())
    {
        return None;
    }
    descriptor.get("digest")?.as_str()?.parse().ok()
}

/// The newest of `referrers`, if one is newer than all others. RFC 3339 in UTC sorts as it is written, but for
/// the letter behind the fraction.
pub(super) fn newest<'a>(
    referrers: &'a [Referrer],
    reference: &str,
) -> Result<Option<&'a Referrer>, ArtifactError> {
    let created = |referrer: &'a Referrer| text(referrer, CREATED).trim_end_matches('Z');
    let Some(newest) = referrers.iter().max_by_key(|&referrer| created(referrer)) else {
        return Ok(None);
    };
    let same = referrers
        .iter()
        .filter(|&referrer| created(referrer) == created(newest));
    if same.count() == 1 {
        return Ok(Some(newest));
    }
    Err(ArtifactError::Ambiguous {
        reference: reference.to_owned(),
        known: referrers.iter().map(shown).collect(),
    })
}

fn text<'a>(referrer: &'a Referrer, key: &str) -> &'a str {
    let value = referrer.annotations.get(key).and_then(Value::as_str);
    value.unwrap_or_default()
}

/// For messages.
fn shown(referrer: &Referrer) -> String {
    let said = [CREATED, PLATFORM, WORKLOAD].map(|key| text(referrer, key));
    let said: Vec<&str> = said.into_iter().filter(|text| !text.is_empty()).collect();
    let said: String = said.join(" ").chars().filter(|c| !c.is_control()).collect();
    match said.as_str() {
        "" => referrer.id.digest.to_string(),
        said => format!("{} ({said})", referrer.id.digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile_of(id: BlobId) -> Artifact {
        let json = r#"{"esgz_profile":1,
            "image":{"reference":"oci:x","manifest":"sha256:0000000000000000000000000000000000000000000000000000000000000000",
                "platform":"linux/amd64","layers":[]},
            "workload":{"args":["a","b"],"env":[],"user":"","cwd":"/"},
            "collector":{"tier":"filemap","kernel":"6","granularity_bytes":4096},
            "complete":true,"lost_events":0,"ended":"exit","exit_code":0,"duration_ms":1,"runs":1,"files":[]}"#;
        let profile = Profile::parse(json.as_bytes()).unwrap();
        artifact(
            &profile,
            id,
            Some((MANIFEST, BlobId::of(b"image"))),
            "2026-01-02T03:04:05Z",
        )
    }

    #[test]
    fn an_artifact_is_understood_again() {
        let layer = BlobId::of(b"profile");
        let made = profile_of(layer);
        assert_eq!(
            meaning(&made.manifest, "x").unwrap(),
            Meaning::Profile(layer)
        );
        let json: Value = serde_json::from_slice(&made.manifest).unwrap();
        insta::assert_json_snapshot!(json, @"");
    }

    #[test]
    fn other_things_are_told_apart() {
        let digest = Digest::of(b"x");
        let config = |kind: &str| json!({"mediaType": kind, "digest": digest, "size": 1});
        let image =
            json!({"config": config("application/vnd.oci.image.config.v1+json"), "layers": []});
        assert_eq!(
            meaning(image.to_string().as_bytes(), "x").unwrap(),
            Meaning::Image
        );
        let unknown = json!({"os": "unknown", "architecture": "unknown"});
        let index = json!({"manifests": [
            {"digest": digest, "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": Digest::of(b"y"), "platform": unknown},
        ]});
        assert_eq!(
            meaning(index.to_string().as_bytes(), "x").unwrap(),
            Meaning::Platforms(vec![digest])
        );
        let check = |manifest: Value, says: &str| {
            let error = meaning(manifest.to_string().as_bytes(), "h/a:b").unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        let chart = "application/vnd.cncf.helm.config.v1+json";
        check(json!({"config": config(chart), "layers": []}), chart);
        let both = json!({"artifactType": "a/b", "config": config(EMPTY_TYPE)});
        check(both, "\"a/b\"");
        check(
            json!({"artifactType": ARTIFACT_TYPE, "layers": []}),
            "0 layers",
        );
        let layers = json!([config("text/plain")]);
        check(
            json!({"artifactType": ARTIFACT_TYPE, "layers": layers}),
            "text/plain",
        );
        check(json!([]), "no valid profile artifact");
    }

    #[test]
    fn the_newest_counts() {
        let referrer = |name: &str, created: &str| Referrer {
            id: BlobId::of(name.as_bytes()),
            artifact_type: ARTIFACT_TYPE.to_owned(),
            annotations: match json!({ CREATED: created }) {
                Value::Object(annotations) => annotations,
                _ => Map::new(),
            },
        };
        assert_eq!(newest(&[], "x").unwrap(), None);
        let (old, new) = (
            referrer("a", "2026-01-01T00:00:00Z"),
            referrer("b", "2026-01-02T00:00:00Z"),
        );
        for list in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
            assert_eq!(newest(&list, "x").unwrap(), Some(&new));
        }
        let list = [
            old.clone(),
            new.clone(),
            referrer("c", "2026-01-02T00:00:00Z"),
        ];
        let error = newest(&list, "h/a:b").unwrap_err().to_string();
        for digest in list.iter().map(|one| one.id.digest.to_string()) {
            assert!(error.contains(&digest), "{error}");
        }
        assert_eq!(newest(&list[..1], "x").unwrap(), Some(&old));
        let later = referrer("d", "2026-01-02T00:00:00.001Z");
        assert_eq!(newest(&[new, later.clone()], "x").unwrap(), Some(&later));
    }
}
