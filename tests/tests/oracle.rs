//! The oracle itself, on data that is known to be good or bad; and the test images, read by Go and
//! by GNU tar.

use std::fs;
use std::path::Path;
use std::process::Command;

use esgz_tests::compress::Compression;
use esgz_tests::corrupt;
use esgz_tests::layout::{Layer, LayoutBuilder, MediaTypes};
use esgz_tests::oracle::{self, Oracle};
use esgz_tests::sets::{self, EntrySet};
use esgz_tests::tree::Tree;
use esgz_tests::{find_program, skipped};

#[test]
fn go_tests() {
    if let Err(reason) = oracle::usable_go() {
        return skipped("oracle::go_tests", reason);
    }
    let output = oracle::go().args(["test", "./..."]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn test_images_are_what_they_should_be() {
    let Some(oracle) = Oracle::for_test("oracle::test_images_are_what_they_should_be") else {
        return;
    };
    let oci = Compression::ALL.map(|compression| (MediaTypes::Oci, compression));
    let docker = [Compression::Gzip(6), Compression::Plain].map(|c| (MediaTypes::Docker, c));
    for (media_types, compression) in oci.into_iter().chain(docker) {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = LayoutBuilder::new().media_types(media_types);
        for set in sets::all() {
            builder = builder.layer(Layer::from_tar(set.tar(), compression));
        }
        let layout = builder.write(dir.path());
        oracle
            .image(&layout, None, &["--plain"])
            .unwrap_or_else(|e| panic!("{compression:?}: {e}"));
    }
}

#[test]
fn faults_in_images_are_found() {
    let Some(oracle) = Oracle::for_test("oracle::faults_in_images_are_found") else {
        return;
    };
    let faults: [fn(&esgz_tests::layout::Layout); 6] = [
        |layout| corrupt::flip_byte(layout, 0, 1000),
        |layout| corrupt::truncate(layout, 0),
        |layout| corrupt::wrong_digest(layout, 0),
        |layout| corrupt::wrong_size(layout, 0),
        |layout| corrupt::missing_blob(layout, 0),
        |layout| corrupt::wrong_diff_id(layout, 0),
    ];
    for (index, fault) in faults.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer::new(&sets::usual(), Compression::Gzip(6));
        let layout = LayoutBuilder::new().layer(layer).write(dir.path());
        oracle.image(&layout, None, &["--plain"]).unwrap();
        fault(&layout);
        assert!(
            oracle.image(&layout, None, &["--plain"]).is_err(),
            "fault {index} was not found"
        );
    }
}

/// Go's archive/tar reads every set as it was written.
#[test]
fn go_reads_every_set() {
    let Some(oracle) = Oracle::for_test("oracle::go_reads_every_set") else {
        return;
    };
    for EntrySet {
        name,
        entries,
        ending,
    } in sets::all()
    {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("tar");
        fs::write(&blob, esgz_tests::archive::archive(&entries, ending)).unwrap();
        let listed = oracle
            .layer_list(&blob)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(listed.len(), entries.len(), "{name}");
        for (entry, header) in entries.iter().zip(&listed) {
            let expected = String::from_utf8_lossy(&entry.name);
            assert_eq!(header["name"].as_str(), Some(&*expected), "{name}");
            let link = String::from_utf8_lossy(&entry.link);
            assert_eq!(
                header["linkName"].as_str().unwrap_or(""),
                link,
                "{name}: {expected}"
            );
            if entry.kind == esgz_tests::archive::Kind::Global {
                continue;
            }
            assert_eq!(
                header["uid"].as_u64(),
                Some(entry.uid),
                "{name}: {expected}"
            );
            assert_eq!(
                header["gid"].as_u64(),
                Some(entry.gid),
                "{name}: {expected}"
            );
            assert_eq!(
                header["mode"].as_u64(),
                Some(entry.mode.into()),
                "{name}: {expected}"
            );
            let size = entry
                .sparse
                .as_ref()
                .map_or(entry.contents.len() as u64, |s| s.size_bytes);
            assert_eq!(header["size"].as_u64(), Some(size), "{name}: {expected}");
            let xattrs = entry.records.len();
            let pax = header["pax"].as_object();
            let read = pax.map_or(0, |p| p.keys().filter(|k| k.starts_with("SCHILY")).count());
            assert_eq!(read, xattrs, "{name}: {expected}");
        }
    }
}

/// GNU tar extracts the sparse files to what the test data says.
#[test]
fn gnu_tar_extracts_sparse_files() {
    if find_program("tar").is_none() {
        return skipped(
            "oracle::gnu_tar_extracts_sparse_files",
            "tar is not installed",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let sets = sets::all();
    let set = sets.iter().find(|set| set.name == "sparse").unwrap();
    fs::write(dir.path().join("tar"), set.tar()).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    let tar = Command::new("tar")
        .args(["-C", "out", "-xf", "tar"])
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(
        tar.status.success(),
        "{}",
        String::from_utf8_lossy(&tar.stderr)
    );
    for entry in &set.entries {
        let name = std::str::from_utf8(&entry.name).unwrap();
        let mut expected = entry.contents.clone();
        if let Some(sparse) = &entry.sparse {
            expected = vec![0; usize::try_from(sparse.size_bytes).unwrap()];
            for (offset, bytes) in &sparse.segments {
                let offset = usize::try_from(*offset).unwrap();
                expected[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        assert!(
            fs::read(dir.path().join("out").join(name)).unwrap() == expected,
            "{name} differs"
        );
    }
}

#[test]
fn blobs_of_the_reference_pass() {
    let Some(oracle) = Oracle::for_test("oracle::blobs_of_the_reference_pass") else {
        return;
    };
    // The reference aborts on the first two, and keeps a dropped TOC's place for the third.
    let refused = ["sparse", "global header"];
    let mut failures = Vec::new();
    for set in sets::all()
        .iter()
        .filter(|set| !refused.contains(&set.name))
    {
        let dir = tempfile::tempdir().unwrap();
        let (source, output) = (dir.path().join("source"), dir.path().join("blob"));
        let list = dir.path().join("list");
        fs::write(&list, "usr/lib/libc.so.6\nbin/su\n").unwrap();
        fs::write(&source, Compression::Gzip(1).compress(&set.tar())).unwrap();
        for options in [
            vec!["--level", "1"],
            vec!["--level", "6", "--prioritized", list.to_str().unwrap()],
        ] {
            let checked = oracle.build(&source, &output, &options).and_then(|built| {
                oracle.verify(&output, built["tocDigest"].as_str().unwrap(), Some(&source))
            });
            if let Err(error) = checked {
                failures.push(format!("{} {options:?}: {error}", set.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn faults_in_blobs_are_found() {
    let Some(oracle) = Oracle::for_test("oracle::faults_in_blobs_are_found") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let set = sets::usual();
    fs::write(
        path("source"),
        esgz_tests::archive::archive(&set, Default::default()),
    )
    .unwrap();
    let built = oracle
        .build(&path("source"), &path("blob"), &["--chunk-size", "65536"])
        .unwrap();
    let toc_digest = built["tocDigest"].as_str().unwrap().to_owned();
    let verify = |blob: &Path, digest: &str| oracle.verify(blob, digest, Some(&path("source")));
    let report = verify(&path("blob"), &toc_digest).unwrap();
    assert_eq!(report["files"], 6);
    assert_eq!(report["landmark"], "no-prefetch");

    let wrong = verify(&path("blob"), corrupt::NO_BLOB).unwrap_err();
    assert!(wrong.contains("TOC digest"), "{wrong}");
    let blob = fs::read(path("blob")).unwrap();
    for part in 1..8 {
        let mut broken = blob.clone();
        broken[blob.len() / 8 * part] ^= 1;
        fs::write(path("broken"), broken).unwrap();
        assert!(
            verify(&path("broken"), &toc_digest).is_err(),
            "flipped byte in eighth {part}"
        );
    }
    fs::write(path("broken"), &blob[..blob.len() - 1]).unwrap();
    assert!(
        verify(&path("broken"), &toc_digest).is_err(),
        "cut by a byte"
    );

    let mut other = sets::usual();
    other.push(esgz_tests::archive::Entry::file("more", "x"));
    fs::write(
        path("source"),
        esgz_tests::archive::archive(&other, Default::default()),
    )
    .unwrap();
    let missing = verify(&path("blob"), &toc_digest).unwrap_err();
    assert!(missing.contains("\"more\": missing"), "{missing}");
}

#[test]
fn trees_are_compared_by_everything() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &two] {
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "same").unwrap();
        fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
    }
    let tree = |dir: &tempfile::TempDir| Tree::read(dir.path()).without_times();
    assert_eq!(tree(&one).differences(&tree(&two)), Vec::<String>::new());
    fs::remove_file(two.path().join("g")).unwrap();
    fs::write(two.path().join("g"), "same").unwrap();
    assert_eq!(tree(&one).differences(&tree(&two)).len(), 1);
}
