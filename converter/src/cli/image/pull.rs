//! `esgz image pull`: from a registry into containerd, and into a snapshotter.

use std::collections::HashMap;
use std::time::Instant;

use clap::Args;

use crate::cancel::Cancel;
use crate::cli::args::PlatformArgs;
use crate::cli::containerd::Remotes;
use crate::cli::failure::{Failure, USAGE};
use crate::cli::progress::Shown;
use crate::cli::registry::{self, RegistryArgs, UserArg};
use crate::cli::{output, reading};
use crate::containerd::{Chain, Containerd, ContainerdOptions, LayerOfChain, Prepared};
use crate::copy::{Extent, Indexes, Layers, copy};
use crate::image::{ImageRef, RegistryName};
use crate::sink::{Sink, SinkOptions};
use crate::source::{Selection, SourceImage};

/// What an image in a registry is called, and how it is reached; as `ctr image pull` has it.
#[derive(Debug, Args)]
pub(in crate::cli) struct FetchArgs {
    /// Image to pull, [HOST/]PATH[:TAG][@DIGEST]; also its name in containerd
    #[arg(value_name = "REF")]
    pub(super) reference: String,
    /// Label of the image in containerd; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(super) label: Vec<(String, String)>,
    #[command(flatten)]
    pub(super) registry: RegistryArgs,
    #[command(flatten)]
    pub(super) registry_user: UserArg,
}

/// `ctr-remote image pull`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PullArgs {
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    platforms: PlatformArgs,
    /// The snapshotter that the image is unpacked into [default: $CONTAINERD_SNAPSHOTTER or overlayfs]
    #[arg(long, value_name = "NAME")]
    snapshotter: Option<String>,
    /// Do not unpack the image
    #[arg(long)]
    no_unpack: bool,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        // As ctr has it.
        None if !text.is_empty() => Ok((text.to_owned(), "true".to_owned())),
        _ => Err("not KEY=VALUE".to_owned()),
    }
}

impl FetchArgs {
    /// The name in the registry.
    pub(super) fn name(&self) -> Result<RegistryName, Failure> {
        registry_name(&self.reference)
    }

    pub(super) fn labels(&self) -> HashMap<String, String> {
        self.label.iter().cloned().collect()
    }

    pub(super) fn remotes(&self, containerd: &ContainerdOptions) -> Result<Remotes, Failure> {
        Ok(Remotes {
            registry: registry::options(&self.registry, Some(&self.registry_user))?,
            containerd: containerd.clone(),
        })
    }
}

/// Of an image's name in containerd, or of one with `docker://` before it.
pub(super) fn registry_name(reference: &str) -> Result<RegistryName, Failure> {
    let name = reference.strip_prefix("docker://").unwrap_or(reference);
    name.parse()
        .map_err(|error| Failure::new(USAGE, error).context(format!("\"{reference}\"")))
}

/// Opens the image of containerd's that is to be written.
pub(super) fn open_sink(
    name: &str,
    source: &ImageRef,
    remotes: &Remotes,
    cancel: &Cancel,
) -> Result<Sink, Failure> {
    let options = SinkOptions {
        scratch: reading::default_scratch(),
        registry: remotes.registry.clone(),
        containerd: remotes.containerd.clone(),
        cancel: cancel.clone(),
    };
    Ok(Sink::open(
        &ImageRef::Containerd(name.to_owned()),
        source,
        &options,
    )?)
}

pub(super) fn pull(
    args: &PullArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
    progress: &Shown,
) -> Result<(), Failure> {
    let started = Instant::now();
    let fetch = &args.fetch;
    let reference = ImageRef::Registry(fetch.name()?);
    let remotes = fetch.remotes(containerd)?;
    let mut sink = open_sink(&fetch.reference, &reference, &remotes, cancel)?;
    let unless = Selection::ThisMachine;
    let source = reading::open_to_look(&reference, &args.platforms, unless, remotes, cancel)?;
    let extent = Extent {
        indexes: Indexes::Whole,
        layers: Layers::Copied,
    };
    let copied = copy(&source, &mut sink, extent, cancel, progress)?;
    sink.commit_labelled(copied.descriptor, &copied.images, &fetch.labels())?;
    if !args.no_unpack {
        let snapshotter = args.snapshotter.clone().unwrap_or_else(default_snapshotter);
        let client = Containerd::open(containerd, &reading::default_scratch(), cancel)?;
        for image in &source.images {
            let (platform, digest) = (&image.platform, image.manifest.id.digest);
            output::line(format_args!("unpacking {platform} {digest}..."))?;
            unpack(&client, image, &snapshotter)?;
        }
        client.release();
    }
    output::line(format_args!(
        "done: {:.3}s",
        started.elapsed().as_secs_f64()
    ))
}

/// ctr's own default.
fn default_snapshotter() -> String {
    let variable = std::env::var("CONTAINERD_SNAPSHOTTER").ok();
    let variable = variable.filter(|name| !name.is_empty());
    variable.unwrap_or_else(|| "overlayfs".to_owned())
}

/// The layers of an image, for a snapshotter.
pub(super) fn layers_of(image: &SourceImage) -> Vec<LayerOfChain> {
    let descriptors = image.manifest.raw.get("layers").and_then(|l| l.as_array());
    let descriptors = descriptors.into_iter().flatten();
    let descriptors = descriptors.map(|layer| layer.as_object().cloned().unwrap_or_default());
    let layers = descriptors.zip(&image.layers);
    let layers = layers.map(|(descriptor, layer)| LayerOfChain {
        descriptor,
        diff_id: layer.diff_id,
        labels: HashMap::new(),
    });
    layers.collect()
}

/// Unpacks an image all of whose layers are in containerd, and holds what came out by its configuration.
fn unpack(client: &Containerd, image: &SourceImage, snapshotter: &str) -> Result<(), Failure> {
    let mut chain = Chain::new(snapshotter);
    for layer in layers_of(image) {
        if let Prepared::Wanted(unpacking) = client.prepare(&mut chain, &layer)? {
            client.unpack(&mut chain, &layer, &unpacking)?;
        }
    }
    hold(client, image, &chain)
}

/// Lets the image's configuration hold its snapshots.
pub(super) fn hold(client: &Containerd, image: &SourceImage, chain: &Chain) -> Result<(), Failure> {
    Ok(client.set_labels(image.config.id.digest, &chain.labels())?)
}
