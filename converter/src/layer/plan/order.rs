//! The order of a layer's entries: prioritised ones first, parents and link targets before them.

use std::collections::HashMap;

use crate::layer::entry::{Entry, EntryKind, ScannedLayer, clean_path};
use crate::layer::plan::{PACK_PREFIX, PlanError};

/// Names of the landmark files; those found in a source are dropped.
pub const LANDMARK_NAMES: [&str; 2] = [".prefetch.landmark", ".no.prefetch.landmark"];
/// Name of the TOC's tar entry; one found in a source is dropped.
pub const TOC_NAME: &str = "stargz.index.json";

/// Entry indices, in output order.
pub(super) struct Order {
    pub(super) prioritized: Vec<u32>,
    pub(super) rest: Vec<u32>,
}

/// Orders the entries. Of a path that occurs more than once only the last entry is kept, as an
/// extractor would leave it. Every hardlink follows its target, which readers of the TOC rely on.
pub(super) fn order(layer: &ScannedLayer, prioritized: &[u32]) -> Result<Order, PlanError> {
    let mut by_path: HashMap<Vec<u8>, u32> = HashMap::with_capacity(layer.entries.len());
    let path_of = |index: u32| path_key(&layer.entries[index as usize].name);
    for index in indices(layer) {
        let path = path_of(index);
        if !is_reserved(&path) {
            by_path.insert(path, index);
        }
    }
    let mut picker = Picker {
        layer,
        by_path: &by_path,
        picked: vec![false; layer.entries.len()],
        order: Vec::new(),
    };
    for &index in prioritized {
        picker.pick(&path_of(index))?;
    }
    let prioritized = std::mem::take(&mut picker.order);
    for index in indices(layer) {
        let path = path_of(index);
        if by_path.get(&path) != Some(&index) {
            continue;
        }
        if layer.entries[index as usize].kind == EntryKind::Hardlink {
            // A target stands behind its link where it was replaced further on.
            picker.pick_after_targets(&path)?;
        } else {
            picker.pick_one(&path);
        }
    }
    Ok(Order {
        prioritized,
        rest: picker.order,
    })
}

fn indices(layer: &ScannedLayer) -> impl Iterator<Item = u32> + use<> {
    0..u32::try_from(layer.entries.len()).unwrap_or(u32::MAX)
}

/// The cleaned path; a name with `..` is its own key, as it is no path below the root.
fn path_key(name: &[u8]) -> Vec<u8> {
    clean_path(name).unwrap_or_else(|| name.to_vec())
}

/// Whether `path` names what eStargz adds to a layer: a landmark, the TOC, or a pack.
pub fn is_reserved(path: &[u8]) -> bool {
    path == TOC_NAME.as_bytes()
        || LANDMARK_NAMES.iter().any(|name| path == name.as_bytes())
        || is_pack(path)
}

/// Whether `path` names a pack.
pub fn is_pack(path: &[u8]) -> bool {
    path.starts_with(PACK_PREFIX.as_bytes()) && !path.contains(&b'/')
}

/// Whether the entry is one of those.
pub(in crate::layer) fn has_reserved_name(entry: &Entry) -> bool {
    is_reserved(&path_key(&entry.name))
}

struct Picker<'a> {
    layer: &'a ScannedLayer,
    by_path: &'a HashMap<Vec<u8>, u32>,
    picked: Vec<bool>,
    order: Vec<u32>,
}

impl Picker<'_> {
    /// Takes the entry at `path`, after its parents and, for a hardlink, its target.
    fn pick(&mut self, path: &[u8]) -> Result<(), PlanError> {
        let chain = self.link_chain(path)?;
        // The reference's order: all parents, the link's own first, then targets before links.
        for path in &chain {
            self.pick_one(b"");
            let slashes = path.iter().enumerate().filter(|&(_, &b)| b == b'/');
            for (slash, _) in slashes {
                // A parent may be a hardlink: to a symlink that leads to a directory.
                self.pick_after_targets(&path[..slash])?;
            }
        }
        for path in chain.iter().rev() {
            self.pick_one(path);
        }
        Ok(())
    }

    /// Takes the entry at `path` after the targets that it links to.
    fn pick_after_targets(&mut self, path: &[u8]) -> Result<(), PlanError> {
        for path in self.link_chain(path)?.iter().rev() {
            self.pick_one(path);
        }
        Ok(())
    }

    /// `path`, what it is a hardlink to, and so on, as far as that is not picked yet.
    fn link_chain(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, PlanError> {
        let mut chain = vec![path.to_vec()];
        while let Some(link) = chain
            .last()
            .and_then(|path| self.by_path.get(path))
            .copied()
        {
            let entry = &self.layer.entries[link as usize];
            if entry.kind != EntryKind::Hardlink || self.picked[link as usize] {
                break;
            }
            let target = path_key(&entry.link_name);
            // Longer than there are paths: a circle.
            if !self.by_path.contains_key(&target) || chain.len() > self.by_path.len() {
                return Err(PlanError::MissingLinkTarget {
                    layer: self.layer.digest,
                    name: String::from_utf8_lossy(&entry.name).into_owned(),
                    target: String::from_utf8_lossy(&entry.link_name).into_owned(),
                });
            }
            chain.push(target);
        }
        Ok(chain)
    }

    fn pick_one(&mut self, path: &[u8]) {
        if let Some(&index) = self.by_path.get(path)
            && !std::mem::replace(&mut self.picked[index as usize], true)
        {
            self.order.push(index);
        }
    }
}
