//! A fresh mount of an image, its files, and the cgroup of its workload.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use esgz::cancel::Cancel;
use esgz::layer::entry::FileId;
use esgz::rootfs::{self, MountedRootfs, RootfsMode, RootfsOptions};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::image::{Image, clean};

/// A regular file of the merged view.
#[derive(Clone, Debug)]
pub(crate) struct ImageFile {
    /// Of the entry that holds the bytes, without leading `/`.
    pub(crate) path: String,
    /// 0 for the base layer.
    pub(crate) layer: u32,
    pub(crate) size_bytes: u64,
    /// Where its pages are: `s_dev` as the kernel has it, and inode.
    lower: (u32, u64),
    /// What fstat(2) says of it in the merged view.
    merged: (u32, u64),
}

/// What one run needs; gone when dropped.
pub(crate) struct Scene {
    rootfs: MountedRootfs,
    /// The workload's alone.
    pub(crate) workload: Cgroup,
    /// The subject's own processes.
    pub(crate) subject: Cgroup,
    pub(crate) files: Vec<ImageFile>,
    by_inode: HashMap<(u32, u64), usize>,
    by_path: HashMap<String, usize>,
    /// [`Self::files`] for programs.
    table: PathBuf,
    cwd: String,
    is_warm: bool,
    root: OwnedFd,
}

impl Scene {
    /// Mounts the image.
    pub(crate) fn set(image: &Image, read_ahead_kib: u32, scratch: &Path) -> Result<Self> {
        let options = RootfsOptions {
            mode: RootfsMode::Erofs,
            scratch: scratch.to_owned(),
            read_ahead_kib,
        };
        let layers: Vec<_> = image.layers.iter().collect();
        let rootfs = rootfs::mount(&layers, &options, &Cancel::default())?;
        let lower: HashMap<FileId, (u32, u64)> = rootfs
            .files()
            .iter()
            .map(|file| (file.file, (file.device, file.inode)))
            .collect();
        let mut files = Vec::new();
        for file in rootfs.opened_as() {
            files.push(ImageFile {
                path: image.name(file.file).context("a file has an entry")?,
                layer: file.file.layer,
                size_bytes: file.size_bytes,
                lower: *lower.get(&file.file).context("a file has an inode")?,
                merged: (file.device, file.inode),
            });
        }
        let numbered = || files.iter().enumerate();
        let by_inode = numbered().map(|(row, file)| (file.merged, row)).collect();
        let by_path = numbered()
            .map(|(row, file)| (file.path.clone(), row))
            .collect();
        let table = scratch.join("files.jsonl");
        write_table(&files, &table)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(rootfs.path(), flags, Mode::empty())?;
        Ok(Self {
            rootfs,
            workload: Cgroup::create("workload")?,
            subject: Cgroup::create("subject")?,
            files,
            by_inode,
            by_path,
            table,
            cwd: image.cwd.clone(),
            is_warm: false,
            root,
        })
    }

    /// Where the image is mounted.
    pub(crate) fn root(&self) -> &Path {
        self.rootfs.path()
    }

    /// The workload's directory in it.
    pub(crate) fn cwd(&self) -> &str {
        &self.cwd
    }

    /// Tells that files have been read.
    pub(crate) fn warmed(mut self) -> Self {
        self.is_warm = true;
        self
    }

    /// What the page cache held of the image before the subject came: `cold`, nothing, or `warm`.
    pub(crate) fn cache(&self) -> &'static str {
        if self.is_warm { "warm" } else { "cold" }
    }

    /// A line of JSON for each file.
    pub(crate) fn table(&self) -> &Path {
        &self.table
    }

    /// Opens a path of the image, its links followed within the image.
    pub(crate) fn open(&self, path: &str, flags: OFlags) -> Result<File> {
        let opened = openat2(
            &self.root,
            if clean(path).is_empty() {
                "."
            } else {
                clean(path)
            },
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        );
        let opened = opened.with_context(|| format!("cannot open {path} of the image"))?;
        Ok(opened.into())
    }

    /// The file that a path of the image means; None for what is no regular file, and for files that are not the
    /// image's.
    pub(crate) fn row(&self, path: &str) -> Option<usize> {
        let Ok(file) = self.open(path, OFlags::PATH) else {
            // The workload removed it.
            return self.by_path.get(clean(path)).copied();
        };
        let stat = rustix::fs::fstat(&file).ok()?;
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        self.by_inode
            .get(&(major << 20 | minor, stat.st_ino))
            .copied()
    }

    /// Unmounts.
    pub(crate) fn strike(self) -> Result<()> {
        let Self { rootfs, root, .. } = self;
        drop(root);
        Ok(rootfs.unmount()?)
    }
}

fn write_table(files: &[ImageFile], path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut out = BufWriter::new(file);
    for file in files {
        let row = json!({
            "path": file.path,
            "size_bytes": file.size_bytes,
            "device": file.lower.0,
            "inode": file.lower.1,
            "merged_device": file.merged.0,
            "merged_inode": file.merged.1,
        });
        writeln!(out, "{row}")?;
    }
    Ok(out.flush()?)
}
