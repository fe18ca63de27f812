//! `oci-archive:` and `docker-archive:`, in and out, as other tools write and read them.

use std::fs;
use std::path::Path;
use std::process::Command;

use esgz_tests::archive::{Ending, Entry, archive};
use esgz_tests::compress::Compression;
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::corrupt;
use esgz_tests::esgz::{Esgz, Finished};
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::oracle::Oracle;
use esgz_tests::packed::{DockerForm, Packed, docker_archive, oci_archive, unpack};
use esgz_tests::{find_program, sets, skipped};
use serde_json::Value;
use tar::EntryType;

/// The source or the destination cannot be read or written.
const UNREADABLE: i32 = 6;

fn two_layers() -> LayoutBuilder {
    let links = sets::named("links").entries;
    LayoutBuilder::new()
        .layer(Layer::new(&sets::usual(), Compression::Gzip(6)))
        .layer(Layer::new(&links, Compression::Gzip(6)))
}

/// `esgz convert` between any two names.
fn convert(conversion: &Conversion, source: &str, output: &str, args: &[&str]) -> Finished {
    let scratch = conversion.path("scratch");
    let command = Esgz::new("convert").arg("--scratch").arg(scratch);
    let finished = command.args([source, output]).args(args).run();
    conversion.finish(finished).unwrap()
}

fn name(transport: &str, path: &Path, tag: &str) -> String {
    format!("{transport}:{}{tag}", path.display())
}

/// The digests of the layers that `esgz inspect` reports.
fn layers(reference: &str) -> Vec<String> {
    let finished = Esgz::new("inspect").args([reference, "--json"]).run();
    let report: Value = serde_json::from_str(&finished.success().unwrap().stdout).unwrap();
    let layers = report["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// Every form of the same image gives the same layers.
#[test]
fn sources_in_every_form() {
    let tars = [
        archive(&sets::usual(), Ending::Blocks),
        archive(&sets::named("links").entries, Ending::Blocks),
        archive(&sets::usual(), Ending::Blocks),
    ];
    let image = tars.iter().fold(LayoutBuilder::new(), |image, tar| {
        image.layer(Layer::from_tar(tar.clone(), Compression::Gzip(6)))
    });
    let conversion = Conversion::of(&image);
    let expected = layers(&conversion.convert("expected", &[]).unwrap().reference());
    let check = |what: &str, reference: &str| {
        let output = conversion.output(what);
        let finished = convert(&conversion, reference, &output.reference(), &[]);
        finished
            .success()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(layers(&output.reference()), expected, "{what}");
    };
    let write = |file: &str, bytes: &[u8]| {
        let path = conversion.path(file);
        fs::write(&path, bytes).unwrap();
        path
    };

    let plain = oci_archive(&conversion.source, "").finish();
    for compression in [
        Compression::Plain,
        Compression::Gzip(6),
        Compression::MultiMember,
        Compression::Zstd,
    ] {
        let what = format!("oci {compression:?}");
        let path = write("oci.tar", &compression.compress(&plain));
        check(&what, &name("oci-archive", &path, ":latest"));
        check(&what, &name("oci-archive", &path, ""));
    }
    let path = write("dot.tar", &oci_archive(&conversion.source, "./").finish());
    check(
        "oci with dots before its names",
        &name("oci-archive", &path, ":latest"),
    );

    for form in [DockerForm::Directories, DockerForm::Layout] {
        let plain = docker_archive(form, &["a/b:1"], &tars).finish();
        for compression in [Compression::Plain, Compression::Gzip(1), Compression::Zstd] {
            let what = format!("docker {form:?} {compression:?}");
            let path = write("docker.tar", &compression.compress(&plain));
            for tag in ["", ":a/b:1", ":docker.io/a/b:1", ":@0"] {
                check(&what, &name("docker-archive", &path, tag));
            }
        }
    }
    // Some writers compress layers, and some link to them.
    let config = docker_archive(DockerForm::Directories, &[], &tars).finish();
    let path = write("kaniko.tar", &compressed_layers(&config, &tars));
    check(
        "docker with compressed layers",
        &name("docker-archive", &path, ""),
    );
}

/// A Docker archive with the configuration of `archive`, layers compressed in three ways, and links.
fn compressed_layers(archive: &[u8], tars: &[Vec<u8>]) -> Vec<u8> {
    let mut config = Vec::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        if path.extension().is_some_and(|e| e == "json") && path != Path::new("manifest.json") {
            std::io::Read::read_to_end(&mut entry, &mut config).unwrap();
        }
    }
    let manifest =
        r#"[{"Config":"./c.json","RepoTags":null,"Layers":["0.tar.gz","hard","2/soft"]}]"#;
    Packed::default()
        .file("c.json", &config)
        .file("0.tar.gz", &Compression::Gzip(9).compress(&tars[0]))
        .file("1.tar", &Compression::Zstd.compress(&tars[1]))
        .file("2.tar", &tars[2])
        .link(EntryType::Link, "hard", "1.tar")
        .link(EntryType::Symlink, "2/soft", "../2.tar")
        .file("manifest.json", manifest.as_bytes())
        .finish()
}

#[test]
fn outputs_are_the_image_that_a_layout_would_hold() {
    let test = "archives::outputs_are_the_image_that_a_layout_would_hold";
    let conversion = Conversion::of(&sets::several_layers());
    let source = conversion.source.reference();
    let expected = layers(&conversion.convert("expected", &[]).unwrap().reference());
    let outputs = [
        ("oci-archive", ":esgz", Some("esgz")),
        ("oci-archive", "", None),
        ("docker-archive", ":a/b:1", Some("1")),
        ("docker-archive", "", None),
    ];
    for (number, (transport, tag, ref_name)) in outputs.into_iter().enumerate() {
        let path = conversion.path(&format!("{number}.tar"));
        let output = name(transport, &path, tag);
        convert(&conversion, &source, &output, &[])
            .success()
            .unwrap();
        assert_eq!(layers(&output), expected, "{output}");
        let verified = Esgz::new("verify").arg(&output).run();
        verified.success().unwrap();
        let layout = unpack(&path, &conversion.path(&format!("{number}")), ref_name);
        if let Some(oracle) = Oracle::for_test(test) {
            oracle
                .image(&layout, Some(&conversion.source), &[])
                .unwrap_or_else(|error| panic!("{output}: {error}"));
        }
        let entry = &layout.index()["manifests"][0]["annotations"];
        let has_name = transport == "docker-archive" && ref_name.is_some();
        let full = has_name.then_some("docker.io/a/b:1");
        assert_eq!(entry["io.containerd.image.name"].as_str(), full, "{output}");
        let manifest = layout.dir.join("manifest.json");
        assert_eq!(manifest.exists(), transport == "docker-archive", "{output}");
        // Nothing in the directory but what was asked for.
        assert!(
            !names(&conversion.path(""))
                .iter()
                .any(|name| name.starts_with('.'))
        );
    }
}

#[test]
fn archives_are_the_same_bytes_each_time() {
    let conversion = Conversion::of(&sets::several_layers());
    let source = conversion.source.reference();
    for (transport, tag) in [("oci-archive", ":t"), ("docker-archive", ":t:1")] {
        let digests: Vec<String> = ["1", "2", "7"]
            .iter()
            .map(|threads| {
                let path = conversion.path(&format!("{transport}-{threads}.tar"));
                let output = name(transport, &path, tag);
                let args = ["--threads", threads];
                convert(&conversion, &source, &output, &args)
                    .success()
                    .unwrap();
                esgz_tests::layout::digest(&fs::read(&path).unwrap())
            })
            .collect();
        assert!(
            digests.iter().all(|digest| *digest == digests[0]),
            "{digests:?}"
        );
    }
}

#[test]
fn an_existing_archive_is_replaced_at_the_end_or_not_at_all() {
    let conversion = Conversion::of(&two_layers());
    let source = conversion.source.reference();
    let path = conversion.path("out.tar");
    let output = name("oci-archive", &path, ":esgz");
    convert(&conversion, &source, &output, &[])
        .success()
        .unwrap();
    let first = fs::read(&path).unwrap();
    // A name for the same file stays one.
    let link = conversion.path("link.tar");
    std::os::unix::fs::symlink("out.tar", &link).unwrap();
    let linked = name("oci-archive", &link, ":esgz");
    let args = ["--estargz-compression-level", "1"];
    convert(&conversion, &source, &linked, &args)
        .success()
        .unwrap();
    let second = fs::read(&path).unwrap();
    assert_ne!(first, second);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    // Source and destination may be the same file.
    convert(&conversion, &output, &output, &[])
        .success()
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);

    corrupt::flip_byte(&conversion.source, 1, 100);
    let before = names(&conversion.path(""));
    let failed = convert(&conversion, &source, &output, &[]);
    failed.failed_with(UNREADABLE, &["layer"]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
    assert_eq!(names(&conversion.path("")), before);

    for (what, contents) in [("text", &b"no archive"[..]), ("gzip", &[0x1f, 0x8b, 8, 0])] {
        fs::write(&path, contents).unwrap();
        for transport in ["oci-archive", "docker-archive"] {
            let output = name(transport, &path, "");
            let failed = convert(&conversion, &source, &output, &[]);
            failed
                .failed_with(UNREADABLE, &["out.tar exists and is not a tar archive"])
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(fs::read(&path).unwrap(), contents);
        }
    }
    let scratch = conversion.path("scratch");
    let failed = convert(
        &conversion,
        &source,
        &name("oci-archive", &scratch, ""),
        &[],
    );
    failed.failed_with(UNREADABLE, &["scratch exists"]).unwrap();
    let failed = convert(&conversion, &source, "oci-archive:/nowhere/at/all", &[]);
    failed.failed_with(UNREADABLE, &["/nowhere/at"]).unwrap();
    let numbered = name("docker-archive", &conversion.path("new.tar"), ":@0");
    let failed = convert(&conversion, &source, &numbered, &[]);
    failed.failed_with(UNREADABLE, &["@0"]).unwrap();
}

/// Bad archives: one line that names what and where, exit code 6, nothing written.
#[test]
fn bad_archives() {
    let conversion = Conversion::of(&two_layers());
    let tars = [archive(&sets::usual(), Ending::Blocks)];
    let path = conversion.path("bad.tar");
    let check = |what: &str, transport: &str, tag: &str, bytes: &[u8], expected: &str| {
        fs::write(&path, bytes).unwrap();
        for output in ["new", "new.tar"] {
            let transport_out = if output == "new" {
                "oci"
            } else {
                "oci-archive"
            };
            let output_path = conversion.path(output);
            let output = name(transport_out, &output_path, ":esgz");
            let failed = convert(&conversion, &name(transport, &path, tag), &output, &[]);
            failed
                .failed_with(UNREADABLE, &[expected])
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!output_path.exists(), "{what}");
        }
    };
    let oci =
        |what: &str, bytes: &[u8], expected: &str| check(what, "oci-archive", "", bytes, expected);
    let docker = |what: &str, bytes: &[u8], expected: &str| {
        check(what, "docker-archive", "", bytes, expected);
    };

    let good = oci_archive(&conversion.source, "").finish();
    let layer = conversion.source.layer_digest(0)[7..].to_owned();
    oci("empty", b"", "bad.tar is not an OCI image layout");
    oci(
        "text",
        &b"no archive ".repeat(100),
        "bad.tar is not a valid archive",
    );
    oci(
        "cut in a member",
        &good[..good.len() / 2],
        "it ends at offset",
    );
    oci(
        "cut in a header",
        &good[..700],
        "bad.tar is not a valid archive",
    );
    let gzip = Compression::Gzip(6).compress(&good);
    oci("cut gzip", &gzip[..gzip.len() / 2], "uncompressed bytes");
    let zstd = Compression::Zstd.compress(&good);
    oci("cut zstd", &zstd[..zstd.len() / 2], "uncompressed bytes");
    oci("xz", b"\xfd7zXZ\0 and so on", "compressed with xz");
    let escaping = oci_archive(&conversion.source, "").file("a/../../x", b"x");
    oci(
        "a name that points out",
        &escaping.finish(),
        "\"a/../../x\" points out of it",
    );
    let empty = oci_archive(&conversion.source, "").file("index.json", b"");
    oci(
        "index.json is empty",
        &empty.finish(),
        "bad.tar/index.json is not valid",
    );
    let nested = oci_archive(&conversion.source, "").file("index.json", &vec![b'['; 10 << 20]);
    oci("ten megabytes of brackets", &nested.finish(), "index.json");
    let nested = br#"{"schemaVersion":2,"manifests":["#.repeat(100_000);
    let nested = oci_archive(&conversion.source, "").file("index.json", &nested);
    oci(
        "a hundred thousand indexes",
        &nested.finish(),
        "index.json is not valid",
    );
    let looped = oci_archive(&conversion.source, "")
        .link(EntryType::Symlink, "index.json", "loop")
        .link(EntryType::Symlink, "loop", "index.json");
    oci("a loop of links", &looped.finish(), "index.json");
    let missing = Packed::default().file("oci-layout", b"{}").file(
        "index.json",
        &fs::read(conversion.source.dir.join("index.json")).unwrap(),
    );
    let manifest = conversion.source.manifest_digest()[7..].to_owned();
    oci(
        "no blobs",
        &missing.finish(),
        &format!("blobs/sha256/{manifest}"),
    );
    fs::remove_file(conversion.source.blob_path(&format!("sha256:{layer}"))).unwrap();
    let missing = oci_archive(&conversion.source, "").finish();
    oci(
        "no layer",
        &missing,
        &format!("layer sha256:{layer} is missing"),
    );
    check(
        "no such tag",
        "oci-archive",
        ":other",
        &missing,
        "\"other\"; it has \"latest\"",
    );
    check(
        "a docker archive",
        "oci-archive",
        "",
        &docker_archive(DockerForm::Directories, &[], &tars).finish(),
        "is not an OCI image layout",
    );

    docker(
        "an OCI archive",
        &missing,
        "\"manifest.json\" is missing in",
    );
    for form in [DockerForm::Directories, DockerForm::Layout] {
        let good = || docker_archive(form, &["a/b:1", "c"], &tars);
        let with = |manifest: &[u8]| good().file("manifest.json", manifest).finish();
        docker(
            "manifest.json is cut",
            &with(br#"[{"Config":"#),
            "bad.tar/manifest.json is not valid",
        );
        docker(
            "manifest.json is null",
            &with(b"null"),
            "manifest.json is not valid",
        );
        docker(
            "manifest.json is empty",
            &with(b"[]"),
            "manifest.json is not valid: it lists no image",
        );
        docker(
            "no Config",
            &with(br#"[{"Layers":[]}]"#),
            "manifest.json is not valid",
        );
        docker(
            "brackets",
            &with(&vec![b'['; 10 << 20]),
            "manifest.json is 10485760 bytes long",
        );
        docker(
            "less brackets",
            &with(&vec![b'['; 1 << 20]),
            "manifest.json is not valid",
        );
        docker(
            "another config",
            &with(br#"[{"Config":"gone.json","Layers":[]}]"#),
            "\"gone.json\" is missing in",
        );
        docker(
            "outside",
            &with(br#"[{"Config":"../../etc/passwd","Layers":[]}]"#),
            "\"../../etc/passwd\" is missing in",
        );
        check(
            "unknown name",
            "docker-archive",
            ":d",
            &good().finish(),
            "\"docker.io/library/d:latest\"; it has \"a/b:1\", \"c\"",
        );
        check(
            "unknown number",
            "docker-archive",
            ":@1",
            &good().finish(),
            "\"@1\"",
        );
    }
    let config =
        br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let fewer = Packed::default()
        .file("c", config)
        .file("l", &tars[0])
        .file("manifest.json", br#"[{"Config":"c","Layers":["l"]}]"#);
    docker(
        "fewer DiffIDs",
        &fewer.finish(),
        "bad.tar/c is not valid: it has 0 DiffIDs",
    );
    let image = br#"{"Config":"c","RepoTags":["a:1"],"Layers":[]}"#;
    let two = [b"[", &image[..], b",", image, b"]"].concat();
    let two = Packed::default()
        .file("c", config)
        .file("manifest.json", &two)
        .finish();
    docker("two images", &two, "has 2 images, name one of \"a:1\"");
    let missing = Packed::default()
        .file(
            "c",
            &String::from_utf8_lossy(config)
                .replace("[]", &format!("[\"{}\"]", corrupt::NO_BLOB))
                .into_bytes(),
        )
        .file(
            "manifest.json",
            br#"[{"Config":"c","Layers":["l/layer.tar"]}]"#,
        );
    docker(
        "no layer",
        &missing.finish(),
        "\"l/layer.tar\" is missing in",
    );
    let changed = docker_archive(DockerForm::Directories, &[], &tars).file(
        &format!("{:064x}/layer.tar", 0),
        &archive(&[Entry::file("other", "x")], Ending::Blocks),
    );
    docker("another layer", &changed.finish(), "has the digest");
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn skopeo_reads_what_esgz_writes() {
    if find_program("skopeo").is_none() {
        return skipped(
            "archives::skopeo_reads_what_esgz_writes",
            "skopeo is not installed",
        );
    }
    let conversion = Conversion::of(&sets::several_layers());
    let source = conversion.source.reference();
    let history = conversion.source.config()["history"].clone();
    for (transport, tag) in [
        ("oci", ":t"),
        ("oci-archive", ":t"),
        ("docker-archive", ":a/b:1"),
        ("docker-archive", ""),
    ] {
        let path = conversion.path(&format!("{transport}{}", tag.len()));
        let output = name(transport, &path, tag);
        convert(&conversion, &source, &output, &[])
            .success()
            .unwrap();
        let config: Value =
            serde_json::from_str(&run("skopeo", &["inspect", "--config", &output])).unwrap();
        assert_eq!(config["history"], history, "{output}");
        // skopeo checks every digest while it copies.
        let copy = conversion.output(&format!("copy of {transport}{}", tag.len()));
        run(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                "--quiet",
                &output,
                &copy.reference(),
            ],
        );
        assert_eq!(copy.manifest()["layers"].as_array().unwrap().len(), 4);
        if transport != "docker-archive" {
            let verified = Esgz::new("verify").arg(copy.reference()).run();
            verified.success().unwrap();
        }
    }
}

#[test]
fn esgz_reads_what_skopeo_writes() {
    if find_program("skopeo").is_none() {
        return skipped(
            "archives::esgz_reads_what_skopeo_writes",
            "skopeo is not installed",
        );
    }
    // skopeo makes no Docker archive of zstd layers.
    let conversion = Conversion::of(&two_layers());
    let source = conversion.source.reference();
    let expected = layers(&conversion.convert("expected", &[]).unwrap().reference());
    for (transport, tag) in [("oci-archive", ":t"), ("docker-archive", ":a/b:1")] {
        let path = conversion.path(&format!("{transport}.tar"));
        let archive = name(transport, &path, tag);
        run(
            "skopeo",
            &["--insecure-policy", "copy", "--quiet", &source, &archive],
        );
        let output = conversion.output(transport);
        convert(&conversion, &archive, &output.reference(), &[])
            .success()
            .unwrap();
        assert_eq!(layers(&output.reference()), expected);
    }
}

#[test]
fn umoci_unpacks_what_esgz_writes() {
    let test = "archives::umoci_unpacks_what_esgz_writes";
    if find_program("umoci").is_none() {
        return skipped(test, "umoci is not installed");
    }
    if esgz_tests::privileged::exclusive(test).is_none() {
        return;
    }
    let image = LayoutBuilder::new().layer(Layer::new(&sets::usual(), Compression::Gzip(6)));
    let conversion = Conversion::of(&image);
    let path = conversion.path("out.tar");
    let output = name("oci-archive", &path, ":t");
    convert(&conversion, &conversion.source.reference(), &output, &[])
        .success()
        .unwrap();
    let converted: Layout = unpack(&path, &conversion.path("unpacked"), Some("t"));
    let roots = [(&conversion.source, "before"), (&converted, "after")].map(|(layout, bundle)| {
        let bundle = conversion.path(bundle);
        let image = layout.reference()[4..].to_owned();
        run(
            "umoci",
            &["unpack", "--image", &image, &bundle.display().to_string()],
        );
        bundle.join("rootfs")
    });
    for extra in [".no.prefetch.landmark", "stargz.index.json"] {
        fs::remove_file(roots[1].join(extra)).unwrap();
    }
    let trees = roots.map(|root| esgz_tests::tree::Tree::read(&root).without_directory_times());
    assert_eq!(trees[0].differences(&trees[1]), Vec::<String>::new());
}
