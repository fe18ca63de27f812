//! `esgz image get-toc-digest`.

use clap::Args;
use serde::Serialize as _;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::cancel::Cancel;
use crate::cli::failure::{Failure, IMAGE};
use crate::cli::image::convert::unsupported;
use crate::cli::{output, reading};
use crate::containerd::{Containerd, ContainerdOptions};
use crate::image::Digest;
use crate::layer::verify::read_toc;

/// `ctr-remote image get-toc-digest`.
#[derive(Debug, Args)]
pub(in crate::cli) struct TocDigestArgs {
    /// The layer's digest
    #[arg(value_name = "DIGEST")]
    layer: Digest,
    /// Print the TOC, indented, instead of its digest
    #[arg(long)]
    dump_toc: bool,
    #[arg(long, hide = true)]
    zstdchunked: bool,
}

pub(super) fn print(
    args: &TocDigestArgs,
    containerd: &ContainerdOptions,
    cancel: &Cancel,
) -> Result<(), Failure> {
    if args.zstdchunked {
        return Err(unsupported("--zstdchunked"));
    }
    let digest = args.layer;
    let client = Containerd::open(containerd, &reading::default_scratch(), cancel)?;
    let missing = || {
        let message = format!(
            "layer {digest} is not in containerd's namespace \"{}\"",
            containerd.namespace
        );
        Failure::message(IMAGE, message)
    };
    let blob = client.open_blob(digest)?.ok_or_else(missing)?;
    let in_layer = |error| Failure::from(error).context(format!("layer {digest}"));
    let (toc, _) = read_toc(&blob).map_err(in_layer)?;
    if !args.dump_toc {
        return output::line(format_args!("{}", Digest::of(&toc)));
    }
    let invalid = |error: serde_json::Error| {
        Failure::new(IMAGE, error).context(format!("the TOC of layer {digest}"))
    };
    let toc: Value = serde_json::from_slice(&toc).map_err(invalid)?;
    let mut text = Vec::new();
    let indented = PrettyFormatter::with_indent(b"\t");
    toc.serialize(&mut Serializer::with_formatter(&mut text, indented))
        .map_err(invalid)?;
    text.push(b'\n');
    output::bytes(&text)
}
