//! Registries with TLS: authorities, certificates of clients, and what is refused.

use esgz_tests::registry::{Access, Behaviour, Certificates, Redirect, Server};

use crate::{BASIC, Fixture, there_and_back};

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn certificates_are_checked() {
    let fixture = Fixture::new();
    let certificates = Certificates::new(&fixture.conversion.path("certificates"));
    let others = Certificates::new(&fixture.conversion.path("others"));
    let server = || Server::start_tls(Behaviour::default(), certificates.for_all());
    let authority = text(&certificates.authority);
    there_and_back(&fixture, &server(), &["--tlscacert", authority]);
    there_and_back(&fixture, &server(), &["--skip-verify"]);
    // One more authority does no harm.
    let both = fixture.conversion.path("both.pem");
    let pem = [&others.authority, &certificates.authority].map(|path| std::fs::read(path).unwrap());
    std::fs::write(&both, pem.concat()).unwrap();
    there_and_back(&fixture, &server(), &["--tlscacert", text(&both)]);

    let server = server();
    let from = server.reference("from/here:src");
    for (authority, says) in [
        (&others.authority, "manifests/src: "),
        (&certificates.client_key, "no usable certificate"),
    ] {
        let refused = fixture
            .call("inspect", &["--tlscacert", text(authority), &from])
            .run();
        refused.failed_with(6, &[says]).unwrap();
    }
    let missing = ["--tlscacert", "/no/such.pem", &from];
    let refused = fixture.call("inspect", &missing).run();
    refused.failed_with(6, &["/no/such.pem"]).unwrap();
    assert!(server.seen().is_empty());
}

#[test]
fn a_client_shows_its_certificate() {
    let fixture = Fixture::new();
    let certificates = Certificates::new(&fixture.conversion.path("certificates"));
    let server = Server::start_tls(Behaviour::default(), certificates.for_known());
    let authority = ["--tlscacert", text(&certificates.authority)];
    let (client, key) = (text(&certificates.client), text(&certificates.client_key));
    let own = ["--tlscert", client, "--tlskey", key];
    there_and_back(&fixture, &server, &[&authority[..], &own[..]].concat());

    let before = server.seen().len();
    let from = server.reference("from/here:src");
    let refused = fixture.call("inspect", &authority).args([&from]).run();
    refused.failed_with(6, &["manifests/src: "]).unwrap();
    let half = fixture.call("inspect", &own[..2]).args([&from]).run();
    assert_eq!(half.code, Some(2));
    assert!(half.stderr.contains("--tlskey"), "{}", half.stderr);
    assert_eq!(server.seen().len(), before);
}

#[test]
fn tls_is_left_out_only_where_it_is_said() {
    let fixture = Fixture::new();
    let plain = Server::start(Behaviour::default());
    there_and_back(&fixture, &plain, &["--skip-verify", "--plain-http"]);
    let from = plain.reference("from/here:src");
    let refused = fixture.call("inspect", &["--skip-verify", &from]).run();
    refused.failed_with(6, &["manifests/src: "]).unwrap();

    // A registry with TLS does not get us to speak without it.
    let certificates = Certificates::new(&fixture.conversion.path("certificates"));
    let redirect = Redirect {
        to: format!("http://{}", plain.address()),
        query: "signature=very-private".to_owned(),
    };
    let behaviour = Behaviour {
        redirect: Some(redirect),
        ..Behaviour::default()
    };
    let server = Server::start_tls(behaviour, certificates.for_all());
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    let before = plain.seen().len();
    let from = server.reference("from/here:src");
    let authority = text(&certificates.authority);
    let call = [
        "--tlscacert",
        authority,
        "--log-level=trace,h2=trace",
        &from,
    ];
    let refused = fixture.call("inspect", &call).run();
    assert_eq!(refused.code, Some(6));
    assert!(refused.stderr.contains("without TLS"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("very-private"));
    assert_eq!(plain.seen().len(), before);
}

#[test]
fn nothing_secret_is_shown_with_tls() {
    let fixture = Fixture::new();
    let certificates = Certificates::new(&fixture.conversion.path("certificates"));
    for access in [
        Access::Basic(BASIC.to_owned()),
        Access::Token {
            authorization: Some(BASIC.to_owned()),
            uses: 4,
        },
    ] {
        let behaviour = Behaviour {
            access,
            ..Behaviour::default()
        };
        let server = Server::start_tls(behaviour, certificates.for_all());
        let source = fixture.conversion.source.reference();
        let to = server.reference("to/there:dst");
        let done = fixture
            .esgz(&source, &to)
            .args(["--tlscacert", text(&certificates.authority)])
            .args(["--user=me:hunter2", "--log-level=trace,h2=trace"])
            .run();
        for secret in ["hunter2", &BASIC[6..], "is-secret", "very-private"] {
            assert!(!done.stderr.contains(secret), "{secret} is shown");
        }
        // The token server has no TLS: the password is not sent there.
        let is_basic = server.tag("to/there", "dst").is_some();
        assert_eq!(
            done.code,
            Some(if is_basic { 0 } else { 6 }),
            "{}",
            done.stderr
        );
        let asked = server.seen().iter().any(|seen| seen.path == "/token");
        assert!(!asked);
    }
}
