//! `esgz image rpull`: manifest and configuration into containerd; layers are the snapshotter's affair, which
//! learns from labels where to get them.

use std::collections::HashMap;

use clap::Args;

use crate::blob::ReadAt as _;
use crate::cancel::Cancel;
use crate::cli::args::PlatformArgs;
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::image::pull::{FetchArgs, hold, layers_of, open_sink};
use crate::cli::progress::Shown;
use crate::cli::{output, reading};
use crate::containerd::{
    Chain, Containerd, ContainerdOptions, Ingests, LayerOfChain, Prepared, Unpacking,
};
use crate::copy::{Extent, Indexes, Layers, copy};
use crate::image::{BlobId, ImageRef};
use crate::source::{Selection, SourceImage, SourceLayer};

/// `ctr-remote image rpull`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RpullArgs {
    #[command(flatten)]
    fetch: FetchArgs,
    /// The snapshotter
    #[arg(long, default_value = "stargz", value_name = "NAME")]
    snapshotter: String,
    /// Let the snapshotter not check what it reads
    #[arg(long)]
    skip_content_verify: bool,
    /// Write the labels that containerd's own plugins write
    #[arg(long)]
    use_containerd_labels: bool,
}

/// No label may be longer, key and value together.
const LABEL_BYTES: usize = 4096;
/// How much of a layer without a landmark is fetched beforehand, bytes; ctr-remote's own figure.
const PREFETCH_BYTES: &str = "10485760";
const STARGZ: &str = "containerd.io/snapshot/remote/stargz.";
const CRI: &str = "containerd.io/snapshot/cri.";
/// Annotations of a layer that begin so are said to the snapshotter as labels.
const SNAPSHOT: &str = "containerd.io/snapshot/";

pub(super) fn rpull(
    args: &RpullArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
    progress: &Shown,
) -> Result<(), Failure> {
    let fetch = &args.fetch;
    let reference = ImageRef::Registry(fetch.name()?);
    let remotes = fetch.remotes(containerd)?;
    let mut sink = open_sink(&fetch.reference, &reference, &remotes, cancel)?;
    let platforms = PlatformArgs {
        platform: Vec::new(),
        all_platforms: false,
    };
    let unless = Selection::ThisMachine;
    let source = reading::open_to_look(&reference, &platforms, unless, remotes, cancel)?;
    if args.skip_content_verify {
        tracing::warn!("content verification disabled");
    }
    let extent = Extent {
        indexes: Indexes::Whole,
        layers: Layers::Left,
    };
    let copied = copy(&source, &mut sink, extent, cancel, progress)?;
    for (digest, media_type) in &copied.documents {
        fetching(*digest, media_type)?;
    }
    let client = Containerd::open(containerd, &reading::default_scratch(), cancel)?;
    let mut client = Ingests::new(client);
    let mut chains = Vec::new();
    for image in &source.images {
        let mut chain = Chain::new(&args.snapshotter);
        let mut layers = layers_of(image);
        for (number, layer) in layers.iter_mut().enumerate() {
            layer.labels = labels(args, image, number);
        }
        for (layer, of_source) in layers.iter().zip(&image.layers) {
            match client.containerd().prepare(&mut chain, layer)? {
                Prepared::There => {}
                Prepared::Wanted(unpacking) => {
                    let wanted = (layer, of_source, &unpacking);
                    fetch_layer(&mut client, &mut chain, image, wanted)?;
                }
            }
        }
        chains.push(chain);
    }
    sink.commit_labelled(copied.descriptor, &copied.images, &fetch.labels())?;
    for (image, chain) in source.images.iter().zip(&chains) {
        hold(client.containerd(), image, chain)?;
    }
    client.release();
    Ok(())
}

/// As ctr-remote says it.
fn fetching(digest: crate::image::Digest, media_type: &str) -> Result<(), Failure> {
    let digest = digest.to_string();
    output::line(format_args!("fetching {}... {media_type}", &digest[..15]))
}

/// The snapshotter does not get this layer by itself: it is fetched and unpacked.
fn fetch_layer(
    client: &mut Ingests,
    chain: &mut Chain,
    image: &SourceImage,
    (layer, of_source, unpacking): (&LayerOfChain, &SourceLayer, &Unpacking),
) -> Result<(), Failure> {
    let BlobId { digest, size_bytes } = of_source.blob;
    fetching(digest, &of_source.media_type)?;
    let blob = image.open_layer(of_source)?;
    // The last byte is there when the whole has been checked.
    if let Some(last) = size_bytes.checked_sub(1) {
        blob.read_exact_at(&mut [0], last).map_err(|error| {
            Failure::new(IMAGE, error).context(format!("fetching layer {digest}"))
        })?;
    }
    client.write(of_source.blob, blob)?;
    client.finish()?;
    Ok(client.containerd().unpack(chain, layer, unpacking)?)
}

/// Where the snapshotter gets layer `number` of `image`, and what comes above it.
fn labels(args: &RpullArgs, image: &SourceImage, number: usize) -> HashMap<String, String> {
    let layer = &image.layers[number];
    let mut labels = HashMap::new();
    let descriptor = image.manifest.parsed.layers().get(number);
    let annotations = descriptor.and_then(|descriptor| descriptor.annotations().as_ref());
    for (key, value) in annotations.into_iter().flatten() {
        if key.starts_with(SNAPSHOT) && key.len() + value.len() <= LABEL_BYTES {
            labels.insert(key.clone(), value.clone());
        }
    }
    let mut put = |key: String, value: String| labels.insert(key, value);
    let (prefix, reference, digest, layers, manifest) = if args.use_containerd_labels {
        (
            CRI,
            "image-ref",
            "layer-digest",
            "image-layers",
            Some("manifest-digest"),
        )
    } else {
        (STARGZ, "reference", "digest", "layers", None)
    };
    put(format!("{prefix}{reference}"), args.fetch.reference.clone());
    put(format!("{prefix}{digest}"), layer.blob.digest.to_string());
    if let Some(manifest) = manifest {
        put(
            format!("{prefix}{manifest}"),
            image.manifest.id.digest.to_string(),
        );
    }
    let key = format!("{prefix}{layers}");
    let above = image.layers[number..].iter();
    let above = above.map(|layer| layer.blob.digest.to_string());
    let above = joined(above, LABEL_BYTES - key.len());
    put(key, above);
    put(format!("{STARGZ}prefetch"), PREFETCH_BYTES.to_owned());
    if args.skip_content_verify {
        put(
            "containerd.io/snapshot/remote/stargz.skipverify".to_owned(),
            "true".to_owned(),
        );
    }
    let url = layer.url.clone().unwrap_or_default();
    put("containerd.io/snapshot/remote/urls".to_owned(), url);
    labels
}

/// As many as there is room for, with commas.
fn joined(digests: impl Iterator<Item = String>, limit_bytes: usize) -> String {
    let mut text = String::new();
    for digest in digests {
        if text.len() + 1 + digest.len() > limit_bytes {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&digest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn labels_end_before_a_digest_that_has_no_room() {
        let digests = || ["aaa", "bbb", "ccc"].map(str::to_owned).into_iter();
        assert_eq!(joined(digests(), 100), "aaa,bbb,ccc");
        assert_eq!(joined(digests(), 8), "aaa,bbb");
        assert_eq!(joined(digests(), 2), "");
    }
}
