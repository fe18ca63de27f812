//! `esgz profile` on profiles written by hand: nothing is run.

use std::fs;
use std::path::PathBuf;

use esgz_tests::esgz::{Esgz, Finished};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Path, layer, size, ranges.
type Row<'a> = (&'a str, u32, u64, &'a [(u64, u64)]);

struct Profiles(TempDir);

impl Profiles {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory can be made"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a profile of the image `image` with three layers of its own.
    fn write(&self, name: &str, image: &str, rows: &[Row<'_>]) -> PathBuf {
        let digest = |text: &str| esgz::image::Digest::of(text.as_bytes()).to_string();
        let layers: Vec<_> = (0..3)
            .map(|layer| digest(&format!("{image} {layer}")))
            .collect();
        let files: Vec<_> = rows
            .iter()
            .zip(0..)
            .map(|((path, layer, size, ranges), seq)| {
                json!({"path": path, "layer": layer, "size_bytes": size, "phase": "run",
                    "first_touch_seq": seq, "first_touch_ms": seq, "opened": true, "executed": false,
                    "touched_bytes": ranges.iter().map(|(_, len)| len).sum::<u64>(), "ranges": ranges})
            })
            .collect();
        let document = json!({"esgz_profile": 1, "image": {"reference": format!("oci:{image}"),
            "manifest": digest(image), "platform": "linux/amd64", "layers": layers},
            "workload": {"args": ["/bin/app", "x"], "env": [], "user": "", "cwd": "/"},
            "collector": {"tier": "filemap", "kernel": "6.18", "granularity_bytes": 4096},
            "complete": true, "lost_events": 0, "ended": "period", "exit_code": null,
            "duration_ms": 1500, "runs": 1, "files": files, "missing": ["etc/none"], "later": 7});
        let path = self.path(name);
        fs::write(&path, document.to_string()).expect("it is writable");
        path
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).expect("it was written"))
            .expect("it is JSON")
    }
}

fn profile(args: &[&str], files: &[&PathBuf]) -> Esgz {
    Esgz::new("profile").args(args).args(files)
}

fn ok(esgz: Esgz) -> Finished {
    esgz.run().success().unwrap()
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    let rows = value.as_array().expect("an array").iter();
    rows.map(|row| row[key].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn show_draws_what_was_touched() {
    let dir = Profiles::new();
    let rows: [Row; 3] = [
        ("usr/bin/app", 0, 5000, &[(0, 4096)]),
        (
            "usr/lib/big.so",
            1,
            66 * MIB,
            &[(0, MIB), (33 * MIB, MIB / 2)],
        ),
        ("evil\u{1b}[2J", 2, 10, &[]),
    ];
    let file = dir.write("p", "a", &rows);
    let shown = ok(profile(&["show"], &[&file])).stdout;
    let line = |with: &str| {
        let mut lines = shown.lines().skip_while(|line| !line.contains(with));
        (
            lines.next().unwrap_or_else(|| panic!("{with} in {shown}")),
            lines.next(),
        )
    };
    assert!(line("workload").0.ends_with("/bin/app x"));
    assert!(line("ran ").0.contains("1.5 s, until its time was over"));
    assert!(line("complete").0.ends_with("yes"));
    assert!(line("missing").0.contains("1 names"));
    // No terminal: 80 columns of ASCII, of which one is 1 MiB here.
    let (row, picture) = line("usr/lib/big.so");
    let fields: Vec<_> = row.split_whitespace().collect();
    assert_eq!(
        fields,
        [
            "1",
            "1",
            "66.0",
            "MiB",
            "1.5",
            "MiB",
            "ot--",
            "usr/lib/big.so"
        ]
    );
    let expected = format!("{:12}|#{:32}:{:32}|", "", "", "");
    assert_eq!(picture, Some(&*expected));
    assert!(
        !shown.contains('\u{1b}') && shown.contains("evil\\u{1b}[2J"),
        "{shown}"
    );
    // A small file has none.
    assert!(!line("usr/bin/app").1.unwrap().contains('|'));

    let blocks = ok(profile(
        &["show", "--picture=blocks", "--picture-from=1"],
        &[&file],
    ))
    .stdout;
    assert!(blocks.contains("|█") && blocks.contains('▒'), "{blocks}");
    let none = ok(profile(&["show", "--picture=none"], &[&file])).stdout;
    assert!(!none.contains('|'), "{none}");
}

#[test]
fn show_sorts_and_speaks_json() {
    let dir = Profiles::new();
    let rows: [Row; 3] = [
        ("a", 0, 10 * MIB, &[(0, 4096)]),
        ("b", 0, 3000, &[]),
        ("c", 1, 20 * MIB, &[(0, 8192)]),
    ];
    let file = dir.write("p", "a", &rows);
    let show = |sort: &str| -> Value {
        let finished = ok(profile(&["show", "--json", "--sort", sort], &[&file]));
        serde_json::from_str(&finished.stdout).unwrap()
    };
    let shown = show("first-touch");
    assert_eq!(strings(&shown["files"], "path"), ["a", "b", "c"]);
    assert_eq!(shown["profile"]["touched_bytes"], 12288);
    assert_eq!(shown["image"]["reference"], "oci:a");
    assert_eq!(strings(&show("size")["files"], "path"), ["c", "a", "b"]);
    assert_eq!(strings(&show("touched")["files"], "path"), ["c", "a", "b"]);
}

#[test]
fn merge_unites_ranges_and_refuses_other_images() {
    let dir = Profiles::new();
    let one = dir.write("1", "a", &[("x", 0, 9000, &[(0, 4096)]), ("y", 1, 10, &[])]);
    let two = dir.write(
        "2",
        "a",
        &[("y", 1, 10, &[(0, 10)]), ("x", 0, 9000, &[(8192, 808)])],
    );
    let other = dir.write(
        "3",
        "b",
        &[("x", 2, 20_000, &[(4096, 4096)]), ("z", 1, 10, &[])],
    );
    let out = dir.path("out");
    let merge = |files: &[&PathBuf]| profile(&["merge"], files).arg("-o").arg(&out);

    let said = ok(merge(&[&one, &two])).stdout;
    assert!(said.contains("2 profiles of 2 runs"), "{said}");
    let merged = dir.json("out");
    assert_eq!(strings(&merged["files"], "path"), ["x", "y"]);
    assert_eq!(
        merged["files"][0]["ranges"],
        json!([[0, 4096], [8192, 808]])
    );
    assert_eq!((&merged["runs"], &merged["later"]), (&json!(2), &json!(7)));
    assert_eq!(merged["missing"], json!(["etc/none"]));

    fs::remove_file(&out).unwrap();
    let refused = merge(&[&one, &other]).run();
    refused.failed_with(2, &["different images"]).unwrap();
    assert!(refused.stderr.contains("--by-path"), "{}", refused.stderr);
    assert!(!out.exists());

    let said = ok(merge(&[&one, &other]).args(["--by-path", "--json"])).stdout;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["by_path"], &said["runs"]), (&json!(true), &json!(2)));
    let merged = dir.json("out");
    assert_eq!(merged["image"]["by_path"], true);
    assert_eq!(merged["image"]["layers"].as_array().unwrap().len(), 6);
    assert_eq!(strings(&merged["files"], "path"), ["x", "y", "z"]);
    assert_eq!(merged["files"][0]["ranges"], json!([[0, 8192]]));
    assert_eq!(merged["files"][0]["size_bytes"], 20_000);
}

#[test]
fn files_that_are_no_profiles_are_refused() {
    let dir = Profiles::new();
    let good = dir.write("good", "a", &[]);
    let bad = dir.path("bad");
    fs::write(&bad, "{}").unwrap();
    let missing = dir.path("missing");
    for (args, files) in [
        (&["show"][..], vec![&bad]),
        (&["diff"], vec![&good, &bad]),
        (&["merge", "-o", "/dev/null"], vec![&good, &missing]),
        (&["export", "--format=soci"], vec![&missing]),
    ] {
        profile(args, &files)
            .run()
            .failed_with(6, &["bad", "missing"])
            .unwrap();
    }
    let usage = profile(&["merge", "-o", "/dev/null"], &[]).run();
    assert_eq!(usage.code, Some(2));
}

#[test]
fn diff_tells_files_bytes_and_order() {
    let dir = Profiles::new();
    let before = dir.write(
        "before",
        "a",
        &[
            ("x", 0, 90_000, &[(0, 8192)]),
            ("y", 0, 10, &[(0, 10)]),
            ("gone", 0, 7, &[(0, 7)]),
        ],
    );
    let after = dir.write(
        "after",
        "a",
        &[
            ("new", 0, 5, &[]),
            ("y", 0, 10, &[(0, 10)]),
            ("x", 0, 90_000, &[(4096, 12_288)]),
        ],
    );
    let said = ok(profile(&["diff", "--json"], &[&before, &after])).stdout;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(strings(&said["removed"], "path"), ["gone"]);
    assert_eq!(strings(&said["added"], "path"), ["new"]);
    let changed = json!([{"path": "x", "layer": 0, "size_bytes": 90_000, "before_bytes": 8192,
        "after_bytes": 12_288, "gained_bytes": 8192, "lost_bytes": 4096}]);
    assert_eq!(said["changed"], changed);
    assert_eq!(
        (&said["common"], &said["kendall_tau"]),
        (&json!(2), &json!(-1.0))
    );
    assert_eq!(said["same"], false);

    let said = ok(profile(&["diff"], &[&before, &after])).stdout;
    for expected in [
        "-        7 B",
        "+        5 B",
        "+8.0 KiB",
        "-4.0 KiB",
        "tau -1.000",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
    let differs = profile(&["diff", "--exit-code"], &[&before, &after]).run();
    assert_eq!(
        (differs.code, &*differs.stderr),
        (Some(1), "esgz: the profiles differ\n")
    );
    ok(profile(&["diff", "--exit-code"], &[&before, &before]));
}

#[test]
fn exports_are_what_other_tools_read() {
    let dir = Profiles::new();
    let rows: [Row; 3] = [
        ("usr/lib/a.so", 1, 90_000, &[(0, 4096), (8192, 4096)]),
        ("etc/passwd", 0, 100, &[(0, 100)]),
        ("etc/opened", 0, 100, &[]),
    ];
    let file = dir.write("p", "a", &rows);
    let export = |format: &str| ok(profile(&["export", "--format", format], &[&file])).stdout;
    let nydus: Value = serde_json::from_str(&export("nydus")).unwrap();
    let expected = json!({"version": "v1", "files": [
        {"path": "/usr/lib/a.so", "ranges": [[0, 4096], [8192, 4096]]}, {"path": "/etc/passwd"}]});
    assert_eq!(nydus, expected);
    let soci: Value = serde_json::from_str(&export("soci")).unwrap();
    assert_eq!(soci, json!(["usr/lib/a.so", "etc/passwd"]));
    assert_eq!(export("paths"), "/usr/lib/a.so\n/etc/passwd\n");
    let manifest = dir.json("p")["image"]["manifest"].clone();
    let record: Vec<Value> = export("ctr-remote")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(record.len(), 3);
    let first = json!({"path": "usr/lib/a.so", "manifestDigest": manifest, "layerIndex": 1});
    assert_eq!(record[0], first);

    let out = dir.path("out");
    let finished = ok(profile(&["export", "--format=paths", "-o"], &[&out, &file]));
    assert_eq!(finished.stdout, "");
    assert_eq!(
        fs::read_to_string(&out).unwrap(),
        "/usr/lib/a.so\n/etc/passwd\n"
    );
}
