//! Snapshots: an image's layers, one upon the other, in a snapshotter.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::Mount;
use serde_json::{Map, Value};
use tonic::Code;
use tonic::transport::Channel;

use crate::containerd::image::to_message;
use crate::containerd::lease::unique_name;
use crate::containerd::{Containerd, ContainerdError, Inner};
use crate::image::Digest;

/// A layer of an image that is to be unpacked.
#[derive(Clone, Debug)]
pub struct LayerOfChain {
    /// Its descriptor.
    pub descriptor: Map<String, Value>,
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Labels for its snapshot.
    pub labels: HashMap<String, String>,
}

/// The layers of an image in a snapshotter, base first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    snapshotter: String,
    /// The `ChainID` (OCI image specification, config.md) of what was unpacked so far.
    top: Option<Digest>,
}

/// What a snapshotter makes of a layer.
#[derive(Debug)]
pub enum Prepared {
    /// It is there: from before, or because the snapshotter gets it by itself.
    There,
    /// The layer's blob has to be unpacked.
    Wanted(Unpacking),
}

/// A snapshot that is to be filled.
#[derive(Debug)]
pub struct Unpacking {
    key: String,
    mounts: Vec<Mount>,
}

impl Chain {
    /// An image of which nothing was unpacked yet.
    pub fn new(snapshotter: &str) -> Self {
        Self {
            snapshotter: snapshotter.to_owned(),
            top: None,
        }
    }

    /// The label by which a blob holds all of them, while it is there itself.
    pub fn labels(&self) -> HashMap<String, String> {
        let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        self.top
            .map(|top| (key, top.to_string()))
            .into_iter()
            .collect()
    }

    fn name_with(&self, diff_id: Digest) -> Digest {
        match self.top {
            None => diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        }
    }
}

impl Containerd {
    /// Offers the next layer to the snapshotter. If it is there already, it is part of the chain then.
    ///
    /// # Errors
    /// When there is no such snapshotter, or it refuses.
    pub fn prepare(
        &self,
        chain: &mut Chain,
        layer: &LayerOfChain,
    ) -> Result<Prepared, ContainerdError> {
        let inner = &self.inner;
        let name = chain.name_with(layer.diff_id);
        self.wait(async {
            if inner.has_snapshot(chain, name).await? {
                chain.top = Some(name);
                return Ok(Prepared::There);
            }
            let key = format!("extract-{} {name}", unique_name());
            let mut labels = layer.labels.clone();
            // By this a snapshotter knows that it may make the layer by itself.
            labels.insert("containerd.io/snapshot.ref".to_owned(), name.to_string());
            let what = format!("snapshot {name}");
            let prepared = inner.call("preparing", &what, || async {
                let request = PrepareSnapshotRequest {
                    snapshotter: chain.snapshotter.clone(),
                    key: key.clone(),
                    parent: chain.top.map(|top| top.to_string()).unwrap_or_default(),
                    labels: labels.clone(),
                };
                inner.snapshots().prepare(inner.request(request)).await
            });
            match prepared.await {
                Ok(answer) => {
                    let mounts = answer.mounts;
                    Ok(Prepared::Wanted(Unpacking { key, mounts }))
                }
                Err(error) if error.code() == Some(Code::AlreadyExists) => {
                    if !inner.has_snapshot(chain, name).await? {
                        return Err(error);
                    }
                    chain.top = Some(name);
                    Ok(Prepared::There)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Fills the snapshot with the layer, whose blob is in the namespace, and adds it to the chain.
    ///
    /// # Errors
    /// When that fails, or another tar comes out; the snapshot is removed then.
    pub fn unpack(
        &self,
        chain: &mut Chain,
        layer: &LayerOfChain,
        unpacking: &Unpacking,
    ) -> Result<(), ContainerdError> {
        let inner = &self.inner;
        let name = chain.name_with(layer.diff_id);
        let unpacked = self.wait(inner.fill(chain, name, layer, unpacking));
        match unpacked {
            Ok(()) => chain.top = Some(name),
            Err(_) => self.runtime().block_on(async {
                let request = RemoveSnapshotRequest {
                    snapshotter: chain.snapshotter.clone(),
                    key: unpacking.key.clone(),
                };
                // The failure itself is being reported already.
                let _ = inner.snapshots().remove(inner.request(request)).await;
            }),
        }
        unpacked
    }
}

impl Inner {
    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    async fn has_snapshot(&self, chain: &Chain, name: Digest) -> Result<bool, ContainerdError> {
        let what = format!("snapshot {name}");
        let kind = format!("snapshots/{}", chain.snapshotter);
        self.hold_resource(&kind, &name.to_string()).await?;
        let found = self.call("looking up", &what, || async {
            let request = StatSnapshotRequest {
                snapshotter: chain.snapshotter.clone(),
                key: name.to_string(),
            };
            self.snapshots().stat(self.request(request)).await
        });
        match found.await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn fill(
        &self,
        chain: &Chain,
        name: Digest,
        layer: &LayerOfChain,
        Unpacking { key, mounts }: &Unpacking,
    ) -> Result<(), ContainerdError> {
        const OPERATION: &str = "unpacking";
        let diff = to_message(&layer.descriptor);
        let what = format!("layer {}", diff.digest);
        let request = ApplyRequest {
            diff: Some(diff),
            mounts: mounts.clone(),
            ..ApplyRequest::default()
        };
        let mut client = DiffClient::new(self.channel.clone());
        let applied = client.apply(self.request(request)).await;
        let applied = applied.map_err(|status| self.error(OPERATION, &what, status))?;
        let found = applied.into_inner().applied.unwrap_or_default().digest;
        if found != layer.diff_id.to_string() {
            return Err(ContainerdError::Answer {
                operation: OPERATION,
                what,
                reason: format!("its DiffID is {found}, expected {}", layer.diff_id),
            });
        }
        let what = format!("snapshot {name}");
        let request = CommitSnapshotRequest {
            snapshotter: chain.snapshotter.clone(),
            name: name.to_string(),
            key: key.clone(),
            labels: layer.labels.clone(),
        };
        let committed = self.snapshots().commit(self.request(request)).await;
        match committed.map_err(|status| self.error("committing", &what, status)) {
            // Somebody else was faster.
            Err(error) if error.code() == Some(Code::AlreadyExists) => Ok(()),
            committed => committed.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_as_the_specification_has_it() {
        let (base, top) = (Digest::of(b"base"), Digest::of(b"top"));
        let mut chain = Chain::new("overlayfs");
        assert_eq!(chain.name_with(base), base);
        chain.top = Some(base);
        let both = Digest::of(format!("{base} {top}").as_bytes());
        assert_eq!(chain.name_with(top), both);
    }
}
