//! `esgz report`: the page of a converted image, as a file and as a browser shows it.

#[path = "report/browser.rs"]
mod browser;

use std::fs;
use std::path::PathBuf;

use browser::{Browser, Scheme};
use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::conversion::Conversion;
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::machine;
use esgz_tests::privileged;
use esgz_tests::sets;
use serde_json::{Value, json};

/// Would be markup, and is too long for a narrow screen.
const LONG: &str = "usr/lib/python3/dist-packages/a<b>/and_a_name_without_any_place_to_break_it_that_is_long.cpython-311.so";

struct Made {
    conversion: Conversion,
    page: PathBuf,
}

/// An image of two layers, converted with a profile that touches a part of it, and what reports on it.
fn made() -> Made {
    let mut files = vec![
        Entry::file("bin/app", sets::noise(1, 300_000)),
        Entry::file("usr/lib/big.so", sets::noise(2, 6_000_000)),
        Entry::file(LONG, sets::noise(3, 2_500_000)),
        Entry::file("usr/share/unread", sets::noise(4, 800_000)),
    ];
    files.extend((0..40).map(|i| {
        let name = format!("usr/lib/python3/module_{i}.py");
        Entry::file(&name, sets::noise(10 + i, 20_000))
    }));
    let base = Layer::new(&sets::usual(), Compression::Gzip(6));
    let top = Layer::new(&files, Compression::Gzip(6));
    let conversion = Conversion::of(&LayoutBuilder::new().layer(base).layer(top));
    let profile = profile(&conversion);
    fs::write(conversion.path("profile"), profile.to_string()).unwrap();
    let convert = conversion.command("made");
    let convert = convert.arg("--profile").arg(conversion.path("profile"));
    conversion.finish(convert.run().success().unwrap()).unwrap();
    let page = conversion.path("page.html");
    Made { conversion, page }
}

fn profile(conversion: &Conversion) -> Value {
    let layers = [0, 1].map(|layer| conversion.source.layer_digest(layer));
    let file = |path: &str, size: u64, at_ms: u64, ranges: &[(u64, u64)]| {
        let touched: u64 = ranges.iter().map(|(_, len)| len).sum();
        json!({"path": path, "layer": 1, "size_bytes": size, "phase": "run", "first_touch_seq": at_ms,
            "first_touch_ms": at_ms, "opened": true, "executed": path == "bin/app", "touched_bytes": touched,
            "ranges": ranges})
    };
    let mut files = vec![
        file("bin/app", 300_000, 2, &[(0, 300_000)]),
        file(
            "usr/lib/big.so",
            6_000_000,
            40,
            &[(0, 65_536), (3_000_000, 400_000)],
        ),
        file(LONG, 2_500_000, 90, &[(1_000_000, 900_000)]),
    ];
    files.extend((0..40).map(|i| {
        let name = format!("usr/lib/python3/module_{i}.py");
        file(&name, 20_000, 100 + 9 * i, &[(0, 20_000)])
    }));
    json!({"esgz_profile": 1, "image": {"reference": "oci:source", "manifest": conversion.source.manifest_digest(),
        "platform": "linux/amd64", "layers": layers},
        "workload": {"args": ["/bin/app", "--serve", "http://localhost/"], "env": [], "user": "", "cwd": "/"},
        "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 800, "runs": 1,
        "files": files, "missing": []})
}

impl Made {
    fn report(&self) -> Esgz {
        Esgz::new("report")
            .arg(self.conversion.output("made").reference())
            .arg("--profile")
            .arg(self.conversion.path("profile"))
            .arg("--output")
            .arg(&self.page)
    }

    fn measure(&self) {
        let dir = self.conversion.path("measured");
        fs::create_dir(&dir).unwrap();
        let run = |contender: &str, seconds: f64| {
            json!({"image": "made", "contender": contender, "lazy": contender != "plain", "mb_per_second": 125.0,
                "round_trip_ms": 10.0, "background_fetch": false, "round": 1, "image_bytes": 1, "total_seconds": seconds})
            .to_string()
        };
        let runs = [run("esgz", 1.25), run("ctr-remote", 2.5), run("plain", 5.0)];
        fs::write(dir.join("runs.jsonl"), runs.join("\n")).unwrap();
    }
}

#[test]
fn the_page_is_the_same_again_and_needs_nothing() {
    let made = made();
    let finished = made.report().run().success().unwrap();
    assert_eq!(finished.stdout, "");
    let page = fs::read_to_string(&made.page).unwrap();
    for outside in ["://", " src=\"", " href=\"", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("/a&lt;b&gt;/and_a_name"), "{page}");
    let source = made.conversion.source.reference();
    made.report()
        .arg("--source")
        .arg(source)
        .run()
        .success()
        .unwrap();
    let with_source = fs::read_to_string(&made.page).unwrap();
    made.report().run().success().unwrap();
    assert_eq!(fs::read_to_string(&made.page).unwrap(), page);
    // A plain pull is predicted of the source, which has another size.
    assert_ne!(with_source, page);
}

#[test]
fn measured_runs_are_in_the_headline() {
    let made = made();
    made.measure();
    let measured = made.conversion.path("measured");
    made.report()
        .arg("--measured")
        .arg(measured)
        .run()
        .success()
        .unwrap();
    let page = fs::read_to_string(&made.page).unwrap();
    assert!(
        page.contains("Ready after <em>1.25\u{a0}s</em> at 125 MB/s, 10 ms: 2.0 times as soon"),
        "{page}"
    );
}

#[test]
fn what_cannot_be_read_is_named_and_no_page_is_written() {
    let made = made();
    made.measure();
    let measured = made.conversion.path("measured");
    let check = |esgz: Esgz, code: i32, name: &str| {
        esgz.run().failed_with(code, &[name]).unwrap();
        assert!(!made.page.exists());
    };
    let other = made.report().arg("--measured").arg(&measured);
    check(
        other.args(["--measured-image", "other"]),
        6,
        "holds runs of made, and none of other",
    );
    check(
        made.report().arg("--measured").arg("nowhere"),
        6,
        "nowhere/runs.jsonl",
    );
    // clap says more than a line.
    let refused = made.report().arg("--link=1gbit").run();
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("BANDWIDTH,ROUNDTRIP"));
    assert!(!made.page.exists());
    fs::write(measured.join("runs.jsonl"), "{}\n").unwrap();
    check(
        made.report().arg("--measured").arg(&measured),
        6,
        "line 1 is no run",
    );
    fs::write(made.conversion.path("profile"), "{}").unwrap();
    check(made.report(), 6, "not an esgz profile");
}

#[test]
fn optimize_writes_the_same_page() {
    let Some(_turn) = privileged::workload("report::optimize_writes_the_same_page") else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let (profile, page) = (conversion.path("profile"), conversion.path("page.html"));
    let optimize = conversion.optimize("made").arg("--report").arg(&page);
    let optimize = optimize.arg("--profile-out").arg(&profile);
    conversion
        .finish(optimize.run().success().unwrap())
        .unwrap();
    let written = fs::read_to_string(&page).unwrap();
    assert!(written.contains(machine::BIG), "{written}");
    let again = Esgz::new("report")
        .arg(conversion.output("made").reference())
        .arg("--source")
        .arg(conversion.source.reference())
        .arg("--profile")
        .arg(&profile)
        .arg("--output")
        .arg(&page);
    again.run().success().unwrap();
    assert_eq!(fs::read_to_string(&page).unwrap(), written);
}

#[test]
fn a_browser_shows_it_at_every_width_light_and_dark() {
    let name = "report::a_browser_shows_it_at_every_width_light_and_dark";
    let Some(browser) = Browser::for_test(name) else {
        return;
    };
    let made = made();
    made.measure();
    let measured = made.conversion.path("measured");
    made.report()
        .arg("--measured")
        .arg(measured)
        .run()
        .success()
        .unwrap();
    let mut backgrounds = Vec::new();
    for scheme in [Scheme::Light, Scheme::Dark] {
        for width in [1280, 400] {
            let shown = browser.show(&made.page, width, scheme);
            assert_eq!(
                shown["scroll"], shown["client"],
                "{width} {scheme:?}: {shown}"
            );
            assert_eq!(shown["client"], width, "{width} {scheme:?}");
            assert_eq!(shown["beyond"], json!([]), "{width} {scheme:?}");
            assert_eq!(shown["small"], json!([]), "{width} {scheme:?}");
            let text = shown["text"].as_str().unwrap();
            for part in [
                "Ready after 1.25",
                "How soon is it ready?",
                "Where in the big files?",
                "usr/lib/big.so",
                LONG,
            ] {
                assert!(
                    text.contains(part),
                    "{width} {scheme:?}: no {part:?} in {text}"
                );
            }
            // A picture without colour would be a blank one.
            let colours = browser.screenshot(&made.page, width, scheme);
            assert!(
                colours > 10_000,
                "{width} {scheme:?}: a screenshot of {colours} bytes"
            );
            backgrounds.push(shown["background"].clone());
        }
    }
    assert_eq!(backgrounds[0], backgrounds[1]);
    assert_eq!(backgrounds[2], backgrounds[3]);
    assert_ne!(backgrounds[0], backgrounds[2]);
}
