//! From an opened image to what a simulation needs of it: the one file here that reads.

use crate::image::Digest;
use crate::layer::verify::{VerifyError, must_equal, parse_toc, read_toc};
use crate::simulate::{Contents, ImageModel, LayerModel};
use crate::source::{SourceError, SourceImage, SourceLayer};

/// Why an image's TOCs cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A layer's blob is missing.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer has a footer, and no TOC that it leads to.
    #[error("layer {layer}")]
    Toc {
        /// The blob's digest.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: VerifyError,
    },
}

impl ImageModel {
    /// Reads the TOCs of `image`. As the snapshotter has it, a layer is only eStargz if the manifest has its TOC's
    /// digest, too.
    ///
    /// # Errors
    /// [`ReadError`] names the layer.
    pub fn read(image: &SourceImage) -> Result<Self, ReadError> {
        let config_bytes = image.manifest.parsed.config().size();
        let layers = image.layers.iter().map(|layer| read_layer(image, layer));
        Ok(Self {
            document_bytes: image.manifest.id.size_bytes + config_bytes,
            layers: layers.collect::<Result<_, ReadError>>()?,
        })
    }
}

fn read_layer(image: &SourceImage, layer: &SourceLayer) -> Result<LayerModel, ReadError> {
    let mut model = LayerModel {
        digest: layer.blob.digest,
        size_bytes: layer.blob.size_bytes,
        contents: None,
    };
    let Some(annotated) = &layer.toc_digest else {
        return Ok(model);
    };
    let failed = |source| ReadError::Toc {
        layer: layer.blob.digest,
        source,
    };
    let blob = image.open_layer(layer)?;
    let (json, toc_offset_bytes) = match read_toc(&blob) {
        Ok(found) => found,
        // zstd:chunked, or a TOC of its own: not known here.
        Err(VerifyError::NoFooter) => return Ok(model),
        Err(source) => return Err(failed(source)),
    };
    let digest = Digest::of(&json).to_string();
    must_equal("TOC digest", &digest, annotated).map_err(failed)?;
    let toc = parse_toc(&json, toc_offset_bytes).map_err(failed)?;
    model.contents = Some(Contents::new(&toc, toc_offset_bytes, json.len() as u64));
    Ok(model)
}
