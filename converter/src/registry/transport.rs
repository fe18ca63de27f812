//! One request: with credentials for the registry alone, through redirects, and its answer judged.

use std::error::Error;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use serde_json::Value;

use crate::registry::RegistryError;
use crate::registry::auth::Auth;
use crate::registry::retry::parse_retry_after;
use crate::registry::upload_body::UploadBody;

const MAX_REDIRECTS: usize = 10;
/// More new tokens than this are of no use. Of those that others have used up, too, some may be needed.
const MAX_REFUSALS: usize = 5;
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// A connection on which nothing moves for so long counts as cut.
pub(super) const STALL: Duration = Duration::from_secs(60);
/// A registry may hash a whole blob before it answers.
const LONGEST_ANSWER: Duration = Duration::from_secs(900);

/// What is asked of the registry.
pub(super) struct Call<'a> {
    /// For messages: `reading`, `uploading to`, …
    pub(super) operation: &'static str,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<&'a UploadBody>,
    pub(super) scopes: &'a [String],
}

/// Requests to one registry.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) http: Client,
    pub(super) base: Url,
    pub(super) auth: Auth,
    pub(super) allows_plain: bool,
    /// For every request to the registry.
    pub(super) headers: HeaderMap,
}

impl Transport {
    /// Makes the request once, but for credentials and redirects, and gives a successful answer.
    ///
    /// # Errors
    /// [`RegistryError::Missing`] for 404, [`RegistryError::Status`] for all other failures.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let mut url = call.url.clone();
        let mut refused = 0;
        let mut redirects = 0;
        loop {
            let is_registry = url.origin() == self.base.origin();
            let mut request = self.http.request(call.method.clone(), url.clone());
            request = request.headers(call.headers.clone());
            let mut used = None;
            if is_registry {
                request = request.headers(self.headers.clone());
                used = self.auth.header(&self.http, call.scopes).await?;
            }
            if let Some(header) = &used {
                request = request.header(AUTHORIZATION, header.clone());
            }
            if let Some(body) = call.body {
                request = request.body(Body::wrap(body.again()));
            }
            let response = answer(call.operation, &url, request, call.body).await?;
            let status = response.status();
            tracing::debug!("{} {} {}", call.method, shown(&url), status.as_u16());
            if is_redirect(status) && matches!(call.method, Method::GET | Method::HEAD) {
                redirects += 1;
                url = self.redirected(&url, &response, redirects)?;
                continue;
            }
            if status == StatusCode::UNAUTHORIZED && is_registry && refused < MAX_REFUSALS {
                refused += 1;
                let challenges = response.headers().get_all(WWW_AUTHENTICATE);
                let challenges: Vec<&str> = challenges
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .collect();
                let (auth, used) = (&self.auth, used.as_ref());
                if auth.refused(&challenges, call.scopes, used).await {
                    continue;
                }
            }
            return check_status(call.operation, &url, response).await;
        }
    }

    fn redirected(
        &self,
        url: &Url,
        response: &Response,
        count: usize,
    ) -> Result<Url, RegistryError> {
        let bad = |reason: &str| RegistryError::Answer {
            url: shown(url),
            reason: reason.to_owned(),
        };
        if count > MAX_REDIRECTS {
            return Err(bad("it redirects without end"));
        }
        self.location(url, response)?
            .ok_or_else(|| bad("it redirects to nowhere"))
    }

    /// The address in an answer's `Location`.
    pub(super) fn location(
        &self,
        url: &Url,
        response: &Response,
    ) -> Result<Option<Url>, RegistryError> {
        let location = response.headers().get(LOCATION);
        // What is no text is no address either.
        let location = location.map(|location| location.to_str().unwrap_or("//"));
        location.map(|text| self.resolve(url, text)).transpose()
    }

    /// The address that an answer from `url` names.
    pub(super) fn resolve(&self, url: &Url, text: &str) -> Result<Url, RegistryError> {
        let bad = |reason: &str| RegistryError::Answer {
            url: shown(url),
            reason: reason.to_owned(),
        };
        let location = url.join(text).ok();
        let mut location = location.ok_or_else(|| bad("it names no valid location"))?;
        match location.scheme() {
            "https" => {}
            "http" if self.allows_plain => {}
            "http" => return Err(bad("it sends us to an address without TLS")),
            _ => return Err(bad("it sends us to an address that is not HTTP's")),
        }
        // What stands there would become a header.
        let _ = location.set_username("");
        let _ = location.set_password(None);
        Ok(location)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Sends the request, and waits for the answer as long as something moves.
async fn answer(
    operation: &'static str,
    url: &Url,
    request: reqwest::RequestBuilder,
    body: Option<&UploadBody>,
) -> Result<Response, RegistryError> {
    let mut sending = Box::pin(request.send());
    let mut sent_bytes = 0;
    let mut waited = Duration::ZERO;
    loop {
        if let Ok(response) = tokio::time::timeout(STALL, &mut sending).await {
            return response.map_err(|error| connection(operation, url, error));
        }
        let progress = body.map_or(0, UploadBody::sent_bytes);
        let is_sent = body.is_some_and(UploadBody::is_sent);
        waited += STALL;
        if is_sent && waited < LONGEST_ANSWER {
            continue;
        }
        if progress == sent_bytes {
            return Err(connection(operation, url, "nothing moves"));
        }
        sent_bytes = progress;
    }
}

/// The next bytes of an answer; `None` at its end.
pub(super) async fn next_bytes(
    operation: &'static str,
    url: &Url,
    response: &mut Response,
) -> Result<Option<bytes::Bytes>, RegistryError> {
    match tokio::time::timeout(STALL, response.chunk()).await {
        Ok(bytes) => bytes.map_err(|error| connection(operation, url, error)),
        Err(_) => Err(connection(operation, url, "nothing moves")),
    }
}

/// All of an answer; `None` if it is longer than `limit_bytes`.
pub(super) async fn read_small(
    operation: &'static str,
    url: &Url,
    mut response: Response,
    limit_bytes: usize,
) -> Result<Option<Vec<u8>>, RegistryError> {
    let mut all = Vec::new();
    while let Some(bytes) = next_bytes(operation, url, &mut response).await? {
        if all.len() + bytes.len() > limit_bytes {
            return Ok(None);
        }
        all.extend_from_slice(&bytes);
    }
    Ok(Some(all))
}

/// An answer of success as it is, any other as an error.
pub(super) async fn check_status(
    operation: &'static str,
    url: &Url,
    response: Response,
) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url_shown = shown(url);
    if status == StatusCode::NOT_FOUND {
        return Err(RegistryError::Missing { url: url_shown });
    }
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after
        .and_then(|value| value.to_str().ok())
        .and_then(|text| parse_retry_after(text, SystemTime::now()));
    // What it says is of interest, not whether it can be read.
    let body = read_small(operation, url, response, MAX_MESSAGE_BYTES).await;
    let message = message(&body.ok().flatten().unwrap_or_default());
    Err(RegistryError::Status {
        operation,
        url: url_shown,
        status: status.as_u16(),
        message,
        retry_after,
    })
}

/// What a registry says about a failure (OCI distribution specification, "Error Codes").
fn message(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["errors"][0];
    let texts = [&error["code"], &error["message"]];
    let texts: Vec<&str> = texts.into_iter().filter_map(Value::as_str).collect();
    let text = texts.join(": ");
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// An address without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// What a failed connection says, without the address, which may hold a signature.
pub(super) fn connection(
    operation: &'static str,
    url: &Url,
    error: impl Into<ConnectionFailure>,
) -> RegistryError {
    RegistryError::Connection {
        operation,
        url: shown(url),
        source: error.into().0,
    }
}

/// Why a connection failed.
pub(super) struct ConnectionFailure(Box<dyn Error + Send + Sync>);

impl From<reqwest::Error> for ConnectionFailure {
    fn from(error: reqwest::Error) -> Self {
        Self(Box::new(error.without_url()))
    }
}

impl From<&str> for ConnectionFailure {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_secrets() {
        let url = Url::parse("https://me:hunter2@r.example/v2/x/blobs/y?signature=z#f").unwrap();
        assert_eq!(shown(&url), "https://r.example/v2/x/blobs/y");
    }

    #[test]
    fn messages_are_short() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u0007 way","detail":"x"}]}"#;
        assert_eq!(message(body), "DENIED: no way");
        assert_eq!(message(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(500));
        assert_eq!(message(long.as_bytes()).len(), 200);
    }
}
