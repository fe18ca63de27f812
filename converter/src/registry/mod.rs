//! A client of registries (OCI distribution specification 1.1): manifests and blobs of one repository.
//!
//! Enters: a repository's name, credentials, certificates. Leaves: blobs that arrive in the scratch
//! directory while they are read, and uploads that go on beside other work. Callers are synchronous;
//! tokio is known in this folder alone. Credentials go to the registry itself and to the token server that
//! it names, never to where it redirects.

mod auth;
mod challenge;
mod credentials;
mod download;
mod error;
mod retry;
mod secret;
mod tls;
mod transport;
mod upload;
mod upload_body;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Response, Url};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use crate::cancel::Cancel;
use crate::image::RegistryName;
use auth::Auth;
use retry::{Failures, interrupted};
use transport::{Call, Transport};

pub use credentials::CredentialSources;
pub use download::PulledManifest;
pub use error::RegistryError;
pub use retry::Retry;
pub use secret::Secret;
pub use tls::Security;
pub use upload::Uploads;

/// Blobs that are on their way at once, in each direction.
const PARALLEL_BLOBS: usize = 4;

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Who one is.
    pub credentials: CredentialSources,
    /// TLS or not.
    pub security: Security,
    /// What happens after a failure.
    pub retry: Retry,
}

/// What one wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Pull,
    /// Read and write.
    Push,
}

/// One repository of a registry.
#[derive(Debug)]
pub struct Registry {
    inner: Arc<Inner>,
    /// Always there until the drop.
    runtime: Option<Runtime>,
}

/// What the tasks share.
#[derive(Debug)]
struct Inner {
    transport: Transport,
    name: RegistryName,
    scopes: Vec<String>,
    retry: Retry,
    scratch: PathBuf,
    cancel: Cancel,
    permits: Semaphore,
    /// Whether the registry has refused a blob in parts.
    refuses_chunks: AtomicBool,
}

impl Registry {
    /// Prepares the client; nothing is asked of the registry yet. Blobs are kept in `scratch`.
    ///
    /// # Errors
    /// When credentials or certificates cannot be read.
    pub fn open(
        name: &RegistryName,
        access: Access,
        options: &RegistryOptions,
        scratch: &Path,
        cancel: &Cancel,
    ) -> Result<Self, RegistryError> {
        let host = name.host();
        let client_error = |source| RegistryError::Client {
            host: host.to_owned(),
            source,
        };
        let login = options.credentials.login(host, name.repository())?;
        let is_plain = options.security.is_plain(host);
        let scheme = if is_plain { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}", endpoint(host)))
            .map_err(|error| client_error(Box::new(error)))?;
        let http = tls::client(host, &options.security)?;
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| client_error(Box::new(error)))?;
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport {
                    http,
                    base,
                    auth: Auth::new(login, host, is_plain),
                    allows_plain: is_plain,
                },
                scopes: vec![scope(name.repository(), actions)],
                name: name.clone(),
                retry: options.retry,
                scratch: scratch.to_owned(),
                cancel: cancel.clone(),
                permits: Semaphore::new(PARALLEL_BLOBS),
                refuses_chunks: AtomicBool::new(false),
            }),
            runtime: Some(runtime),
        })
    }

    /// The repository, and what is meant of it.
    pub fn name(&self) -> &RegistryName {
        &self.inner.name
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("it is taken by the drop alone")
    }

    /// Waits for `work`, unless the user interrupts.
    fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        self.runtime().block_on(async {
            tokio::select! {
                done = work => done,
                cancelled = interrupted(&self.inner.cancel) => Err(cancelled.into()),
            }
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // A name that is being looked up cannot be interrupted; nobody waits for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(1));
        }
    }
}

impl Inner {
    /// An address in the repository: `manifests/…`, `blobs/…`.
    fn url(&self, path: &str) -> Url {
        let mut url = self.transport.base.clone();
        url.set_path(&format!("/v2/{}/{path}", self.name.repository()));
        url
    }

    fn call(&self, operation: &'static str, method: Method, url: Url) -> Call<'_> {
        Call {
            operation,
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            scopes: &self.scopes,
        }
    }

    /// Makes a request that may be repeated, until it succeeds or there is no hope.
    async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let mut failures = Failures::new(self.retry, &self.cancel);
        loop {
            match self.transport.send(call).await {
                Ok(response) => return Ok(response),
                Err(failure) => failures.wait(failure).await?,
            }
        }
    }
}

/// Where the registry of this name is asked.
fn endpoint(host: &str) -> &str {
    match host {
        "docker.io" => "registry-1.docker.io",
        host => host,
    }
}

/// What a token has to allow (distribution's token scope specification).
fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}
