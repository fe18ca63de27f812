//! Each rule of docs/hot-pack.md, broken by hand in a layer that is otherwise right: the reference's readers
//! fail, or do what the rule is there to avoid, and esgz's own check says so.

use std::fs;

use esgz::blob::Blob;
use esgz::cancel::Cancel;
use esgz::layer::Parallel;
use esgz::layer::verify::verify_layer;
use esgz_tests::compress::Compression;
use esgz_tests::layout::digest;
use esgz_tests::oracle::Oracle;
use esgz_tests::sets::noise;
use serde_json::{Value, json};

/// Bytes of the giant, and where its first chunk and its hot range lie.
const GIANT: usize = 300_000;
const FIRST: usize = 50_000;
const HOT: std::ops::Range<usize> = 150_000..200_000;

/// Which pack the giant's first chunk is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstChunk {
    Behind,
    InFront,
}

/// How the layer is laid out.
#[derive(Clone, Copy, Debug)]
struct Variation {
    /// Bytes in front of each chunk in a pack.
    lead: usize,
    first_chunk: FirstChunk,
    /// Whether a second giant's hot range lies in the gzip member of the first one's.
    shares: bool,
    /// Whether the file's own entry has other bytes in the hot range.
    differs: bool,
}

/// As esgz writes it.
const GOOD: Variation = Variation {
    lead: 1,
    first_chunk: FirstChunk::Behind,
    shares: false,
    differs: false,
};

/// An eStargz layer put together member by member.
#[derive(Default)]
struct Handmade {
    blob: Vec<u8>,
    /// What has no gzip member yet.
    open: Vec<u8>,
    rows: Vec<Value>,
}

impl Handmade {
    /// A gzip member begins here. Gives its offset.
    fn member(&mut self) -> usize {
        if !self.open.is_empty() {
            let raw = std::mem::take(&mut self.open);
            self.blob.extend(Compression::Gzip(6).compress(&raw));
        }
        self.blob.len()
    }

    fn header(&mut self, name: &str, size: usize) {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(size as u64);
        header.set_mode(0);
        header.set_mtime(0);
        header.set_cksum();
        self.open.extend(header.as_bytes());
    }

    fn pad(&mut self, size: usize) {
        let padding = size.next_multiple_of(512) - size;
        self.open.resize(self.open.len() + padding, 0);
    }

    /// A file in a member of its own.
    fn file(&mut self, name: &str, contents: &[u8]) {
        self.header(name, contents.len());
        let offset = self.member();
        self.open.extend(contents);
        self.pad(contents.len());
        let row = chunk(name, contents, contents, (offset, 0, 0));
        self.rows.push(row);
    }

    /// A pack with these chunks, each in a member of its own unless they share one. Gives where each
    /// is: offset and inner offset.
    fn pack(&mut self, name: &str, chunks: &[&[u8]], variation: Variation) -> Vec<(usize, usize)> {
        let Variation { lead, shares, .. } = variation;
        let size = chunks.iter().map(|chunk| lead + chunk.len()).sum();
        self.header(name, size);
        let mut places = Vec::new();
        let mut start = 0;
        for (number, chunk) in chunks.iter().enumerate() {
            if number == 0 || !shares {
                start = self.member();
            }
            self.open.resize(self.open.len() + lead, 0);
            places.push((start, self.open.len()));
            self.open.extend(*chunk);
        }
        self.pad(size);
        places
    }

    /// The blob, and the digest of its TOC.
    fn finish(mut self) -> (Vec<u8>, String) {
        let toc = json!({"version": 1, "entries": self.rows}).to_string();
        let toc_offset = self.member();
        self.header("stargz.index.json", toc.len());
        self.open.extend(toc.bytes());
        self.pad(toc.len());
        self.open.resize(self.open.len() + 1024, 0);
        self.member();
        let mut blob = self.blob;
        blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
        blob.extend(format!("{toc_offset:016x}STARGZ").bytes());
        blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        (blob, digest(toc.as_bytes()))
    }
}

/// A row of the TOC for `part` of the file `contents`, which begins at `at.2` of it and stands at
/// `at.0` of the blob, `at.1` bytes into its member.
fn chunk(name: &str, contents: &[u8], part: &[u8], at: (usize, usize, usize)) -> Value {
    let (offset, inner_offset, chunk_offset) = at;
    let mut row = json!({"name": name, "type": "chunk", "offset": offset, "chunkOffset": chunk_offset,
        "chunkSize": part.len(), "chunkDigest": digest(part), "innerOffset": inner_offset});
    if chunk_offset == 0 {
        row["type"] = "reg".into();
        row["size"] = contents.len().into();
        row["digest"] = digest(contents).into();
    }
    let row = row.as_object_mut().unwrap();
    row.retain(|_, value| *value != json!(0));
    Value::Object(std::mem::take(row))
}

fn giant(seed: u64) -> Vec<u8> {
    noise(seed, GIANT)
}

/// A small prefetched file, one before the giants, two giants in a row.
fn handmade(variation: Variation) -> Handmade {
    let giants = [("giant", giant(1)), ("second", giant(2))];
    let firsts: Vec<&[u8]> = giants.iter().map(|(_, bytes)| &bytes[..FIRST]).collect();
    let hots: Vec<&[u8]> = giants
        .iter()
        .map(|(_, bytes)| &bytes[HOT.clone()])
        .collect();
    let is_behind = variation.first_chunk == FirstChunk::Behind;
    let mut layer = Handmade::default();
    let hot_places = layer.pack(".wh..wh.esgz.hot", &hots, variation);
    let mut first_places = Vec::new();
    if !is_behind {
        first_places = layer.pack(".wh..wh.esgz.hot1", &firsts, variation);
    }
    layer.file("small", &noise(3, 4000));
    layer.file(".prefetch.landmark", &[0x0f]);
    if is_behind {
        first_places = layer.pack(".wh..wh.esgz.hot0", &firsts, variation);
    }
    layer.file("before", &noise(4, 4000));
    for (number, (name, contents)) in giants.iter().enumerate() {
        layer.header(name, GIANT);
        let mut row = |part: std::ops::Range<usize>, (offset, inner): (usize, usize)| {
            let at = (offset, inner, part.start);
            layer.rows.push(chunk(name, contents, &contents[part], at));
        };
        row(0..FIRST, first_places[number]);
        layer.member();
        layer.open.extend(&contents[..FIRST]);
        let cold = layer.member();
        layer.open.extend(&contents[FIRST..HOT.start]);
        layer.member();
        let mut own = contents[HOT].to_vec();
        if variation.differs {
            own[7] ^= 1;
        }
        layer.open.extend(own);
        let last = layer.member();
        layer.open.extend(&contents[HOT.end..]);
        layer.pad(GIANT);
        let mut row = |part: std::ops::Range<usize>, (offset, inner): (usize, usize)| {
            let at = (offset, inner, part.start);
            layer.rows.push(chunk(name, contents, &contents[part], at));
        };
        row(FIRST..HOT.start, (cold, 0));
        row(HOT, hot_places[number]);
        row(HOT.end..GIANT, (last, 0));
    }
    layer
}

/// What reads a layer of a test.
struct Readers {
    oracle: Oracle,
    dir: tempfile::TempDir,
}

impl Readers {
    fn for_test(name: &str) -> Option<Self> {
        Some(Self {
            oracle: Oracle::for_test(name)?,
            dir: tempfile::tempdir().unwrap(),
        })
    }

    fn write(&self, layer: Handmade) -> (std::path::PathBuf, String) {
        let (blob, toc_digest) = layer.finish();
        let path = self.dir.path().join("blob");
        fs::write(&path, blob).unwrap();
        (path, toc_digest)
    }

    /// What the reference's readers say of a layer.
    fn read(&self, layer: Handmade, options: &[&str]) -> Result<Value, String> {
        let (path, toc_digest) = self.write(layer);
        self.oracle.read(&path, &toc_digest, options)
    }

    /// Bytes that the snapshotter inflates when it mounts the layer.
    fn prefetched_bytes(&self, layer: Handmade) -> u64 {
        let (path, toc_digest) = self.write(layer);
        let report = self.oracle.prefetch(&path, &toc_digest).unwrap();
        report["bytes"].as_u64().unwrap()
    }
}

/// What esgz says of a layer.
fn verify(layer: Handmade) -> Result<(), String> {
    let parallel = Parallel {
        threads: 2,
        memory_bytes: 16 << 20,
    };
    let blob = Blob::of_bytes(layer.finish().0);
    let verified = verify_layer(&blob, parallel, &Cancel::default());
    verified.map(drop).map_err(|error| error.to_string())
}

fn assert_fails(found: Result<impl std::fmt::Debug, String>, text: &str) {
    let error = found.expect_err(text);
    assert!(error.contains(text), "{error}, expected {text}");
}

fn row_of<'r>(rows: &'r mut [Value], name: &str, chunk_offset: usize) -> &'r mut Value {
    let is_it = |row: &&mut Value| {
        row["name"] == name && row["chunkOffset"].as_u64().unwrap_or(0) == chunk_offset as u64
    };
    rows.iter_mut().find(is_it).unwrap()
}

#[test]
fn a_layer_by_the_rules_is_read() {
    verify(handmade(GOOD)).unwrap();
    let Some(readers) = Readers::for_test("hot_pack::rules::a_layer_by_the_rules_is_read") else {
        return;
    };
    readers.read(handmade(GOOD), &[]).unwrap();
    // Of giants nothing is inflated at mount.
    assert_eq!(readers.prefetched_bytes(handmade(GOOD)), 4000);
}

#[test]
fn rule_1_packs_are_not_listed_and_chunks_ascend() {
    let listed = || {
        let mut layer = handmade(GOOD);
        let contents: Vec<u8> = [1, 2].into_iter().flat_map(giant).collect();
        let offset = row_of(&mut layer.rows, "giant", HOT.start)["offset"].as_u64();
        let at = (usize::try_from(offset.unwrap()).unwrap(), 0, 0);
        let row = chunk(".wh..wh.esgz.hot", &contents, &contents, at);
        layer.rows.insert(0, row);
        layer
    };
    let swapped = || {
        let mut layer = handmade(GOOD);
        let first = layer
            .rows
            .iter()
            .position(|row| row["name"] == "giant")
            .unwrap();
        layer.rows.swap(first + 1, first + 2);
        layer
    };
    assert_fails(verify(listed()), "a pack has no TOC row");
    assert_fails(verify(swapped()), "a chunk out of order");
    let name = "hot_pack::rules::rule_1_packs_are_not_listed_and_chunks_ascend";
    let Some(readers) = Readers::for_test(name) else {
        return;
    };
    assert_fails(readers.read(listed(), &[]), "found twice");
    assert_fails(readers.read(swapped(), &[]), "\"giant\"");
}

#[test]
fn rule_2_one_range_has_a_member() {
    let sharing = || {
        handmade(Variation {
            shares: true,
            ..GOOD
        })
    };
    // The snapshotter itself can read it, so this is no fault of the data.
    verify(sharing()).unwrap();
    let Some(readers) = Readers::for_test("hot_pack::rules::rule_2_one_range_has_a_member") else {
        return;
    };
    assert_fails(readers.read(sharing(), &[]), "found twice");
    readers.read(sharing(), &["--shared-members"]).unwrap();
}

#[test]
fn rule_3_the_first_chunk_lies_behind_the_landmark() {
    let in_front = || {
        handmade(Variation {
            first_chunk: FirstChunk::InFront,
            ..GOOD
        })
    };
    assert_fails(verify(in_front()), "lies before it");
    let name = "hot_pack::rules::rule_3_the_first_chunk_lies_behind_the_landmark";
    let Some(readers) = Readers::for_test(name) else {
        return;
    };
    // Every byte is right, and both giants are inflated whole at mount, cold chunks included.
    readers.read(in_front(), &[]).unwrap();
    assert_eq!(
        readers.prefetched_bytes(in_front()),
        4000 + 2 * GIANT as u64
    );
}

#[test]
fn rule_4_chunks_in_packs_have_an_inner_offset() {
    let without_lead = || handmade(Variation { lead: 0, ..GOOD });
    assert_fails(verify(without_lead()), "has an innerOffset");
    let name = "hot_pack::rules::rule_4_chunks_in_packs_have_an_inner_offset";
    let Some(readers) = Readers::for_test(name) else {
        return;
    };
    // It is the file before the giant that breaks, whose own row is right.
    let error = readers.read(without_lead(), &[]).unwrap_err();
    assert!(error.contains("negative count"), "{error}");
    // By its own bytes a giant without lead would be as good.
    let alone = || {
        let mut layer = without_lead();
        layer
            .rows
            .retain(|row| row["name"] != "before" && row["name"] != "second");
        layer
    };
    readers.read(alone(), &[]).unwrap();
}

/// A reader from before Stargz Snapshotter 0.13 does not know the field.
#[test]
fn rule_5_readers_must_know_inner_offsets() {
    let unknown = || {
        let mut layer = handmade(GOOD);
        for row in &mut layer.rows {
            row.as_object_mut().unwrap().remove("innerOffset");
        }
        layer
            .rows
            .retain(|row| row["name"] != "before" && row["name"] != "second");
        layer
    };
    assert_fails(verify(unknown()), "digest does not match");
    let name = "hot_pack::rules::rule_5_readers_must_know_inner_offsets";
    let Some(readers) = Readers::for_test(name) else {
        return;
    };
    assert_fails(readers.read(unknown(), &[]), "digest");
}

/// Whoever unpacks the layer reads the file's own entry, whoever mounts it the pack.
#[test]
fn rule_7_every_byte_is_at_its_natural_place() {
    let differing = || {
        handmade(Variation {
            differs: true,
            ..GOOD
        })
    };
    assert_fails(verify(differing()), "the pack holds other bytes");
    let name = "hot_pack::rules::rule_7_every_byte_is_at_its_natural_place";
    let Some(readers) = Readers::for_test(name) else {
        return;
    };
    readers.read(differing(), &[]).unwrap();
    let (path, toc_digest) = readers.write(differing());
    let extracted = readers.oracle.verify(&path, &toc_digest, None);
    assert_fails(extracted, "\"giant\": contents");
}

/// Faults that only hand-made packs have: a range behind its file, outside its pack, of another file.
#[test]
fn packs_that_lie_are_found() {
    let moved = |name: &'static str, change: fn(&mut Value)| {
        let mut layer = handmade(GOOD);
        change(row_of(&mut layer.rows, name, HOT.start));
        layer
    };
    let other = |row: &mut Value| row["chunkDigest"] = digest(&giant(2)[HOT]).into();
    assert_fails(verify(moved("giant", other)), "digest does not match");
    let behind = |row: &mut Value| row["innerOffset"] = 2.into();
    assert_fails(verify(moved("giant", behind)), "shorter than the chunk");
    // With a right digest, but of other bytes of the pack.
    let mut layer = handmade(GOOD);
    let second = row_of(&mut layer.rows, "second", HOT.start).clone();
    let first = row_of(&mut layer.rows, "giant", HOT.start);
    let place = first["offset"].take();
    (first["offset"], first["chunkDigest"]) =
        (second["offset"].clone(), second["chunkDigest"].clone());
    row_of(&mut layer.rows, "second", HOT.start)["offset"] = place;
    row_of(&mut layer.rows, "second", HOT.start)["chunkDigest"] = digest(&giant(1)[HOT]).into();
    assert_fails(verify(layer), "the pack holds other bytes");
}
