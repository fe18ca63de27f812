//! What refers to a manifest (OCI distribution specification 1.1, "Listing Referrers" and "Pushing Manifests
//! with Subject"): asked of the registry, or kept in an index under a tag of the manifest's digest where the
//! registry has no such list.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use reqwest::header::{ETAG, HeaderValue, IF_MATCH, LINK};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::image::manifest::{INDEX, MANIFEST, to_json};
use crate::image::{BlobId, Digest};
use crate::registry::retry::{Failures, sleep};
use crate::registry::transport::{read_small, shown};
use crate::registry::{Inner, PulledManifest, Registry, RegistryError, Uploads};

const MAX_LIST_BYTES: usize = 8 << 20;
/// A list longer than this many answers is no list.
const MAX_PAGES: usize = 100;
/// How often an index is written again that somebody else has overwritten.
const MAX_WRITES: usize = 20;
/// Whoever read the index before it was written has written it after so long.
const SECOND_LOOK: Duration = Duration::from_millis(300);
const SUBJECT: &str = "oci-subject";

/// A manifest that refers to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// The manifest.
    pub id: BlobId,
    /// What it is: its artifact type, or else its configuration's media type.
    pub artifact_type: String,
    /// As the registry or the index states them.
    pub annotations: Map<String, Value>,
}

/// How those who look for it find a manifest that refers to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The registry lists it.
    ByRegistry,
    /// It stands in the index under the other's tag.
    UnderTag,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Map<String, Value>>,
}

/// The tag of the index for `subject` ("Referrers Tag Schema").
fn tag_of(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

fn referrer(descriptor: &Map<String, Value>) -> Option<Referrer> {
    let text = |key: &str| descriptor.get(key)?.as_str();
    Some(Referrer {
        id: BlobId {
            digest: text("digest")?.parse().ok()?,
            size_bytes: descriptor.get("size")?.as_u64()?,
        },
        artifact_type: text("artifactType").unwrap_or_default().to_owned(),
        annotations: match descriptor.get("annotations") {
            Some(Value::Object(annotations)) => annotations.clone(),
            _ => Map::new(),
        },
    })
}

impl Registry {
    /// The manifests of this type that refer to `subject`, in the registry's order.
    ///
    /// # Errors
    /// When the registry does not say.
    pub fn referrers(
        &self,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Referrer>, RegistryError> {
        let found = self.wait(async {
            match self.inner.listed(subject, artifact_type).await? {
                Some(listed) => Ok(listed),
                None => self.inner.tagged(subject).await,
            }
        })?;
        // A registry need not filter.
        let found = found.iter().filter_map(referrer);
        Ok(found
            .filter(|referrer| referrer.artifact_type == artifact_type)
            .collect())
    }
}

impl Uploads {
    /// Puts the manifest of an artifact, whose blobs must be there, under `tag` or else its digest. If it has a
    /// `subject`, it is found by that afterwards; `descriptor` is what an index says of the manifest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn put_artifact(
        &self,
        bytes: &[u8],
        tag: Option<&str>,
        subject: Option<Digest>,
        descriptor: &Map<String, Value>,
    ) -> Result<Option<Listed>, RegistryError> {
        let inner = &self.registry().inner;
        self.registry().wait(async {
            let headers = inner.put_manifest(bytes, MANIFEST, tag).await?;
            let Some(subject) = subject else {
                return Ok(None);
            };
            let noticed = headers.get(SUBJECT).and_then(|text| text.to_str().ok());
            if noticed.is_some_and(|text| text.parse() == Ok(subject)) {
                return Ok(Some(Listed::ByRegistry));
            }
            inner.list_under_tag(subject, descriptor).await?;
            Ok(Some(Listed::UnderTag))
        })
    }
}

impl Inner {
    /// `None` if the registry has no such list.
    async fn listed(
        &self,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Option<Vec<Map<String, Value>>>, RegistryError> {
        const OPERATION: &str = "asking for";
        let mut url = self.url(&format!("referrers/{subject}"));
        url.query_pairs_mut()
            .append_pair("artifactType", artifact_type);
        let mut all = Vec::new();
        for page in 0..MAX_PAGES {
            let call = self.call(OPERATION, Method::GET, url.clone());
            let mut failures = Failures::new(self.retry, &self.cancel);
            let (next, bytes) = loop {
                let whole = async {
                    let response = self.server.transport.send(&call).await?;
                    let next = self.next_page(&url, response.headers().get(LINK))?;
                    let bytes = read_small(OPERATION, &url, response, MAX_LIST_BYTES).await?;
                    Ok((next, bytes.unwrap_or_default()))
                };
                match whole.await {
                    Ok(whole) => break whole,
                    Err(failure) if page == 0 && is_unknown(&failure) => return Ok(None),
                    Err(failure) => failures.wait(failure).await?,
                }
            };
            match serde_json::from_slice::<Index>(&bytes) {
                Ok(index) => all.extend(index.manifests),
                // Some answer everything with a page for people.
                Err(_) if page == 0 => return Ok(None),
                Err(_) => return Err(bad(&url, "its list of referrers is no index")),
            }
            match next {
                Some(next) => url = next,
                None => return Ok(Some(all)),
            }
        }
        Err(bad(&url, "its list of referrers has no end"))
    }

    /// Where the list goes on (RFC 8288).
    fn next_page(
        &self,
        url: &Url,
        header: Option<&HeaderValue>,
    ) -> Result<Option<Url>, RegistryError> {
        let header = header.and_then(|header| header.to_str().ok());
        match header.and_then(next_link) {
            Some(link) => self.server.transport.resolve(url, link).map(Some),
            None => Ok(None),
        }
    }

    async fn tagged(&self, subject: Digest) -> Result<Vec<Map<String, Value>>, RegistryError> {
        match self.index_under_tag(subject).await? {
            Some(Tagged { listed, .. }) => Ok(listed),
            None => Ok(Vec::new()),
        }
    }

    /// Asks the registry itself: a mirror may have an older one.
    async fn index_under_tag(&self, subject: Digest) -> Result<Option<Tagged>, RegistryError> {
        let tag = tag_of(subject);
        let (manifest, headers) = match self.manifest_of(&self.server, &tag, self.retry).await {
            Ok(found) => found,
            Err(RegistryError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let url = self.url(&format!("manifests/{tag}"));
        let PulledManifest { bytes, .. } = manifest;
        let document: Map<String, Value> = serde_json::from_slice(&bytes).unwrap_or_default();
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|_| bad(&url, "this is no index of what refers to the manifest"))?;
        Ok(Some(Tagged {
            document,
            listed: index.manifests,
            etag: headers.get(ETAG).cloned(),
        }))
    }

    /// Adds `descriptor` to the index under the tag of `subject`. Of two who do so at once the second
    /// overwrites what the first has written: so it is looked at afterwards, and again a little later, and
    /// what is missing is put back.
    async fn list_under_tag(
        &self,
        subject: Digest,
        descriptor: &Map<String, Value>,
    ) -> Result<(), RegistryError> {
        let tag = tag_of(subject);
        let mut wanted = vec![descriptor.clone()];
        let mut looks = 0;
        let mut writes = 0;
        loop {
            let found = self.index_under_tag(subject).await?;
            let listed = found.as_ref().map_or(&[][..], |found| &found.listed);
            let is_listed = |one: &Map<String, Value>| {
                let mut listed = listed.iter();
                listed.any(|known| known.get("digest") == one.get("digest"))
            };
            let missing: Vec<_> = wanted.iter().filter(|&one| !is_listed(one)).collect();
            if missing.is_empty() {
                looks += 1;
                // One that was there before is not new to anybody.
                if looks > 1 || writes == 0 {
                    return Ok(());
                }
                sleep(SECOND_LOOK, &self.cancel).await?;
                continue;
            }
            looks = 0;
            if writes == MAX_WRITES {
                let url = self.url(&format!("manifests/{tag}"));
                return Err(bad(&url, "others overwrite this index again and again"));
            }
            if writes > 0 {
                sleep(random_pause(), &self.cancel).await?;
            }
            let all: Vec<_> = listed.iter().chain(missing).cloned().collect();
            let mut document = found.as_ref().map_or_else(empty_index, |found| {
                let mut document = found.document.clone();
                document.insert("mediaType".to_owned(), json!(INDEX));
                document
            });
            document.insert("manifests".to_owned(), json!(all));
            let etag = found.and_then(|found| found.etag);
            let condition = etag.map(|etag| (IF_MATCH, etag));
            writes += 1;
            match self
                .put_manifest_if(&to_json(&document), INDEX, Some(&tag), condition)
                .await
            {
                // Where the registry minds the condition, it was somebody else's turn.
                Ok(_) | Err(RegistryError::Status { status: 412, .. }) => wanted = all,
                Err(error) => return Err(error),
            }
        }
    }
}

/// An index under the tag of a digest.
struct Tagged {
    document: Map<String, Value>,
    listed: Vec<Map<String, Value>>,
    etag: Option<HeaderValue>,
}

fn empty_index() -> Map<String, Value> {
    let mut index = Map::new();
    index.insert("schemaVersion".to_owned(), json!(2));
    index.insert("mediaType".to_owned(), json!(INDEX));
    index
}

fn bad(url: &Url, reason: &str) -> RegistryError {
    RegistryError::Answer {
        url: shown(url),
        reason: reason.to_owned(),
    }
}

/// Whether the registry does not know what a referrer is. One that does has an empty list of what it does
/// not know.
fn is_unknown(failure: &RegistryError) -> bool {
    match failure {
        RegistryError::Missing { .. } => true,
        RegistryError::Status { status, .. } => matches!(status, 400 | 405 | 406 | 501),
        _ => false,
    }
}

/// Of a `Link` header, the target with the relation `next`.
fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let mut parameters = parameters.split(';').map(str::trim);
        let is_next = |parameter: &str| {
            let value = parameter.strip_prefix("rel=")?;
            Some(value.trim_matches('"').eq_ignore_ascii_case("next"))
        };
        parameters
            .any(|parameter| is_next(parameter) == Some(true))
            .then_some(target)
    })
}

/// Two who got into each other's way do not do so again at once.
fn random_pause() -> Duration {
    // Its keys are new in every call; no more is needed of them.
    let random = RandomState::new().build_hasher().finish();
    Duration::from_millis(20 + random % 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_on_where_the_header_says() {
        let check = |header: &str, expected: Option<&str>| {
            assert_eq!(next_link(header), expected, "{header}");
        };
        check(
            "</v2/a/referrers/b?n=2>; rel=\"next\"",
            Some("/v2/a/referrers/b?n=2"),
        );
        check("<x>; rel=prev, <y>; title=z; rel=next", Some("y"));
        check("<x>; rel=prev", None);
        check("x; rel=next", None);
        check("", None);
    }

    #[test]
    fn a_descriptor_without_a_digest_is_passed_over() {
        let parse = |json: Value| referrer(json.as_object().unwrap());
        let digest = Digest::of(b"x");
        let found = parse(json!({"digest": digest, "size": 1, "artifactType": "a/b"})).unwrap();
        assert_eq!((found.id, &*found.artifact_type), (BlobId::of(b"x"), "a/b"));
        assert_eq!(parse(json!({"digest": "sha512:00", "size": 1})), None);
        assert_eq!(parse(json!({"digest": digest})), None);
    }
}
