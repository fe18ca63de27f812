//! An image as a lazy-pulling node sees it: what its TOCs say.
//!
//! Enters: a layer's TOC. Leaves: its files as the reference's reader understands them (`estargz/estargz.go`,
//! `initFields`): rows of chunks with the member each lies in and how far its file reaches. Rows that make no sense
//! are left out: whether a TOC is correct is `verify`'s business.

use std::collections::{HashMap, HashSet};

use crate::image::Digest;
use crate::layer::entry::clean_path;
use crate::layer::plan::LANDMARK_NAMES;
use crate::layer::toc::{Toc, TocEntry};

/// An image of which a node knows the manifest.
#[derive(Clone, Debug, Default)]
pub struct ImageModel {
    /// Bytes of manifest and configuration.
    pub document_bytes: u64,
    /// Layers, base first. A layer that comes twice is pulled once.
    pub layers: Vec<LayerModel>,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct LayerModel {
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's size.
    pub size_bytes: u64,
    /// What its TOC says; none for a layer that is no eStargz, which is pulled as a whole.
    pub contents: Option<Contents>,
}

/// What is prefetched by the landmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landmark {
    /// Everything before this offset.
    Prefetch(u64),
    /// Nothing.
    NoPrefetch,
    /// There is none: the runtime's default counts.
    Missing,
}

/// What a TOC says.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Where the TOC's member begins.
    pub toc_offset_bytes: u64,
    /// Length of the TOC's JSON.
    pub toc_json_bytes: u64,
    /// Where prefetch ends.
    pub landmark: Landmark,
    /// Regular files with contents, in the TOC's order.
    pub files: Vec<FileModel>,
    /// Chunks of all files; a file's own follow each other.
    pub rows: Vec<Row>,
    /// Gzip members that hold chunks, by offset.
    pub members: Vec<Member>,
    names: HashMap<String, Name>,
    whiteouts: HashSet<String>,
}

/// A regular file.
#[derive(Clone, Debug)]
pub struct FileModel {
    /// Cleaned path.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// First of its rows.
    pub first_row: u32,
    /// How many rows it has, at least one.
    pub rows: u32,
    /// Up to where its compressed data is taken to reach: the next member's start behind its last row.
    pub end_bytes: u64,
}

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which file it is of.
    pub file: u32,
    /// Which member holds it.
    pub member: u32,
    /// Where in the file it begins.
    pub chunk_offset_bytes: u64,
    /// Its uncompressed length.
    pub chunk_bytes: u64,
}

/// A gzip member, as far as the TOC tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Where it begins in the blob.
    pub offset_bytes: u64,
    /// Where the next thing begins that the TOC knows of.
    pub end_bytes: u64,
    /// The chunks in it.
    pub rows: Vec<u32>,
}

impl Member {
    /// Compressed length.
    pub fn len_bytes(&self) -> u64 {
        self.end_bytes - self.offset_bytes
    }
}

#[derive(Clone, Debug)]
enum Name {
    File(u32),
    /// Of this path.
    Hardlink(String),
    /// A directory, a link, an empty file: nothing is fetched for it.
    Other,
}

impl Contents {
    /// Reads the rows of `toc`, whose member begins at `toc_offset_bytes` and holds `toc_json_bytes`.
    pub fn new(toc: &Toc<'_>, toc_offset_bytes: u64, toc_json_bytes: u64) -> Self {
        let mut contents = Self {
            toc_offset_bytes,
            toc_json_bytes,
            landmark: Landmark::Missing,
            files: Vec::new(),
            rows: Vec::new(),
            members: Vec::new(),
            names: HashMap::new(),
            whiteouts: HashSet::new(),
        };
        let ends = ends(toc, toc_offset_bytes);
        let mut offsets = Vec::new();
        let mut landmark_at = None;
        for (entry, &end_bytes) in toc.entries.iter().zip(&ends) {
            let is_data = (entry.kind == "reg" && entry.size > 0) || entry.kind == "chunk";
            if is_data && entry.offset >= toc_offset_bytes {
                continue;
            }
            if entry.kind == "chunk" {
                contents.further_chunk(entry, end_bytes, &mut offsets);
                continue;
            }
            let path = clean(&entry.name);
            if let Some(landmark) = LANDMARK_NAMES.iter().position(|name| *name == path) {
                landmark_at = Some(entry.offset);
                contents.landmark = match landmark {
                    0 => Landmark::Prefetch(entry.offset),
                    _ => Landmark::NoPrefetch,
                };
                continue;
            }
            contents.note_whiteout(&path);
            let name = match &*entry.kind {
                "reg" if is_data => {
                    contents.first_chunk(entry, &path, end_bytes, &mut offsets);
                    Name::File(count(contents.files.len()) - 1)
                }
                "hardlink" => Name::Hardlink(clean(&entry.link_name)),
                _ => Name::Other,
            };
            contents.names.insert(path, name);
        }
        contents.cut_members(&offsets, landmark_at);
        contents
    }

    fn first_chunk(
        &mut self,
        entry: &TocEntry<'_>,
        path: &str,
        end_bytes: u64,
        offsets: &mut Vec<u64>,
    ) {
        let whole = entry.chunk_size == 0 || entry.chunk_size > entry.size;
        self.files.push(FileModel {
            path: path.to_owned(),
            size_bytes: entry.size,
            first_row: count(self.rows.len()),
            rows: 1,
            end_bytes: end_bytes.max(entry.offset),
        });
        self.rows.push(Row {
            file: count(self.files.len()) - 1,
            member: 0,
            chunk_offset_bytes: 0,
            chunk_bytes: if whole { entry.size } else { entry.chunk_size },
        });
        offsets.push(entry.offset);
    }

    /// A row that continues the file before it.
    fn further_chunk(&mut self, entry: &TocEntry<'_>, end_bytes: u64, offsets: &mut Vec<u64>) {
        let Some(file) = self.files.last_mut() else {
            return;
        };
        if !entry.name.is_empty() && clean(&entry.name) != file.path {
            return; // of a file that was left out
        }
        let Some(left) = file.size_bytes.checked_sub(entry.chunk_offset) else {
            return;
        };
        file.rows += 1;
        file.end_bytes = end_bytes.max(entry.offset);
        let chunk_bytes = match entry.chunk_size {
            0 => left,
            size => size.min(left),
        };
        self.rows.push(Row {
            file: count(self.files.len()) - 1,
            member: 0,
            chunk_offset_bytes: entry.chunk_offset,
            chunk_bytes,
        });
        offsets.push(entry.offset);
    }

    fn note_whiteout(&mut self, path: &str) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name == ".wh..wh..opq" {
            self.whiteouts.insert(format!("{parent}/"));
        } else if let Some(hidden) = name.strip_prefix(".wh.")
            && !hidden.starts_with(".wh.")
        {
            let whole = if parent.is_empty() {
                hidden.to_owned()
            } else {
                format!("{parent}/{hidden}")
            };
            self.whiteouts.insert(whole);
        }
    }

    /// Members begin at the rows' offsets, and end where the next thing begins.
    fn cut_members(&mut self, offsets: &[u64], landmark_at: Option<u64>) {
        let mut starts: Vec<u64> = offsets.to_vec();
        starts.sort_unstable();
        starts.dedup();
        let mut borders = starts.clone();
        borders.extend(landmark_at);
        borders.push(self.toc_offset_bytes);
        borders.sort_unstable();
        let member = |&offset_bytes: &u64| {
            let next = borders.partition_point(|&border| border <= offset_bytes);
            Member {
                offset_bytes,
                end_bytes: borders.get(next).copied().unwrap_or(offset_bytes),
                rows: Vec::new(),
            }
        };
        self.members = starts.iter().map(member).collect();
        for ((number, row), offset) in (0..).zip(&mut self.rows).zip(offsets) {
            let index = starts.partition_point(|start| start < offset);
            row.member = count(index);
            self.members[index].rows.push(number);
        }
    }

    /// The rows of a file.
    pub fn rows_of(&self, file: u32) -> std::ops::Range<u32> {
        let file = &self.files[file as usize];
        file.first_row..file.first_row + file.rows
    }

    /// Where in the blob a row's member begins.
    pub fn offset_bytes(&self, row: u32) -> u64 {
        self.member_of(row).offset_bytes
    }

    /// The member that holds a row.
    pub fn member_of(&self, row: u32) -> &Member {
        &self.members[self.rows[row as usize].member as usize]
    }

    fn name(&self, path: &str) -> Option<&Name> {
        let mut name = self.names.get(path)?;
        // A link to a link, if there is one, ends somewhere.
        for _ in 0..8 {
            match name {
                Name::Hardlink(target) => name = self.names.get(target)?,
                other => return Some(other),
            }
        }
        None
    }

    fn hides(&self, path: &str) -> bool {
        if self.whiteouts.is_empty() {
            return false;
        }
        let mut ends = path.match_indices('/').map(|(at, _)| at);
        self.whiteouts.contains("/")
            || self.whiteouts.contains(path)
            || ends.any(|at| {
                self.whiteouts.contains(&path[..at]) || self.whiteouts.contains(&path[..=at])
            })
    }
}

/// Where in an image a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To a file of a lazily pulled layer.
    File { layer: u32, file: u32 },
    /// To something that needs no contents, or lies in a layer that is pulled whole.
    Nothing,
}

impl ImageModel {
    /// Finds a file of a profile: in `layer`, where the images' layers correspond, else in the uppermost layer
    /// that has it. `None` if no lazily pulled layer has it.
    pub(super) fn find(&self, path: &str, layer: Option<u32>, size_bytes: u64) -> Option<Place> {
        let place = |layer: u32, name: &Name| match *name {
            Name::File(file) => Place::File { layer, file },
            Name::Hardlink(_) | Name::Other => Place::Nothing,
        };
        if let Some(layer) = layer {
            match self.layers.get(layer as usize)?.contents.as_ref() {
                None => return Some(Place::Nothing),
                Some(contents) => match contents.name(path) {
                    Some(&Name::File(file))
                        if contents.files[file as usize].size_bytes == size_bytes =>
                    {
                        return Some(Place::File { layer, file });
                    }
                    Some(Name::Other) if size_bytes == 0 => return Some(Place::Nothing),
                    _ => {}
                },
            }
        }
        for layer in (0..count(self.layers.len())).rev() {
            let Some(contents) = &self.layers[layer as usize].contents else {
                continue;
            };
            if let Some(name) = contents.name(path) {
                return Some(place(layer, name));
            }
            if contents.hides(path) {
                return None;
            }
        }
        None
    }
}

/// For each entry, where the data behind it begins: the reader takes the next entry's offset, from the end on,
/// of those whose `innerOffset` is 0.
fn ends(toc: &Toc<'_>, toc_offset_bytes: u64) -> Vec<u64> {
    let mut ends = vec![0; toc.entries.len()];
    // The reference begins with the blob's end. What lies behind the TOC is no file's.
    let mut last = toc_offset_bytes;
    for (entry, end) in toc.entries.iter().zip(&mut ends).rev() {
        *end = last;
        if entry.offset != 0 && entry.inner_offset == 0 {
            last = entry.offset;
        }
    }
    ends
}

fn clean(name: &str) -> String {
    let path = clean_path(name.as_bytes()).unwrap_or_default();
    String::from_utf8(path).unwrap_or_default()
}

/// A TOC has no more rows: each takes 20 bytes of its JSON, whose length is bounded.
fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a TOC has fewer rows than 2^32")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row: name, type, size, offset, innerOffset, chunkOffset, chunkSize.
    pub(crate) type Short<'a> = (&'a str, &'a str, u64, u64, u64, u64, u64);

    pub(crate) fn contents(rows: &[Short<'_>], toc_offset_bytes: u64) -> Contents {
        let entries = rows
            .iter()
            .map(
                |&(name, kind, size, offset, inner, chunk_offset, chunk_size)| TocEntry {
                    name: name.into(),
                    kind: kind.into(),
                    size,
                    offset,
                    inner_offset: inner,
                    chunk_offset,
                    chunk_size,
                    ..TocEntry::default()
                },
            )
            .collect();
        Contents::new(
            &Toc {
                version: 1,
                entries,
            },
            toc_offset_bytes,
            1000,
        )
    }

    pub(crate) fn layer(rows: &[Short<'_>], toc_offset_bytes: u64, size_bytes: u64) -> LayerModel {
        LayerModel {
            digest: Digest::of(format!("{rows:?}").as_bytes()),
            size_bytes,
            contents: Some(contents(rows, toc_offset_bytes)),
        }
    }

    fn members(contents: &Contents) -> Vec<(u64, u64, &[u32])> {
        let members = contents.members.iter();
        members
            .map(|member| (member.offset_bytes, member.end_bytes, &*member.rows))
            .collect()
    }

    #[test]
    fn chunks_lie_in_members() {
        let contents = contents(
            &[
                ("./d/", "dir", 0, 0, 0, 0, 0),
                ("./a", "reg", 10, 100, 0, 0, 0),
                (".prefetch.landmark", "reg", 1, 400, 0, 0, 0),
                ("b", "reg", 9, 500, 0, 0, 4),
                ("b", "chunk", 0, 900, 0, 4, 4),
                ("b", "chunk", 0, 1200, 0, 8, 0),
                ("c", "reg", 5, 2000, 1, 0, 0),
                ("e", "reg", 6, 2000, 6, 0, 0),
                ("empty", "reg", 0, 0, 0, 0, 0),
            ],
            3000,
        );
        assert_eq!(contents.landmark, Landmark::Prefetch(400));
        let expected: [(u64, u64, &[u32]); 5] = [
            (100, 400, &[0]),
            (500, 900, &[1]),
            (900, 1200, &[2]),
            (1200, 2000, &[3]),
            (2000, 3000, &[4, 5]),
        ];
        assert_eq!(members(&contents), expected);
        let lengths: Vec<u64> = contents.rows.iter().map(|row| row.chunk_bytes).collect();
        assert_eq!(lengths, [10, 4, 4, 1, 5, 6]);
        // As `initFields` has it: innerOffset rows bound nothing.
        let ends: Vec<u64> = contents.files.iter().map(|file| file.end_bytes).collect();
        assert_eq!(ends, [400, 3000, 3000, 3000]);
        assert_eq!(contents.rows_of(1), 1..4);
    }

    #[test]
    fn a_pack_holds_chunks_of_files_that_lie_elsewhere() {
        let contents = contents(
            &[
                (".prefetch.landmark", "reg", 1, 700, 0, 0, 0),
                ("big", "reg", 12, 800, 1, 0, 4),
                ("big", "chunk", 0, 50, 1, 4, 4),
                ("big", "chunk", 0, 1000, 0, 8, 0),
                ("next", "reg", 3, 1500, 0, 0, 0),
            ],
            2000,
        );
        let expected: [(u64, u64, &[u32]); 4] = [
            (50, 700, &[1]),
            (800, 1000, &[0]),
            (1000, 1500, &[2]),
            (1500, 2000, &[3]),
        ];
        assert_eq!(members(&contents), expected);
        assert_eq!(contents.files[0].end_bytes, 1500);
        assert_eq!(contents.offset_bytes(1), 50);
    }

    #[test]
    fn rows_that_make_no_sense_are_left_out() {
        let contents = contents(
            &[
                ("x", "chunk", 0, 5, 0, 0, 0),
                ("past", "reg", 5, 9000, 0, 0, 0),
                ("a", "reg", 5, 10, 0, 0, 0),
                ("a", "chunk", 0, 20, 0, 6, 0),
                ("loop", "hardlink", 0, 0, 0, 0, 0),
            ],
            100,
        );
        assert_eq!((contents.files.len(), contents.rows.len()), (1, 1));
        assert_eq!(contents.files[0].path, "a");
    }

    #[test]
    fn paths_are_found_in_the_uppermost_layer() {
        let base = layer(
            &[
                ("usr/a", "reg", 5, 10, 0, 0, 0),
                ("usr/gone", "reg", 5, 20, 0, 0, 0),
                ("opt/x/y", "reg", 5, 30, 0, 0, 0),
                ("usr/link", "reg", 5, 40, 0, 0, 0),
            ],
            100,
            200,
        );
        let mut top = layer(
            &[
                ("usr/.wh.gone", "reg", 0, 0, 0, 0, 0),
                ("opt/.wh..wh..opq", "reg", 0, 0, 0, 0, 0),
                ("usr/b", "reg", 7, 10, 0, 0, 0),
            ],
            100,
            200,
        );
        let contents = top.contents.as_mut().unwrap();
        contents
            .names
            .insert("usr/h".to_owned(), Name::Hardlink("usr/b".to_owned()));
        let image = ImageModel {
            document_bytes: 0,
            layers: vec![base, top],
        };
        let file = |layer, file| Some(Place::File { layer, file });
        assert_eq!(image.find("usr/a", None, 5), file(0, 0));
        assert_eq!(image.find("usr/a", Some(0), 5), file(0, 0));
        // Another size, another layer: by path.
        assert_eq!(image.find("usr/b", Some(0), 7), file(1, 0));
        assert_eq!(image.find("usr/h", None, 7), file(1, 0));
        for gone in ["usr/gone", "opt/x/y", "none"] {
            assert_eq!(image.find(gone, None, 5), None, "{gone}");
        }
        assert_eq!(image.find("usr/.wh.gone", None, 0), Some(Place::Nothing));
    }
}
