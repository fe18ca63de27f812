//! Sinks: where images are written, whole or not at all.
//!
//! Enters: blobs as they are made, then the descriptor of the whole. Leaves: an image under its name.
//! Until [`Sink::commit`] nothing of it can be seen, and nothing is left if the process ends in any
//! way before.

mod archive;
mod index;
mod oci_layout;
mod pass_on;
mod registry;
mod staged;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cancel::Cancel;
use crate::image::{ArchiveName, BlobId, ImageRef};
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
}

/// How destinations are reached.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Directory for blobs that cannot be staged in the destination.
    pub scratch: PathBuf,
    /// How registries are spoken to.
    pub registry: RegistryOptions,
    /// Stops uploads.
    pub cancel: Cancel,
}

/// The blobs of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageBlobs {
    /// Its configuration.
    pub config: BlobId,
    /// Its layers, base first.
    pub layers: Vec<BlobId>,
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
                let sink = RegistrySink::new(uploads, name, scratch.clone(), mount_from)?;
                Kind::Registry(Box::new(sink))
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
        }
    }

    /// Asks before the work begins.
    ///
    /// # Errors
    /// When the destination cannot hold so many images.
    pub fn must_hold(&self, images: usize) -> Result<(), SinkError> {
        match &self.0 {
            Kind::Layout(_) | Kind::Registry(_) => Ok(()),
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
        match self.0 {
            Kind::Layout(sink) => sink.commit(descriptor),
            Kind::Archive(sink) => sink.commit(descriptor, images),
            Kind::Registry(sink) => sink.commit(),
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
