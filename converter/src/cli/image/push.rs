//! `esgz image push`: from containerd to a registry.

use clap::Args;

use crate::cancel::Cancel;
use crate::cli::args::PlatformArgs;
use crate::cli::containerd::Remotes;
use crate::cli::failure::Failure;
use crate::cli::image::pull::registry_name;
use crate::cli::progress::Shown;
use crate::cli::registry::{self, RegistryArgs, UserArg};
use crate::cli::{output, reading};
use crate::containerd::ContainerdOptions;
use crate::copy::{Extent, Indexes, Layers, copy};
use crate::image::ImageRef;
use crate::sink::{Sink, SinkOptions};
use crate::source::Selection;

/// `ctr-remote image push`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PushArgs {
    /// What the image becomes in the registry, [HOST/]PATH[:TAG]
    #[arg(value_name = "REMOTE")]
    remote: String,
    /// The image's name in containerd [default: REMOTE]
    #[arg(value_name = "REF")]
    local: Option<String>,
    #[command(flatten)]
    platforms: PlatformArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    registry_user: UserArg,
}

pub(super) fn push(
    args: &PushArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
    progress: &Shown,
) -> Result<(), Failure> {
    let remotes = Remotes {
        registry: registry::options(&args.registry, Some(&args.registry_user))?,
        containerd: containerd.clone(),
    };
    let to = ImageRef::Registry(registry_name(&args.remote)?);
    let local = args.local.as_ref().unwrap_or(&args.remote);
    let from = ImageRef::Containerd(local.clone());
    let options = SinkOptions {
        scratch: reading::default_scratch(),
        registry: remotes.registry.clone(),
        containerd: remotes.containerd.clone(),
        cancel: cancel.clone(),
    };
    let mut sink = Sink::open(&to, &from, &options)?;
    let unless = Selection::All;
    let source = reading::open_to_look(&from, &args.platforms, unless, remotes, cancel)?;
    let extent = Extent {
        indexes: Indexes::Selected,
        layers: Layers::Copied,
    };
    let copied = copy(&source, &mut sink, extent, cancel, progress)?;
    sink.commit(copied.descriptor, &copied.images)?;
    output::line(format_args!("{}", copied.root.digest))
}
