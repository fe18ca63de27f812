//! An image whose layers are scanned once, for many mounts.

use std::path::Path;

use anyhow::{Context as _, Result};
use esgz::cancel::Cancel;
use esgz::convert::scan_image;
use esgz::layer::entry::{FileId, ScannedLayer};
use esgz::layer::scan::{DecodeOptions, EntryMemory, Keep, ScanOptions};
use esgz::source::{self, OpenOptions, Selection};
use esgz_tests::layers::LayerBuilder;

/// Layers, base first, and how the image wants to be run.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<ScannedLayer>,
    /// Entrypoint and command.
    pub(crate) args: Vec<String>,
    /// `NAME=VALUE`.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
}

impl Image {
    /// Reads the image of a layout, `oci:DIR[:TAG]`; the spools lie in `scratch`.
    pub(crate) fn scan(reference: &str, scratch: &Path) -> Result<Self> {
        let cancel = Cancel::default();
        let open_options = OpenOptions {
            scratch: scratch.to_owned(),
            max_unpacked_bytes: u64::MAX,
            registry: esgz::registry::RegistryOptions::default(),
            containerd: esgz::containerd::ContainerdOptions::default(),
        };
        let reference = reference.parse()?;
        let source = source::open(&reference, &Selection::ThisMachine, &open_options, &cancel)?;
        let source = source.into_image()?;
        let options = ScanOptions {
            scratch: scratch.to_owned(),
            max_layer_bytes: u64::MAX,
            entry_memory: EntryMemory::unlimited(),
            keep: Keep::Spool,
            decode: DecodeOptions::ONE_THREAD,
        };
        let threads = std::thread::available_parallelism()?.get();
        let layers = scan_image(&source, &options, threads, &cancel)?;
        let config = source.config.parsed.config().as_ref();
        let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
        let mut args = list(config.and_then(|config| config.entrypoint().as_ref()));
        args.extend(list(config.and_then(|config| config.cmd().as_ref())));
        let cwd = config.and_then(|config| config.working_dir().clone());
        Ok(Self {
            layers,
            args,
            env: list(config.and_then(|config| config.env().as_ref())),
            cwd: cwd
                .filter(|dir| !dir.is_empty())
                .unwrap_or_else(|| "/".to_owned()),
        })
    }

    /// The same with one more layer on top.
    pub(crate) fn with_layer(&self, layer: LayerBuilder, scratch: &Path) -> Result<Self> {
        let layer = layer.finish(scratch).context("cannot write a layer")?;
        let mut layers = self.layers.clone();
        layers.push(layer);
        Ok(Self {
            layers,
            args: self.args.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
        })
    }

    /// The name of a file's entry, without leading `/` and `./`.
    pub(crate) fn name(&self, file: FileId) -> Option<String> {
        let entry = self
            .layers
            .get(file.layer as usize)?
            .entries
            .get(file.entry as usize)?;
        Some(clean(&String::from_utf8_lossy(&entry.name)).to_owned())
    }
}

/// A path without what leads it to the root.
pub(crate) fn clean(path: &str) -> &str {
    path.trim_start_matches("./").trim_start_matches('/')
}
