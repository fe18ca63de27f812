//! A client of containerd's API: images, blobs and snapshots of one namespace.
//!
//! Enters: the address of its socket, a namespace. Leaves: blobs, opened where containerd keeps them or
//! arriving in the scratch directory, and ingests that go on beside other work. Callers are synchronous; beside
//! `registry/` this folder alone knows tokio. All that is read or written is held by a lease of our own, which
//! ends with the client, or by itself after a day if the process is killed.

mod call;
mod content;
mod error;
mod image;
mod ingest;
pub mod labels;
mod lease;
mod snapshot;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::cancel::{Cancel, Cancelled};

pub use content::BlobInfo;
pub use error::ContainerdError;
pub use image::StoredImage;
pub use ingest::Ingests;
pub use snapshot::{Chain, LayerOfChain, Prepared, Unpacking};

/// Blobs that are on their way at once, in each direction.
const PARALLEL_BLOBS: usize = 4;
/// No message may be longer, in either direction; containerd's own limit.
const MESSAGE_BYTES: usize = 16 << 20;

/// Which containerd is meant, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerdOptions {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace; one that does not exist yet is made by what is written to it.
    pub namespace: String,
    /// How blobs are read.
    pub contents: ContentAccess,
}

impl Default for ContainerdOptions {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            namespace: "default".to_owned(),
            contents: ContentAccess::Files,
        }
    }
}

/// How blobs are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentAccess {
    /// From containerd's files, where these can be read, else as messages.
    Files,
    /// As messages.
    Messages,
}

/// One namespace of a containerd, and a lease in it.
#[derive(Debug)]
pub struct Containerd {
    inner: Arc<Inner>,
    /// Always there until the drop.
    runtime: Option<Runtime>,
}

/// What the tasks share.
#[derive(Debug)]
struct Inner {
    channel: Channel,
    address: PathBuf,
    namespace: String,
    /// The lease's name.
    lease: String,
    /// Where containerd has its blobs, if they may be read there.
    blobs: Option<PathBuf>,
    scratch: PathBuf,
    cancel: Cancel,
    permits: Semaphore,
}

impl Containerd {
    /// Connects, and begins a lease. Blobs that are read as messages are kept in `scratch`.
    ///
    /// # Errors
    /// When nothing answers at the address, or the namespace's name is not valid.
    pub fn open(
        options: &ContainerdOptions,
        scratch: &Path,
        cancel: &Cancel,
    ) -> Result<Self, ContainerdError> {
        if !is_identifier(&options.namespace) {
            return Err(ContainerdError::Namespace {
                namespace: options.namespace.clone(),
            });
        }
        let address = &options.address;
        let unreachable = |source| ContainerdError::Unreachable {
            address: address.clone(),
            source,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("containerd")
            .enable_all()
            .build()
            .map_err(|error| unreachable(Box::new(error)))?;
        let opening = async {
            let channel = containerd_client::connect(address).await;
            let channel = channel.map_err(|error| unreachable(Box::new(error)))?;
            let mut inner = Inner {
                channel,
                address: address.clone(),
                namespace: options.namespace.clone(),
                lease: lease::unique_name(),
                blobs: None,
                scratch: scratch.to_owned(),
                cancel: cancel.clone(),
                permits: Semaphore::new(PARALLEL_BLOBS),
            };
            if options.contents == ContentAccess::Files {
                inner.blobs = inner.directory_of_blobs().await?;
            }
            inner.begin_lease().await?;
            Ok::<_, ContainerdError>(inner)
        };
        let inner = runtime.block_on(async {
            tokio::select! {
                opened = opening => opened,
                cancelled = interrupted(cancel) => Err(cancelled.into()),
            }
        })?;
        Ok(Self {
            inner: Arc::new(inner),
            runtime: Some(runtime),
        })
    }

    /// Whether blobs are read from containerd's files.
    pub fn reads_files(&self) -> bool {
        self.inner.blobs.is_some()
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("it is taken by the drop alone")
    }

    /// Waits for `work`, unless the user interrupts.
    fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, ContainerdError>>,
    ) -> Result<T, ContainerdError> {
        self.runtime().block_on(async {
            tokio::select! {
                done = work => done,
                cancelled = interrupted(&self.inner.cancel) => Err(cancelled.into()),
            }
        })
    }

    /// Ends the lease; what nothing else names may go then.
    pub fn release(self) {
        self.end_lease(lease::Garbage::Later);
    }
}

impl Drop for Containerd {
    /// As [`Containerd::release`] after a failure: waits until what nothing names is gone.
    fn drop(&mut self) {
        self.end_lease(lease::Garbage::Now);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(1));
        }
    }
}

impl Inner {
    /// The directory of blobs, named by their digests in hexadecimal, if this process sees it.
    async fn directory_of_blobs(&self) -> Result<Option<PathBuf>, ContainerdError> {
        const FILTER: &str = "type==io.containerd.content.v1";
        let plugins = self
            .call("asking for plugins of", "containerd", || async {
                let mut client = IntrospectionClient::new(self.channel.clone());
                let filters = vec![FILTER.to_owned()];
                client
                    .plugins(self.request(PluginsRequest { filters }))
                    .await
            })
            .await?;
        let exported = plugins.plugins.into_iter().find_map(|mut plugin| {
            let is_store = plugin.r#type == "io.containerd.content.v1" && plugin.id == "content";
            is_store.then(|| plugin.exports.remove("root")).flatten()
        });
        let directory = exported.map(|root| Path::new(&root).join("blobs/sha256"));
        let directory = directory.filter(|directory| std::fs::read_dir(directory).is_ok());
        match &directory {
            Some(directory) => tracing::debug!("blobs are read from {}", directory.display()),
            None => tracing::debug!("blobs are read as messages"),
        }
        Ok(directory)
    }
}

/// containerd's rule for names of namespaces.
fn is_identifier(name: &str) -> bool {
    let parts = name.split(['.', '_', '-']);
    name.len() <= 76
        && parts
            .into_iter()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Comes back when the user interrupts. The flag is set by a signal handler, which cannot wake a task.
async fn interrupted(cancel: &Cancel) -> Cancelled {
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    while !cancel.is_cancelled() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Cancelled
}

#[cfg(test)]
mod tests {
    use super::is_identifier;

    #[test]
    fn namespaces_have_names() {
        for good in ["default", "k8s.io", "a-b_c.1", "moby"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", ".", "a..b", "a/b", "-a", "a b", "ä", &"a".repeat(77)] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }
}
