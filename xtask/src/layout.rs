//! OCI image layouts on disk, written as a stream: layers may be larger than memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Counts and hashes what goes through it.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hasher.clone().finalize()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Sink = Hashed<GzEncoder<Hashed<BufWriter<File>>>>;

/// A layer that is being written: a tar, compressed with gzip at level 6.
pub(crate) struct LayerWriter {
    tar: tar::Builder<Sink>,
    path: PathBuf,
    /// First name of every file with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

/// A layer that is written.
pub(crate) struct FinishedLayer {
    descriptor: Value,
    diff_id: String,
}

impl LayerWriter {
    /// Starts a layer of the layout in `dir`.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        let path = blobs.join("unfinished");
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let blob = Hashed::new(BufWriter::with_capacity(1 << 20, file));
        let mut tar = tar::Builder::new(Hashed::new(GzEncoder::new(blob, Compression::new(6))));
        tar.follow_symlinks(false);
        tar.sparse(false);
        Ok(Self {
            tar,
            path,
            links: HashMap::new(),
        })
    }

    /// Adds an empty directory of root's.
    pub(crate) fn dir(&mut self, name: &str, mode: u32) -> Result<()> {
        let mut header = new_header(tar::EntryType::Directory, mode);
        self.tar
            .append_data(&mut header, name, io::empty())
            .with_context(|| format!("directory {name}"))
    }

    /// Adds a file of root's.
    pub(crate) fn file(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        let mut header = new_header(tar::EntryType::Regular, 0o644);
        header.set_size(contents.len() as u64);
        self.tar
            .append_data(&mut header, name, contents)
            .with_context(|| format!("file {name}"))
    }

    /// Adds a file of so many zeros of root's.
    pub(crate) fn zeros(&mut self, name: &str, len_bytes: u64) -> Result<()> {
        let mut header = new_header(tar::EntryType::Regular, 0o644);
        header.set_size(len_bytes);
        self.tar
            .append_data(&mut header, name, io::repeat(0).take(len_bytes))
            .with_context(|| format!("file {name}"))
    }

    /// Adds the file at `path` (a symlink as such) under the same name in the image.
    pub(crate) fn copy(&mut self, path: &Path) -> Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path);
        self.append(path, name)
    }

    /// Adds everything below `path` under `name`, sorted. What overlayfs left in an upper directory
    /// for removed files becomes a whiteout. `skip` leaves paths out, directories with all below.
    pub(crate) fn tree(
        &mut self,
        path: &Path,
        name: &Path,
        skip: &dyn Fn(&Path) -> bool,
    ) -> Result<()> {
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            if skip(&path) {
                continue;
            }
            let metadata = entry.metadata()?;
            if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                let base = format!(".wh.{}", entry.file_name().to_string_lossy());
                self.file(&name.with_file_name(base).to_string_lossy(), b"")?;
                continue;
            }
            self.append(&path, &name)?;
            if metadata.is_dir() {
                if is_opaque(&path) {
                    self.file(&name.join(".wh..wh..opq").to_string_lossy(), b"")?;
                }
                self.tree(&path, &name, skip)?;
            }
        }
        Ok(())
    }

    fn append(&mut self, path: &Path, name: &Path) -> Result<()> {
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_file() && metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&inode) {
                let mut header = new_header(tar::EntryType::Link, metadata.mode() & 0o7777);
                let added = self.tar.append_link(&mut header, name, first);
                return added.with_context(|| format!("cannot add {}", path.display()));
            }
            self.links.insert(inode, name.to_owned());
        }
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            return self.device(name, &metadata);
        }
        self.tar
            .append_path_with_name(path, name)
            .with_context(|| format!("cannot add {}", path.display()))
    }

    /// Adds a device. The crate's own way takes its name from where it lies.
    fn device(&mut self, name: &Path, metadata: &fs::Metadata) -> Result<()> {
        let kind = if metadata.file_type().is_char_device() {
            tar::EntryType::Char
        } else {
            tar::EntryType::Block
        };
        let mut header = new_header(kind, metadata.mode() & 0o7777);
        header.set_device_major(rustix::fs::major(metadata.rdev()))?;
        header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        self.tar
            .append_data(&mut header, name, io::empty())
            .with_context(|| format!("cannot add {}", name.display()))
    }

    /// Ends the layer and gives its blob its name.
    pub(crate) fn finish(self) -> Result<FinishedLayer> {
        let uncompressed = self
            .tar
            .into_inner()
            .context("cannot end the layer's tar")?;
        let diff_id = uncompressed.digest();
        let mut blob = uncompressed
            .inner
            .finish()
            .context("cannot end the layer's gzip member")?;
        blob.flush()
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        let digest = blob.digest();
        let named = self
            .path
            .with_file_name(digest.trim_start_matches("sha256:"));
        fs::rename(&self.path, &named)
            .with_context(|| format!("cannot name {}", named.display()))?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": blob.bytes});
        Ok(FinishedLayer {
            descriptor,
            diff_id,
        })
    }
}

/// Writes configuration, manifest and index of the image `latest` in `dir`.
pub(crate) fn finish_image(dir: &Path, layers: &[FinishedLayer], config: &Value) -> Result<()> {
    let put = |value: &Value, media_type: &str| -> Result<Value> {
        let text = value.to_string();
        let digest = hex::encode(Sha256::digest(&text));
        let path = dir.join("blobs/sha256").join(&digest);
        fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()}),
        )
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<&str> = layers.iter().map(|layer| &*layer.diff_id).collect();
    let descriptors: Vec<&Value> = layers.iter().map(|layer| &layer.descriptor).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(&config, "application/vnd.oci.image.config.v1+json")?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors});
    let mut manifest = put(&manifest, media_type)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    for (name, value) in [
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
        ("index.json", index),
    ] {
        let path = dir.join(name);
        fs::write(&path, value.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn new_header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0; 1];
    matches!(
        rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value),
        Ok(1)
    ) && value == *b"y"
}
