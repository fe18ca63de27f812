//! Sources: where images are read.
//!
//! Enters: an image reference. Leaves: a [`Source`]: the manifests that were selected, checked
//! against their digests, and the layers' blobs, opened. Layers themselves are checked by `scan`.

mod archive;
mod docker_archive;
mod error;
mod image;
mod oci_layout;
mod registry;
mod select;
mod store;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::blob::Supply;
use crate::cancel::Cancel;
use crate::image::{BlobId, ImageRef};
use crate::registry::{Access, Registry, RegistryOptions};
use archive::Archive;
use registry::Repository;
use store::{BlobKind, Files, Store};

pub use error::SourceError;
pub use image::{SourceImage, SourceLayer};
pub use select::Selection;
pub use tree::{Carried, IndexNode, Node};

/// How images are reached, and where and how far archives may be unpacked.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Directory for archives that are compressed, and for blobs from registries.
    pub scratch: PathBuf,
    /// An archive that is longer when decompressed is refused.
    pub max_unpacked_bytes: u64,
    /// How registries are spoken to.
    pub registry: RegistryOptions,
}

/// What was selected of an image.
#[derive(Debug)]
pub struct Source {
    /// How the user named it.
    pub reference: ImageRef,
    /// The images, in the order of their indexes; at least one.
    pub images: Vec<SourceImage>,
    /// What was selected, in its shape: a single image without its index, unless all platforms were.
    pub root: Node,
    store: Arc<Store>,
}

impl Source {
    /// A blob of something that is carried over, to be passed on as it is.
    ///
    /// # Errors
    /// When it is missing.
    pub fn supply(&self, id: BlobId) -> Result<Arc<dyn Supply>, SourceError> {
        self.store.supply(BlobKind::Other, id)
    }

    /// Reads a manifest that is carried over.
    ///
    /// # Errors
    /// When it is missing, or not what `descriptor` says.
    pub fn manifest(&self, descriptor: &Map<String, Value>) -> Result<Vec<u8>, SourceError> {
        self.store.manifest(descriptor)
    }

    /// The image, if it is the only one.
    ///
    /// # Errors
    /// When there are several.
    pub fn into_image(mut self) -> Result<SourceImage, SourceError> {
        match self.images.pop() {
            Some(image) if self.images.is_empty() => Ok(image),
            last => Err(SourceError::SeveralPlatforms {
                reference: self.reference.to_string(),
                known: self
                    .images
                    .iter()
                    .chain(&last)
                    .map(|image| image.platform.to_string())
                    .collect(),
            }),
        }
    }
}

/// Opens an image: reads indexes, manifests and configurations of what is selected.
///
/// # Errors
/// [`SourceError`] names the file or digest that is missing or wrong.
pub fn open(
    reference: &ImageRef,
    selection: &Selection,
    options: &OpenOptions,
    cancel: &Cancel,
) -> Result<Source, SourceError> {
    let (store, descriptor) = match reference {
        ImageRef::OciLayout { dir, tag } => {
            let files = Files::Directory(dir.clone());
            let descriptor = oci_layout::find(&files, tag.as_deref())?;
            (Store::new(files), descriptor)
        }
        ImageRef::OciArchive { file, tag } => {
            let files = Files::Archive(Archive::open(file, options, cancel)?);
            let descriptor = oci_layout::find(&files, tag.as_deref())?;
            (Store::new(files), descriptor)
        }
        ImageRef::DockerArchive { file, name } => {
            let archive = Archive::open(file, options, cancel)?;
            docker_archive::open(archive, name.as_ref(), cancel)?
        }
        ImageRef::Registry(name) => {
            let (access, scratch) = (Access::Pull, &options.scratch);
            let registry = Registry::open(name, access, &options.registry, scratch, cancel)?;
            let repository = Repository::new(registry);
            let descriptor = repository.find()?;
            (Store::of_registry(repository), descriptor)
        }
    };
    let store = Arc::new(store);
    let (images, root) = select::open(reference, &store, descriptor, selection)?;
    Ok(Source {
        reference: reference.clone(),
        images,
        root,
        store,
    })
}
