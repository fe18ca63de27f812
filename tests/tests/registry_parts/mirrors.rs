//! Mirrors of a registry, as containerd's `hosts.toml` names them.

use std::fs;

use esgz_tests::registry::{
    Access, Behaviour, Certificates, CuttingProxy, Direction, Seen, Server,
};

use crate::{BASIC, Fixture};

/// `hosts.toml` for `server` in a directory, for `--hosts-dir`.
fn hosts_dir(fixture: &Fixture, server: &Server, text: &str) -> String {
    let dir = fixture.conversion.path("certs.d");
    let address = server.address();
    let own = dir.join(format!("{}_{}_", address.ip(), address.port()));
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("hosts.toml"), text).unwrap();
    dir.to_str().unwrap().to_owned()
}

fn with_image(fixture: &Fixture, behaviour: Behaviour) -> Server {
    let server = Server::start(behaviour);
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    server
}

/// Converts the image of `server` to a layout, and checks what came out.
fn convert(fixture: &Fixture, server: &Server, dir: &str, args: &[&str]) -> String {
    let output = fixture.conversion.output("mirrored");
    let _ = fs::remove_dir_all(&output.dir);
    let from = server.reference("from/here:src");
    let done = fixture
        .esgz(&from, &output.reference())
        .args(["--hosts-dir", dir, "--log-level=debug"])
        .args(args)
        .run()
        .success()
        .unwrap();
    let digest = fixture.expected.manifest_digest();
    assert_eq!(output.manifest_digest(), digest);
    done.stderr
}

fn count(seen: &[Seen], part: &str) -> usize {
    seen.iter().filter(|seen| seen.path.contains(part)).count()
}

#[test]
fn blobs_come_from_the_mirror_and_tags_from_the_registry() {
    let fixture = Fixture::new();
    let server = with_image(
        &fixture,
        Behaviour {
            access: Access::Basic(BASIC.to_owned()),
            ..Behaviour::default()
        },
    );
    let mirror = with_image(&fixture, Behaviour::default());
    let address = mirror.address();
    let text = format!(
        "[host.\"http://{address}\"]\ncapabilities = [\"pull\"]\nheader = {{ x-key = \"header-secret\" }}\n"
    );
    let dir = hosts_dir(&fixture, &server, &text);
    let user = ["--user=me:hunter2", "--log-level=trace,h2=trace"];
    let log = convert(&fixture, &server, &dir, &user);
    assert!(!log.contains("header-secret") && !log.contains("hunter2"));
    assert_eq!(count(&server.seen(), "/blobs/"), 0, "{:?}", server.seen());
    assert!(count(&server.seen(), "/manifests/src") > 0);
    let seen = mirror.seen();
    assert!(count(&seen, "/blobs/") > 0 && count(&seen, "/manifests/src") == 0);
    let port = server.address().port();
    for seen in &seen {
        assert_eq!(seen.query, format!("ns=127.0.0.1%3A{port}"));
        assert_eq!(
            seen.authorization, None,
            "a password is for the registry alone"
        );
    }

    // One that is trusted with tags makes the registry superfluous.
    let text = format!("[host.\"http://{address}\"]\n");
    let before = server.seen().len();
    convert(
        &fixture,
        &server,
        &hosts_dir(&fixture, &server, &text),
        &user,
    );
    assert_eq!(server.seen().len(), before);
    assert!(count(&mirror.seen(), "/manifests/src") > 0);
}

#[test]
fn a_mirror_that_fails_is_passed_over() {
    let fixture = Fixture::new();
    let layer = fixture.conversion.source.layer_digest(0);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = unused.local_addr().unwrap();
    drop(unused);
    let busy = with_image(
        &fixture,
        Behaviour {
            stumbles: Some((503, "60")),
            ..Behaviour::default()
        },
    );
    let server = with_image(&fixture, Behaviour::default());
    let partial = with_image(&fixture, Behaviour::default());
    partial.remove("from/here", &layer);
    for (mirror, warning) in [
        (away, "is left out"),
        (busy.address(), "not from the mirror"),
        (partial.address(), "not in the mirror"),
    ] {
        let text = format!("[host.\"http://{mirror}\"]\n");
        let dir = hosts_dir(&fixture, &server, &text);
        let log = convert(&fixture, &server, &dir, &[]);
        assert!(log.contains(warning), "{mirror}: {log}");
    }
    assert!(count(&server.seen(), &layer) >= 3);

    // Cut in the middle of a layer, the registry goes on.
    let mirror = with_image(&fixture, Behaviour::default());
    let proxy = CuttingProxy::new(mirror.address(), Direction::FromRegistry, 60_000);
    let text = format!("[host.\"http://{}\"]\n", proxy.address());
    let before = server.seen().len();
    convert(&fixture, &server, &hosts_dir(&fixture, &server, &text), &[]);
    let seen = server.seen().split_off(before);
    assert!(seen.iter().any(|seen| seen.range.is_some()), "{seen:?}");
}

#[test]
fn a_mirror_cannot_put_in_other_bytes() {
    let fixture = Fixture::new();
    let server = with_image(&fixture, Behaviour::default());
    let mirror = with_image(
        &fixture,
        Behaviour {
            changes_blobs: true,
            ..Behaviour::default()
        },
    );
    let text = format!("[host.\"http://{}\"]\n", mirror.address());
    let dir = hosts_dir(&fixture, &server, &text);
    let from = server.reference("from/here:src");
    let output = fixture.conversion.output("refused");
    let refused = fixture
        .esgz(&from, &output.reference())
        .args(["--hosts-dir", &dir])
        .run();
    refused.failed_with(6, &["with the digest"]).unwrap();
}

#[test]
fn a_host_has_its_own_certificates() {
    let fixture = Fixture::new();
    let certificates = Certificates::new(&fixture.conversion.path("certs.d/certificates"));
    let server = with_image(&fixture, Behaviour::default());
    let mirror = Server::start_tls(Behaviour::default(), certificates.for_known());
    mirror.put_layout(&fixture.conversion.source, "from/here", "src");
    let address = mirror.address();
    let text = format!(
        "[host.\"https://{address}\"]\nca = \"../certificates/authority.pem\"\n\
         client = [[\"../certificates/client.pem\", \"../certificates/client.key\"]]\n"
    );
    let dir = hosts_dir(&fixture, &server, &text);
    convert(&fixture, &server, &dir, &[]);
    assert!(count(&mirror.seen(), "/blobs/") > 0 && server.seen().is_empty());

    let dir = hosts_dir(&fixture, &server, "server = \"ftp://x\"");
    let from = server.reference("from/here:src");
    let refused = fixture.call("inspect", &["--hosts-dir", &dir, &from]).run();
    refused.failed_with(6, &["hosts.toml"]).unwrap();
}
