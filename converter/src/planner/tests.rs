use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::image::Digest;
use crate::layer::plan::{PlanOptions, plan_layer};
use crate::layer::scan::tests::scan_bytes;
use crate::simulate::{Constants, Landmark, Link};

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
    let Margins {
        before_bytes: before,
        behind_bytes: behind,
    } = PlannerOptions::MARGINS;
    let hot = || Decision::Ranges(vec![0..4096 + behind, 50 * MIB - before..51 * MIB + behind]);
    check(&sparse, exact, &auto, hot());
    check(&sparse, exact, &on, hot());
    check(&sparse, exact, &off, Decision::Whole);
    // Lower bounds: more was touched, nobody knows where.
    check(&sparse, lower, &auto, Decision::Whole);
    check(&sparse, lower, &on, hot());
    // Mostly hot: 51 and 50 of a hundred, margins included.
    let part = |mib: u64| wanted(100 * MIB, &[(0, mib * MIB - behind)]);
    check(&part(51), exact, &auto, Decision::Whole);
    check(&part(50), exact, &auto, Decision::Ranges(vec![0..50 * MIB]));
    check(&part(51), exact, &on, Decision::Ranges(vec![0..51 * MIB]));
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
    check(&least, exact, &auto, Decision::Ranges(vec![0..1 + behind]));
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
    // Small when it was profiled: what is hot with margins and gaps is most of it.
    check(other(MIB, &[(0, 4096), (MIB / 2, 1)]), Decision::Whole);
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
    margins: Margins {
        before_bytes: 10,
        behind_bytes: 10,
    },
    gap_bytes: 50,
    read_around: Margins {
        before_bytes: 5,
        behind_bytes: 5,
    },
    shortest_cold_bytes: 1000,
    whole_percent: 60,
    growth: 100.0,
    costs: None,
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
fn what_is_not_read_is_cut_off() {
    let layers = [layer(&[("a", "", 5000)])];
    let rows: &[Row<'_>] = &[("a", 0, 5000, &[(2000, 100), (2140, 100), (2300, 9)])];
    let options = PlannerOptions {
        margins: Margins {
            before_bytes: 10,
            behind_bytes: 40,
        },
        shortest_cold_bytes: 30,
        ..SMALL
    };
    let placed = place(&profile(&layers, rows), &layers, &options);
    // Read are 1995..2105, 2135..2245 and 2295..2314; 5 bytes before the first are too few.
    let hot = vec![
        1990..2105,
        2105..2135,
        2135..2245,
        2245..2295,
        2295..2314,
        2314..2349,
    ];
    assert_eq!(placed.layers[0].giants, [Giant { entry: 0, hot }]);
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

fn costs(link: Link) -> Costs {
    Costs::new(link, Constants::measured(), PlanOptions::default())
}

fn chosen(layers: &[ScannedLayer], rows: &[Row<'_>], options: PlannerOptions) -> Choice {
    let profile = profile(layers, rows);
    let plan = PlanOptions::default();
    choose(&profile, layers, &options, &costs(Link::FAST), plan).unwrap()
}

#[test]
fn prices_decide_what_a_share_decides_else() {
    let dear = PlannerOptions {
        costs: Some(costs(Link::SLOW)),
        ..PlannerOptions::default()
    };
    let check = |file: &Wanted, expected: Decision| {
        assert_eq!(decide(file, Trust::Exact, &dear), expected, "{file:?}");
    };
    let gap = costs(Link::SLOW).gap_bytes();
    let Margins {
        before_bytes: before,
        behind_bytes: behind,
    } = dear.margins;
    assert!(gap > PlannerOptions::GAP_BYTES);
    // Two ranges that constants would keep apart.
    let second = 40 * MIB + gap + before + behind;
    let near = wanted(400 * MIB, &[(40 * MIB, 4096), (second + 4096, 4096)]);
    let joined = 40 * MIB - before..second + 8192 + behind;
    check(&near, Decision::Ranges(vec![joined]));
    // Nearly all of it is hot.
    check(&wanted(40 * MIB, &[(0, 39 * MIB)]), Decision::Whole);
    check(&wanted(40 * MIB, &[]), Decision::OnDemand);
    check(&wanted(MIB, &[(0, 1)]), Decision::Whole);
}

#[test]
fn a_plan_by_costs_is_taken_where_it_is_sooner() {
    let sparse: &[Row<'_>] = &[
        ("small", 0, 1000, &[(0, 1000)]),
        ("big", 0, 64 * MIB, &[(0, 4096), (32 * MIB, 4096)]),
    ];
    let layers = [layer(&[("big", "", 64 * MIB), ("small", "", 1000)])];
    let auto = PlannerOptions::default();
    let choice = chosen(&layers, sparse, auto);
    let plans: Vec<Plan> = choice.candidates.iter().map(|one| one.plan).collect();
    assert_eq!(plans, [Plan::NoPrefetch, Plan::WholeFiles, Plan::ByCosts]);
    assert_eq!(choice.best().plan, Plan::ByCosts);
    let seconds = |index: usize| choice.candidates[index].prediction.seconds;
    assert!(
        seconds(2) < seconds(1) - 0.1,
        "{} {}",
        seconds(2),
        seconds(1)
    );
    let placed = choice.into_placements();
    assert_eq!(
        (placed.layers[0].giants.len(), &*placed.layers[0].whole),
        (1, &[1][..])
    );

    let off = PlannerOptions {
        hot_pack: HotPack::Off,
        ..auto
    };
    let choice = chosen(&layers, sparse, off);
    assert_eq!(
        (choice.candidates.len(), choice.best().plan),
        (2, Plan::WholeFiles)
    );

    // Without giants both are the same, and called so.
    let rows: &[Row<'_>] = &[("small", 0, 1000, &[(0, 1)])];
    let choice = chosen(&layers, rows, auto);
    assert_eq!(choice.best().plan, Plan::WholeFiles);
    assert_eq!(
        choice.candidates[1].placements,
        choice.candidates[2].placements
    );
}

#[test]
fn decisions_are_explained() {
    let layers = [layer(&[("big", "", 64 * MIB), ("small", "", 1000)])];
    let rows: &[Row<'_>] = &[
        ("small", 0, 1000, &[(0, 10), (100, 10)]),
        ("big", 0, 64 * MIB, &[(0, 4096), (32 * MIB, 4096)]),
    ];
    let costs = costs(Link::FAST);
    let options = PlannerOptions {
        costs: Some(costs),
        ..PlannerOptions::default()
    };
    let files = explain(&profile(&layers, rows), &layers, &options, &costs);
    let figures: Vec<_> = files
        .iter()
        .map(|file| (file.file.entry, file.size_bytes, file.touched_bytes))
        .collect();
    assert_eq!(figures, [(1, 1000, 20), (0, 64 * MIB, 8192)]);
    assert_eq!(files[0].decision, Decision::Whole);
    assert!(matches!(&files[1].decision, Decision::Ranges(hot) if hot.len() == 2));
    let price = files[1].costs;
    assert!(price.packed_seconds < price.on_demand_seconds);
    assert!(price.packed_seconds < price.whole_seconds);
}

#[test]
fn a_layout_is_estimated_before_it_is_compressed() {
    let layer = layer(&[("big", "", 64 * MIB), ("small", "", 5000)]);
    let placement = Placement {
        whole: vec![1],
        giants: vec![Giant {
            entry: 0,
            hot: vec![0..4096, 32 * MIB..33 * MIB],
        }],
        on_demand: Vec::new(),
    };
    let plan = plan_layer(&layer, &placement, PlanOptions::default()).unwrap();
    let model = estimate::layer_model(&layer, &plan);
    let contents = model.contents.unwrap();
    let Landmark::Prefetch(landmark) = contents.landmark else {
        panic!("{:?}", contents.landmark);
    };
    let file = |path: &str| {
        let mut files = (0..).zip(&contents.files);
        files.find(|(_, file)| file.path == path).unwrap().0
    };
    let offsets = |path: &str| -> Vec<(u64, bool)> {
        let rows = contents.rows_of(file(path));
        rows.map(|row| {
            let start = contents.rows[row as usize].chunk_offset_bytes;
            (start, contents.offset_bytes(row) < landmark)
        })
        .collect()
    };
    assert_eq!(offsets("small"), [(0, true)]);
    let prefetched: Vec<u64> = offsets("big")
        .into_iter()
        .filter_map(|(start, is_prefetched)| is_prefetched.then_some(start))
        .collect();
    assert_eq!(prefetched, [32 * MIB]);
    assert_eq!(offsets("big")[0], (0, false));
    // A plain layer is taken to become half as long.
    assert!(
        (30 * MIB..40 * MIB).contains(&model.size_bytes),
        "{}",
        model.size_bytes
    );
    assert!((MIB / 2..2 * MIB).contains(&landmark), "{landmark}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What is chosen is never later than plain file order, by the same simulation.
    #[test]
    fn no_choice_is_worse_than_whole_files(
        sizes in prop::collection::vec(1..400_000_u64, 1..6),
        touched in prop::collection::vec((0..400_000_u64, 1..50_000_u64), 6),
        giant_bytes in 1000..200_000_u64,
    ) {
        let names: Vec<String> = (0..sizes.len()).map(|number| format!("f{number}")).collect();
        let entries: Vec<_> = names.iter().zip(&sizes).map(|(name, &size)| (&**name, "", size)).collect();
        let layers = [layer(&entries)];
        let ranges: Vec<[(u64, u64); 1]> = sizes
            .iter()
            .zip(&touched)
            .map(|(&size, &(at, len))| [(at % size, len.min(size - at % size))])
            .collect();
        let rows: Vec<Row<'_>> = names
            .iter()
            .zip(&sizes)
            .zip(&ranges)
            .map(|((name, &size), ranges)| (&**name, 0, size, &ranges[..]))
            .collect();
        let choice = chosen(&layers, &rows, PlannerOptions { giant_bytes, ..SMALL });
        let whole = &choice.candidates[1];
        prop_assert_eq!(whole.plan, Plan::WholeFiles);
        prop_assert!(choice.best().prediction.seconds <= whole.prediction.seconds);
        if sizes.iter().all(|&size| size < giant_bytes) {
            prop_assert_eq!(&choice.best().placements, &whole.placements);
        }
    }
}

/// Of layers that are no gzip a byte counts half.
#[test]
fn packs_that_make_the_image_too_long_are_made_narrower() {
    let layers = [layer(&[
        ("wide", "", 40 * MIB),
        ("narrow", "", 20 * MIB),
        ("rest", "", 20 * MIB),
    ])];
    // 600 KiB apart, so that all is one range at first.
    let apart: Vec<(u64, u64)> = (0..30).map(|n| (4 * MIB + n * 600 * 1024, 4096)).collect();
    let rows: &[Row<'_>] = &[
        ("wide", 0, 40 * MIB, &apart),
        ("narrow", 0, 20 * MIB, &[(0, 4096)]),
    ];
    let profile = profile(&layers, rows);
    let placed = |growth: f64| {
        let options = PlannerOptions {
            growth,
            ..PlannerOptions::default()
        };
        place(&profile, &layers, &options).layers.remove(0)
    };
    let packed = |placement: &Placement, entry: u32| -> u64 {
        let mut giants = placement.giants.iter();
        let giant = giants.find(|giant| giant.entry == entry);
        giant.map_or(0, |giant| total_bytes(&giant.hot))
    };
    let all = placed(1.0);
    let margin = PlannerOptions::MARGINS.behind_bytes;
    let narrow = 4096 + margin;
    assert_eq!(
        (packed(&all, 0), packed(&all, 1)),
        (29 * 600 * 1024 + 4096 + (128 << 10) + margin, narrow)
    );
    // The first step halves the margins, and closes no gap of 408 KiB; that is enough, and the other file stays.
    let first = placed(0.1);
    assert_eq!(
        (packed(&first, 0), packed(&first, 1)),
        (30 * (4096 + (192 << 10)), narrow)
    );
    // What a fault reads. The other one has taken the first step as well.
    let last = placed(0.055);
    let least = 4096 + (128 << 10);
    assert_eq!((packed(&last, 0), packed(&last, 1)), (30 * least, least));
    // Too much even so: the denser one is prefetched whole. The other one has its least 1 %.
    let whole = placed(0.01);
    assert_eq!(whole.whole, [0]);
    assert_eq!(packed(&whole, 1), 4096 + (64 << 10));
    let none = placed(0.0);
    assert_eq!(none.whole, [0, 1]);
    // Said of each file.
    let limited = |growth: f64| -> Vec<bool> {
        let options = PlannerOptions {
            growth,
            ..PlannerOptions::default()
        };
        let explained = explain(&profile, &layers, &options, &costs(Link::FAST));
        explained.iter().map(|file| file.is_limited).collect()
    };
    assert_eq!(limited(0.1), [true, false]);
    assert_eq!(limited(0.01), [true, true]);
    // Whoever asks for packs gets them.
    let asked = PlannerOptions {
        hot_pack: HotPack::On,
        growth: 0.0,
        ..PlannerOptions::default()
    };
    let asked = place(&profile, &layers, &asked).layers.remove(0);
    assert_eq!(asked, all);
}
