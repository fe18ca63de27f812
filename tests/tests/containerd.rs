//! Images in containerd: read, converted and written give the same digests as in layouts, and are held by the
//! labels that its garbage collector follows.

use std::fs;

use esgz_tests::containerd::{Containerd, versions};
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::Layout;
use esgz_tests::platforms::IndexBuilder;
use esgz_tests::sets;
use serde_json::Value;

const SOURCE: &str = "registry.example:5000/tests/source:1";
const RESULT: &str = "registry.example:5000/tests/result:1-esgz";

/// An image, what esgz makes of it in a layout, and a containerd.
struct Fixture {
    conversion: Conversion,
    expected: Layout,
    containerd: Containerd,
}

impl Fixture {
    /// One for each version of containerd that is here.
    fn each(name: &str, test: impl Fn(&mut Self)) {
        for programs in versions(name) {
            let conversion = Conversion::of(&sets::several_layers());
            let expected = conversion.convert("expected", &[]).unwrap();
            let containerd = Containerd::start(&programs);
            containerd.import(&conversion.source, SOURCE).unwrap();
            let mut fixture = Self {
                conversion,
                expected,
                containerd,
            };
            test(&mut fixture);
        }
    }

    fn convert(&self, from: &str, to: &str) -> Esgz {
        let scratch = self.conversion.path("scratch");
        self.containerd
            .esgz("convert")
            .arg("--scratch")
            .arg(scratch)
            .args([from, to])
    }

    fn nothing_is_left(&self, namespace: &str) {
        let left = self.containerd.unfinished(namespace).unwrap();
        assert_eq!(left, Vec::<String>::new());
        let left = names(&self.conversion.path("scratch"));
        assert_eq!(left, Vec::<String>::new());
    }
}

fn digests(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    let digests = layers.iter().map(|layer| layer["digest"].as_str().unwrap());
    digests.map(str::to_owned).collect()
}

#[test]
fn converted_within_containerd_it_is_held_by_labels() {
    let name = "containerd::converted_within_containerd_it_is_held_by_labels";
    Fixture::each(name, |fixture| {
        let containerd = &fixture.containerd;
        fixture.convert(SOURCE, RESULT).run().success().unwrap();
        fixture.nothing_is_left("default");
        let target = containerd.target("default", RESULT).unwrap();
        assert_eq!(target, fixture.expected.manifest_digest());

        let manifest = containerd.document("default", &target).unwrap();
        assert_eq!(manifest, fixture.expected.manifest());
        let labels = |digest: &str| containerd.labels("default", digest).unwrap().unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        let mut expected = vec![format!("containerd.io/gc.ref.content.config={config}")];
        let layers = digests(&manifest);
        expected.extend(
            (0..)
                .zip(&layers)
                .map(|(n, layer)| format!("containerd.io/gc.ref.content.l.{n}={layer}")),
        );
        expected.sort();
        assert_eq!(labels(&target), expected);
        let diff_ids = fixture.expected.config()["rootfs"]["diff_ids"].clone();
        for (layer, diff_id) in layers.iter().zip(diff_ids.as_array().unwrap()) {
            let expected = format!("containerd.io/uncompressed={}", diff_id.as_str().unwrap());
            assert!(labels(layer).contains(&expected), "{:?}", labels(layer));
        }

        // Without the source the result stays whole, and nothing else does.
        containerd.ctr(&["images", "rm", "--sync", SOURCE]).unwrap();
        containerd.collect_garbage("default").unwrap();
        let mut whole: Vec<String> = layers
            .into_iter()
            .chain([config.to_owned(), target])
            .collect();
        whole.sort();
        whole.dedup();
        assert_eq!(containerd.content("default").unwrap(), whole);
        let verified = containerd
            .esgz("verify")
            .arg(RESULT)
            .run()
            .success()
            .unwrap();
        assert!(
            verified.stdout.contains("all digests match"),
            "{}",
            verified.stdout
        );
    });
}

#[test]
fn it_goes_into_containerd_and_out_of_it() {
    let name = "containerd::it_goes_into_containerd_and_out_of_it";
    Fixture::each(name, |fixture| {
        let containerd = &fixture.containerd;
        let source = fixture.conversion.source.reference();
        let to = format!("containerd:{RESULT}");
        let expected = fixture.expected.manifest_digest();
        fixture.convert(&source, &to).run().success().unwrap();
        assert_eq!(containerd.target("default", RESULT).unwrap(), expected);
        fixture.nothing_is_left("default");
        // The name is there already, and so are the blobs.
        fixture.convert(&source, &to).run().success().unwrap();
        assert_eq!(containerd.target("default", RESULT).unwrap(), expected);
        for more in [&[][..], &["--content-over-socket"]] {
            let out = fixture.conversion.output("out");
            let to = out.reference();
            fixture
                .convert(SOURCE, &to)
                .args(more)
                .run()
                .success()
                .unwrap();
            assert_eq!(out.manifest_digest(), expected);
            fixture.nothing_is_left("default");
            fs::remove_dir_all(out.dir).unwrap();
        }
    });
}

#[test]
fn namespaces_are_apart() {
    let name = "containerd::namespaces_are_apart";
    Fixture::each(name, |fixture| {
        let containerd = &fixture.containerd;
        let source = fixture.conversion.source.reference();
        let there = ["--namespace", "tests.there"];
        fixture
            .convert(&source, RESULT)
            .args(there)
            .run()
            .success()
            .unwrap();
        let expected = fixture.expected.manifest_digest();
        assert_eq!(containerd.target("tests.there", RESULT).unwrap(), expected);
        assert!(containerd.target("default", RESULT).is_err());
        let elsewhere = fixture.convert(RESULT, "other:1").run();
        elsewhere.failed_with(6, &["no image", RESULT]).unwrap();
        let found = fixture
            .convert(RESULT, "other:1")
            .env("CONTAINERD_NAMESPACE", "tests.there");
        found.arg("--reuse").run().success().unwrap();
        assert_eq!(
            containerd.target("tests.there", "other:1").unwrap(),
            expected
        );
        let wrong = fixture.convert(SOURCE, RESULT).args(["-n", "a/b"]).run();
        wrong.failed_with(6, &["a/b"]).unwrap();
        // Blobs that are only in the other namespace are not this one's.
        assert_eq!(containerd.labels("default", &expected).unwrap(), None);
        fixture.convert(SOURCE, RESULT).run().success().unwrap();
        assert_eq!(containerd.target("default", RESULT).unwrap(), expected);
    });
}

#[test]
fn all_platforms_of_an_index_are_written_and_held() {
    let name = "containerd::all_platforms_of_an_index_are_written_and_held";
    Fixture::each(name, |fixture| {
        let containerd = &fixture.containerd;
        let source = IndexBuilder::new(&fixture.conversion.path("platforms"))
            .image("linux/amd64")
            .attestation()
            .image("linux/arm64")
            .artifact()
            .finish();
        containerd.import(&source, "platforms:1").unwrap();
        let all = ["--all-platforms"];
        let expected = fixture.conversion.output("all");
        let (from, to) = (source.reference(), expected.reference());
        fixture
            .convert(&from, &to)
            .args(all)
            .run()
            .success()
            .unwrap();
        fixture
            .convert("platforms:1", "platforms:esgz")
            .args(all)
            .run()
            .success()
            .unwrap();
        let target = containerd.target("default", "platforms:esgz").unwrap();
        assert_eq!(target, expected.manifest_digest());
        for image in [SOURCE, "platforms:1"] {
            containerd.ctr(&["images", "rm", "--sync", image]).unwrap();
        }
        containerd.collect_garbage("default").unwrap();
        let blobs = names(&expected.dir.join("blobs/sha256"));
        let blobs: Vec<String> = blobs.iter().map(|hex| format!("sha256:{hex}")).collect();
        assert_eq!(containerd.content("default").unwrap(), blobs);
        fixture.nothing_is_left("default");
    });
}

#[test]
fn what_is_not_there_is_said_in_one_line() {
    let name = "containerd::what_is_not_there_is_said_in_one_line";
    Fixture::each(name, |fixture| {
        let missing = fixture.convert("missing:1", RESULT).run();
        missing.failed_with(6, &["no image \"missing:1\""]).unwrap();
        let address = fixture.conversion.path("no.sock");
        let address = address.to_str().unwrap();
        for (from, to) in [
            (SOURCE, "oci:out"),
            (&*fixture.conversion.source.reference(), RESULT),
        ] {
            let nobody = fixture.convert(from, to).args(["--address", address]).run();
            nobody.failed_with(6, &[address]).unwrap();
        }
        fixture.nothing_is_left("default");
    });
}
