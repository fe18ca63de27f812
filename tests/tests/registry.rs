//! Images in registries: pulled, converted and pushed give the same digests as in layouts, whatever goes
//! wrong on the way; and nothing secret is shown.

mod registry_parts;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use esgz_tests::compress::Compression;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::platforms::IndexBuilder;
use esgz_tests::registry::{Access, Behaviour, CuttingProxy, Direction, Redirect, Seen, Server};
use esgz_tests::sets;
use registry_parts::Fixture;
use serde_json::json;

const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn behaving(behaviour: Behaviour) -> Server {
    Server::start(behaviour)
}

/// Pulls from one server and pushes to another; both must have to do with the right digests.
fn there_and_back(fixture: &Fixture, server: &Server, args: &[&str]) {
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let (from, to) = (
        server.reference("from/here:src"),
        server.reference("to/there:dst"),
    );
    fixture.esgz(&from, &to).args(args).run().success().unwrap();
    let tag = server.tag("to/there", "dst");
    assert_eq!(
        tag.as_deref(),
        Some(fixture.expected.manifest_digest().as_str())
    );
    assert_eq!(server.missing("to/there", "dst"), Vec::<String>::new());
    let puts = server.seen();
    let last = puts.iter().rfind(|seen| seen.method == "PUT");
    let last = last.map(|seen| (seen.path.as_str(), seen.status));
    assert_eq!(last, Some(("/v2/to/there/manifests/dst", 201)));
    assert_eq!(server.open_uploads(), 0);
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
}

#[test]
fn the_digests_are_those_of_a_layout() {
    let fixture = Fixture::new();
    let server = behaving(Behaviour::default());
    there_and_back(&fixture, &server, &[]);

    let from = server.reference("to/there:dst");
    let digest = fixture.expected.manifest_digest();
    for from in [
        from.clone(),
        server.reference(&format!("to/there@{digest}")),
    ] {
        let verified = fixture.call("verify", &[&from]).run().success().unwrap();
        assert!(
            verified.stdout.contains("all digests match"),
            "{}",
            verified.stdout
        );
    }
    let inspected = fixture
        .call("inspect", &["--json", &from])
        .run()
        .success()
        .unwrap();
    assert!(inspected.stdout.contains(&digest), "{}", inspected.stdout);

    // Once more: nothing is sent again but the manifest.
    let before = server.seen().len();
    let source = fixture.conversion.source.reference();
    fixture.esgz(&source, &from).run().success().unwrap();
    let seen = server.seen().split_off(before);
    let is_sent = |seen: &&Seen| !matches!(&*seen.method, "HEAD" | "GET");
    let sent: Vec<_> = seen.iter().filter(is_sent).collect();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].path, "/v2/to/there/manifests/dst");
}

#[test]
fn an_index_is_written_with_all_that_it_names() {
    let fixture = Fixture::new();
    let source = platforms_layout(&fixture);
    let server = behaving(Behaviour::default());
    server.put_layout(&source, "from/here", "src");
    let expected = fixture.conversion.output("all");
    let from = source.reference();
    let args = ["--all-platforms"];
    fixture
        .esgz(&from, &expected.reference())
        .args(args)
        .run()
        .success()
        .unwrap();
    let to = server.reference("to/there:dst");
    let from = server.reference("from/here:src");
    fixture.esgz(&from, &to).args(args).run().success().unwrap();
    assert_eq!(
        server.tag("to/there", "dst"),
        Some(expected.manifest_digest())
    );
    assert_eq!(server.missing("to/there", "dst"), Vec::<String>::new());
}

fn platforms_layout(fixture: &Fixture) -> esgz_tests::layout::Layout {
    IndexBuilder::new(&fixture.conversion.path("platforms"))
        .image("linux/amd64")
        .attestation()
        .image("linux/arm64")
        .artifact()
        .finish()
}

#[test]
fn a_blob_of_the_source_is_mounted_not_sent() {
    let fixture = Fixture::new();
    let server = behaving(Behaviour::default());
    server.put_layout(&fixture.expected, "from/here", "src");
    let (from, to) = (
        server.reference("from/here:src"),
        server.reference("to/there:dst"),
    );
    fixture
        .esgz(&from, &to)
        .arg("--reuse")
        .run()
        .success()
        .unwrap();
    assert_eq!(server.missing("to/there", "dst"), Vec::<String>::new());
    let layers = fixture.expected.manifest()["layers"]
        .as_array()
        .unwrap()
        .len();
    let seen = server.seen();
    let mounted = seen
        .iter()
        .filter(|seen| seen.method == "POST" && seen.status == 201);
    assert!(mounted.count() + 1 >= layers, "{seen:?}");
}

#[test]
fn passwords_are_sent_where_they_are_wanted() {
    let fixture = Fixture::new();
    let basic = || {
        behaving(Behaviour {
            access: Access::Basic(BASIC.to_owned()),
            ..Behaviour::default()
        })
    };
    there_and_back(&fixture, &basic(), &["--user", "me:hunter2"]);
    there_and_back(&fixture, &basic(), &["--registry-user=me:hunter2"]);

    let server = basic();
    let auths = json!({"auths": {server.address().to_string(): {"auth": &BASIC[6..]}}});
    fixture.write_docker_config(&auths);
    there_and_back(&fixture, &server, &[]);

    let helper = fixture.conversion.path("docker-credential-tests");
    let script = "#!/bin/sh\nread -r host\necho \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"hunter2\\\"}\"\n";
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fixture.write_docker_config(&json!({"credsStore": "tests"}));
    there_and_back(&fixture, &basic(), &[]);

    fixture.write_docker_config(&json!({}));
    let server = basic();
    let to = server.reference("to/there:dst");
    let source = fixture.conversion.source.reference();
    let refused = fixture.esgz(&source, &to).run();
    refused.failed_with(6, &["answers 401"]).unwrap();
    let refused = fixture
        .esgz(&source, &to)
        .args(["--user", "me:wrong-word"])
        .run();
    refused.failed_with(6, &["answers 401"]).unwrap();
    assert!(!refused.stderr.contains("wrong-word"));
    let half = fixture
        .esgz(&source, &to)
        .args(["--user", "me-without"])
        .run();
    half.failed_with(2, &["USER:PASSWORD"]).unwrap();
}

#[test]
fn tokens_are_fetched_and_renewed() {
    let fixture = Fixture::new();
    for authorization in [None, Some(BASIC.to_owned())] {
        for uses in [3, 1000] {
            let access = Access::Token {
                authorization: authorization.clone(),
                uses,
            };
            let server = behaving(Behaviour {
                access,
                ..Behaviour::default()
            });
            let args: &[&str] = match authorization {
                Some(_) => &["--user", "me:hunter2"],
                None => &[],
            };
            there_and_back(&fixture, &server, args);
        }
    }
}

#[test]
fn nothing_secret_is_shown_or_sent_elsewhere() {
    let fixture = Fixture::new();
    let store = behaving(Behaviour::default());
    store.put_layout(&fixture.conversion.source, "from/here", "src");
    let server = behaving(Behaviour {
        access: Access::Token {
            authorization: Some(BASIC.to_owned()),
            uses: 5,
        },
        redirect: Some(Redirect {
            to: format!("http://{}", store.address()),
            query: "signature=very-private".to_owned(),
        }),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let (from, to) = (
        server.reference("from/here:src"),
        server.reference("to/there:dst"),
    );
    let args = ["--user", "me:hunter2", "--log-level=trace,h2=trace"];
    let done = fixture.esgz(&from, &to).args(args).run().success().unwrap();
    let log = format!("{}{}", done.stdout, done.stderr);
    assert!(log.contains("/blobs/sha256"), "there is a log");
    for secret in ["hunter2", &BASIC[6..], "is-secret", "very-private"] {
        assert!(!log.contains(secret), "{secret} is shown");
    }
    let tag = server.tag("to/there", "dst");
    assert_eq!(tag, Some(fixture.expected.manifest_digest()));
    let seen = store.seen();
    assert!(seen.iter().any(|seen| seen.path.contains("/blobs/")));
    assert!(
        seen.iter().all(|seen| seen.authorization.is_none()),
        "{seen:?}"
    );
}

#[test]
fn a_busy_registry_is_asked_again() {
    let fixture = Fixture::new();
    for stumbles in [(429, "0"), (503, "0"), (502, "soon")] {
        let server = behaving(Behaviour {
            stumbles: Some(stumbles),
            ..Behaviour::default()
        });
        there_and_back(&fixture, &server, &[]);
    }
    // No sooner than it wants.
    let server = behaving(Behaviour {
        stumbles: Some((429, "1")),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let started = Instant::now();
    let from = server.reference("from/here:src");
    fixture.call("inspect", &[&from]).run().success().unwrap();
    assert!(started.elapsed() >= Duration::from_secs(2));
    // One that wants an hour is given up.
    let server = behaving(Behaviour {
        stumbles: Some((503, "3600")),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let from = server.reference("from/here:src");
    let given_up = fixture.call("inspect", &[&from]).run();
    given_up
        .failed_with(6, &["answers 503 (BUSY: later)"])
        .unwrap();
}

#[test]
fn a_slow_registry_is_waited_for() {
    let fixture = Fixture::new();
    let server = behaving(Behaviour {
        pause: Some((40_000, Duration::from_millis(30))),
        ..Behaviour::default()
    });
    there_and_back(&fixture, &server, &[]);
}

#[test]
fn other_bytes_than_were_asked_for_are_refused() {
    let fixture = Fixture::new();
    let server = behaving(Behaviour {
        changes_blobs: true,
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let (from, to) = (
        server.reference("from/here:src"),
        server.reference("to/there:dst"),
    );
    let refused = fixture.esgz(&from, &to).run();
    refused.failed_with(6, &["with the digest"]).unwrap();
    assert_eq!(server.tag("to/there", "dst"), None);
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
}

/// The scan of a layer checks it.
#[test]
fn a_layer_of_other_bytes_is_refused() {
    let fixture = Fixture::new();
    let layer = fixture.conversion.source.layer_digest(0);
    let whole = fs::read(fixture.conversion.source.blob_path(&layer)).unwrap();
    for at in [20, whole.len() / 2, whole.len() - 1] {
        let server = behaving(Behaviour::default());
        server.put_layout(&fixture.conversion.source, "from/here", "src");
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        server.change_blob("from/here", &layer, &bytes);
        let from = server.reference("from/here:src");
        for to in [
            server.reference("to/there:dst"),
            fixture.conversion.output("refused").reference(),
        ] {
            let refused = fixture.esgz(&from, &to).run();
            let says = format!("layer {layer} has the digest");
            refused.failed_with(6, &[&says]).unwrap();
        }
        assert_eq!(server.tag("to/there", "dst"), None);
        assert_eq!(server.open_uploads(), 0);
        assert!(!fixture.conversion.path("refused").exists());
        assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
    }
}

#[test]
fn what_is_not_there_is_named() {
    let fixture = Fixture::new();
    let server = behaving(Behaviour::default());
    let from = server.reference("no/such:tag");
    let missing = fixture.call("inspect", &[&from]).run();
    missing
        .failed_with(6, &["manifests/tag does not exist"])
        .unwrap();
    let to = server.reference(&format!("x/y@sha256:{}", "0".repeat(64)));
    let source = fixture.conversion.source.reference();
    let refused = fixture.esgz(&source, &to).run();
    refused.failed_with(6, &["not under a digest"]).unwrap();
}

/// A conversion through a proxy that cuts at every tenth of the bytes in one direction.
fn cut_at_every_tenth(direction: Direction, behaviour: &Behaviour) {
    let fixture =
        Fixture::of(&LayoutBuilder::new().layer(Layer::new(&sets::usual(), Compression::Gzip(6))));
    let run = |after_bytes: u64| {
        let server = behaving(behaviour.clone());
        server.put_layout(&fixture.conversion.source, "from/here", "src");
        let proxy = CuttingProxy::new(server.address(), direction, after_bytes);
        let name = |name: &str| format!("docker://{}/{name}", proxy.address());
        let (from, to) = (name("from/here:src"), name("to/there:dst"));
        let done = fixture.esgz(&from, &to).run().success();
        done.unwrap_or_else(|error| panic!("cut at {after_bytes}: {error}"));
        let tag = server.tag("to/there", "dst");
        assert_eq!(
            tag,
            Some(fixture.expected.manifest_digest()),
            "{after_bytes}"
        );
        assert_eq!(server.missing("to/there", "dst"), Vec::<String>::new());
        (proxy.passed_bytes(direction), server)
    };
    let (all_bytes, _) = run(u64::MAX);
    let mut resumed = 0;
    for tenth in 0..10 {
        let (_, server) = run(all_bytes * tenth / 10 + 50);
        let goes_on = |method: &str, range: &Option<String>| match direction {
            Direction::FromRegistry => range.is_some(),
            Direction::ToRegistry => method == "PATCH",
        };
        let seen = server.seen();
        resumed += usize::from(seen.iter().any(|seen| goes_on(&seen.method, &seen.range)));
    }
    // At most of the places a layer's blob was under way.
    assert!(resumed >= 5, "{resumed} of 10 were resumed");
}

#[test]
fn a_pull_that_is_cut_goes_on() {
    cut_at_every_tenth(Direction::FromRegistry, &Behaviour::default());
}

#[test]
fn a_push_that_is_cut_goes_on() {
    cut_at_every_tenth(Direction::ToRegistry, &Behaviour::default());
}

#[test]
fn a_push_that_is_cut_goes_on_where_parts_are_refused() {
    for status in [405, 416, 501] {
        let behaviour = Behaviour {
            refuses_chunks: Some(status),
            ..Behaviour::default()
        };
        cut_at_every_tenth(Direction::ToRegistry, &behaviour);
    }
}

#[test]
fn a_registry_that_is_away_is_one_clear_line() {
    let fixture = Fixture::new();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let gone = fixture
        .call("inspect", &[&format!("docker://{address}/x/y")])
        .run();
    gone.failed_with(6, &["manifests/latest: "]).unwrap();
}

#[test]
fn the_distribution_projects_registry_takes_and_gives() {
    const NAME: &str = "registry::the_distribution_projects_registry_takes_and_gives";
    let Some(registry) = registry_parts::RealRegistry::for_test(NAME) else {
        return;
    };
    let fixture = Fixture::new();
    let address = registry.address();
    let source = fixture.conversion.source.reference();
    let (one, two) = (
        format!("docker://{address}/a/one:t"),
        format!("docker://{address}/b/two:t"),
    );
    fixture.esgz(&source, &one).run().success().unwrap();
    fixture
        .esgz(&one, &two)
        .arg("--reuse")
        .run()
        .success()
        .unwrap();
    let back = fixture.conversion.output("back");
    fixture
        .esgz(&one, &back.reference())
        .arg("--reuse")
        .run()
        .success()
        .unwrap();
    assert_eq!(back.manifest_digest(), fixture.expected.manifest_digest());
    fixture
        .call("verify", &["--source", &source, &two])
        .run()
        .success()
        .unwrap();

    // Cut in the middle of a push, it goes on where it was.
    for tenth in [3, 5, 8] {
        let proxy = CuttingProxy::new(address, Direction::ToRegistry, 60_000 * tenth);
        let to = format!("docker://{}/c/cut-{tenth}:t", proxy.address());
        fixture.esgz(&source, &to).run().success().unwrap();
        let to = format!("docker://{address}/c/cut-{tenth}:t");
        fixture.call("verify", &[&to]).run().success().unwrap();
    }
}
