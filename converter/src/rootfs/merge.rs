//! The merged view of several layers' trees, computed as overlayfs computes it. Pure.

use std::collections::HashSet;

use super::attributes::Attributes;
use super::tree::{NodeId, NodeKind, ROOT, Tree};
use crate::layer::entry::Entry;

/// A directory as it stands in one layer: the layer's index and the node there.
type Part = (usize, NodeId);

/// The parts of the merged root directory, top layer first. An opaque root hides what is below.
pub(super) fn root_parts(trees: &[Tree]) -> Vec<Part> {
    let opaque = trees
        .iter()
        .rposition(|tree| tree.root().opaque)
        .unwrap_or(0);
    (opaque..trees.len())
        .rev()
        .map(|layer| (layer, ROOT))
        .collect()
}

/// What the parts of a directory show under `name`.
enum Lookup {
    /// Nothing, or a whiteout.
    Absent,
    /// A file of one layer.
    File(Part),
    /// A directory and what it is merged from.
    Directory(Vec<Part>),
}

fn lookup(trees: &[Tree], parts: &[Part], name: &[u8]) -> Lookup {
    let mut merged: Vec<Part> = Vec::new();
    for &(layer, parent) in parts {
        let tree = &trees[layer];
        let children = tree.directory(parent).map(|d| &d.children);
        let Some(&child) = children.and_then(|children| children.get(name)) else {
            continue;
        };
        match &tree.node(child).kind {
            NodeKind::Directory(directory) => {
                merged.push((layer, child));
                if directory.opaque {
                    break;
                }
            }
            NodeKind::Whiteout => break,
            _ if merged.is_empty() => return Lookup::File((layer, child)),
            _ => break,
        }
    }
    if merged.is_empty() {
        Lookup::Absent
    } else {
        Lookup::Directory(merged)
    }
}

/// Fits each tree to the layers below it.
///
/// Every directory that its layer does not describe gets the metadata of the directory it is merged
/// with, as containerd does: in overlayfs the topmost directory's metadata counts, and a layer that
/// holds `tmp/x` alone must not change `tmp`'s 1777.
///
/// Whiteouts in a directory that is not merged with a lower one go: they hide nothing, and
/// overlayfs would list their names.
pub(super) fn settle(trees: &mut [Tree], layers: &[&[Entry]]) {
    for layer in 0..trees.len() {
        let (lower, upper) = trees.split_at_mut(layer);
        let tree = &mut upper[0];
        let below = if tree.root().opaque {
            Vec::new()
        } else {
            root_parts(lower)
        };
        let mut pending = vec![(ROOT, below)];
        while let Some((id, below)) = pending.pop() {
            match below.first() {
                Some(&(donor, donor_id)) if tree.node(id).entry.is_none() => {
                    let inherited = lower[donor].attributes(donor_id, layers[donor]);
                    let directory = tree
                        .directory_mut(id)
                        .expect("only directories are pending");
                    directory.inherited = Some(inherited);
                }
                Some(_) => {}
                None => tree.remove_whiteouts(id),
            }
            let directory = tree.directory(id).expect("only directories are pending");
            for (name, &child) in &directory.children {
                let Some(child_directory) = tree.directory(child) else {
                    continue;
                };
                let parts = if child_directory.opaque {
                    Vec::new()
                } else if let Lookup::Directory(parts) = lookup(lower, &below, name) {
                    parts
                } else {
                    Vec::new()
                };
                pending.push((child, parts));
            }
        }
    }
}

/// The metadata of the merged root directory.
pub(super) fn root_attributes(trees: &[Tree], layers: &[&[Entry]]) -> Attributes {
    match (trees.last(), layers.last()) {
        (Some(tree), Some(entries)) => tree.attributes(ROOT, entries),
        _ => Attributes::implied(),
    }
}

/// Calls `found` with the path, layer and node of every regular file of the merged view; of a file
/// with several names in one layer, with the first in order of the walk. Stops at its first error.
pub(super) fn for_each_visible_file<E>(
    trees: &[Tree],
    mut found: impl FnMut(&[u8], usize, NodeId) -> Result<(), E>,
) -> Result<(), E> {
    let mut linked: HashSet<Part> = HashSet::new();
    let mut pending: Vec<(Vec<u8>, Vec<Part>)> = vec![(Vec::new(), root_parts(trees))];
    while let Some((path, parts)) = pending.pop() {
        let mut seen: HashSet<&[u8]> = HashSet::new();
        for (nth, &(layer, id)) in parts.iter().enumerate() {
            let directory = trees[layer].directory(id).expect("parts are directories");
            for name in directory.children.keys() {
                if parts.len() > 1 && !seen.insert(name) {
                    continue;
                }
                let mut child = path.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(name);
                match lookup(trees, &parts[nth..], name) {
                    Lookup::Absent => {}
                    Lookup::Directory(parts) => pending.push((child, parts)),
                    Lookup::File((layer, node)) => {
                        let file = trees[layer].node(node);
                        if matches!(file.kind, NodeKind::Regular)
                            && (file.links == 1 || linked.insert((layer, node)))
                        {
                            found(&child, layer, node)?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::test_entries::{dir, file};

    fn visible(layers: &[&[Entry]]) -> Vec<String> {
        let trees: Vec<Tree> = layers.iter().map(|l| Tree::build(l).unwrap()).collect();
        let mut found = Vec::new();
        for_each_visible_file(&trees, |path, layer, _| {
            found.push(format!("{}:{layer}", String::from_utf8_lossy(path)));
            Ok::<(), ()>(())
        })
        .unwrap();
        found.sort();
        found
    }

    #[test]
    fn the_top_layer_wins_and_whiteouts_hide() {
        let base = [
            file("a"),
            file("d/x"),
            file("d/y"),
            file("o/1"),
            file("f/below"),
        ];
        let middle = [
            file(".wh.a"),
            file("d/.wh.x"),
            file("o/.wh..wh..opq"),
            file("o/2"),
        ];
        let top = [file("d/y"), file("f"), file("a")];
        assert_eq!(
            visible(&[&base]),
            ["a:0", "d/x:0", "d/y:0", "f/below:0", "o/1:0"]
        );
        assert_eq!(visible(&[&base, &middle]), ["d/y:0", "f/below:0", "o/2:1"]);
        assert_eq!(
            visible(&[&base, &middle, &top]),
            ["a:2", "d/y:2", "f:2", "o/2:1"]
        );
    }

    #[test]
    fn a_file_between_two_directories_cuts_the_lower_one_off() {
        let (base, middle, top) = ([file("d/low")], [file("d")], [file("d/high")]);
        assert_eq!(visible(&[&base, &middle, &top]), ["d/high:2"]);
    }

    #[test]
    fn a_whited_out_directory_made_anew_is_opaque() {
        let (base, top) = ([file("d/low")], [file("d/high"), file(".wh.d")]);
        assert_eq!(visible(&[&base, &top]), ["d/high:1"]);
    }

    #[test]
    fn whiteouts_that_hide_nothing_go() {
        let base = [file("d/x"), file(".wh.a"), file("e/.wh.b")];
        let top = [file("d/.wh.x"), file("new/.wh.y"), file(".wh.z")];
        let layers: [&[Entry]; 2] = [&base, &top];
        let mut trees: Vec<Tree> = layers.iter().map(|l| Tree::build(l).unwrap()).collect();
        settle(&mut trees, &layers);
        let names = |layer: usize, directory: &[u8]| -> Vec<&[u8]> {
            let tree: &Tree = &trees[layer];
            let id = tree.root().children.get(directory).copied().unwrap_or(ROOT);
            let directory = tree.directory(id).unwrap();
            directory.children.keys().map(|name| &**name).collect()
        };
        assert_eq!(names(0, b""), [&b"d"[..], b"e"]);
        assert!(names(0, b"e").is_empty());
        assert_eq!(names(1, b""), [&b"d"[..], b"new", b"z"]);
        assert_eq!(names(1, b"d"), [b"x"]);
        assert!(names(1, b"new").is_empty());
    }

    #[test]
    fn an_opaque_root_hides_all_lower_layers() {
        let (base, top) = ([file("low")], [file(".wh..wh..opq"), file("high")]);
        assert_eq!(visible(&[&base, &top]), ["high:1"]);
    }

    #[test]
    fn implied_directories_inherit_through_layers_but_not_through_whiteouts() {
        let mut tmp = dir("tmp");
        tmp.mode = 0o1777;
        let base = [tmp];
        let upper = [file("tmp/a")];
        let fresh = [file("tmp/b"), file("tmp/.wh..wh..opq")];
        let check = |layers: &[&[Entry]], mode| {
            let mut trees: Vec<Tree> = layers.iter().map(|l| Tree::build(l).unwrap()).collect();
            settle(&mut trees, layers);
            let top = trees.last().unwrap();
            let tmp = top.root().children[&b"tmp"[..]];
            assert_eq!(top.attributes(tmp, layers.last().unwrap()).mode, mode);
        };
        check(&[&base, &upper], 0o1777);
        check(&[&base, &upper, &upper], 0o1777);
        check(&[&base, &fresh], 0o755);
        check(&[&base, &fresh, &upper], 0o755);
    }
}
