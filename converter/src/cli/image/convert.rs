//! `esgz image convert`, and the flags of ctr-remote's conversions that `esgz convert` does not have.

use std::path::PathBuf;

use clap::Args;

use crate::cancel::Cancel;
use crate::cli::args::{ConversionArgs, ConvertArgs};
use crate::cli::conversion::{self, Said};
use crate::cli::failure::{Failure, USAGE};
use crate::cli::progress::Shown;
use crate::containerd::ContainerdOptions;

/// `ctr-remote image convert`.
#[derive(Debug, Args)]
pub(in crate::cli) struct CtrConvertArgs {
    #[command(flatten)]
    convert: ConvertArgs,
    #[command(flatten)]
    layers: CtrLayerArgs,
    /// Make eStargz layers; one of this and --uncompress has to be given
    #[arg(long, conflicts_with = "uncompress")]
    estargz: bool,
    #[arg(long, hide = true)]
    estargz_keep_diff_id: bool,
    #[arg(long, hide = true, value_name = "FILE")]
    zstdchunked_record_in: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "SIZE")]
    zstdchunked_chunk_size: Option<String>,
}

/// How ctr-remote makes layers, where that is not as here.
#[derive(Debug, Args)]
#[command(next_help_heading = "Conversion")]
pub(in crate::cli) struct CtrLayerArgs {
    /// The same as --threads, 0 means all cores; the output does not depend on it
    #[arg(
        long,
        value_name = "N",
        default_value = "0",
        conflicts_with = "threads"
    )]
    estargz_parallelism: u16,
    /// Without effect: esgz decodes gzip itself, on all cores where that is possible
    #[arg(long, alias = "GH", value_name = "PROGRAM")]
    estargz_gzip_helper: Option<String>,
    #[arg(long, hide = true)]
    estargz_external_toc: bool,
    #[arg(long, hide = true)]
    zstdchunked: bool,
    #[arg(long, hide = true, value_name = "LEVEL")]
    zstdchunked_compression_level: Option<i32>,
}

impl CtrLayerArgs {
    /// Says the same with flags of esgz's own.
    ///
    /// # Errors
    /// When esgz cannot do what is asked.
    pub(super) fn apply(&self, conversion: &mut ConversionArgs) -> Result<(), Failure> {
        if self.estargz_external_toc {
            return Err(unsupported("--estargz-external-toc"));
        }
        if self.zstdchunked || self.zstdchunked_compression_level.is_some() {
            return Err(unsupported("--zstdchunked"));
        }
        if let Some(helper) = &self.estargz_gzip_helper {
            tracing::debug!("{helper} is not needed");
        }
        if self.estargz_parallelism > 0 {
            conversion.reading.threads = Some(self.estargz_parallelism);
        }
        Ok(())
    }
}

/// A flag of ctr-remote's that means something which esgz does not do.
pub(super) fn unsupported(flag: &str) -> Failure {
    Failure::message(USAGE, format!("{flag} is not supported by esgz"))
}

/// Runs `esgz image convert`.
pub(super) fn convert(
    args: &mut CtrConvertArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
    progress: &Shown,
) -> Result<(), Failure> {
    args.layers.apply(&mut args.convert.conversion)?;
    if args.estargz_keep_diff_id {
        return Err(unsupported("--estargz-keep-diff-id"));
    }
    if args.zstdchunked_record_in.is_some() || args.zstdchunked_chunk_size.is_some() {
        return Err(unsupported("--zstdchunked"));
    }
    if !args.estargz && !args.convert.uncompress {
        let message = "specify what layers become: --estargz or --uncompress".to_owned();
        return Err(Failure::message(USAGE, message));
    }
    conversion::convert(&args.convert, containerd, cancel, progress, Said::Digest)
}
