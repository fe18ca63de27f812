//! Faults put into a good image. Each one is a function that takes the layout and says nothing.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use flate2::read::{GzDecoder, MultiGzDecoder};
use serde_json::Value;

use crate::archive::{Ending, Entry, archive};
use crate::compress::Compression;
use crate::layout::{Layer, Layout, digest};

/// A digest that no blob has.
pub const NO_BLOB: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Inverts one bit of the byte at `offset` of a layer's blob, which keeps its name.
///
/// # Panics
/// When the blob cannot be changed.
pub fn flip_byte(layout: &Layout, layer: usize, offset: u64) {
    let path = layout.blob_path(&layout.layer_digest(layer));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the blob exists");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)
        .expect("the blob has this byte");
    file.write_all_at(&[byte[0] ^ 1], offset)
        .expect("the blob can be written");
}

/// Cuts a layer's blob to its first half; the descriptor keeps the size.
///
/// # Panics
/// When the blob cannot be changed.
pub fn truncate(layout: &Layout, layer: usize) {
    let path = layout.blob_path(&layout.layer_digest(layer));
    let half = fs::metadata(&path).expect("the blob exists").len() / 2;
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|f| f.set_len(half))
        .expect("the blob can be cut");
}

/// Gives a layer's blob another name and digest; its contents stay.
///
/// # Panics
/// When the blob cannot be renamed.
pub fn wrong_digest(layout: &Layout, layer: usize) {
    let old = layout.blob_path(&layout.layer_digest(layer));
    fs::rename(old, layout.blob_path(NO_BLOB)).expect("the blob can be renamed");
    layout.edit_manifest(|manifest| manifest["layers"][layer]["digest"] = NO_BLOB.into());
}

/// Adds one to the size in a layer's descriptor.
pub fn wrong_size(layout: &Layout, layer: usize) {
    layout.edit_manifest(|manifest| {
        let size = manifest["layers"][layer]["size"].as_u64().unwrap_or(0);
        manifest["layers"][layer]["size"] = (size + 1).into();
    });
}

/// Removes a layer's blob.
///
/// # Panics
/// When it cannot be removed.
pub fn missing_blob(layout: &Layout, layer: usize) {
    fs::remove_file(layout.blob_path(&layout.layer_digest(layer)))
        .expect("the blob can be removed");
}

/// Changes a DiffID in the configuration, with every digest above it right.
pub fn wrong_diff_id(layout: &Layout, layer: usize) {
    edit_config(layout, |config| {
        config["rootfs"]["diff_ids"][layer] = NO_BLOB.into();
    });
}

/// Edits the configuration, with every digest above it right.
pub fn edit_config(layout: &Layout, edit: impl FnOnce(&mut Value)) {
    let mut config = layout.config();
    edit(&mut config);
    let media_type = layout.manifest()["config"]["mediaType"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    let descriptor = layout.put(config.to_string().as_bytes(), &media_type);
    layout.edit_manifest(|manifest| manifest["config"] = descriptor);
}

/// An eStargz layer taken apart, to be put together again with a fault in it and every digest and
/// size about it right: only who compares TOC and data finds it.
#[derive(Clone, Debug)]
pub struct Estargz {
    /// The gzip members before the TOC's.
    pub members: Vec<u8>,
    /// The TOC's JSON.
    pub toc: Vec<u8>,
}

impl Estargz {
    /// Takes a layer apart.
    ///
    /// # Panics
    /// When it is no eStargz layer.
    pub fn of(layout: &Layout, layer: usize) -> Self {
        let blob = fs::read(layout.blob_path(&layout.layer_digest(layer))).expect("a layer");
        let footer = &blob[blob.len() - 51..];
        let digits = std::str::from_utf8(&footer[16..32]).expect("digits");
        let toc_at = usize::from_str_radix(digits, 16).expect("digits");
        let mut tar = Vec::new();
        GzDecoder::new(&blob[toc_at..])
            .read_to_end(&mut tar)
            .expect("the TOC's member");
        let end = tar.iter().rposition(|&byte| byte == b'}').expect("JSON");
        Self {
            members: blob[..toc_at].to_vec(),
            toc: tar[512..=end].to_vec(),
        }
    }

    /// Edits the rows of the TOC.
    ///
    /// # Panics
    /// When it has none.
    pub fn edit_rows(&mut self, edit: impl FnOnce(&mut Vec<Value>)) {
        let mut toc: Value = serde_json::from_slice(&self.toc).expect("the TOC is JSON");
        edit(toc["entries"].as_array_mut().expect("the TOC has rows"));
        self.toc = toc.to_string().into_bytes();
    }

    /// The blob, its footer pointing `footer_shift` bytes behind the TOC.
    fn blob(&self, footer_shift: usize) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path("stargz.index.json").expect("it is short");
        header.set_size(self.toc.len() as u64);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend(&self.toc);
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
        let mut blob = self.members.clone();
        blob.extend(Compression::Gzip(6).compress(&tar));
        blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
        blob.extend(format!("{:016x}STARGZ", self.members.len() + footer_shift).bytes());
        blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        blob
    }

    /// Replaces the layer.
    ///
    /// # Panics
    /// When the layout cannot be written.
    pub fn put(&self, layout: &Layout, layer: usize) {
        self.put_blob(layout, layer, &self.blob(0));
    }

    /// Replaces the layer by one whose footer is wrong by `footer_shift`.
    pub fn put_with_footer(&self, layout: &Layout, layer: usize, footer_shift: usize) {
        self.put_blob(layout, layer, &self.blob(footer_shift));
    }

    /// Replaces the layer by this one with `garbage` behind its footer.
    pub fn put_with_garbage(&self, layout: &Layout, layer: usize, garbage: &[u8]) {
        self.put_blob(layout, layer, &[&self.blob(0), garbage].concat());
    }

    fn put_blob(&self, layout: &Layout, layer: usize, blob: &[u8]) {
        let mut tar = Vec::new();
        // What cannot be inflated has no DiffID; another one does as well.
        let _ = MultiGzDecoder::new(blob).read_to_end(&mut tar);
        edit_config(layout, |config| {
            config["rootfs"]["diff_ids"][layer] = digest(&tar).into();
        });
        let descriptor = layout.put(blob, "");
        layout.edit_manifest(|manifest| {
            let old = &mut manifest["layers"][layer];
            old["digest"] = descriptor["digest"].clone();
            old["size"] = descriptor["size"].clone();
            old["annotations"]["containerd.io/snapshot/stargz/toc.digest"] =
                digest(&self.toc).into();
            old["annotations"]["io.containers.estargz.uncompressed-size"] =
                tar.len().to_string().into();
        });
    }
}

/// Replaces a layer's blob by `blob`, with digests and size right.
pub fn replace_layer(layout: &Layout, layer: usize, blob: &[u8]) {
    let media_type = layout.manifest()["layers"][layer]["mediaType"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    let descriptor = layout.put(blob, &media_type);
    layout.edit_manifest(|manifest| manifest["layers"][layer] = descriptor);
}

/// Makes the manifest ten megabytes of opening brackets, with its digest right.
pub fn nested_json(layout: &Layout) {
    let text = vec![b'['; 10 << 20];
    let descriptor = layout.put(&text, "application/vnd.oci.image.manifest.v1+json");
    layout.put_index(descriptor);
}

/// A gzip blob whose member is damaged in the middle, so that only inflating it (or its CRC) tells.
pub fn damaged_gzip(tar: &[u8]) -> Vec<u8> {
    let mut blob = Compression::Gzip(6).compress(tar);
    let middle = blob.len() / 2;
    blob[middle] ^= 0x55;
    blob
}

/// A layer with an entry that points out of the root file system.
pub fn escaping_layer() -> Layer {
    Layer::new(
        &[Entry::file("a/../../../etc/passwd", "x")],
        Compression::Gzip(6),
    )
}

/// A tar cut in the middle of an entry's contents.
pub fn cut_tar() -> Vec<u8> {
    let mut tar = archive(&[Entry::file("cut", vec![7; 10_000])], Ending::None);
    tar.truncate(5000);
    tar
}

/// A tar whose header has a wrong checksum.
pub fn bad_checksum_tar() -> Vec<u8> {
    let mut tar = archive(
        &[Entry::file("one", "1"), Entry::file("two", "2")],
        Ending::Blocks,
    );
    tar[1024 + 20] ^= 0xff;
    tar
}

/// A short form of a digest, as it must occur in an error message.
pub fn short(bytes: &[u8]) -> String {
    digest(bytes)[7..19].to_owned()
}
