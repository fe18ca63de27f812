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
mod endpoint;
mod error;
mod hosts;
mod referrers;
mod retry;
mod secret;
mod stream;
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
use endpoint::{Endpoint, authority};
use hosts::Hosts;
use retry::{Failures, interrupted};
use transport::Call;

pub use credentials::CredentialSources;
pub use download::{Check, PulledManifest};
pub use error::RegistryError;
pub use referrers::{Listed, Referrer};
pub use retry::Retry;
pub use secret::Secret;
pub use stream::RemoteBlob;
pub use tls::Security;
pub use upload::{EarlyUpload, Uploads};

/// Blobs that are on their way at once, in each direction.
const PARALLEL_BLOBS: usize = 4;
/// Parts of an upload; some registries refuse parts of less than 5 MiB.
const PART_BYTES: u64 = 16 << 20;

/// How registries are spoken to.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Who one is.
    pub credentials: CredentialSources,
    /// TLS or not.
    pub security: Security,
    /// Directory with a `hosts.toml` for each registry, which names its mirrors.
    pub hosts_dir: Option<PathBuf>,
    /// What happens after a failure.
    pub retry: Retry,
    /// Length of a part, where a blob is sent in parts.
    pub part_bytes: u64,
    /// When blobs are sent that are still being made.
    pub early: Early,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            credentials: CredentialSources::default(),
            security: Security::default(),
            hosts_dir: None,
            retry: Retry::default(),
            part_bytes: PART_BYTES,
            early: Early::default(),
        }
    }
}

/// When blobs are sent that are still being made: their digests are not known, and the repository may turn
/// out to have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Early {
    /// Where the repository has no tag yet, and so hardly any blob.
    #[default]
    NewRepository,
    /// Always.
    Always,
    /// Never.
    Never,
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
    /// The registry itself, which alone is written to.
    server: Endpoint,
    /// Asked before it when something is read.
    mirrors: Vec<Endpoint>,
    name: RegistryName,
    scopes: Vec<String>,
    retry: Retry,
    scratch: PathBuf,
    cancel: Cancel,
    permits: Semaphore,
    /// Whether the registry has refused a blob in parts.
    refuses_chunks: AtomicBool,
    part_bytes: u64,
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
        let hosts = Hosts::read(options.hosts_dir.as_deref(), host, &options.security)?;
        let login = options.credentials.login(host, name.repository())?;
        let server = Endpoint::new(hosts.server, login, host)?;
        // What was given is for the registry alone.
        let files = options.credentials.without_given();
        let mirrors = hosts.mirrors.into_iter().map(|mirror| {
            let login = files.login(&authority(&mirror.base), name.repository())?;
            Endpoint::new(mirror, login, host)
        });
        let mirrors = match access {
            Access::Pull => mirrors.collect::<Result<_, _>>()?,
            Access::Push => Vec::new(),
        };
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
                server,
                mirrors,
                scopes: vec![scope(name.repository(), actions)],
                name: name.clone(),
                retry: options.retry,
                scratch: scratch.to_owned(),
                cancel: cancel.clone(),
                permits: Semaphore::new(PARALLEL_BLOBS),
                refuses_chunks: AtomicBool::new(false),
                part_bytes: options.part_bytes.max(1),
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
    /// An address in the repository of the registry itself: `manifests/…`, `blobs/…`.
    fn url(&self, path: &str) -> Url {
        self.server.url(self.name.repository(), path)
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
            match self.server.transport.send(call).await {
                Ok(response) => return Ok(response),
                Err(failure) => failures.wait(failure).await?,
            }
        }
    }
}

/// What a token has to allow (distribution's token scope specification).
fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}
