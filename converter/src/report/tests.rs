//! The page of a made profile and a made image.

use super::{Measured, Report};
use crate::image::Digest;
use crate::layer::toc::{Toc, TocEntry};
use crate::profile::Profile;
use crate::simulate::{Constants, Contents, ImageModel, LayerModel, Link};

const MB: u64 = 1_000_000;
/// A name that would be markup, an address, and turn the line around.
const EVIL: &str = "opt/<script src=\"http:x\">'&\u{202e}\n";

/// A row: name, type, size, offset, chunkOffset, chunkSize.
type Short<'a> = (&'a str, &'a str, u64, u64, u64, u64);

fn layer(rows: &[Short<'_>], toc_offset_bytes: u64) -> LayerModel {
    let row = |&(name, kind, size, offset, chunk_offset, chunk_size): &Short<'_>| TocEntry {
        name: name.to_owned().into(),
        kind: kind.to_owned().into(),
        size,
        offset,
        chunk_offset,
        chunk_size,
        ..TocEntry::default()
    };
    let toc = Toc {
        version: 1,
        entries: rows.iter().map(row).collect(),
    };
    LayerModel {
        digest: Digest::of(format!("{rows:?}").as_bytes()),
        size_bytes: toc_offset_bytes + 10_000,
        contents: Some(Contents::new(&toc, toc_offset_bytes, 9000)),
    }
}

/// A library of 40 MB of which a quarter is before the landmark, a program that is prefetched whole, an unread file that
/// is, too, and one that is read and is not.
fn image() -> ImageModel {
    let rows = [
        ("lib/big.so", "reg", 40 * MB, 100, 0, 10 * MB),
        (EVIL, "reg", 2 * MB, 4 * MB, 0, 0),
        ("unread", "reg", 3 * MB, 5 * MB, 0, 0),
        (".prefetch.landmark", "reg", 1, 6 * MB, 0, 0),
        ("lib/big.so", "chunk", 0, 7 * MB, 10 * MB, 10 * MB),
        ("lib/big.so", "chunk", 0, 11 * MB, 20 * MB, 20 * MB),
        ("late", "reg", MB, 20 * MB, 0, 0),
    ];
    // A chunk belongs to the file before it.
    let order = [0, 4, 5, 1, 2, 3, 6].map(|index| rows[index]);
    ImageModel {
        document_bytes: 2000,
        layers: vec![layer(&order, 21 * MB)],
    }
}

fn profile() -> Profile {
    let file = |path: &str, size: u64, at_ms: u64, ranges: &[(u64, u64)]| {
        let touched: u64 = ranges.iter().map(|(_, len)| len).sum();
        serde_json::json!({"path": path, "layer": 0, "size_bytes": size, "phase": "run", "first_touch_seq": at_ms,
            "first_touch_ms": at_ms, "opened": true, "executed": false, "touched_bytes": touched, "ranges": ranges})
    };
    let digest = Digest::of(b"x").to_string();
    let document = serde_json::json!({"esgz_profile": 1, "image": {"reference": "oci:source", "manifest": digest,
        "platform": "linux/amd64", "layers": [digest]},
        "workload": {"args": ["app", "http://here/"], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 900, "runs": 1,
        "files": [
            file(EVIL, 2 * MB, 5, &[(0, 2 * MB)]),
            file("lib/big.so", 40 * MB, 20, &[(0, 4 * MB), (35 * MB, MB)]),
            file("late", MB, 700, &[(0, MB)]),
            file("gone", MB, 800, &[(0, MB)])],
        "missing": []});
    Profile::parse(document.to_string().as_bytes()).expect("it is a profile")
}

fn html(links: &[Link], measured: &[Measured]) -> String {
    let report = Report {
        reference: "oci:made:x",
        image: &image(),
        source: None,
        profile: &profile(),
        links,
        measured,
        constants: &Constants::measured(),
    };
    report.html()
}

#[test]
fn the_same_input_gives_the_same_page() {
    assert_eq!(html(&Report::LINKS, &[]), html(&Report::LINKS, &[]));
}

#[test]
fn a_page_needs_nothing_else() {
    let html = html(&Report::LINKS, &[]);
    for outside in [
        "://", " src=\"", " href=\"", "url(", "@import", "<script", "<link", "<iframe",
    ] {
        assert!(!html.contains(outside), "{outside}");
    }
    // The name is there, as text.
    let name = "opt/&lt;script src=&quot;http&#58;x&quot;&gt;&#39;&amp;\\u{202e}\\u{a}";
    assert!(
        html.contains(name) && html.contains("app http&#58;//here/"),
        "{html}"
    );
}

#[test]
fn figures_are_those_of_profile_and_image() {
    let html = html(&Report::LINKS, &[]);
    for text in [
        // 2 + 5 + 1 of 46 MB; of these 2 + 4 before the landmark, where 15 MB are.
        "Its start reads 8.00\u{a0}MB of the 46.0\u{a0}MB in it (17\u{a0}%). Prefetched are 15.0\u{a0}MB, which are 6.00\u{a0}MB compressed: 75\u{a0}% of what is read",
        "read at the start, in 3 of 4 files",
        "Prefetched and not read: 9.00\u{a0}MB in 2\u{a0}files",
        "not in this image: 1\u{a0}file of the profile",
        "lib/big.so: 5.00\u{a0}MB of 40.0\u{a0}MB read, 10.0\u{a0}MB prefetched",
        // The columns of the touched ranges, and of what is prefetched.
        "M0 0h100v10h-100zM875 0h25v10h-25z",
        "M0 11h250v10h-250z",
    ] {
        assert!(html.contains(text), "no {text:?} in {html}");
    }
}

#[test]
fn measured_runs_are_shown_beside_predictions() {
    let measured = |contender: &str, seconds: &[f64]| Measured {
        contender: contender.to_owned(),
        link: Link::SLOW,
        seconds: seconds.to_vec(),
    };
    let runs = [
        measured("esgz", &[9.9, 10.0, 10.5]),
        measured("ctr-remote", &[24.0, 25.0, 26.0]),
    ];
    let html = html(&[Link::FAST], &runs);
    assert!(html.contains("Ready after <em>10.0\u{a0}s</em> at 25 MB/s, 40 ms: 2.5 times as soon as with ctr-remote\u{2019}s plan (25.0\u{a0}s)"), "{html}");
    assert!(
        html.contains("<td>9.90\u{a0}s \u{2013} 10.5\u{a0}s</td>"),
        "{html}"
    );
    assert!(html.contains("<h3>125 MB/s, 10 ms</h3>"), "{html}");
}

#[test]
fn an_image_without_contents_has_a_page() {
    let report = Report {
        reference: "oci:empty",
        image: &ImageModel::default(),
        source: None,
        profile: &profile(),
        links: &Report::LINKS,
        measured: &[],
        constants: &Constants::measured(),
    };
    assert!(report.html().contains("Nothing of the image was read"));
}
