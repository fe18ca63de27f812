//! Failures for good: one line, no tag, nothing left; credentials in odd places; work side by side.

use esgz_tests::registry::{Access, Behaviour, Server};
use serde_json::json;

use crate::{BASIC, Fixture, there_and_back};

/// `esgz convert` of the source to `to/there:dst` of `server` fails, and leaves nothing behind.
fn push_fails(fixture: &Fixture, server: &Server, says: &str) {
    let source = fixture.conversion.source.reference();
    let to = server.reference("to/there:dst");
    let refused = fixture.esgz(&source, &to).run();
    refused.failed_with(6, &[says]).unwrap();
    assert_eq!(server.tag("to/there", "dst"), None);
    assert_eq!(server.open_uploads(), 0);
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
}

#[test]
fn a_push_that_fails_leaves_no_tag_and_no_upload() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        refuses_manifests: Some(403),
        ..Behaviour::default()
    });
    push_fails(&fixture, &server, "manifests/dst: the registry answers 403");
    let server = Server::start(Behaviour {
        stumbles: Some((503, "3600")),
        ..Behaviour::default()
    });
    push_fails(&fixture, &server, "answers 503");
}

#[test]
fn a_manifest_has_the_digest_that_was_asked_for() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        changes_manifests: true,
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let digest = fixture.conversion.source.manifest_digest();
    for name in ["from/here:src".to_owned(), format!("from/here@{digest}")] {
        let refused = fixture.call("inspect", &[&server.reference(&name)]).run();
        refused.failed_with(6, &[&digest]).unwrap();
    }
}

#[test]
fn an_identity_token_is_only_for_the_token_server() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        access: Access::Refresh("long-lived-word".to_owned()),
        ..Behaviour::default()
    });
    let auth = json!({"auth": &BASIC[6..], "identitytoken": "long-lived-word"});
    fixture.write_docker_config(&json!({"auths": {server.address().to_string(): auth}}));
    there_and_back(&fixture, &server, &[]);
    let to = server.reference("to/there:again");
    let source = fixture.conversion.source.reference();
    let done = fixture
        .esgz(&source, &to)
        .arg("--log-level=trace,h2=trace")
        .run()
        .success()
        .unwrap();
    assert!(!done.stderr.contains("long-lived-word"));
    for seen in server.seen() {
        let header = seen.authorization.unwrap_or_default();
        assert!(
            header.is_empty() || header.starts_with("Bearer token-number"),
            "{header}"
        );
    }
}

#[test]
fn uploads_elsewhere_carry_no_credentials() {
    let fixture = Fixture::new();
    let store = Server::start(Behaviour::default());
    let server = store.beside(Behaviour {
        access: Access::Basic(BASIC.to_owned()),
        uploads_to: Some(format!("http://{}", store.address())),
        ..Behaviour::default()
    });
    let args = ["--user=me:hunter2", "--log-level=trace,h2=trace"];
    let source = fixture.conversion.source.reference();
    let to = server.reference("to/there:dst");
    let done = fixture
        .esgz(&source, &to)
        .args(args)
        .run()
        .success()
        .unwrap();
    for secret in ["hunter2", &BASIC[6..], "very-private"] {
        assert!(!done.stderr.contains(secret), "{secret} is shown");
    }
    assert_eq!(server.missing("to/there", "dst"), Vec::<String>::new());
    let seen = server.seen();
    let mut elsewhere = seen.iter().filter(|seen| seen.address == store.address());
    assert!(elsewhere.clone().any(|seen| seen.method == "PUT"));
    assert!(
        elsewhere.all(|seen| seen.authorization.is_none()),
        "{seen:?}"
    );
}

#[test]
fn a_helper_for_one_registry_is_asked_and_its_failure_says_nothing_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        access: Access::Basic(BASIC.to_owned()),
        ..Behaviour::default()
    });
    let helper = fixture.conversion.path("docker-credential-mine");
    let write = |script: &str| {
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let host = server.address().to_string();
    fixture.write_docker_config(&json!({"credHelpers": {host: "mine"}, "credsStore": "none"}));
    write(
        "#!/bin/sh\nread -r host\necho '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"hunter2\"}'\n",
    );
    there_and_back(&fixture, &server, &[]);

    for script in [
        "#!/bin/sh\necho hunter2; echo hunter2 >&2; exit 1\n",
        "#!/bin/sh\necho hunter2\n",
    ] {
        write(script);
        let from = server.reference("from/here:src");
        let refused = fixture
            .call("inspect", &["--log-level=trace,h2=trace", &from])
            .run();
        assert_eq!(refused.code, Some(6));
        assert!(
            refused.stderr.contains("credential helper"),
            "{}",
            refused.stderr
        );
        assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    }
}

#[test]
fn a_layer_is_pushed_while_a_later_one_is_fetched() {
    let fixture = Fixture::new();
    let layers = fixture.conversion.source.manifest()["layers"].clone();
    let last = layers.as_array().unwrap().last().unwrap()["digest"].clone();
    let server = Server::start(Behaviour {
        holds: last.as_str().map(str::to_owned),
        ..Behaviour::default()
    });
    there_and_back(&fixture, &server, &[]);
    assert!(!server.waited_in_vain());
}
