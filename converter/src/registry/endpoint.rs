//! A server that has the repository: the registry itself, or a mirror of it.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Url;

use crate::registry::RegistryError;
use crate::registry::auth::Auth;
use crate::registry::credentials::Login;
use crate::registry::hosts::{Host, Serves};
use crate::registry::tls;
use crate::registry::transport::Transport;

/// A server, and how it is asked.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) transport: Transport,
    prefix: String,
    serves: Serves,
    /// The registry that a mirror is asked for.
    namespace: Option<String>,
    /// Whether it could not be reached once.
    is_away: AtomicBool,
}

impl Endpoint {
    /// `host`, to be asked for what the registry `name` has.
    pub(super) fn new(host: Host, login: Login, name: &str) -> Result<Self, RegistryError> {
        let is_plain = host.base.scheme() == "http";
        let authority = authority(&host.base);
        let is_itself =
            authority == name || name == "docker.io" && authority == "registry-1.docker.io";
        Ok(Self {
            transport: Transport {
                http: tls::client(&authority, &host)?,
                auth: Auth::new(login, &authority, is_plain),
                allows_plain: is_plain,
                base: host.base,
                headers: host.headers,
            },
            prefix: host.prefix,
            serves: host.serves,
            namespace: (!is_itself).then(|| name.to_owned()),
            is_away: AtomicBool::new(false),
        })
    }

    /// An address in the repository: `manifests/…`, `blobs/…`.
    pub(super) fn url(&self, repository: &str, path: &str) -> Url {
        let mut url = self.transport.base.clone();
        url.set_path(&format!("{}/{repository}/{path}", self.prefix));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether it is of use to ask it for something with a digest.
    pub(super) fn serves_digests(&self) -> bool {
        self.serves != Serves::Nothing && !self.is_away.load(Ordering::Relaxed)
    }

    /// Whether it is of use to ask it what a tag means.
    pub(super) fn serves_tags(&self) -> bool {
        self.serves == Serves::Tags && !self.is_away.load(Ordering::Relaxed)
    }

    /// Takes note of why a mirror did not do what was asked. `None` if another may be asked instead.
    pub(super) fn failed(&self, failure: RegistryError) -> Option<RegistryError> {
        match failure {
            RegistryError::Cancelled(_)
            | RegistryError::Scratch { .. }
            | RegistryError::Damaged { .. } => return Some(failure),
            RegistryError::Missing { .. } => tracing::debug!("not in the mirror: {failure}"),
            RegistryError::Connection { .. } => {
                if !self.is_away.swap(true, Ordering::Relaxed) {
                    let base = &self.transport.base;
                    tracing::warn!("the mirror {base} is left out: {failure}");
                }
            }
            _ => tracing::warn!("not from the mirror: {failure}"),
        }
        None
    }
}

/// Host, and port if there is one.
pub(super) fn authority(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    match base.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
