//! Sinks: where images are written, whole or not at all.
//!
//! Enters: blobs as they are made, then the descriptor of the whole. Leaves: an image under its name.
//! Until [`Sink::commit`] nothing of it can be seen, and nothing is left if the process ends in any
//! way before.

mod archive;
mod containerd;
mod index;
mod oci_layout;
mod pass_on;
mod registry;
mod staged;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::containerd::ContainerdSink;
use crate::cancel::Cancel;
use crate::containerd::{Containerd, ContainerdError, ContainerdOptions};
use crate::image::{ArchiveName, BlobId, Digest, ImageRef};
use crate::registry::{Access, Registry, RegistryError, RegistryOptions, Uploads};
use archive::{ArchiveKind, ArchiveSink};
use oci_layout::OciLayoutSink;
use registry::RegistrySink;

pub use pass_on::{PassOnError, PassedOn};
pub use staged::StagedBlob;

/// A destination that is being written.
#[derive(Debug)]
pub struct Sink(Kind);

#[derive(Debug)]
enum Kind {
    Layout(OciLayoutSink),
    Archive(ArchiveSink),
    Registry(Box<RegistrySink>),
    Containerd(Box<ContainerdSink>),
}

/// How destinations are reached.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Directory for blobs that cannot be staged in the destination.
    pub scratch: PathBuf,
    /// How registries are spoken to.
    pub registry: RegistryOptions,
    /// Which containerd is meant.
    pub containerd: ContainerdOptions,
    /// Stops uploads.
    pub cancel: Cancel,
}

/// The blobs of one image, and what they were made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageBlobs {
    /// Its manifest.
    pub manifest: BlobId,
    /// Its configuration.
    pub config: BlobId,
    /// Its layers, base first.
    pub layers: Vec<LayerBlob>,
    /// The source's manifest.
    pub source_manifest: Digest,
    /// The source's configuration.
    pub source_config: Digest,
}

/// A layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The blob.
    pub id: BlobId,
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The source's layer.
    pub source: Digest,
}

/// Why a destination cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A file or directory of the destination cannot be made, written or renamed.
    #[error("{operation} {}", path.display())]
    Write {
        /// `creating`, `writing`, `syncing`, `renaming`, …
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination exists and is something else.
    #[error("{} exists and is not an OCI image layout; it is left as it is", path.display())]
    NotALayout {
        /// The destination.
        path: PathBuf,
    },
    /// The destination exists and is something else.
    #[error("{} exists and is not a tar archive; it is left as it is", path.display())]
    NotAnArchive {
        /// The destination.
        path: PathBuf,
    },
    /// The destination's index cannot be extended.
    #[error("{} is not valid: {reason}; it is left as it is", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A Docker archive has no index of platforms.
    #[error("{}: a Docker archive holds one image, not {images}; choose one with --platform", path.display())]
    OneImage {
        /// The destination.
        path: PathBuf,
        /// How many there would be.
        images: usize,
    },
    /// A registry did not do what was asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// containerd did not do what was asked.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// A digest is the result, not the name, of what is written.
    #[error("{reference}: an image is written under a tag, not under a digest")]
    Digest {
        /// The destination.
        reference: String,
    },
    /// The name selects something that exists; a new image has none yet.
    #[error("{reference}: an image is written under a name, not under a number")]
    Numbered {
        /// The destination.
        reference: String,
    },
}

impl Sink {
    /// Opens the place where an image is to be written; changes nothing there. `source` is where the
    /// image comes from.
    ///
    /// # Errors
    /// When it cannot be written to, or is something else.
    pub fn open(
        reference: &ImageRef,
        source: &ImageRef,
        options: &SinkOptions,
    ) -> Result<Self, SinkError> {
        let kind = match reference {
            ImageRef::OciLayout { dir, tag } => {
                Kind::Layout(OciLayoutSink::open(dir, tag.as_deref())?)
            }
            ImageRef::OciArchive { file, tag } => {
                let kind = ArchiveKind::Oci { tag: tag.clone() };
                Kind::Archive(ArchiveSink::open(file, kind)?)
            }
            ImageRef::DockerArchive { file, name } => {
                let name = match name {
                    Some(ArchiveName::Tagged(name)) => Some(name.clone()),
                    Some(ArchiveName::Index(_)) => {
                        return Err(SinkError::Numbered {
                            reference: reference.to_string(),
                        });
                    }
                    None => None,
                };
                Kind::Archive(ArchiveSink::open(file, ArchiveKind::Docker { name })?)
            }
            ImageRef::Registry(name) => {
                let (access, scratch) = (Access::Push, &options.scratch);
                let (registry, cancel) = (&options.registry, &options.cancel);
                let registry = Registry::open(name, access, registry, scratch, cancel)?;
                let mount_from = match source {
                    ImageRef::Registry(source) if source.host() == name.host() => {
                        Some(source.repository().to_owned())
                    }
                    _ => None,
                };
                let uploads = Uploads::new(registry);
                let early = options.registry.early;
                let sink = RegistrySink::new(uploads, name, scratch.clone(), mount_from, early)?;
                Kind::Registry(Box::new(sink))
            }
            ImageRef::Containerd(name) => {
                let scratch = &options.scratch;
                let containerd = Containerd::open(&options.containerd, scratch, &options.cancel)?;
                let origin = match source {
                    ImageRef::Registry(source) => Some(source.clone()),
                    _ => None,
                };
                let sink = ContainerdSink::new(containerd, name, scratch.clone(), origin);
                Kind::Containerd(Box::new(sink))
            }
        };
        Ok(Self(kind))
    }

    /// The layout's directory or the archive, which may not exist yet.
    pub fn place(&self) -> &Path {
        match &self.0 {
            Kind::Layout(sink) => sink.directory(),
            Kind::Archive(sink) => sink.path(),
            Kind::Registry(sink) => sink.place(),
            Kind::Containerd(sink) => sink.place(),
        }
    }

    /// Asks before the work begins.
    ///
    /// # Errors
    /// When the destination cannot hold so many images.
    pub fn must_hold(&self, images: usize) -> Result<(), SinkError> {
        match &self.0 {
            Kind::Layout(_) | Kind::Registry(_) | Kind::Containerd(_) => Ok(()),
            Kind::Archive(sink) => sink.must_hold(images),
        }
    }

    /// A blob whose digest is not known yet. It must be added, or dropped, before the next is staged.
    ///
    /// # Errors
    /// When none can be made in the destination's file system.
    pub fn stage(&mut self) -> Result<StagedBlob, SinkError> {
        match &mut self.0 {
            Kind::Layout(sink) => sink.stage(),
            Kind::Archive(sink) => sink.stage(),
            Kind::Registry(sink) => sink.stage(),
            Kind::Containerd(sink) => sink.stage(),
        }
    }

    /// Takes over a completely written blob. One that is there already is dropped.
    ///
    /// # Errors
    /// When it cannot be written or synced.
    pub fn add(&mut self, id: BlobId, blob: StagedBlob) -> Result<(), SinkError> {
        match &mut self.0 {
            Kind::Layout(sink) => sink.add(id, blob),
            Kind::Archive(sink) => sink.add(id, &blob),
            Kind::Registry(sink) => sink.add(id, blob),
            Kind::Containerd(sink) => sink.add(id, blob),
        }
    }

    /// Adds a small blob.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> Result<BlobId, SinkError> {
        let id = BlobId::of(bytes);
        let mut blob = self.stage()?;
        blob.write_all(bytes).map_err(|source| SinkError::Write {
            operation: "writing a blob in",
            path: self.place().to_owned(),
            source,
        })?;
        self.add(id, blob)?;
        Ok(id)
    }

    /// Adds a manifest or index, after all that it names.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_manifest(&mut self, bytes: &[u8], media_type: &str) -> Result<BlobId, SinkError> {
        match &mut self.0 {
            Kind::Layout(_) | Kind::Archive(_) => self.add_bytes(bytes),
            Kind::Registry(sink) => {
                let id = BlobId::of(bytes);
                sink.add_manifest(id, bytes, media_type);
                Ok(id)
            }
            Kind::Containerd(sink) => {
                let id = BlobId::of(bytes);
                sink.add_manifest(id, bytes);
                Ok(id)
            }
        }
    }

    /// Makes the image visible. `descriptor` is that of its manifest or index, which was added;
    /// `images` are all images below it.
    ///
    /// # Errors
    /// When a step fails; the destination is as it was then.
    pub fn commit(
        self,
        descriptor: Map<String, Value>,
        images: &[ImageBlobs],
    ) -> Result<(), SinkError> {
        self.commit_labelled(descriptor, images, &HashMap::new())
    }

    /// As [`Sink::commit`], with labels for the image's name; only containerd keeps them.
    ///
    /// # Errors
    /// As [`Sink::commit`].
    pub fn commit_labelled(
        self,
        descriptor: Map<String, Value>,
        images: &[ImageBlobs],
        labels: &HashMap<String, String>,
    ) -> Result<(), SinkError> {
        match self.0 {
            Kind::Layout(sink) => sink.commit(descriptor),
            Kind::Archive(sink) => sink.commit(descriptor, images),
            Kind::Registry(sink) => sink.commit(),
            Kind::Containerd(sink) => sink.commit(&descriptor, images, labels),
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The directory that holds `path`.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
