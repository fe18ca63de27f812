//! Unpacking a layer into a plain directory that overlayfs can take as a lower one.
//!
//! The tree is already free of `..` and of symlinks on the way to a file, and the directory starts
//! empty, so that every directory on the way was made here. Still each is opened with
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, and files are made below it with `O_EXCL` and without
//! following links.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Advice, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps,
};
use rustix::fs::{Gid, Uid, XattrFlags};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::error::RootfsError;
use super::tree::{NodeId, NodeKind, ROOT, Tree};
use crate::cancel::Cancel;
use crate::layer::entry::{Entry, Timestamp};
use crate::layer::spool::ReadAt as _;
use crate::layer::spool::Spool;
use crate::sys::writeback;

const COPY_BYTES: u64 = 1 << 20;

/// A layer as unpacking needs it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) tree: &'a Tree,
    pub(super) entries: &'a [Entry],
    pub(super) spool: &'a Spool,
}

/// What unpacking made.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// Every regular file: node, and the kernel's device and inode number.
    pub(super) files: Vec<(NodeId, u32, u64)>,
    /// Extended attributes that the file system refused.
    pub(super) dropped_xattrs: usize,
}

/// Unpacks `source` into the empty directory `root`, writes it to disk and drops it from the page
/// cache, so that the first access to each page is a read.
pub(super) fn unpack(
    root: &Path,
    source: Source<'_>,
    cancel: &Cancel,
) -> Result<Unpacked, RootfsError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).map_err(RootfsError::io("open", root))?;
    let mut unpacker = Unpacker {
        source,
        root,
        fd,
        cancel,
        linked: HashMap::new(),
        buffer: Vec::new(),
        unpacked: Unpacked::default(),
    };
    let mut directories = Vec::new();
    for_each_directory(source.tree, |path, id| {
        directories.push((path.to_vec(), id));
        unpacker.fill_directory(path, id)
    })?;
    // Last, because every new name changes its directory's time.
    for (path, id) in directories {
        let directory = unpacker.open_directory(&path)?;
        let display = join(root, &path);
        let attributes = source.tree.attributes(id, source.entries);
        unpacker.unpacked.dropped_xattrs += set_attributes(&directory, &attributes)
            .map_err(RootfsError::io("set the attributes of", &display))?;
        if source
            .tree
            .directory(id)
            .is_some_and(|directory| directory.opaque)
        {
            let (name, value) = ("trusted.overlay.opaque", b"y");
            rustix::fs::fsetxattr(&directory, name, value, XattrFlags::empty())
                .map_err(RootfsError::io("make opaque", &display))?;
        }
    }
    unpacker.drop_cache()?;
    Ok(unpacker.unpacked)
}

/// Sets everything but kind and contents on an open file or directory; gives the number of extended
/// attributes that its file system refused.
pub(super) fn set_attributes(fd: &OwnedFd, attributes: &Attributes) -> rustix::io::Result<usize> {
    let (owner, group) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::fchown(fd, Some(owner), Some(group))?;
    let dropped = set_xattrs(attributes, |name, value| {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
    })?;
    // After the owner, whose change takes set-id bits away.
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode.into()))?;
    rustix::fs::futimens(fd, &timestamps(attributes.mtime))?;
    Ok(dropped)
}

fn set_xattrs(
    attributes: &Attributes,
    set: impl Fn(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> rustix::io::Result<usize> {
    let mut dropped = 0;
    for (name, value) in &attributes.xattrs {
        match set(OsStr::from_bytes(name), value) {
            Ok(()) => {}
            // Not of this file system, malformed (a capability), or more than it has room for.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
                dropped += 1;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(dropped)
}

fn timestamps(mtime: Timestamp) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.secs,
        tv_nsec: mtime.nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Calls `visit` with the path of every directory, parents first.
fn for_each_directory(
    tree: &Tree,
    mut visit: impl FnMut(&[u8], NodeId) -> Result<(), RootfsError>,
) -> Result<(), RootfsError> {
    let mut pending = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        visit(&path, id)?;
        let directory = tree.directory(id).expect("only directories are pending");
        for (name, &child) in &directory.children {
            if tree.directory(child).is_some() {
                pending.push((child_path(&path, name), child));
            }
        }
    }
    Ok(())
}

fn child_path(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    }
}

fn join(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

struct Unpacker<'a> {
    source: Source<'a>,
    root: &'a Path,
    fd: OwnedFd,
    cancel: &'a Cancel,
    /// The directory and name of files that have more names to come.
    linked: HashMap<NodeId, (Vec<u8>, &'a [u8])>,
    buffer: Vec<u8>,
    unpacked: Unpacked,
}

impl<'a> Unpacker<'a> {
    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, RootfsError> {
        let name: &[u8] = if path.is_empty() { b"." } else { path };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), resolve)
            .map_err(RootfsError::io("open", &join(self.root, path)))
    }

    fn fill_directory(&mut self, path: &[u8], id: NodeId) -> Result<(), RootfsError> {
        let tree = self.source.tree;
        let directory = tree.directory(id).expect("only directories are visited");
        let fd = self.open_directory(path)?;
        for (name, &child) in &directory.children {
            self.cancel.check()?;
            let display = || join(self.root, &child_path(path, name));
            if let Some((target_directory, target)) = self.linked.get(&child) {
                let from = self.open_directory(target_directory)?;
                rustix::fs::linkat(&from, *target, &fd, &**name, AtFlags::empty())
                    .map_err(RootfsError::io("link", &display()))?;
                continue;
            }
            match tree.node(child).kind {
                NodeKind::Directory(_) => {
                    rustix::fs::mkdirat(&fd, &**name, Mode::RWXU)
                        .map_err(RootfsError::io("make directory", &display()))?;
                    continue;
                }
                NodeKind::Regular => self.write_file(&fd, name, child, display)?,
                _ => self.make_special(&fd, name, child, display)?,
            }
            if tree.node(child).links > 1 {
                self.linked.insert(child, (path.to_vec(), &**name));
            }
        }
        Ok(())
    }

    fn entry(&self, id: NodeId) -> &'a Entry {
        let entry = self
            .source
            .tree
            .node(id)
            .entry
            .expect("files and symlinks have an entry");
        &self.source.entries[entry as usize]
    }

    fn write_file(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        id: NodeId,
        display: impl Fn() -> PathBuf,
    ) -> Result<(), RootfsError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(RootfsError::io("create", &display()))?;
        let entry = self.entry(id);
        let file = File::from(fd);
        // Sets the size of what ends in a hole; the rest is written over it.
        file.set_len(entry.size_bytes)
            .map_err(RootfsError::io("extend", &display()))?;
        for segment in entry.data() {
            let mut done = 0;
            while done < segment.stored.len_bytes {
                self.cancel.check()?;
                let len = (segment.stored.len_bytes - done).min(COPY_BYTES);
                self.buffer.resize(len as usize, 0);
                let from = segment.stored.offset_bytes + done;
                self.source
                    .spool
                    .read_exact_at(&mut self.buffer, from)
                    .map_err(RootfsError::io("read the spool for", &display()))?;
                file.write_all_at(&self.buffer, segment.file_offset_bytes + done)
                    .map_err(RootfsError::io("write", &display()))?;
                done += len;
            }
        }
        writeback::start(&file).map_err(RootfsError::io("write out", &display()))?;
        let fd = OwnedFd::from(file);
        let attributes = self.source.tree.attributes(id, self.source.entries);
        self.unpacked.dropped_xattrs += set_attributes(&fd, &attributes)
            .map_err(RootfsError::io("set the attributes of", &display()))?;
        let stat = rustix::fs::fstat(&fd).map_err(RootfsError::io("look at", &display()))?;
        self.unpacked
            .files
            .push((id, kernel_device(stat.st_dev), stat.st_ino));
        Ok(())
    }

    /// Makes a symlink, device, fifo or whiteout.
    fn make_special(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        id: NodeId,
        display: impl Fn() -> PathBuf,
    ) -> Result<(), RootfsError> {
        let attributes = self.source.tree.attributes(id, self.source.entries);
        let make = |kind, major, minor| {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(directory, name, kind, Mode::empty(), device)
        };
        let node = self.source.tree.node(id);
        let is_symlink = matches!(node.kind, NodeKind::Symlink);
        let made = match node.kind {
            NodeKind::Symlink => rustix::fs::symlinkat(&*self.entry(id).link_name, directory, name),
            NodeKind::Whiteout => make(FileType::CharacterDevice, 0, 0),
            NodeKind::Fifo => make(FileType::Fifo, 0, 0),
            NodeKind::CharDevice | NodeKind::BlockDevice => {
                let entry = self.entry(id);
                let kind = match node.kind {
                    NodeKind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                make(kind, entry.dev_major, entry.dev_minor)
            }
            NodeKind::Directory(_) | NodeKind::Regular => unreachable!("made elsewhere"),
        };
        made.map_err(RootfsError::io("create", &display()))?;
        let set = || {
            let (owner, group) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(directory, name, Some(owner), Some(group), nofollow)?;
            let dropped = set_xattrs(&attributes, |xattr, value| {
                let link = format!("/proc/self/fd/{}/", directory.as_raw_fd());
                let path = [link.as_bytes(), name].concat();
                rustix::fs::lsetxattr(path, xattr, value, XattrFlags::empty())
            })?;
            if !is_symlink {
                let mode = Mode::from_raw_mode(attributes.mode.into());
                rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
            }
            rustix::fs::utimensat(directory, name, &timestamps(attributes.mtime), nofollow)?;
            Ok(dropped)
        };
        self.unpacked.dropped_xattrs += set().map_err(RootfsError::io::<Errno>(
            "set the attributes of",
            &display(),
        ))?;
        Ok(())
    }

    /// Writes everything to disk, without which pages cannot be dropped, and drops it.
    fn drop_cache(&self) -> Result<(), RootfsError> {
        for_each_directory(self.source.tree, |path, id| {
            let tree = self.source.tree;
            let directory = tree.directory(id).expect("only directories are visited");
            let fd = self.open_directory(path)?;
            for (name, &child) in &directory.children {
                if !matches!(tree.node(child).kind, NodeKind::Regular) {
                    continue;
                }
                self.cancel.check()?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let drop_pages = || {
                    let file = rustix::fs::openat(&fd, &**name, flags, Mode::empty())?;
                    writeback::finish(&file)?;
                    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
                    Ok::<(), io::Error>(())
                };
                drop_pages().map_err(RootfsError::io(
                    "write out and drop the cached pages of",
                    &join(self.root, &child_path(path, name)),
                ))?;
            }
            Ok(())
        })
    }
}

/// `st_dev` as the kernel's `s_dev`.
pub(super) fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

/// True if `path` lies on tmpfs.
pub(super) fn is_tmpfs(path: &Path) -> Result<bool, RootfsError> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let stat = rustix::fs::statfs(path).map_err(RootfsError::io("look at", path))?;
    Ok(stat.f_type as u64 == TMPFS_MAGIC)
}

/// The device and inode of `path` below `root`, links not followed.
pub(super) fn stat_below(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<(u32, u64)> {
    let stat = rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((kernel_device(stat.st_dev), stat.st_ino))
}

/// The device of the file system mounted on `path`.
pub(super) fn device_of(path: &Path) -> Result<u32, RootfsError> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(RootfsError::io("look at", path))?;
    Ok(kernel_device(stat.st_dev))
}

/// As [`set_attributes`], for a directory that this process made.
pub(super) fn set_attributes_at(
    directory: &Path,
    attributes: &Attributes,
) -> Result<usize, RootfsError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(RootfsError::io("open", directory))?;
    set_attributes(&fd, attributes).map_err(RootfsError::io("set the attributes of", directory))
}
