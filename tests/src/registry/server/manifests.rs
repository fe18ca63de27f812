//! Manifests, and what refers to them.

use serde_json::{Value, json};

use super::Server;
use crate::layout::digest;
use crate::registry::http::{Answer, Request};

impl Server {
    pub(super) fn manifest(
        &self,
        request: &Request,
        repository: &str,
        name: &str,
        body: &[u8],
    ) -> Answer {
        let key = |name: &str| (repository.to_owned(), name.to_owned());
        let mut state = self.state();
        if let (Some(status), "PUT") = (self.behaviour.refuses_manifests, request.method.as_str()) {
            return Answer::new(status);
        }
        if request.method == "PUT" {
            let media_type = request.header("content-type").unwrap_or_default();
            let manifest = (body.to_vec(), media_type.to_owned());
            let there = state
                .manifests
                .get(&key(name))
                .map(|(bytes, _)| etag(bytes));
            if self.behaviour.minds_conditions
                && there.as_deref() != request.header("if-match")
                && there.is_some()
            {
                return Answer::new(412);
            }
            let digest = digest(body);
            state.manifests.insert(key(&digest), manifest.clone());
            state.manifests.insert(key(name), manifest);
            let answer = Answer::new(201).header("Docker-Content-Digest", digest);
            return match subject(body).filter(|_| self.behaviour.lists_referrers.is_some()) {
                Some(subject) => answer.header("OCI-Subject", subject),
                None => answer,
            };
        }
        match state.manifests.get(&key(name)) {
            None => Answer::new(404),
            Some((bytes, media_type)) => {
                let mut sent = bytes.clone();
                if self.behaviour.changes_manifests {
                    sent.push(b' ');
                }
                Answer::new(200)
                    .header("Content-Type", media_type)
                    .header("ETag", etag(bytes))
                    .header("Docker-Content-Digest", digest(bytes))
                    .body(sent)
            }
        }
    }

    /// What refers to the manifest `name`, by digest; the next answer begins behind `last`.
    pub(super) fn referrers(&self, request: &Request, repository: &str, name: &str) -> Answer {
        let Some(most) = self.behaviour.lists_referrers else {
            return Answer::new(404);
        };
        let (wanted, last) = (
            request.parameters("artifactType"),
            request.parameters("last"),
        );
        let state = self.state();
        let mut found: Vec<(String, Value)> = Vec::new();
        for ((of, reference), (bytes, media_type)) in &state.manifests {
            let is_digest = *reference == digest(bytes);
            if of != repository || !is_digest || subject(bytes).as_deref() != Some(name) {
                continue;
            }
            let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
            let kind = json
                .get("artifactType")
                .unwrap_or(&json["config"]["mediaType"]);
            if wanted.iter().any(|wanted| kind != wanted) {
                continue;
            }
            let descriptor = json!({"mediaType": media_type, "digest": reference, "size": bytes.len(),
                "artifactType": kind, "annotations": json["annotations"]});
            found.push((reference.clone(), descriptor));
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found.retain(|(digest, _)| last.iter().all(|last| digest > last));
        let is_cut = found.len() > most;
        found.truncate(most);
        let mut answer = Answer::new(200)
            .header("Content-Type", "application/vnd.oci.image.index.v1+json")
            .header("OCI-Filters-Applied", "artifactType");
        if let Some((last, _)) = found.last().filter(|_| is_cut) {
            let query = format!("{}&last={last}", request.query);
            answer = answer.header("Link", format!("<{}?{query}>; rel=\"next\"", request.path));
        }
        let manifests: Vec<Value> = found
            .into_iter()
            .map(|(_, descriptor)| descriptor)
            .collect();
        answer.body(json!({"schemaVersion": 2, "manifests": manifests}).to_string())
    }
}

fn etag(manifest: &[u8]) -> String {
    format!("\"{}\"", digest(manifest))
}

/// The digest of what a manifest refers to.
fn subject(manifest: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(manifest).ok()?;
    Some(json["subject"]["digest"].as_str()?.to_owned())
}
