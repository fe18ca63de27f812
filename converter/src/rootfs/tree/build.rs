//! From entries to a tree, one entry after the other. The rules are in the parent module.

use std::collections::btree_map::Entry as Slot;

use super::{Directory, Node, NodeId, NodeKind, ROOT, Tree};
use crate::layer::entry::{Entry, EntryKind};
use crate::rootfs::attributes;
use crate::rootfs::error::{EntryProblem, TreeError};

const MAX_SYMLINKS: usize = 255;
const MAX_NAME_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4095;

/// See [`Tree::build`].
pub(super) fn build(entries: &[Entry]) -> Result<Tree, TreeError> {
    let root = Node {
        kind: NodeKind::Directory(Box::default()),
        entry: None,
        links: 1,
    };
    let tree = Tree {
        nodes: vec![root],
        dropped_xattrs: 0,
    };
    let mut builder = Builder {
        tree,
        entries,
        last_parent: None,
    };
    for (index, entry) in entries.iter().enumerate() {
        let index = u32::try_from(index).expect("four billion entries do not fit in memory");
        builder.place(index, entry)?;
    }
    Ok(builder.finish())
}

struct Builder<'a> {
    tree: Tree,
    entries: &'a [Entry],
    /// The parent path resolved last: archives list a directory's files in a row. Forgotten when
    /// a name changes its meaning.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl Builder<'_> {
    fn place(&mut self, index: u32, entry: &Entry) -> Result<(), TreeError> {
        let problem = |problem| TreeError::Entry {
            name: lossy(&entry.name),
            problem,
        };
        let path = entry
            .path()
            .ok_or_else(|| problem(EntryProblem::LeavesRoot))?;
        self.tree.dropped_xattrs += attributes::dropped_xattrs(entry);
        let (parent, name) = split(&path);
        if name.is_empty() {
            // The root itself; anything but a directory cannot replace it and is ignored.
            if entry.kind == EntryKind::Directory {
                self.tree.nodes[ROOT as usize].entry = Some(index);
            }
            return Ok(());
        }
        check_name(&path, name).map_err(problem)?;
        let is_aufs = |c: &[u8]| c.starts_with(b".wh..wh.") && c != b".wh..wh..opq";
        if path.split(|&b| b == b'/').any(is_aufs) {
            return Ok(());
        }
        let parent = self.parent(parent).map_err(problem)?;
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.place_whiteout(parent, hidden).map_err(problem);
        }
        let kind = match entry.kind {
            EntryKind::Hardlink => {
                let target = self.hardlink_target(entry)?;
                self.link(parent, name, target);
                return Ok(());
            }
            EntryKind::Directory => {
                let path_len = self.path_len(parent, name).map_err(problem)?;
                NodeKind::Directory(Box::new(Directory {
                    path_len,
                    ..Directory::default()
                }))
            }
            EntryKind::Regular => NodeKind::Regular,
            EntryKind::Symlink => {
                check_symlink(&entry.link_name).map_err(problem)?;
                NodeKind::Symlink
            }
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                device_kind(entry).map_err(problem)?
            }
        };
        self.insert(
            parent,
            name,
            Node {
                kind,
                entry: Some(index),
                links: 0,
            },
        );
        Ok(())
    }

    /// Hides `hidden` of the lower layers, or all of `parent` there.
    fn place_whiteout(&mut self, parent: NodeId, hidden: &[u8]) -> Result<(), EntryProblem> {
        let directory = self
            .tree
            .directory_mut(parent)
            .expect("parents are directories");
        match hidden {
            b".wh..opq" => directory.opaque = true,
            b"" | b"." | b".." => return Err(EntryProblem::EmptyWhiteout),
            _ => {
                directory.whiteouts.insert(hidden.into());
            }
        }
        Ok(())
    }

    fn hardlink_target(&mut self, entry: &Entry) -> Result<NodeId, TreeError> {
        let problem = |problem| TreeError::Entry {
            name: lossy(&entry.name),
            problem,
        };
        let missing = || TreeError::HardlinkTarget {
            name: lossy(&entry.name),
            target: lossy(&entry.link_name),
        };
        let path = entry
            .link_path()
            .ok_or_else(|| problem(EntryProblem::LeavesRoot))?;
        let (parent, name) = split(&path);
        let parent = match self.resolve(parent, Missing::Stop) {
            Ok(parent) => parent.ok_or_else(missing)?,
            Err(EntryProblem::ParentNotDirectory) => return Err(missing()),
            Err(other) => return Err(problem(other)),
        };
        if name.is_empty() {
            return Err(problem(EntryProblem::HardlinkToDirectory));
        }
        let directory = self
            .tree
            .directory(parent)
            .expect("parents are directories");
        let target = *directory.children.get(name).ok_or_else(missing)?;
        match self.tree.node(target).kind {
            NodeKind::Directory(_) => Err(problem(EntryProblem::HardlinkToDirectory)),
            _ => Ok(target),
        }
    }

    fn parent(&mut self, path: &[u8]) -> Result<NodeId, EntryProblem> {
        if let Some((last, id)) = &self.last_parent
            && last == path
        {
            return Ok(*id);
        }
        let id = self
            .resolve(path, Missing::Create)?
            .expect("missing parents were made");
        self.last_parent = Some((path.to_vec(), id));
        Ok(id)
    }

    /// The directory that `path` leads to, symlinks followed inside the root. With
    /// [`Missing::Stop`], none if a component is missing.
    fn resolve(&mut self, path: &[u8], missing: Missing) -> Result<Option<NodeId>, EntryProblem> {
        let mut trail = vec![ROOT];
        let mut rest: Vec<Vec<u8>> = Vec::new();
        let push = |rest: &mut Vec<Vec<u8>>, path: &[u8]| {
            rest.extend(path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
        };
        push(&mut rest, path);
        let mut symlinks = 0;
        while let Some(component) = rest.pop() {
            let here = *trail.last().expect("the root is never popped");
            match &*component {
                b"" | b"." => continue,
                b".." => {
                    trail.truncate(trail.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let directory = self
                .tree
                .directory(here)
                .expect("the trail holds directories");
            let Some(&child) = directory.children.get(&*component) else {
                match missing {
                    Missing::Stop => return Ok(None),
                    Missing::Create => trail.push(self.imply(here, &component)?),
                }
                continue;
            };
            let node = self.tree.node(child);
            match (&node.kind, node.entry) {
                (NodeKind::Directory(_), _) => trail.push(child),
                (NodeKind::Symlink, Some(entry)) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(EntryProblem::TooManySymlinks);
                    }
                    let target = &self.entries[entry as usize].link_name;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    push(&mut rest, target);
                }
                _ => return Err(EntryProblem::ParentNotDirectory),
            }
        }
        Ok(trail.pop())
    }

    fn imply(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, EntryProblem> {
        if name.len() > MAX_NAME_BYTES {
            return Err(EntryProblem::NameTooLong);
        }
        let path_len = self.path_len(parent, name)?;
        let kind = NodeKind::Directory(Box::new(Directory {
            path_len,
            ..Directory::default()
        }));
        Ok(self.insert(
            parent,
            name,
            Node {
                kind,
                entry: None,
                links: 0,
            },
        ))
    }

    /// The length of a path below the root. Symlinks can lead deeper than any single name does.
    fn path_len(&self, parent: NodeId, name: &[u8]) -> Result<usize, EntryProblem> {
        let parent = self
            .tree
            .directory(parent)
            .expect("parents are directories");
        let len = parent.path_len + 1 + name.len();
        // Room for a file's own name, so that every file has a path that a system call takes.
        if len + MAX_NAME_BYTES > MAX_PATH_BYTES {
            return Err(EntryProblem::NameTooLong);
        }
        Ok(len)
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], node: Node) -> NodeId {
        let children = &self
            .tree
            .directory(parent)
            .expect("parents are directories")
            .children;
        if let (NodeKind::Directory(_), Some(&existing)) = (&node.kind, children.get(name))
            && self.tree.directory(existing).is_some()
        {
            self.tree.nodes[existing as usize].entry = node.entry;
            return existing;
        }
        let id = NodeId::try_from(self.tree.nodes.len()).expect("fewer nodes than components");
        self.tree.nodes.push(node);
        self.link(parent, name, id);
        id
    }

    /// Makes `name` in `parent` a name of `id`, whatever it was before.
    fn link(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        self.tree.nodes[id as usize].links += 1;
        let directory = self
            .tree
            .directory_mut(parent)
            .expect("parents are directories");
        let replaced = match directory.children.entry(name.into()) {
            Slot::Vacant(slot) => {
                slot.insert(id);
                None
            }
            Slot::Occupied(mut slot) => Some(slot.insert(id)),
        };
        if let Some(replaced) = replaced {
            self.last_parent = None;
            self.unlink(replaced);
        }
    }

    fn unlink(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            self.tree.nodes[id as usize].links -= 1;
            if let Some(directory) = self.tree.directory_mut(id) {
                pending.extend(std::mem::take(&mut directory.children).into_values());
            }
        }
    }

    /// Turns the whiteouts into nodes, now that it is known what the layer itself holds.
    fn finish(mut self) -> Tree {
        for id in 0..self.tree.nodes.len() {
            let id = id as NodeId;
            let Some(directory) = self.tree.directory_mut(id) else {
                continue;
            };
            for name in std::mem::take(&mut directory.whiteouts) {
                match self
                    .tree
                    .directory(id)
                    .and_then(|d| d.children.get(&name).copied())
                {
                    Some(child) => {
                        if let Some(directory) = self.tree.directory_mut(child) {
                            directory.opaque = true;
                        }
                    }
                    None if self.tree.node(id).links > 0 => {
                        self.insert(
                            id,
                            &name,
                            Node {
                                kind: NodeKind::Whiteout,
                                entry: None,
                                links: 0,
                            },
                        );
                    }
                    None => {}
                }
            }
        }
        self.tree
    }
}

/// What to do at a component that the layer lacks.
#[derive(Clone, Copy)]
enum Missing {
    Create,
    Stop,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn check_name(path: &[u8], name: &[u8]) -> Result<(), EntryProblem> {
    if path.contains(&0) {
        return Err(EntryProblem::ZeroByte);
    }
    // A whiteout's own name never becomes a file.
    let name = name.strip_prefix(b".wh.").unwrap_or(name);
    if name.len() > MAX_NAME_BYTES {
        Err(EntryProblem::NameTooLong)
    } else {
        Ok(())
    }
}

fn check_symlink(target: &[u8]) -> Result<(), EntryProblem> {
    if target.contains(&0) {
        Err(EntryProblem::ZeroByte)
    } else if target.is_empty() || target.len() > MAX_PATH_BYTES {
        Err(EntryProblem::SymlinkLength)
    } else {
        Ok(())
    }
}

fn device_kind(entry: &Entry) -> Result<NodeKind, EntryProblem> {
    if entry.dev_major >= 1 << 12 || entry.dev_minor >= 1 << 20 {
        return Err(EntryProblem::DeviceNumber);
    }
    Ok(match (entry.kind, entry.dev_major, entry.dev_minor) {
        (EntryKind::BlockDevice, _, _) => NodeKind::BlockDevice,
        (_, 0, 0) => NodeKind::Whiteout,
        _ => NodeKind::CharDevice,
    })
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
