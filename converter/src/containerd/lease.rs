//! Leases: what keeps containerd's garbage collector from blobs and snapshots that no image names yet.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use tonic::Code;

use crate::containerd::{Containerd, ContainerdError, Inner};
use crate::image::Digest;
use crate::layer::entry::Timestamp;
use crate::layer::toc::rfc3339;

/// After this a lease that nobody has ended does no longer count; as containerd's own clients have it.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// For ending it.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// When what nothing names any more goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Garbage {
    /// Before the lease's end is told.
    Now,
    /// When containerd gets round to it.
    Later,
}

/// A name that no other lease or snapshot has.
pub(super) fn unique_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    format!("esgz-{}-{nanos:x}", std::process::id())
}

impl Inner {
    pub(super) async fn begin_lease(&self) -> Result<(), ContainerdError> {
        let end = (SystemTime::now() + LIFETIME).duration_since(UNIX_EPOCH);
        let end = rfc3339(Timestamp {
            secs: i64::try_from(end.unwrap_or_default().as_secs()).unwrap_or(i64::MAX),
            nanos: 0,
        });
        let labels = [("containerd.io/gc.expire".to_owned(), end)];
        let created = self
            .call("creating a lease in", &self.namespace, || async {
                let request = CreateRequest {
                    id: self.lease.clone(),
                    labels: labels.clone().into(),
                };
                let mut client = LeasesClient::new(self.channel.clone());
                client.create(self.request(request)).await
            })
            .await;
        match created {
            // The answer to an earlier attempt was lost.
            Err(error) if error.code() == Some(Code::AlreadyExists) => Ok(()),
            created => created.map(|_| ()),
        }
    }

    /// Holds a blob that is there already.
    pub(super) async fn hold(&self, digest: Digest) -> Result<(), ContainerdError> {
        self.hold_resource("content", &digest.to_string()).await
    }

    /// Holds what is there already, of a kind that containerd knows.
    pub(super) async fn hold_resource(&self, kind: &str, id: &str) -> Result<(), ContainerdError> {
        self.call("holding", id, || async {
            let resource = Resource {
                id: id.to_owned(),
                r#type: kind.to_owned(),
            };
            let request = AddResourceRequest {
                id: self.lease.clone(),
                resource: Some(resource),
            };
            let mut client = LeasesClient::new(self.channel.clone());
            client.add_resource(self.request(request)).await
        })
        .await
    }
}

impl Containerd {
    /// Whatever becomes of it, the lease ends by itself some day.
    pub(super) fn end_lease(&self, garbage: Garbage) {
        let inner = &self.inner;
        let request = DeleteRequest {
            id: inner.lease.clone(),
            sync: garbage == Garbage::Now,
        };
        let mut client = LeasesClient::new(inner.channel.clone());
        let ended = self.runtime().block_on(async {
            tokio::time::timeout(LAST_WORDS, client.delete(inner.request(request))).await
        });
        match ended {
            Ok(Ok(_)) => {}
            // Ended before.
            Ok(Err(status)) if status.code() == Code::NotFound => {}
            Ok(Err(status)) => tracing::debug!("lease {} stays: {status}", inner.lease),
            Err(_) => tracing::debug!("lease {} stays: no answer", inner.lease),
        }
    }
}
