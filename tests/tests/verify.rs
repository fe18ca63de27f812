//! `esgz verify`: accepts every output, with and without its source; finds every fault.

use std::fs;
use std::path::Path;

use esgz_tests::archive::{Entry, Kind};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::corrupt::{self, Estargz};
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::sets;
use serde_json::{Value, json};

/// A written or given image is faulty.
const FAULTY: i32 = 5;
/// It cannot be read.
const UNREADABLE: i32 = 6;

fn verify(image: &Layout, args: &[&str]) -> Finished {
    Esgz::new("verify").arg(image.reference()).args(args).run()
}

#[test]
fn every_output_equals_its_source() {
    let mut failures = Vec::new();
    for set in sets::all() {
        let image = LayoutBuilder::new().layer(Layer::from_tar(set.tar(), Compression::Gzip(6)));
        let conversion = Conversion::of(&image);
        let source = conversion.source.reference();
        for (name, args) in [
            ("usual", &[][..]),
            (
                "grouped",
                &[
                    "--estargz-min-chunk-size=64KiB",
                    "--estargz-chunk-size=1MiB",
                ],
            ),
        ] {
            let checked = conversion
                .convert(name, args)
                .and_then(|output| verify(&output, &["--source", &source]).success());
            if let Err(error) = checked {
                failures.push(format!("{} {name}: {error}", set.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A file of three chunks, and one of everything that a TOC row can say.
fn base() -> Vec<Entry> {
    vec![
        Entry::dir("etc/"),
        Entry::file("etc/conf", "of the base").owner_names("root", "root"),
        Entry::file("etc/secret", "s")
            .mode(0o4600)
            .owner(7, 8)
            .xattr("user.note", "written"),
        Entry::file("big", sets::noise(1, 9 << 20)),
        Entry::hardlink("etc/hard", "etc/conf"),
        Entry::symlink("etc/soft", "conf"),
        Entry::device(Kind::Char, "null", 1, 3),
        Entry::new(Kind::Fifo, "pipe"),
        Entry::file("etc/empty", ""),
    ]
}

fn upper() -> Vec<Entry> {
    vec![
        Entry::dir("etc/"),
        Entry::file("etc/conf", "of the upper layer").mtime(1_700_000_001, 5),
        Entry::file("etc/.wh.soft", ""),
    ]
}

fn image(base: &[Entry], upper: &[Entry]) -> LayoutBuilder {
    LayoutBuilder::new()
        .layer(Layer::new(base, Compression::Gzip(6)))
        .layer(Layer::new(upper, Compression::Gzip(6)))
}

fn copy(from: &Layout, to: &Path) -> Layout {
    fs::create_dir_all(to.join("blobs/sha256")).unwrap();
    for name in ["oci-layout", "index.json"] {
        fs::copy(from.dir.join(name), to.join(name)).unwrap();
    }
    for blob in fs::read_dir(from.dir.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let copied = to.join("blobs/sha256").join(blob.file_name());
        fs::copy(blob.path(), copied).unwrap();
    }
    Layout {
        dir: to.to_owned(),
        tag: from.tag.clone(),
    }
}

type Fault = (
    &'static str,
    i32,
    // What the message must hold.
    &'static str,
    fn(&Layout),
);

/// Faults that somebody who changes bytes without care makes.
const OF_BYTES: [Fault; 8] = [
    (
        "flipped bit in a member",
        FAULTY,
        "gzip member at offset",
        |layout| {
            corrupt::flip_byte(layout, 0, 5000);
        },
    ),
    (
        "flipped bit in the TOC",
        FAULTY,
        "TOC at offset",
        |layout| {
            let at = Estargz::of(layout, 0).members.len() as u64;
            corrupt::flip_byte(layout, 0, at + 30);
        },
    ),
    ("flipped bit in the footer", FAULTY, "footer", |layout| {
        let blob = layout.blob_path(&layout.layer_digest(0));
        let size = fs::metadata(blob).unwrap().len();
        corrupt::flip_byte(layout, 0, size - 15);
    }),
    ("truncated blob", FAULTY, "size is", |layout| {
        corrupt::truncate(layout, 1);
    }),
    ("trailing garbage", FAULTY, "size is", |layout| {
        let blob = layout.blob_path(&layout.layer_digest(1));
        let grown = [fs::read(&blob).unwrap(), vec![0; 10]].concat();
        fs::write(blob, grown).unwrap();
    }),
    ("missing blob", UNREADABLE, "missing", |layout| {
        corrupt::missing_blob(layout, 1);
    }),
    (
        "damaged configuration",
        UNREADABLE,
        "configuration",
        |layout| {
            let manifest = layout.manifest();
            let digest = manifest["config"]["digest"].as_str().unwrap();
            fs::write(layout.blob_path(digest), "{}").unwrap();
        },
    ),
    ("damaged manifest", UNREADABLE, "manifest", |layout| {
        fs::write(layout.blob_path(&layout.manifest_digest()), "{}").unwrap();
    }),
];

/// Documents that do not fit the layers.
const OF_DOCUMENTS: [Fault; 11] = [
    ("wrong size", FAULTY, "size is", |layout| {
        corrupt::wrong_size(layout, 1);
    }),
    ("wrong digest", FAULTY, "digest is", |layout| {
        corrupt::wrong_digest(layout, 1);
    }),
    ("wrong DiffID", FAULTY, "DiffID is", |layout| {
        corrupt::wrong_diff_id(layout, 1);
    }),
    ("wrong TOC digest", FAULTY, "TOC digest is", |layout| {
        annotate(
            layout,
            "containerd.io/snapshot/stargz/toc.digest",
            Some(corrupt::NO_BLOB),
        );
    }),
    ("no TOC digest", FAULTY, "expected none", |layout| {
        annotate(layout, "containerd.io/snapshot/stargz/toc.digest", None);
    }),
    (
        "wrong uncompressed size",
        FAULTY,
        "uncompressed size is",
        |layout| {
            annotate(layout, "io.containers.estargz.uncompressed-size", Some("7"));
        },
    ),
    ("layers swapped", FAULTY, "DiffID is", |layout| {
        layout.edit_manifest(|manifest| {
            manifest["layers"].as_array_mut().unwrap().swap(0, 1);
        });
    }),
    ("layer missing", UNREADABLE, "2 DiffIDs", |layout| {
        layout.edit_manifest(|manifest| drop(manifest["layers"].as_array_mut().unwrap().pop()));
    }),
    (
        "history of three layers",
        FAULTY,
        "history of 3 layers",
        |layout| {
            corrupt::edit_config(layout, |config| {
                config["history"][2]["empty_layer"] = false.into();
            });
        },
    ),
    (
        "history of one layer",
        FAULTY,
        "history of 1 layers",
        |layout| {
            corrupt::edit_config(layout, |config| {
                config["history"][0]["empty_layer"] = true.into();
            });
        },
    ),
    ("plain layer", FAULTY, "not an eStargz layer", |layout| {
        let layer = Compression::Gzip(6).compress(&[0; 1024]);
        corrupt::replace_layer(layout, 1, &layer);
    }),
];

fn annotate(layout: &Layout, key: &str, value: Option<&str>) {
    layout.edit_manifest(|manifest| {
        let all = manifest["layers"][0]["annotations"]
            .as_object_mut()
            .unwrap();
        match value {
            Some(value) => all.insert(key.to_owned(), value.into()),
            None => all.shift_remove(key),
        };
    });
}

/// Blobs that are wrong under digests that are right.
const OF_BLOBS: [Fault; 6] = [
    (
        "footer behind the TOC",
        FAULTY,
        "the TOC at offset",
        |layout| {
            Estargz::of(layout, 0).put_with_footer(layout, 0, 1);
        },
    ),
    (
        "footer past the end",
        FAULTY,
        "past the blob's end",
        |layout| {
            Estargz::of(layout, 0).put_with_footer(layout, 0, 1 << 40);
        },
    ),
    ("garbage behind the footer", FAULTY, "no footer", |layout| {
        Estargz::of(layout, 0).put_with_garbage(layout, 0, b"more");
    }),
    (
        "garbage between members",
        FAULTY,
        "gzip member at offset",
        |layout| {
            let mut layer = Estargz::of(layout, 0);
            layer.members.extend(b"garbage");
            layer.put(layout, 0);
        },
    ),
    (
        "member that is in no entry",
        FAULTY,
        "no valid tar",
        |layout| {
            let mut layer = Estargz::of(layout, 0);
            layer
                .members
                .extend(Compression::Gzip(6).compress(&[7; 512]));
            layer.put(layout, 0);
        },
    ),
    ("entry that is in no row", FAULTY, "no TOC row", |layout| {
        let mut layer = Estargz::of(layout, 0);
        let entry = Entry::file("hidden", "").encode();
        layer.members.extend(Compression::Gzip(6).compress(&entry));
        layer.put(layout, 0);
    }),
];

/// What is wrong, what the message must hold, and how it is made.
type RowFault = (&'static str, &'static str, fn(&mut Vec<Value>));

/// TOCs that lie, under digests that are right.
const OF_ROWS: [RowFault; 25] = [
    ("wrong chunk digest", "chunk's digest", |rows| {
        row(rows, "etc/conf")["chunkDigest"] = corrupt::NO_BLOB.into();
    }),
    ("wrong digest of a small file", "file's digest", |rows| {
        row(rows, "etc/conf")["digest"] = corrupt::NO_BLOB.into();
    }),
    ("wrong digest of a large file", "file's digest", |rows| {
        row(rows, "big")["digest"] = corrupt::NO_BLOB.into();
    }),
    ("wrong digest of an empty file", "file's digest", |rows| {
        row(rows, "etc/empty")["digest"] = corrupt::NO_BLOB.into();
    }),
    ("no chunk digest", "without digest", |rows| {
        remove(row(rows, "etc/conf"), "chunkDigest");
    }),
    ("swapped chunks", "uncompressed offset", |rows| {
        let first = rows.iter().position(|row| row["name"] == "big").unwrap();
        for key in ["offset", "chunkDigest"] {
            let kept = rows[first][key].clone();
            rows[first][key] = rows[first + 1][key].clone();
            rows[first + 1][key] = kept;
        }
    }),
    ("missing chunk", "out of order", |rows| {
        let first = rows.iter().position(|row| row["name"] == "big").unwrap();
        rows.remove(first + 1);
    }),
    ("missing last chunk", "do not add up", |rows| {
        let last = rows.iter().rposition(|row| row["name"] == "big").unwrap();
        rows.remove(last);
    }),
    ("wrong chunk offset", "out of order", |rows| {
        let last = rows.iter().rposition(|row| row["name"] == "big").unwrap();
        rows[last]["chunkOffset"] = 1.into();
    }),
    ("missing row", "name is", |rows| {
        rows.retain(|row| row["name"] != "etc/soft");
    }),
    ("extra row", "name is", |rows| {
        rows.insert(2, json!({"name": "extra", "type": "dir"}));
    }),
    ("extra last row", "no such entry", |rows| {
        rows.push(json!({"name": "extra", "type": "dir"}));
    }),
    ("renamed row", "name is \"etc/sofa\"", |rows| {
        row(rows, "etc/soft")["name"] = "etc/sofa".into();
    }),
    ("wrong type", "type is", |rows| {
        row(rows, "pipe")["type"] = "dir".into();
    }),
    ("wrong size", "shorter than the chunk", |rows| {
        row(rows, "etc/conf")["size"] = 100_000.into();
    }),
    ("wrong mode", "mode is", |rows| {
        row(rows, "etc/secret")["mode"] = 0o644.into();
    }),
    ("wrong mtime", "modtime is", |rows| {
        row(rows, "etc/secret")["modtime"] = "2020-01-01T00:00:00Z".into();
    }),
    ("wrong owner", "uid is", |rows| {
        row(rows, "etc/secret")["uid"] = 0.into();
    }),
    ("wrong owner's name", "userName is", |rows| {
        row(rows, "etc/conf")["userName"] = "toor".into();
    }),
    ("wrong xattr", "user.note", |rows| {
        row(rows, "etc/secret")["xattrs"]["user.note"] = "AAAA".into();
    }),
    ("wrong symlink", "linkName is", |rows| {
        row(rows, "etc/soft")["linkName"] = "secret".into();
    }),
    ("hardlink to nothing", "to link to", |rows| {
        row(rows, "etc/hard")["linkName"] = "gone".into();
    }),
    ("wrong device", "devMinor is", |rows| {
        row(rows, "null")["devMinor"] = 4.into();
    }),
    ("offset in two rows", "stands in two rows", |rows| {
        let offset = row(rows, "etc/secret")["offset"].clone();
        row(rows, "etc/conf")["offset"] = offset;
    }),
    ("offset past the payload", "lies outside", |rows| {
        row(rows, "etc/conf")["offset"] = (1_u64 << 40).into();
    }),
];

/// Landmarks that are not what readers look for.
const OF_LANDMARKS: [RowFault; 3] = [
    ("no landmark", "no landmark", |rows| drop(rows.pop())),
    ("two landmarks", "second landmark", |rows| {
        let mut second = landmark(rows).clone();
        second["name"] = ".prefetch.landmark".into();
        rows.push(second);
    }),
    ("other contents of the landmark", "0x0f", |rows| {
        landmark(rows)["chunkDigest"] = corrupt::NO_BLOB.into();
    }),
];

fn landmark(rows: &mut [Value]) -> &mut Value {
    row(rows, ".no.prefetch.landmark")
}

fn row<'a>(rows: &'a mut [Value], name: &str) -> &'a mut Value {
    rows.iter_mut().find(|row| row["name"] == name).unwrap()
}

fn remove(row: &mut Value, key: &str) {
    row.as_object_mut().unwrap().shift_remove(key);
}

#[test]
fn every_fault_is_found_and_named() {
    let conversion = Conversion::of(&image(&base(), &upper()));
    let good = conversion.convert("good", &[]).unwrap();
    verify(&good, &[]).success().unwrap();
    let mut failures = Vec::new();
    let mut check = |what: &str, code, name: &str, fault: &dyn Fn(&Layout)| {
        let layout = copy(&good, &conversion.path(what));
        fault(&layout);
        if let Err(error) = verify(&layout, &[]).failed_with(code, &[name]) {
            failures.push(format!("{what}: {error}"));
        }
        fs::remove_dir_all(&layout.dir).unwrap();
    };
    for (what, code, name, fault) in OF_BYTES.iter().chain(&OF_DOCUMENTS).chain(&OF_BLOBS) {
        check(what, *code, name, fault);
    }
    for (what, name, edit) in OF_ROWS.iter().chain(&OF_LANDMARKS) {
        check(what, FAULTY, name, &|layout| {
            let mut layer = Estargz::of(layout, 0);
            layer.edit_rows(edit);
            layer.put(layout, 0);
        });
    }
    for (what, toc) in [
        ("version 2", r#"{"version":2,"entries":[]}"#),
        ("no JSON", "stargz"),
        ("no rows", r#"{"version":1}"#),
        ("rows of another kind", r#"{"version":1,"entries":[7]}"#),
    ] {
        check(what, FAULTY, "TOC", &|layout| {
            let mut layer = Estargz::of(layout, 0);
            layer.toc = toc.as_bytes().to_vec();
            layer.put(layout, 0);
        });
    }
    // Where something is prefetched, the landmark is not last.
    let list = conversion.path("list");
    fs::write(&list, "etc/secret").unwrap();
    let args = ["--prefetch-list", list.to_str().unwrap()];
    let prefetched = conversion.convert("prefetched", &args).unwrap();
    let mut layer = Estargz::of(&prefetched, 0);
    layer.edit_rows(|rows| drop(rows.pop()));
    layer.put(&prefetched, 0);
    if let Err(error) = verify(&prefetched, &[]).failed_with(FAULTY, &["no TOC row"]) {
        failures.push(format!("missing last row: {error}"));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Taking apart and putting together is no fault in itself.
#[test]
fn an_unchanged_layer_is_accepted() {
    let conversion = Conversion::of(&image(&base(), &upper()));
    let output = conversion.convert("output", &[]).unwrap();
    let mut layer = Estargz::of(&output, 0);
    layer.edit_rows(|_| {});
    layer.put(&output, 0);
    let source = conversion.source.reference();
    verify(&output, &["--source", &source]).success().unwrap();
}

/// Sources that differ from the image in one thing.
#[test]
fn every_difference_from_the_source_is_named() {
    let conversion = Conversion::of(&image(&base(), &upper()));
    let output = conversion.convert("output", &[]).unwrap();
    let edited = |edit: fn(&mut Entry)| {
        let mut entries = base();
        entries.iter_mut().for_each(edit);
        image(&entries, &upper())
    };
    let mut more = base();
    more.push(Entry::dir("more"));
    let mut fewer = base();
    fewer.retain(|entry| entry.name != b"pipe");
    let cases: [(&str, LayoutBuilder); 11] = [
        ("\"/more\": entry is missing", image(&more, &upper())),
        ("\"/pipe\": entry is fifo", image(&fewer, &upper())),
        (
            "\"/big\": contents is",
            edited(|entry| {
                if entry.name == b"big" {
                    entry.contents[5 << 20] ^= 1;
                }
            }),
        ),
        (
            "\"/etc/conf\": mode is",
            edited(|entry| entry.mode ^= u32::from(entry.name == b"etc/conf")),
        ),
        (
            "\"/null\": owner is",
            edited(|entry| entry.uid += u64::from(entry.name == b"null")),
        ),
        (
            "\"/null\": mtime is",
            edited(|entry| entry.mtime.1 += u32::from(entry.name == b"null")),
        ),
        (
            "\"/null\": device is",
            edited(|entry| entry.device.1 += u32::from(entry.name == b"null")),
        ),
        (
            "\"/etc/soft\": target is",
            edited(|entry| {
                if entry.name == b"etc/soft" {
                    entry.link = b"secret".to_vec();
                }
            }),
        ),
        (
            "\"/etc/hard\": link to is",
            edited(|entry| {
                if entry.name == b"etc/hard" {
                    entry.link = b"big".to_vec();
                }
            }),
        ),
        (
            "\"/etc/secret\": xattr is user.note=written",
            edited(|entry| entry.records.clear()),
        ),
        ("layer 1 \"/etc/.wh.soft\"", image(&base(), &upper()[..2])),
    ];
    for (name, source) in cases {
        let other = source.write(&conversion.path("other"));
        let finished = verify(&output, &["--source", &other.reference()]);
        finished
            .failed_with(FAULTY, &[name])
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        fs::remove_dir_all(&other.dir).unwrap();
    }
}

/// With another number of layers the merged file systems count.
#[test]
fn merged_file_systems_are_compared() {
    let conversion = Conversion::of(&image(&base(), &upper()));
    let output = conversion.convert("output", &[]).unwrap();
    let squashed = |mut entries: Vec<Entry>| {
        entries.retain(|entry| entry.name != b"etc/soft");
        let hard = entries
            .iter()
            .position(|entry| entry.kind == Kind::Hardlink);
        entries.remove(hard.unwrap());
        for entry in &mut entries {
            if entry.name == b"etc/conf" {
                entry.name = b"etc/hard".to_vec();
            }
        }
        entries.push(upper().remove(1));
        let layer = Layer::new(&entries, Compression::Zstd);
        LayoutBuilder::new().layer(layer)
    };
    let equal = squashed(base()).write(&conversion.path("equal"));
    let args = ["--source", &*equal.reference()];
    verify(&output, &args).success().unwrap();
    let mut entries = base();
    entries.push(Entry::file("etc/soft/x", "not taken away"));
    let other = squashed(entries).write(&conversion.path("other"));
    let finished = verify(&output, &["--source", &other.reference()]);
    let name = "\"/etc/soft/x\": entry is missing, in the source reg";
    finished.failed_with(FAULTY, &[name]).unwrap();
}
