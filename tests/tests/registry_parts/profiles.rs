//! Profiles beside their images: put there, found again by tag, digest and image, in registries that list
//! referrers and in those that do not.

use std::fs;
use std::path::PathBuf;
use std::thread;

use esgz_tests::esgz::Esgz;
use esgz_tests::privileged;
use esgz_tests::registry::{Access, Behaviour, Server};
use serde_json::{Value, json};

use super::RealRegistry;
use crate::{BASIC, Fixture, platforms_layout};

const TYPE: &str = "application/vnd.esgz.profile.v1+json";

impl Fixture {
    /// A profile of the source, or of another manifest, that touched `path` in its layer 2.
    fn profile(&self, name: &str, manifest: &str, path: &str) -> PathBuf {
        let layers = self.conversion.source.manifest()["layers"].clone();
        let layers = layers.as_array().unwrap().iter();
        let layers: Vec<_> = layers.map(|layer| layer["digest"].clone()).collect();
        let document = json!({"esgz_profile": 1,
            "image": {"reference": "oci:x", "manifest": manifest, "platform": "linux/amd64", "layers": layers},
            "workload": {"args": ["/bin/app", name], "env": [], "user": "", "cwd": "/"},
            "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
            "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 5, "runs": 1,
            "files": [{"path": path, "layer": 2, "size_bytes": 30_000, "phase": "run", "first_touch_seq": 0,
                "first_touch_ms": 0, "opened": true, "executed": false, "touched_bytes": 4096,
                "ranges": [[0, 4096]]}]});
        let file = self.conversion.path(&format!("{name}.json"));
        fs::write(&file, document.to_string()).unwrap();
        file
    }

    fn of_source(&self, name: &str, path: &str) -> PathBuf {
        self.profile(name, &self.conversion.source.manifest_digest(), path)
    }

    /// `esgz profile merge FILE -o TO`: puts a profile there as it is.
    fn publish(&self, file: &PathBuf, to: &str) -> Esgz {
        self.call("profile", &["merge", "--json", "-o", to])
            .arg(file)
    }

    /// Publishes, and gives the artifact's digest.
    fn published(&self, file: &PathBuf, to: &str, listed_by: Value) -> String {
        let done = self.publish(file, to).run().success().unwrap();
        let json: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(json["artifact"]["listed_by"], listed_by, "{to}");
        json["artifact"]["manifest"].as_str().unwrap().to_owned()
    }

    /// What `esgz profile show` finds under a name: the last of the workload's words.
    fn shown(&self, name: &str) -> String {
        let done = self.call("profile", &["show", "--json", name]).run();
        let done = done.success().unwrap();
        assert_eq!(self.left_in_scratch(), Vec::<String>::new());
        let json: Value = serde_json::from_str(&done.stdout).unwrap();
        json["workload"]["args"][1].as_str().unwrap().to_owned()
    }

    fn refused(&self, name: &str, says: &[&str]) {
        let refused = self.call("profile", &["show", name]).run();
        refused.failed_with(6, says).unwrap();
        assert_eq!(self.left_in_scratch(), Vec::<String>::new());
    }
}

/// One that lists referrers, two in an answer, and one that does not.
fn both() -> [(Server, &'static str); 2] {
    let listing = Behaviour {
        lists_referrers: Some(2),
        ..Behaviour::default()
    };
    [
        (Server::start(listing), "registry"),
        (Server::start(Behaviour::default()), "tag"),
    ]
}

#[test]
fn a_profile_is_found_by_tag_digest_and_image() {
    let fixture = Fixture::new();
    let file = fixture.of_source("first", "bin/su");
    let expected = fixture
        .conversion
        .convert("with-profile", &["--profile", file.to_str().unwrap()])
        .unwrap();
    assert_ne!(
        expected.manifest_digest(),
        fixture.expected.manifest_digest()
    );
    for (server, listed_by) in both() {
        server.put_layout(&fixture.conversion.source, "an/app", "1");
        let by_tag = server.reference("an/app:1-profile");
        let digest = fixture.published(&file, &by_tag, json!(listed_by));
        let bytes = server.manifest_bytes("an/app", "1-profile").unwrap();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(manifest["artifactType"], TYPE);
        assert_eq!(
            manifest["subject"]["digest"],
            fixture.conversion.source.manifest_digest()
        );
        assert_eq!(server.missing("an/app", "1-profile"), Vec::<String>::new());
        assert_eq!(server.open_uploads(), 0);

        let image = fixture.conversion.source.manifest_digest();
        let names = [
            by_tag,
            server.reference(&format!("an/app@{digest}")),
            server.reference("an/app:1"),
            server.reference(&format!("an/app@{image}")),
        ];
        for (number, name) in names.iter().enumerate() {
            assert_eq!(fixture.shown(name), "first", "{name}");
            let from = server.reference("an/app:1");
            let to = server.reference(&format!("an/app:{number}-esgz"));
            fixture
                .esgz(&from, &to)
                .args(["--profile", name])
                .run()
                .success()
                .unwrap();
            assert_eq!(
                server.tag("an/app", &format!("{number}-esgz")),
                Some(expected.manifest_digest())
            );
        }
        let to = fixture.conversion.output("optimized");
        fixture
            .call(
                "optimize",
                &[&server.reference("an/app:1"), &to.reference()],
            )
            .args(["--profile", &names[2]])
            .run()
            .success()
            .unwrap();
        assert_eq!(to.manifest_digest(), expected.manifest_digest());
        fs::remove_dir_all(&to.dir).unwrap();
    }
}

#[test]
fn the_newest_profile_of_an_image_counts() {
    let fixture = Fixture::new();
    for (server, listed_by) in both() {
        server.put_layout(&fixture.conversion.source, "an/app", "1");
        let image = server.reference("an/app:1");
        // Named as the image, a profile has no tag of its own, and the image keeps its.
        let mut digests = Vec::new();
        for name in ["first", "second", "third", "fourth"] {
            let file = fixture.of_source(name, "bin/su");
            digests.push(fixture.published(&file, &image, json!(listed_by)));
            assert_eq!(fixture.shown(&image), name);
        }
        assert_eq!(
            server.tag("an/app", "1"),
            Some(fixture.conversion.source.manifest_digest())
        );
        for (name, digest) in ["first", "second", "third", "fourth"].iter().zip(&digests) {
            let one = server.reference(&format!("an/app@{digest}"));
            assert_eq!(fixture.shown(&one), *name);
        }
        // A tag that is a profile's is given to the next.
        let tag = server.reference("an/app:profile");
        for name in ["fifth", "sixth"] {
            let file = fixture.of_source(name, "bin/su");
            fixture.published(&file, &tag, json!(listed_by));
            assert_eq!(fixture.shown(&tag), name);
        }
        // Others that refer to the image do not matter.
        let other = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "text/plain", "layers": [], "subject": {"digest": "x"}});
        let other = server.put_manifest("an/app", "other", &other);
        let tag = format!(
            "sha256-{}",
            &fixture.conversion.source.manifest_digest()[7..]
        );
        if let Some(bytes) = server.manifest_bytes("an/app", &tag) {
            let mut index: Value = serde_json::from_slice(&bytes).unwrap();
            let annotations = json!({"org.opencontainers.image.created": "2999-01-01T00:00:00Z"});
            index["manifests"]
                .as_array_mut()
                .unwrap()
                .push(json!({"mediaType": "x", "digest": other,
                "size": 1, "artifactType": "text/plain", "annotations": annotations}));
            server.put_manifest("an/app", &tag, &index);
        }
        assert_eq!(fixture.shown(&image), "sixth");
    }
}

#[test]
fn of_two_of_the_same_time_none_is_taken() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        lists_referrers: Some(100),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "an/app", "1");
    let file = fixture.of_source("first", "bin/su");
    let tag = server.reference("an/app:p");
    fixture.published(&file, &tag, json!("registry"));
    let bytes = server.manifest_bytes("an/app", "p").unwrap();
    let mut copy: Value = serde_json::from_slice(&bytes).unwrap();
    copy["annotations"]["vnd.esgz.profile.workload"] = json!("another\u{1b}[31m one");
    let copy = server.put_manifest("an/app", "copy", &copy);
    let image = server.reference("an/app:1");
    let refused = fixture.call("profile", &["show", &image]).run();
    refused
        .failed_with(6, &["several profiles", &copy, "/bin/app first", "another"])
        .unwrap();
    assert!(!refused.stderr.contains('\u{1b}'));
    assert_eq!(fixture.shown(&tag), "first");
}

#[test]
fn each_platform_has_its_own_profile() {
    let fixture = Fixture::new();
    let source = platforms_layout(&fixture);
    for (server, listed_by) in both() {
        server.put_layout(&source, "an/app", "1");
        let index: Value =
            serde_json::from_slice(&server.manifest_bytes("an/app", "1").unwrap()).unwrap();
        let image = server.reference("an/app:1");
        fixture.refused(&image, &["has no profile"]);
        for entry in index["manifests"].as_array().unwrap() {
            let platform = &entry["platform"];
            let architecture = platform["architecture"].as_str().unwrap_or("unknown");
            if platform["os"] != "linux" {
                continue;
            }
            let digest = entry["digest"].as_str().unwrap();
            let file = fixture.profile(architecture, digest, "bin/su");
            let text = fs::read_to_string(&file).unwrap();
            let own = format!("linux/{architecture}");
            fs::write(&file, text.replace("linux/amd64", &own)).unwrap();
            fixture.published(&file, &image, json!(listed_by));
        }
        let here = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        assert_eq!(fixture.shown(&image), here);
        let expected = |architecture: &str| {
            let platform = format!("linux/{architecture}");
            let output = fixture
                .conversion
                .output(&format!("{listed_by}-{architecture}"));
            let file = fixture.conversion.path(&format!("{architecture}.json"));
            fixture
                .esgz(&source.reference(), &output.reference())
                .args(["--platform", &platform, "--profile"])
                .arg(file)
                .run()
                .success()
                .unwrap();
            output.manifest_digest()
        };
        let to = server.reference("an/app:esgz");
        fixture
            .esgz(&image, &to)
            .args(["--all-platforms", "--profile", &image])
            .run()
            .success()
            .unwrap();
        let index = server.manifest_bytes("an/app", "esgz").unwrap();
        let index = String::from_utf8(index).unwrap();
        for architecture in ["amd64", "arm64"] {
            assert!(index.contains(&expected(architecture)), "{architecture}");
        }
    }
}

#[test]
fn what_is_no_profile_is_refused() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour::default());
    server.put_layout(&fixture.conversion.source, "an/app", "1");
    let image = server.reference("an/app:1");
    fixture.refused(&image, &["has no profile", TYPE]);
    fixture.refused(
        &server.reference("an/app:none"),
        &["manifests/none does not exist"],
    );

    let put = |tag: &str, manifest: Value| {
        server.put_manifest("an/app", tag, &manifest);
        server.reference(&format!("an/app:{tag}"))
    };
    let with = |layers: Value| {
        json!({"schemaVersion": 2, "artifactType": TYPE, "layers": layers,
        "mediaType": "application/vnd.oci.image.manifest.v1+json"})
    };
    let layer =
        |digest: &str, size: u64| json!([{"mediaType": TYPE, "digest": digest, "size": size}]);
    let chart = json!({"artifactType": "application/vnd.cncf.helm.config.v1+json", "layers": []});
    fixture.refused(
        &put("chart", chart),
        &["neither a profile nor an image", "helm"],
    );
    fixture.refused(&put("none", with(json!([]))), &["0 layers"]);
    let blob = server.put_blob("an/app", b"{}");
    fixture.refused(
        &put("large", with(layer(&blob, 1 << 40))),
        &["1099511627776 bytes", "at most"],
    );
    fixture.refused(&put("short", with(layer(&blob, 1))), &["with the digest"]);
    fixture.refused(
        &put("empty", with(layer(&blob, 2))),
        &["not an esgz profile"],
    );
    let lost = format!("sha256:{}", "0".repeat(64));
    fixture.refused(&put("lost", with(layer(&lost, 2))), &["does not exist"]);
    fixture.refused(
        &put("odd", with(layer("md5:0", 2))),
        &["digest cannot be used"],
    );

    let changing = server.beside(Behaviour {
        changes_blobs: true,
        ..Behaviour::default()
    });
    let file = fixture.of_source("first", "bin/su");
    fixture.published(&file, &server.reference("an/app:p"), json!("tag"));
    fixture.refused(&changing.reference("an/app:p"), &["with the digest"]);

    // What stands under the tag of the image's digest is left alone if it is no index.
    let tag = format!(
        "sha256-{}",
        &fixture.conversion.source.manifest_digest()[7..]
    );
    let odd = server.put_manifest("an/app", &tag, &with(json!([])));
    fixture.refused(&image, &[&tag, "no index"]);
    let refused = fixture.publish(&file, &image).run();
    refused.failed_with(6, &[&tag, "no index"]).unwrap();
    assert_eq!(server.tag("an/app", &tag), Some(odd));
}

#[test]
fn a_profile_replaces_nothing_else() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour::default());
    server.put_layout(&fixture.conversion.source, "an/app", "1");
    server.put_layout(&fixture.expected, "an/app", "other");
    let file = fixture.of_source("first", "bin/su");
    let expected = fixture.expected.manifest_digest();
    for name in ["an/app:other".to_owned(), format!("an/app@{expected}")] {
        let refused = fixture.publish(&file, &server.reference(&name)).run();
        refused.failed_with(6, &["left as it is"]).unwrap();
    }
    let nothing = format!("an/app@sha256:{}", "0".repeat(64));
    let refused = fixture.publish(&file, &server.reference(&nothing)).run();
    refused.failed_with(6, &["tag of its own"]).unwrap();
    assert_eq!(server.tag("an/app", "other"), Some(expected));

    // Where the image is not, a tag alone leads to the profile.
    let elsewhere = server.reference("another/place:p");
    fixture.published(&file, &elsewhere, Value::Null);
    assert_eq!(fixture.shown(&elsewhere), "first");
    server.put_layout(&fixture.expected, "another/place", "app");
    let refused = fixture
        .publish(&file, &server.reference("another/place:app"))
        .run();
    refused.failed_with(6, &["not in the repository"]).unwrap();

    let readonly = Server::start(Behaviour {
        refuses_manifests: Some(403),
        ..Behaviour::default()
    });
    readonly.put_layout(&fixture.conversion.source, "an/app", "1");
    let refused = fixture
        .publish(&file, &readonly.reference("an/app:p"))
        .run();
    refused.failed_with(6, &["answers 403"]).unwrap();
    assert_eq!(readonly.open_uploads(), 0);
}

#[test]
fn those_who_write_at_once_are_all_listed() {
    let fixture = Fixture::new();
    for minds_conditions in [false, true] {
        let server = Server::start(Behaviour {
            minds_conditions,
            ..Behaviour::default()
        });
        server.put_layout(&fixture.conversion.source, "an/app", "1");
        let names = ["a", "b", "c", "d", "e", "f"];
        let image = server.reference("an/app:1");
        let digests: Vec<String> = thread::scope(|scope| {
            let calls: Vec<_> = names
                .iter()
                .map(|name| {
                    let file = fixture.of_source(name, "bin/su");
                    let (fixture, image) = (&fixture, &image);
                    scope.spawn(move || fixture.published(&file, image, json!("tag")))
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let tag = format!(
            "sha256-{}",
            &fixture.conversion.source.manifest_digest()[7..]
        );
        let index = server.manifest_bytes("an/app", &tag).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let listed: Vec<&str> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["digest"].as_str().unwrap())
            .collect();
        assert_eq!(listed.len(), names.len(), "each once");
        for digest in &digests {
            assert!(listed.contains(&digest.as_str()), "{digest} is not listed");
        }
    }
}

#[test]
fn a_profile_travels_with_credentials_and_shows_none() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        access: Access::Token {
            authorization: Some(BASIC.to_owned()),
            uses: 2,
        },
        lists_referrers: Some(1),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "an/app", "1");
    let image = server.reference("an/app:1");
    let file = fixture.of_source("first", "bin/su");
    let login = ["--user=me:hunter2", "--log-level=trace,h2=trace"];
    let done = fixture
        .publish(&file, &image)
        .args(login)
        .run()
        .success()
        .unwrap();
    let show = fixture.call("profile", &["show", &image]).args(login).run();
    let shown = show.success().unwrap();
    for secret in ["hunter2", &BASIC[6..], "is-secret", "very-private"] {
        assert!(
            !done.stderr.contains(secret) && !shown.stderr.contains(secret),
            "{secret}"
        );
    }
    let refused = fixture.call("profile", &["show", &image]).run();
    refused.failed_with(6, &["answers 401"]).unwrap();
}

#[test]
fn a_node_records_and_another_converts() {
    const NAME: &str = "registry::profiles::a_node_records_and_another_converts";
    let Some(_turn) = privileged::workload(NAME) else {
        return;
    };
    let Some(registry) = RealRegistry::for_test(NAME) else {
        return;
    };
    let fixture = Fixture::of(&esgz_tests::machine::image());
    let address = registry.address();
    let image = format!("docker://{address}/an/app:1");
    let source = fixture.conversion.source.reference();
    let copied = std::process::Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
            &source,
            &image,
        ])
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "skopeo copies the image"
    );
    let recorded = fixture
        .call("record", &[&image, "-o", &image, "--json", "--scratch"])
        .arg(fixture.conversion.path("scratch"))
        .run()
        .success()
        .unwrap();
    let recorded: Value = serde_json::from_str(&recorded.stdout).unwrap();
    assert_eq!(recorded["artifact"]["listed_by"], "tag");
    assert_eq!(
        recorded["artifact"]["subject"],
        fixture.conversion.source.manifest_digest()
    );
    let to = format!("docker://{address}/an/app:1-esgz");
    let converted = fixture
        .esgz(&image, &to)
        .args(["--json", "--profile", &image])
        .run()
        .success()
        .unwrap();
    let converted: Value = serde_json::from_str(&converted.stdout).unwrap();
    let prefetched = &converted["prefetch"]["files"];
    assert!(
        prefetched.as_u64().is_some_and(|files| files > 0),
        "{converted}"
    );
    fixture.call("verify", &[&to]).run().success().unwrap();
}
