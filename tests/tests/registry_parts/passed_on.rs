//! Layers that stay as they are: passed on from any source to any destination, checked, and kept nowhere.

use std::fs;
use std::time::Instant;

use esgz_tests::layout::Layout;
use esgz_tests::registry::{Access, Behaviour, CuttingProxy, Direction, Redirect, Server};
use serde_json::Value;

use super::RealRegistry;
use crate::{BASIC, Fixture};

const AS_IT_IS: [&str; 2] = ["--reuse", "--no-verify"];

fn with_estargz(fixture: &Fixture, behaviour: Behaviour) -> Server {
    let server = Server::start(behaviour);
    server.put_layout(&fixture.expected, "from/here", "src");
    server
}

/// Passes the image on, and gives what esgz says of it, without what changes from call to call.
fn report(fixture: &Fixture, from: &str, to: &str, args: &[&str]) -> Value {
    let done = fixture.esgz(from, to).arg("--json").args(args).run();
    let mut json: Value = serde_json::from_str(&done.success().unwrap().stdout).unwrap();
    for changing in [
        "source",
        "destination",
        "seconds",
        "megabytes_per_second",
        "cpu_seconds",
        "peak_memory_bytes",
        "verified",
        "platforms",
    ] {
        json.as_object_mut().unwrap().remove(changing);
    }
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
    json
}

/// The output is the converted image, to the byte. Removes it.
fn check_layout(fixture: &Fixture, output: &Layout) {
    assert_eq!(output.manifest_digest(), fixture.expected.manifest_digest());
    for layer in output.manifest()["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let (copy, own) = (output.blob_path(digest), fixture.expected.blob_path(digest));
        assert!(
            fs::read(copy).unwrap() == fs::read(own).unwrap(),
            "{digest}"
        );
    }
    fs::remove_dir_all(&output.dir).unwrap();
}

#[test]
fn from_anywhere_to_anywhere() {
    let fixture = Fixture::new();
    let digest = fixture.expected.manifest_digest();
    let output = fixture.conversion.output("copied");
    for ignores_ranges in [false, true] {
        let behaviour = Behaviour {
            ignores_ranges,
            ..Behaviour::default()
        };
        let server = with_estargz(&fixture, behaviour.clone());
        let from = server.reference("from/here:src");
        report(&fixture, &from, &output.reference(), &AS_IT_IS);
        check_layout(&fixture, &output);
        let file = fixture.conversion.path("copied.tar");
        let archive = format!("oci-archive:{}:x", file.display());
        report(&fixture, &from, &archive, &AS_IT_IS);
        fs::remove_file(file).unwrap();

        // Another registry, from this one and from the layout.
        for from in [&from, &fixture.expected.reference()] {
            let other = Server::start(behaviour.clone());
            report(&fixture, from, &other.reference("to/there:dst"), &AS_IT_IS);
            assert_eq!(other.tag("to/there", "dst").as_ref(), Some(&digest));
            assert_eq!(other.missing("to/there", "dst"), Vec::<String>::new());
            assert_eq!(other.open_uploads(), 0);
        }
    }
}

#[test]
fn no_layer_is_fetched_twice() {
    let fixture = Fixture::new();
    let server = with_estargz(&fixture, Behaviour::default());
    let other = Server::start(Behaviour::default());
    let from = server.reference("from/here:src");
    report(&fixture, &from, &other.reference("to/there:dst"), &AS_IT_IS);
    let seen = server.seen();
    for layer in fixture.expected.manifest()["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let asked = seen.iter().filter(|seen| seen.path.ends_with(digest));
        let (ends, wholes): (Vec<_>, Vec<_>) = asked.partition(|seen| seen.range.is_some());
        assert_eq!(wholes.len(), 1, "{digest}");
        assert!(!ends.is_empty(), "{digest}");
    }
}

#[test]
fn what_is_said_of_a_layer_is_the_same_as_after_a_scan() {
    let fixture = Fixture::new();
    let from = fixture.expected.reference();
    let scanned = fixture.conversion.output("scanned");
    let passed = fixture.conversion.output("passed");
    let after_scan = report(&fixture, &from, &scanned.reference(), &["--reuse"]);
    let before = report(&fixture, &from, &passed.reference(), &AS_IT_IS);
    assert_eq!(before, after_scan);
    check_layout(&fixture, &scanned);
    check_layout(&fixture, &passed);
}

#[test]
fn cut_at_every_tenth_it_goes_on() {
    let fixture = Fixture::new();
    let digest = fixture.expected.manifest_digest();
    for direction in [Direction::FromRegistry, Direction::ToRegistry] {
        let run = |after_bytes: u64| {
            let server = with_estargz(&fixture, Behaviour::default());
            let other = Server::start(Behaviour::default());
            let behind = match direction {
                Direction::FromRegistry => server.address(),
                Direction::ToRegistry => other.address(),
            };
            let proxy = CuttingProxy::new(behind, direction, after_bytes);
            let through = |name: &str| format!("docker://{}/{name}", proxy.address());
            let (from, to) = ("from/here:src", "to/there:dst");
            let (from, to) = match direction {
                Direction::FromRegistry => (through(from), other.reference(to)),
                Direction::ToRegistry => (server.reference(from), through(to)),
            };
            report(&fixture, &from, &to, &AS_IT_IS);
            let tag = other.tag("to/there", "dst");
            assert_eq!(tag.as_ref(), Some(&digest), "{after_bytes}");
            assert_eq!(other.missing("to/there", "dst"), Vec::<String>::new());
            assert_eq!(other.open_uploads(), 0);
            proxy.passed_bytes(direction)
        };
        let all_bytes = run(u64::MAX);
        for tenth in 0..10 {
            run(all_bytes * tenth / 10 + 50);
        }
    }
}

#[test]
fn other_bytes_than_were_asked_for_are_not_passed_on() {
    let fixture = Fixture::new();
    let output = fixture.conversion.output("refused");
    let other = Server::start(Behaviour::default());
    let to = other.reference("to/there:dst");
    // A layer that has been changed behind its TOC's back, in a layout and in a registry.
    let layer = fixture.expected.layer_digest(1);
    let path = fixture.expected.blob_path(&layer);
    let mut blob = fs::read(&path).unwrap();
    blob[20] ^= 1;
    let server = with_estargz(&fixture, Behaviour::default());
    server.change_blob("from/here", &layer, &blob);
    fs::write(&path, &blob).unwrap();
    for from in [
        fixture.expected.reference(),
        server.reference("from/here:src"),
    ] {
        for to in [&output.reference(), &to] {
            let refused = fixture.esgz(&from, to).args(AS_IT_IS).run();
            refused.failed_with(6, &[&layer, "damaged"]).unwrap();
        }
    }
    assert!(!output.dir.exists());
    assert_eq!(other.tag("to/there", "dst"), None);
    assert_eq!(other.open_uploads(), 0);
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
}

#[test]
fn nothing_secret_goes_elsewhere() {
    let fixture = Fixture::new();
    let store = with_estargz(&fixture, Behaviour::default());
    let server = with_estargz(
        &fixture,
        Behaviour {
            access: Access::Token {
                authorization: Some(BASIC.to_owned()),
                uses: 2,
            },
            redirect: Some(Redirect {
                to: format!("http://{}", store.address()),
                query: "signature=very-private".to_owned(),
            }),
            stumbles: Some((503, "0")),
            ..Behaviour::default()
        },
    );
    let output = fixture.conversion.output("copied");
    let from = server.reference("from/here:src");
    let done = fixture
        .esgz(&from, &output.reference())
        .args(AS_IT_IS)
        .args(["--user=me:hunter2", "--log-level=trace,h2=trace"])
        .run()
        .success()
        .unwrap();
    check_layout(&fixture, &output);
    for secret in ["hunter2", &BASIC[6..], "is-secret", "very-private"] {
        assert!(!done.stderr.contains(secret), "{secret} is shown");
    }
    let seen = store.seen();
    assert!(seen.iter().any(|seen| seen.path.contains("/blobs/")));
    assert!(
        seen.iter().all(|seen| seen.authorization.is_none()),
        "{seen:?}"
    );
}

#[test]
fn the_distribution_projects_registry_gives_and_takes() {
    const NAME: &str = "registry::passed_on::the_distribution_projects_registry_gives_and_takes";
    let Some(registry) = RealRegistry::for_test(NAME) else {
        return;
    };
    let Some(other) = RealRegistry::for_test(NAME) else {
        return;
    };
    let fixture = Fixture::new();
    let one = format!("docker://{}/a/one:t", registry.address());
    let two = format!("docker://{}/a/two:t", registry.address());
    let three = format!("docker://{}/b/three:t", other.address());
    let output = fixture.conversion.output("back");
    let (first, last) = (fixture.expected.reference(), output.reference());
    for (from, to) in [
        (&first, &one),
        (&one, &two),
        (&two, &three),
        (&three, &last),
    ] {
        report(&fixture, from, to, &AS_IT_IS);
    }
    check_layout(&fixture, &output);
}

#[test]
fn a_layer_is_scanned_while_it_arrives() {
    let fixture = Fixture::new();
    // Its first bytes are no gzip data, and its digest is right: only a scan can tell.
    let source = &fixture.conversion.source;
    let mut odd = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    odd.extend((0..300_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 | 7));
    let descriptor = source.put(&odd, "application/vnd.oci.image.layer.v1.tar+gzip");
    let digest = descriptor["digest"].as_str().unwrap().to_owned();
    source.edit_manifest(|manifest| manifest["layers"][0] = descriptor);
    let server = Server::start(Behaviour {
        holds: Some(digest.clone()),
        ..Behaviour::default()
    });
    server.put_layout(source, "from/here", "src");
    let started = Instant::now();
    let output = fixture.conversion.output("never");
    let from = server.reference("from/here:src");
    let refused = fixture.esgz(&from, &output.reference()).run();
    refused.failed_with(6, &[&digest]).unwrap();
    // The server has not sent the second half.
    assert!(!server.waited_in_vain(), "after {:?}", started.elapsed());
}
