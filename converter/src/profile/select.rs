//! Which entries of which layer are prefetched, in which order.

use std::collections::{HashMap, HashSet};

use crate::image::Digest;
use crate::layer::entry::{Entry, FileId, ScannedLayer, clean_path};
use crate::layer::plan::is_reserved;
use crate::profile::{PrefetchList, Profile, ProfiledFile};

/// Entries to prefetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prioritized {
    /// For each layer, indices of entries in order.
    pub layers: Vec<Vec<u32>>,
    /// Paths that no layer has, in order.
    pub missed: Vec<String>,
}

/// Where the files of a profile are in an image.
#[derive(Clone, Debug)]
pub struct Located<'a> {
    /// In the profile's order, each with its entry: the last of its path.
    pub files: Vec<(&'a ProfiledFile, FileId)>,
    /// Paths of touched files that no layer has, in order.
    pub missed: Vec<String>,
}

/// Finds the files of `profile`.
///
/// A profile of the same layers is followed layer by layer; one of another image by its paths.
pub fn locate<'a>(profile: &'a Profile, layers: &[ScannedLayer]) -> Located<'a> {
    let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    let by_path = profile.image.by_path || digests != profile.image.layers;
    let index = Index::new(layers);
    let mut located = Located {
        files: Vec::with_capacity(profile.files.len()),
        missed: Vec::new(),
    };
    for file in &profile.files {
        let path = file.path.as_bytes();
        let id = if by_path {
            index.uppermost(&clean_path(path).unwrap_or_default())
        } else {
            index.in_layer(file.layer, path)
        };
        match id {
            Some(id) => located.files.push((file, id)),
            // What was only opened would not have been prefetched.
            None if file.ranges.is_empty() => {}
            None => located.missed.push(file.path.clone()),
        }
    }
    located
}

/// Each path's entry in the uppermost layer that has it.
pub fn from_paths<'a>(
    paths: impl IntoIterator<Item = &'a str>,
    layers: &[ScannedLayer],
) -> Prioritized {
    let index = Index::new(layers);
    let mut found = Prioritized {
        layers: vec![Vec::new(); layers.len()],
        missed: Vec::new(),
    };
    let mut seen = HashSet::new();
    for path in paths {
        let cleaned = clean_path(path.as_bytes()).unwrap_or_default();
        match index.uppermost(&cleaned) {
            _ if !seen.insert(cleaned.clone()) => {}
            Some(id) => found.layers[id.layer as usize].push(id.entry),
            None => found.missed.push(path.to_owned()),
        }
    }
    found
}

/// What a list names: line by line, the matches of one line sorted by path.
pub fn from_list(list: &PrefetchList, layers: &[ScannedLayer]) -> Prioritized {
    let index = Index::new(layers);
    let mut found = Prioritized {
        layers: vec![Vec::new(); layers.len()],
        missed: Vec::new(),
    };
    let visible = if list.lines.iter().any(|line| line.glob.is_some()) {
        index.visible()
    } else {
        Vec::new()
    };
    let mut seen = HashSet::new();
    for line in &list.lines {
        let matches = match (index.uppermost(&line.path), &line.glob) {
            (Some(id), _) => vec![id],
            (None, None) => Vec::new(),
            (None, Some(glob)) => {
                let prefix = glob.prefix();
                let start = visible.partition_point(|(path, _)| *path < prefix.as_slice());
                visible[start..]
                    .iter()
                    .take_while(|(path, _)| path.starts_with(&prefix))
                    .filter(|(path, _)| glob.matches(path))
                    .map(|&(_, id)| id)
                    .collect()
            }
        };
        if matches.is_empty() {
            found.missed.push(line.text.clone());
        }
        for id in matches.into_iter().filter(|&id| seen.insert(id)) {
            found.layers[id.layer as usize].push(id.entry);
        }
    }
    found
}

/// Paths of each layer; the last entry of a path wins.
struct Index(Vec<HashMap<Vec<u8>, u32>>);

impl Index {
    fn new(layers: &[ScannedLayer]) -> Self {
        let paths = |layer: &ScannedLayer| {
            let numbered = (0..).zip(&layer.entries);
            numbered
                .filter_map(|(index, entry): (u32, &Entry)| Some((entry.path()?, index)))
                .collect()
        };
        Self(layers.iter().map(paths).collect())
    }

    fn in_layer(&self, layer: u32, path: &[u8]) -> Option<FileId> {
        let entry = *self.0.get(layer as usize)?.get(path)?;
        Some(FileId { layer, entry })
    }

    /// Looks from the top; a whiteout of the path or of a parent ends the search.
    fn uppermost(&self, path: &[u8]) -> Option<FileId> {
        for layer in (0..u32::try_from(self.0.len()).unwrap_or(u32::MAX)).rev() {
            if let Some(id) = self.in_layer(layer, path) {
                return Some(id);
            }
            if self.is_hidden_by(layer, path) {
                return None;
            }
        }
        None
    }

    /// All paths of the merged file system, sorted; whiteouts and what eStargz adds left out.
    fn visible(&self) -> Vec<(&[u8], FileId)> {
        let mut paths: Vec<&[u8]> = self.0.iter().flatten().map(|(path, _)| &**path).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
            .into_iter()
            .filter(|path| !path.is_empty() && !is_whiteout(path) && !is_reserved(path))
            .filter_map(|path| Some((path, self.uppermost(path)?)))
            .collect()
    }

    fn is_hidden_by(&self, layer: u32, path: &[u8]) -> bool {
        let paths = &self.0[layer as usize];
        let starts = std::iter::once(0).chain(
            path.iter()
                .enumerate()
                .filter(|&(_, &b)| b == b'/')
                .map(|(at, _)| at + 1),
        );
        starts.into_iter().any(|start| {
            let (parent, rest) = path.split_at(start);
            let end = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
            let whiteout = [parent, b".wh.", &rest[..end]].concat();
            let opaque = [parent, b".wh..wh..opq"].concat();
            paths.contains_key(&whiteout) || paths.contains_key(&opaque)
        })
    }
}

fn is_whiteout(path: &[u8]) -> bool {
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    name.starts_with(b".wh.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::scan::tests::scan_bytes;
    use crate::profile::merge;

    fn layer(names: &[&str]) -> ScannedLayer {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            builder.append_data(&mut header, name, &b"x"[..]).unwrap();
        }
        scan_bytes(&builder.into_inner().unwrap()).unwrap()
    }

    #[test]
    fn a_list_is_followed_line_by_line() {
        let layers = [
            layer(&[
                "usr/lib/b.so",
                "usr/lib/a.so",
                "usr/lib/gone.so",
                "bin/[",
                "bin/sh",
            ]),
            layer(&[
                "usr/lib/.wh.gone.so",
                "usr/lib/c.so",
                "./bin/sh",
                ".no.prefetch.landmark",
            ]),
        ];
        let check = |list: &str, expected: [&[u32]; 2], missed: &[&str]| {
            let found = from_list(&PrefetchList::parse(list.as_bytes()), &layers);
            assert_eq!(found.layers, expected, "{list:?}");
            assert_eq!(found.missed, missed, "{list:?}");
        };
        check("/usr/lib/*.so", [&[1, 0], &[1]], &[]);
        check("bin/[\nbin/*", [&[3], &[2]], &[]);
        check("usr/lib/b.so\n**/*.so", [&[0, 1], &[1]], &[]);
        check("**", [&[3, 1, 0], &[2, 1]], &[]);
        check(
            "usr/lib/gone.so\nnothing/*\n../x",
            [&[], &[]],
            &["usr/lib/gone.so", "nothing/*", "../x"],
        );
    }

    #[test]
    fn a_profile_of_several_images_means_paths() {
        let layers = [layer(&["a", "b"]), layer(&["c"])];
        let ranges: &[(u64, u64)] = &[(0, 1)];
        let mut profile = merge::tests::profile(&[("c", ranges), ("a", ranges)]);
        profile.image.layers = layers.iter().map(|layer| layer.digest).collect();
        let found = |profile: &Profile| {
            let Located { files, missed } = locate(profile, &layers);
            let ids = files
                .iter()
                .map(|(file, id)| (file.path.clone(), id.layer, id.entry));
            (ids.collect::<Vec<_>>(), missed)
        };
        // It stands in layer 1.
        assert_eq!(
            found(&profile),
            (vec![("a".to_owned(), 0, 0)], vec!["c".to_owned()])
        );
        profile.image.by_path = true;
        assert_eq!(
            found(&profile),
            (
                vec![("c".to_owned(), 1, 0), ("a".to_owned(), 0, 0)],
                Vec::new()
            )
        );
    }
}
