//! The second half of a layer's way, on one screen: plan → encode → assemble.

use std::io::Write;

use crate::cancel::{Cancel, Cancelled};
use crate::image::Digest;
use crate::layer::assemble::{AssembleError, Assembler, FinishedLayer};
use crate::layer::buffers::Buffers;
use crate::layer::encode::{Check, EncodeError, Encoder, Level};
use crate::layer::entry::ScannedLayer;
use crate::layer::in_order::{Costed, Parallel, in_order};
use crate::layer::plan::LayerPlan;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// Compression level.
    pub level: Level,
    /// Whether members are inflated again.
    pub check: Check,
    /// Threads and memory; the output does not depend on them.
    pub parallel: Parallel,
}

/// Why a layer could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A member could not be made.
    #[error("converting layer {layer}")]
    Encode {
        /// The source layer.
        layer: Digest,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// The blob could not be written.
    #[error("writing the converted layer {layer}")]
    Assemble {
        /// The source layer.
        layer: Digest,
        /// Why.
        #[source]
        source: AssembleError,
    },
    /// Another part failed, or the user interrupted.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Writes the blob that `plan` lays out for `layer` to `out`.
///
/// # Errors
/// [`ConvertError`]; what was written to `out` until then is of no use.
pub fn convert_layer(
    layer: &ScannedLayer,
    plan: &LayerPlan,
    options: ConvertOptions,
    out: impl Write,
    cancel: &Cancel,
) -> Result<FinishedLayer, ConvertError> {
    let digest = layer.digest;
    let encode_error = |source| ConvertError::Encode {
        layer: digest,
        source,
    };
    let assemble_error = |source| ConvertError::Assemble {
        layer: digest,
        source,
    };
    let buffers = Buffers::default();
    let mut assembler = Assembler::new(layer, plan, out);
    in_order(
        options.parallel,
        cancel,
        plan.members.iter().map(|member| Costed {
            job: member,
            cost_bytes: Encoder::cost_bytes(member),
        }),
        || Encoder::new(options.level, options.check, &buffers),
        |encoder, member| {
            encoder
                .encode(plan, member, &layer.spool)
                .map_err(encode_error)
        },
        |encoded| {
            assembler.member(&encoded).map_err(assemble_error)?;
            encoded.recycle(&buffers);
            Ok(())
        },
    )?;
    assembler
        .finish(&mut options.level.compressor())
        .map_err(assemble_error)
}
