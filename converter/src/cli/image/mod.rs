//! `esgz image`: what `ctr-remote image` does, under its names and flags (docs/ctr-remote.md).

mod convert;
pub(super) mod ctr;
mod pull;
mod push;
mod rpull;
mod toc_digest;

use clap::Subcommand;

use crate::cli::args::OptimizeArgs;
use crate::cli::conversion::Said;
use crate::cli::failure::Failure;
use crate::cli::optimize;
use crate::cli::progress::Shown;
use crate::cli::signals::Signals;
use crate::containerd::ContainerdOptions;
use convert::{CtrConvertArgs, CtrLayerArgs};
use pull::PullArgs;
use push::PushArgs;
use rpull::RpullArgs;
use toc_digest::TocDigestArgs;

/// As `ctr-remote image`; what is not listed here is handed to `ctr`.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Run an image's workload, and convert the image to eStargz with what it touches in front
    Optimize(Box<CtrOptimizeArgs>),
    /// Convert an image without running it
    Convert(Box<CtrConvertArgs>),
    /// Pull an image from a registry into containerd, and unpack it
    Pull(PullArgs),
    /// Push an image from containerd to a registry
    Push(PushArgs),
    /// Pull an image without its layers, which the snapshotter gets by itself
    Rpull(RpullArgs),
    /// Print the digest of the TOC of a layer in containerd
    GetTocDigest(TocDigestArgs),
}

/// `ctr-remote image optimize`.
#[derive(Debug, clap::Args)]
pub(super) struct CtrOptimizeArgs {
    #[command(flatten)]
    optimize: OptimizeArgs,
    #[command(flatten)]
    layers: CtrLayerArgs,
}

/// Runs `esgz image`.
pub(super) fn run(
    command: &mut ImageCommand,
    containerd: &ContainerdOptions,
    signals: &Signals,
    progress: &Shown,
) -> Result<(), Failure> {
    let cancel = signals.cancel();
    match command {
        ImageCommand::Optimize(args) => {
            args.layers.apply(&mut args.optimize.conversion)?;
            optimize::optimize(&args.optimize, containerd, signals, progress, Said::Digest)
        }
        ImageCommand::Convert(args) => convert::convert(args, containerd, cancel, progress),
        ImageCommand::Pull(args) => pull::pull(args, containerd, cancel, progress),
        ImageCommand::Push(args) => push::push(args, containerd, cancel, progress),
        ImageCommand::Rpull(args) => rpull::rpull(args, containerd, cancel, progress),
        ImageCommand::GetTocDigest(args) => toc_digest::print(args, containerd, cancel),
    }
}
