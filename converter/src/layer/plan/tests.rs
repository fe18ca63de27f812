use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::layer::scan::tests::scan_bytes;

fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, contents: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, contents).unwrap();
}

fn special(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o755);
    if target.is_empty() {
        builder
            .append_data(&mut header, name, std::io::empty())
            .unwrap();
    } else {
        builder.append_link(&mut header, name, target).unwrap();
    }
}

fn whole(picks: &[u32]) -> Placement {
    Placement::of_whole(picks.to_vec())
}

/// Names of the rows, in order.
fn names(layer: &ScannedLayer, plan: &LayerPlan) -> Vec<String> {
    let name = |row: &TocRow| match row.source {
        RowSource::Entry(entry) => {
            String::from_utf8_lossy(&layer.entries[entry as usize].name).into_owned()
        }
        RowSource::Landmark(name) => name.to_owned(),
    };
    plan.rows.iter().map(name).collect()
}

fn index(layer: &ScannedLayer, name: &str) -> u32 {
    let at = layer
        .entries
        .iter()
        .rposition(|entry| *entry.name == *name.as_bytes());
    u32::try_from(at.unwrap()).unwrap()
}

fn sample() -> ScannedLayer {
    let mut builder = tar::Builder::new(Vec::new());
    special(&mut builder, tar::EntryType::Directory, "./", "");
    special(&mut builder, tar::EntryType::Directory, "usr/", "");
    special(&mut builder, tar::EntryType::Directory, "usr/bin/", "");
    file(&mut builder, "usr/bin/a", b"old");
    file(&mut builder, "usr/bin/b", &[7; 3000]);
    file(&mut builder, ".prefetch.landmark", &[15]);
    special(&mut builder, tar::EntryType::Link, "usr/bin/c", "usr/bin/b");
    file(&mut builder, "empty", b"");
    file(&mut builder, "usr/bin/a", b"new");
    file(&mut builder, "stargz.index.json", b"{}");
    scan_bytes(&builder.into_inner().unwrap()).unwrap()
}

#[test]
fn without_a_profile_the_source_order_is_kept() {
    let layer = sample();
    let plan = plan_layer(&layer, &Placement::default(), PlanOptions::default()).unwrap();
    assert_eq!(
        names(&layer, &plan),
        [
            "./",
            "usr/",
            "usr/bin/",
            "usr/bin/b",
            "usr/bin/c",
            "empty",
            "usr/bin/a",
            ".no.prefetch.landmark"
        ]
    );
    assert_eq!(plan.prefetch, Prefetch::default());
}

#[test]
fn parents_and_link_targets_come_before_prioritised_entries() {
    let layer = sample();
    let wanted = [index(&layer, "usr/bin/c"), index(&layer, "usr/bin/a")];
    let plan = plan_layer(&layer, &whole(&wanted), PlanOptions::default()).unwrap();
    assert_eq!(
        names(&layer, &plan),
        [
            "./",
            "usr/",
            "usr/bin/",
            "usr/bin/b",
            "usr/bin/c",
            "usr/bin/a",
            ".prefetch.landmark",
            "empty"
        ]
    );
    assert_eq!(
        plan.prefetch,
        Prefetch {
            files: 2,
            bytes: 3003,
            packed: Packed::default(),
        }
    );
}

#[test]
fn parents_of_a_link_come_before_its_target() {
    let mut builder = tar::Builder::new(Vec::new());
    file(&mut builder, "target", b"1");
    special(&mut builder, tar::EntryType::Directory, "dir/", "");
    special(&mut builder, tar::EntryType::Link, "dir/link", "target");
    let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
    let plan = plan_layer(&layer, &whole(&[2]), PlanOptions::default()).unwrap();
    assert_eq!(names(&layer, &plan)[..3], ["dir/", "target", "dir/link"]);
}

#[test]
fn what_a_global_header_says_moves_with_its_entries() {
    let mut global = tar::Header::new_ustar();
    let records = b"13 uid=12345\n";
    global.set_entry_type(tar::EntryType::XGlobalHeader);
    global.set_path("pax_global_header").unwrap();
    global.set_size(records.len() as u64);
    global.set_mode(0o644);
    global.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    file(&mut builder, "before", b"1");
    builder.append(&global, &records[..]).unwrap();
    file(&mut builder, "after", b"2");
    file(&mut builder, "last", b"3");
    let source = builder.into_inner().unwrap();
    let layer = scan_bytes(&source).unwrap();
    assert_eq!(layer.first_under_global, Some(1));
    let written = |picks: &[u32]| {
        let plan = plan_layer(&layer, &whole(picks), PlanOptions::default()).unwrap();
        let mut tar = Vec::new();
        for member in &plan.members {
            let mut raw = vec![0; member.len_bytes as usize];
            crate::layer::encode::read_member(&plan, member, &layer.spool, &mut raw).unwrap();
            tar.extend(raw);
        }
        tar
    };
    let end = layer.end_of_entries_bytes as usize;
    assert_eq!(written(&[])[..end], source[..end]);
    let moved = scan_bytes(&written(&[2])).unwrap();
    let owners: Vec<_> = moved
        .entries
        .iter()
        .map(|e| (String::from_utf8_lossy(&e.name), e.uid))
        .collect();
    assert_eq!(
        owners,
        [
            ("last".into(), 12345),
            (".prefetch.landmark".into(), 0),
            ("before".into(), 0),
            ("after".into(), 12345)
        ]
    );
    assert_eq!(moved.first_under_global, None);
}

#[test]
fn links_in_a_circle_or_to_nothing_are_named() {
    for (target, other) in [("b", "a"), ("nothing", "b")] {
        let mut builder = tar::Builder::new(Vec::new());
        special(&mut builder, tar::EntryType::Link, "a", target);
        special(&mut builder, tar::EntryType::Link, "b", other);
        let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
        for picks in [&[0][..], &[]] {
            let error = plan_layer(&layer, &whole(picks), PlanOptions::default()).unwrap_err();
            assert!(error.to_string().contains("hardlink \""), "{error}");
        }
    }
}

#[test]
fn a_link_follows_its_target_even_where_the_target_was_replaced() {
    let mut builder = tar::Builder::new(Vec::new());
    file(&mut builder, "target", b"old");
    special(&mut builder, tar::EntryType::Link, "link", "target");
    special(&mut builder, tar::EntryType::Link, "other", "link");
    file(&mut builder, "between", b"1");
    file(&mut builder, "target", b"new");
    let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
    for (picks, expected) in [
        (
            &[][..],
            [
                "target",
                "link",
                "other",
                "between",
                ".no.prefetch.landmark",
            ],
        ),
        (
            &[2],
            ["target", "link", "other", ".prefetch.landmark", "between"],
        ),
    ] {
        let plan = plan_layer(&layer, &whole(picks), PlanOptions::default()).unwrap();
        assert_eq!(names(&layer, &plan), expected);
    }
}

#[test]
fn a_parent_that_is_a_link_follows_its_target() {
    let mut builder = tar::Builder::new(Vec::new());
    special(&mut builder, tar::EntryType::Symlink, "to-dir", "usr");
    special(&mut builder, tar::EntryType::Link, "lib", "to-dir");
    file(&mut builder, "lib/file", b"x");
    let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
    let plan = plan_layer(&layer, &whole(&[2]), PlanOptions::default()).unwrap();
    assert_eq!(
        names(&layer, &plan),
        ["to-dir", "lib", "lib/file", ".prefetch.landmark"]
    );
}

#[test]
fn every_chunk_starts_a_member() {
    let mut builder = tar::Builder::new(Vec::new());
    file(&mut builder, "big", &[1; 2500]);
    file(&mut builder, "exact", &[2; 1000]);
    let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
    let plan = plan_layer(
        &layer,
        &Placement::default(),
        PlanOptions {
            chunk_bytes: 1000,
            ..PlanOptions::default()
        },
    )
    .unwrap();
    let chunks: Vec<u32> = plan
        .members
        .iter()
        .map(|member| member.chunk_bytes)
        .collect();
    // A header, three chunks of the first file, one of the second, landmark.
    assert_eq!(chunks, [0, 1000, 1000, 500, 1000, 1]);
    assert_eq!(
        plan.rows[0],
        TocRow {
            source: RowSource::Entry(0),
            chunks: 3,
            place: RowPlace::From(1),
        }
    );
    assert_eq!(
        plan.rows[1],
        TocRow {
            source: RowSource::Entry(1),
            chunks: 1,
            place: RowPlace::From(4),
        }
    );
}

#[test]
fn many_headers_are_spread_over_members() {
    let mut builder = tar::Builder::new(Vec::new());
    for n in 0..1000 {
        special(
            &mut builder,
            tar::EntryType::Directory,
            &format!("d{n}/"),
            "",
        );
    }
    let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
    let plan = plan_layer(
        &layer,
        &Placement::default(),
        PlanOptions {
            chunk_bytes: 10,
            ..PlanOptions::default()
        },
    )
    .unwrap();
    assert!(
        plan.members
            .iter()
            .all(|member| member.len_bytes <= (64 << 10) + member.chunk_bytes)
    );
    assert!(plan.members.len() < 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The members, one after the other, are the plan's tar; without profile it is the source's
    /// with the landmark behind, and every file's chunks are its contents.
    #[test]
    fn members_make_up_the_whole_tar(
        sizes in prop::collection::vec(0_usize..5000, 0..12),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        chunk_bytes in prop_oneof![Just(1_u32), 1_u32..600, Just(4096), Just(4 << 20)],
        min_chunk_bytes in prop_oneof![Just(0_u32), 1_u32..5000],
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (n, size) in sizes.iter().enumerate() {
            let contents: Vec<u8> = (0..*size).map(|at| (at * 7 + n) as u8).collect();
            file(&mut builder, &format!("file{n}"), &contents);
        }
        let source = builder.into_inner().unwrap();
        let layer = scan_bytes(&source).unwrap();
        let picks: Vec<u32> = if sizes.is_empty() { Vec::new() } else {
            picks.iter().map(|pick| pick.index(sizes.len()) as u32).collect()
        };
        let plan = plan_layer(&layer, &whole(&picks), PlanOptions { chunk_bytes, min_chunk_bytes }).unwrap();

        let mut tar = Vec::new();
        let mut starts = Vec::new();
        for member in &plan.members {
            starts.push(tar.len());
            let mut raw = vec![0; member.len_bytes as usize];
            crate::layer::encode::read_member(&plan, member, &layer.spool, &mut raw).unwrap();
            tar.write_all(&raw).unwrap();
        }
        prop_assert_eq!(tar.len() as u64, plan.tar_bytes);
        prop_assert_eq!(plan.rows.len(), sizes.len() + 1);
        let groups = groups(&plan);
        prop_assert_eq!(
            groups.iter().flat_map(|group| group.members.clone()).collect::<Vec<_>>(),
            (0..plan.members.len()).collect::<Vec<_>>()
        );
        let begins = groups.iter().any(|g| g.members.start == plan.landmark_member as usize);
        prop_assert!(min_chunk_bytes == 0 || begins);
        for row in &plan.rows {
            let RowSource::Entry(entry) = row.source else { continue };
            let mut contents = Vec::new();
            for member in plan.members_of(row) {
                let start = starts[member];
                let len = plan.members[member].chunk_bytes as usize;
                contents.extend_from_slice(&tar[start..start + len]);
            }
            let payload = layer.entries[entry as usize].payload;
            let at = payload.offset_bytes as usize;
            prop_assert_eq!(&contents[..], &source[at..at + payload.len_bytes as usize]);
        }
        if picks.is_empty() {
            let end = layer.end_of_entries_bytes as usize;
            prop_assert_eq!(&tar[..tar.len() - 1024], &source[..end]);
        }
    }
}
