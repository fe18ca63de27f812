use serde_json::{Value, json};

use super::*;
use crate::image::Digest;
use crate::layer::scan::tests::scan_bytes;

const MIB: u64 = 1 << 20;

fn wanted(size_bytes: u64, touched: &[(u64, u64)]) -> Wanted {
    Wanted {
        file: FileId { layer: 0, entry: 0 },
        names: vec![0],
        size_bytes,
        profiled_bytes: size_bytes,
        touched: touched.to_vec(),
    }
}

#[test]
fn files_are_decided_by_size_and_share() {
    let auto = PlannerOptions::default();
    let on = PlannerOptions {
        hot_pack: HotPack::On,
        ..auto
    };
    let off = PlannerOptions {
        hot_pack: HotPack::Off,
        ..auto
    };
    let (exact, lower) = (Trust::Exact, Trust::LowerBounds);
    let check = |file: &Wanted, trust, options: &PlannerOptions, expected: Decision| {
        let found = decide(file, trust, options);
        assert_eq!(found, expected, "{file:?} {trust:?} {:?}", options.hot_pack);
    };
    let sparse = wanted(100 * MIB, &[(0, 4096), (50 * MIB, MIB)]);
    let margin = PlannerOptions::MARGIN_BYTES;
    let hot = || Decision::Ranges(vec![0..4096 + margin, 50 * MIB - margin..51 * MIB + margin]);
    check(&sparse, exact, &auto, hot());
    check(&sparse, exact, &on, hot());
    check(&sparse, exact, &off, Decision::Whole);
    // Lower bounds: more was touched, nobody knows where.
    check(&sparse, lower, &auto, Decision::Whole);
    check(&sparse, lower, &on, hot());
    // Mostly hot: 61 and 60 of a hundred, margins included.
    let part = |mib: u64| wanted(100 * MIB, &[(0, mib * MIB - margin)]);
    check(&part(61), exact, &auto, Decision::Whole);
    check(&part(60), exact, &auto, Decision::Ranges(vec![0..60 * MIB]));
    check(&part(61), exact, &on, Decision::Ranges(vec![0..61 * MIB]));
    check(&part(100), exact, &on, Decision::Whole);
    // No giant.
    check(
        &wanted(8 * MIB - 1, &[(0, 1)]),
        exact,
        &auto,
        Decision::Whole,
    );
    check(&wanted(8 * MIB - 1, &[(0, 1)]), exact, &on, Decision::Whole);
    let least = wanted(8 * MIB, &[(0, 1)]);
    check(&least, exact, &auto, Decision::Ranges(vec![0..1 + margin]));
    // Opened and not read.
    for options in [&auto, &on, &off] {
        check(&wanted(100 * MIB, &[]), exact, options, Decision::OnDemand);
        check(&wanted(10, &[]), exact, options, Decision::OnDemand);
    }
}

#[test]
fn ranges_of_another_build_are_not_used() {
    let auto = PlannerOptions::default();
    let other = |profiled_bytes: u64, touched: &[(u64, u64)]| Wanted {
        profiled_bytes,
        ..wanted(100 * MIB, touched)
    };
    let check = |file: Wanted, expected| {
        assert_eq!(decide(&file, Trust::Exact, &auto), expected, "{file:?}");
    };
    check(other(100 * MIB + 1, &[(0, 4096)]), Decision::OnDemand);
    check(other(90 * MIB, &[(0, 80 * MIB)]), Decision::Whole);
    // Small when it was profiled, and touched at both ends.
    check(other(MIB, &[(0, 4096), (MIB - 1, 1)]), Decision::Whole);
}

fn layer(entries: &[(&str, &str, u64)]) -> ScannedLayer {
    let mut builder = tar::Builder::new(Vec::new());
    for &(name, target, size) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        if target.is_empty() {
            header.set_size(size);
            let contents = vec![7; usize::try_from(size).unwrap()];
            builder.append_data(&mut header, name, &*contents).unwrap();
        } else {
            header.set_entry_type(tar::EntryType::Link);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
        }
    }
    scan_bytes(&builder.into_inner().unwrap()).unwrap()
}

type Row<'a> = (&'a str, u32, u64, &'a [(u64, u64)]);

fn profile(layers: &[ScannedLayer], rows: &[Row<'_>]) -> Profile {
    let files: Vec<Value> = rows
        .iter()
        .zip(0..)
        .map(|((path, layer, size, ranges), seq)| {
            json!({"path": path, "layer": layer, "size_bytes": size, "phase": "run",
                "first_touch_seq": seq, "first_touch_ms": 0, "opened": true, "executed": false,
                "touched_bytes": 0, "ranges": ranges})
        })
        .collect();
    let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    let document = json!({"esgz_profile": 1, "image": {"reference": "r", "manifest": digests[0],
        "platform": "linux/amd64", "layers": digests}, "workload": {"args": [], "env": [], "user": "",
        "cwd": "/"}, "collector": {"tier": "filemap", "kernel": "6", "granularity_bytes": 4096},
        "complete": true, "lost_events": 0, "ended": "exit", "exit_code": 0, "duration_ms": 0,
        "runs": 1, "files": files, "missing": []});
    Profile::parse(document.to_string().as_bytes()).unwrap()
}

/// Everything small, so that a test's files are giants.
const SMALL: PlannerOptions = PlannerOptions {
    hot_pack: HotPack::Auto,
    giant_bytes: 1000,
    margin_bytes: 10,
    gap_bytes: 50,
    whole_percent: 60,
};

#[test]
fn each_layer_gets_its_own_in_the_order_of_touch() {
    let layers = [
        layer(&[
            ("a", "", 5000),
            ("b", "", 10),
            ("c", "", 5000),
            ("d", "", 5),
        ]),
        layer(&[("e", "", 3000), ("f", "", 7)]),
    ];
    let rows: &[Row<'_>] = &[
        ("c", 0, 5000, &[(4000, 100)]),
        ("f", 1, 7, &[(0, 7)]),
        ("b", 0, 10, &[(0, 10)]),
        ("a", 0, 5000, &[(0, 100), (140, 100)]),
        ("d", 0, 5, &[]),
        ("e", 1, 3000, &[(0, 3000)]),
        ("gone", 0, 5, &[(0, 5)]),
        ("never", 0, 5, &[]),
    ];
    let placed = place(&profile(&layers, rows), &layers, &SMALL);
    let giant = |entry, start, end| Giant {
        entry,
        hot: vec![start..end],
    };
    assert_eq!(
        placed.layers,
        [
            Placement {
                whole: vec![1],
                giants: vec![giant(2, 3990, 4110), giant(0, 0, 250)],
                on_demand: vec![3],
            },
            Placement {
                whole: vec![1, 0],
                giants: Vec::new(),
                on_demand: Vec::new(),
            },
        ]
    );
    assert_eq!(placed.missed, ["gone"]);
}

#[test]
fn a_file_of_several_names_is_decided_once() {
    let layers = [layer(&[
        ("file", "", 5000),
        ("link", "file", 0),
        ("again", "link", 0),
    ])];
    let rows: &[Row<'_>] = &[
        ("again", 0, 5000, &[(0, 100)]),
        ("file", 0, 5000, &[(3000, 100)]),
    ];
    let placed = place(&profile(&layers, rows), &layers, &SMALL);
    let hot = vec![0..110, 2990..3110];
    assert_eq!(placed.layers[0].giants, [Giant { entry: 0, hot }]);
    assert!(placed.layers[0].whole.is_empty());
    // Touched enough together, it is prefetched whole, under both names.
    let rows: &[Row<'_>] = &[
        ("link", 0, 5000, &[(0, 2000)]),
        ("file", 0, 5000, &[(1900, 2000)]),
    ];
    let placed = place(&profile(&layers, rows), &layers, &SMALL);
    assert_eq!(placed.layers[0], Placement::of_whole(vec![1, 0]));
}
