//! Under which device and inode the merged view's files are open.
//!
//! Overlayfs gives a file the inode number of its lower file, with the number of the lower file
//! system in the upper bits where there are several (`xino`). Which number a layer got is found by
//! looking at one file of it; where the rule does not hold, every file is looked at.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::error::RootfsError;
use super::stack::MountedLayer;
use super::tree::{NodeId, Tree};
use super::unpack::{device_of, stat_below};
use super::{MountedFile, merge};

/// Every regular file of the merged view mounted on `path`, sorted by device and inode.
pub(super) fn opened_as(
    path: &Path,
    trees: &[Tree],
    mounted: &[MountedLayer],
) -> Result<Vec<MountedFile>, RootfsError> {
    let mut lower_files: HashMap<usize, &[(NodeId, MountedFile)]> = HashMap::new();
    for layer in mounted {
        lower_files.insert(layer.layer, &layer.files);
    }
    let device = device_of(path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(path, flags, Mode::empty()).map_err(RootfsError::io("open", path))?;
    let mut view = View {
        root,
        path,
        prefixes: HashMap::new(),
    };
    let mut opened = Vec::new();
    merge::for_each_visible_file(trees, |name, layer, node| {
        let files = lower_files[&layer];
        let found = files.binary_search_by_key(&node, |&(id, _)| id);
        let (_, lower) = files[found.expect("every regular file of a layer is mounted")];
        let inode = view.inode(device, layer, name, lower.inode)?;
        opened.push(MountedFile {
            device,
            inode,
            ..lower
        });
        Ok::<(), RootfsError>(())
    })?;
    opened.sort_unstable_by_key(|file| (file.device, file.inode));
    drop_ambiguous(&mut opened);
    Ok(opened)
}

struct View<'a> {
    root: OwnedFd,
    path: &'a Path,
    /// By layer: the upper bits of its inode numbers, or none if there is no rule.
    prefixes: HashMap<usize, Option<u64>>,
}

impl View<'_> {
    fn inode(
        &mut self,
        device: u32,
        layer: usize,
        name: &[u8],
        lower: u64,
    ) -> Result<u64, RootfsError> {
        if let Some(Some(prefix)) = self.prefixes.get(&layer) {
            return Ok(prefix | lower);
        }
        let (seen_device, seen) = stat_below(self.root.as_fd(), name)
            .map_err(RootfsError::io("look at a file in", self.path))?;
        self.prefixes.entry(layer).or_insert_with(|| {
            let prefix = seen ^ lower;
            // `xino` leaves all lower bits alone, and shows one device for all files.
            let holds = seen_device == device && seen >= lower && prefix & u64::from(u32::MAX) == 0;
            holds.then_some(prefix)
        });
        Ok(seen)
    }
}

/// Without `xino`, files of several layers can have one number. Neither is named then: page-cache
/// events still tell them apart.
pub(super) fn drop_ambiguous(opened: &mut Vec<MountedFile>) {
    let key = |file: &MountedFile| (file.device, file.inode);
    let mut unique = Vec::with_capacity(opened.len());
    for group in opened.chunk_by(|a, b| key(a) == key(b)) {
        if group.iter().all(|file| file.file == group[0].file) {
            unique.push(group[0]);
        }
    }
    *opened = unique;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::FileId;

    #[test]
    fn a_number_that_two_files_have_names_neither() {
        let file = |inode, entry| MountedFile {
            device: 1,
            inode,
            file: FileId { layer: 0, entry },
            size_bytes: 0,
        };
        let mut opened = vec![file(1, 0), file(2, 1), file(2, 2), file(3, 3), file(3, 3)];
        drop_ambiguous(&mut opened);
        assert_eq!(opened, [file(1, 0), file(3, 3)]);
    }
}
