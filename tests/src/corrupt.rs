//! Faults put into a good image. Each one is a function that takes the layout and says nothing.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

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
    let mut config = layout.config();
    config["rootfs"]["diff_ids"][layer] = NO_BLOB.into();
    let media_type = layout.manifest()["config"]["mediaType"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    let descriptor = layout.put(config.to_string().as_bytes(), &media_type);
    layout.edit_manifest(|manifest| manifest["config"] = descriptor);
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
