//! The answer to a registry's challenge: a password, or a token that another server gives for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::registry::RegistryError;
use crate::registry::challenge::Challenge;
use crate::registry::credentials::Login;
use crate::registry::secret::Secret;
use crate::registry::transport::{check_status, connection, read_small, shown};

const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What a token without `expires_in` is good for (distribution's token specification).
const USUAL_LIFE: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Keeps the challenge and the tokens of one registry.
#[derive(Debug)]
pub(super) struct Auth {
    login: Login,
    host: String,
    /// Whether a password may be sent without TLS.
    allows_plain: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    challenge: Option<Challenge>,
    /// By scope.
    tokens: HashMap<String, Token>,
}

#[derive(Debug, Clone)]
struct Token {
    token: Secret,
    until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(login: Login, host: &str, allows_plain: bool) -> Self {
        Self {
            login,
            host: host.to_owned(),
            allows_plain,
            state: Mutex::default(),
        }
    }

    /// The header for a request that needs `scopes`, as far as it is known what the registry wants.
    pub(super) async fn header(
        &self,
        http: &Client,
        scopes: &[String],
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let mut state = self.state.lock().await;
        match state.challenge.clone() {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(self.basic()),
            Some(Challenge::Bearer { realm, service, .. }) => {
                let key = scopes.join(" ");
                let known = state.tokens.get(&key);
                let token = match known.filter(|token| token.until > Instant::now()) {
                    Some(token) => token.clone(),
                    None => {
                        let token = self.fetch(http, &realm, service.as_deref(), scopes).await?;
                        state.tokens.insert(key, token.clone());
                        token
                    }
                };
                Ok(Some(bearer(&token.token)))
            }
        }
    }

    /// Takes note of a refusal, in spite of the header that was `used`. `false` if there is nothing else to
    /// try.
    pub(super) async fn refused(
        &self,
        headers: &[&str],
        scopes: &[String],
        used: Option<&HeaderValue>,
    ) -> bool {
        let mut challenges = headers.iter().filter_map(|header| Challenge::parse(header));
        let Some(challenge) = challenges.next() else {
            return false;
        };
        let mut state = self.state.lock().await;
        let key = scopes.join(" ");
        // Another request may have fetched a new one meanwhile.
        let is_current = |token: &Token| used == Some(&bearer(&token.token));
        if state.tokens.get(&key).is_some_and(is_current) {
            state.tokens.remove(&key);
        }
        let is_of_use = match challenge {
            // The challenge may have become known while the request was under way.
            Challenge::Basic => used.is_none() && matches!(self.login, Login::Password { .. }),
            Challenge::Bearer { .. } => true,
        };
        state.challenge = Some(challenge);
        is_of_use
    }

    fn basic(&self) -> Option<HeaderValue> {
        let Login::Password { user, password } = &self.login else {
            return None;
        };
        let pair = STANDARD.encode(format!("{user}:{}", password.reveal()));
        Some(hidden(&format!("Basic {pair}")))
    }

    /// Asks the token server.
    async fn fetch(
        &self,
        http: &Client,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<Token, RegistryError> {
        let bad = |reason: &str| RegistryError::Credentials {
            host: self.host.clone(),
            reason: reason.to_owned(),
        };
        let mut url =
            Url::parse(realm).map_err(|_| bad("its token server has no valid address"))?;
        let is_safe = url.scheme() == "https" || self.allows_plain;
        if url.scheme() != "http" && url.scheme() != "https" {
            return Err(bad("its token server has no address of HTTP"));
        }
        if self.login != Login::Anonymous && !is_safe {
            return Err(bad("its token server wants them without TLS"));
        }
        let request = match &self.login {
            Login::IdentityToken(token) => {
                let mut form = url.clone();
                form.set_query(None);
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "esgz")
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("scope", &scopes.join(" "))
                    .append_pair("refresh_token", token.reveal());
                let body = form.query().unwrap_or_default().to_owned();
                http.post(url.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body)
            }
            Login::Anonymous | Login::Password { .. } => {
                for scope in scopes {
                    url.query_pairs_mut().append_pair("scope", scope);
                }
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                let request = http.get(url.clone());
                match self.basic() {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                }
            }
        };
        let bytes = ask(request, &url).await?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| bad("its token server gives no token"))?;
        let token = answer.token.or(answer.access_token);
        let token = token.filter(|token| is_header(token));
        let token = token.ok_or_else(|| bad("its token server gives no token"))?;
        let life = answer.expires_in.map_or(USUAL_LIFE, Duration::from_secs);
        // A little less, for the way.
        let life = life.saturating_sub(Duration::from_secs(5)).max(life / 2);
        tracing::debug!(scopes = scopes.join(" "), ?life, "token for {}", self.host);
        Ok(Token {
            token: Secret::new(token),
            until: Instant::now() + life.min(Duration::from_secs(3600)),
        })
    }
}

async fn ask(request: RequestBuilder, url: &Url) -> Result<Vec<u8>, RegistryError> {
    let operation = "asking for a token";
    let sent = tokio::time::timeout(LONGEST_WAIT, request.send()).await;
    let response = match sent {
        Ok(response) => response.map_err(|error| connection(operation, url, error))?,
        Err(_) => return Err(connection(operation, url, "no answer in time")),
    };
    let response = check_status(operation, url, response).await?;
    read_small(operation, url, response, MAX_ANSWER_BYTES)
        .await?
        .ok_or_else(|| RegistryError::Answer {
            url: shown(url),
            reason: "its answer is too long".to_owned(),
        })
}

fn is_header(text: &str) -> bool {
    !text.is_empty() && HeaderValue::from_str(text).is_ok()
}

fn bearer(token: &Secret) -> HeaderValue {
    hidden(&format!("Bearer {}", token.reveal()))
}

/// A header that no log shows.
fn hidden(text: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}
