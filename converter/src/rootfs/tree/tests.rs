use super::*;
use crate::layer::entry::EntryKind;
use crate::rootfs::error::EntryProblem;
use crate::rootfs::test_entries::{dir, entry, file, hardlink, symlink};

/// Every path of the tree with a letter for its kind: `d`irectory, `o`paque, `w`hiteout, ….
fn listing(entries: &[Entry]) -> Vec<String> {
    let tree = Tree::build(entries).unwrap();
    let mut lines = Vec::new();
    let mut pending = vec![(String::new(), ROOT)];
    while let Some((path, id)) = pending.pop() {
        for (name, &child) in &tree.directory(id).unwrap().children {
            let path = format!("{path}/{}", text(name));
            let letter = match &tree.node(child).kind {
                NodeKind::Directory(d) if d.opaque => 'o',
                NodeKind::Directory(_) => 'd',
                NodeKind::Regular => 'f',
                NodeKind::Symlink => 'l',
                NodeKind::Whiteout => 'w',
                NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => 's',
            };
            let source = tree
                .node(child)
                .entry
                .map(|e| format!(" {e}"))
                .unwrap_or_default();
            lines.push(format!("{letter} {path}{source}"));
            if tree.directory(child).is_some() {
                pending.push((path, child));
            }
        }
    }
    lines.sort_by(|a, b| a[2..].cmp(&b[2..]));
    lines
}

fn check(entries: &[Entry], expected: &[&str]) {
    assert_eq!(listing(entries), expected);
}

fn check_problem(entries: &[Entry], expected: EntryProblem) {
    match Tree::build(entries) {
        Err(TreeError::Entry { problem, name }) => {
            assert_eq!(problem, expected);
            assert_eq!(
                name,
                text(&entries.last().unwrap().name),
                "the entry is named"
            );
        }
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

#[test]
fn parents_are_implied_and_the_last_entry_wins() {
    check(
        &[file("./a/b/c"), dir("a/"), file("a/b/c")],
        &["d /a 1", "d /a/b", "f /a/b/c 2"],
    );
}

#[test]
fn a_directory_over_a_directory_keeps_its_children() {
    check(&[dir("a"), file("a/x"), dir("a")], &["d /a 2", "f /a/x 1"]);
}

#[test]
fn any_other_kind_replaces_with_children() {
    check(
        &[file("a/x"), file("a"), dir("b"), symlink("b", "a")],
        &["f /a 1", "l /b 3"],
    );
    check(&[file("a"), dir("a"), file("a/x")], &["d /a 1", "f /a/x 2"]);
    check(
        &[symlink("l", "d"), dir("l"), file("l/x")],
        &["d /l 1", "f /l/x 2"],
    );
}

#[test]
fn whiteouts_hide_lower_layers_only_in_any_order() {
    check(
        &[file(".wh.a"), file("d/.wh.b")],
        &["w /a", "d /d", "w /d/b"],
    );
    check(&[file(".wh.a"), file("a")], &["f /a 1"]);
    check(&[file("a"), file(".wh.a")], &["f /a 0"]);
    check(
        &[file(".wh.a"), file("a"), file("a"), dir("a")],
        &["o /a 3"],
    );
    check(
        &[dir("a"), file("a/x"), file(".wh.a")],
        &["o /a 0", "f /a/x 1"],
    );
    check(
        &[file("a/x"), file("a/.wh..wh..opq")],
        &["o /a", "f /a/x 0"],
    );
    check(&[file(".wh..wh.aufs"), file(".wh..wh.plnk/1.2")], &[]);
    check(&[entry("c", EntryKind::CharDevice, "")], &["w /c 0"]);
    assert!(Tree::build(&[file(".wh..wh..opq")]).unwrap().root().opaque);
    for bad in [".wh.", ".wh..", "a/.wh..."] {
        check_problem(&[file(bad)], EntryProblem::EmptyWhiteout);
    }
}

#[test]
fn whiteouts_in_a_replaced_directory_go_with_it() {
    check(&[file("a/.wh.x"), file("a")], &["f /a 1"]);
}

#[test]
fn parents_are_followed_through_symlinks_inside_the_root() {
    check(
        &[symlink("x", "/"), file("x/etc/evil")],
        &["d /etc", "f /etc/evil 1", "l /x 0"],
    );
    check(
        &[symlink("a/up", "../../../.."), file("a/up/evil")],
        &["d /a", "l /a/up 0", "f /evil 1"],
    );
    check(
        &[dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x")],
        &["l /lib 1", "d /usr", "d /usr/lib 0", "f /usr/lib/x 2"],
    );
    check_problem(
        &[symlink("a", "b"), symlink("b", "a"), file("a/x")],
        EntryProblem::TooManySymlinks,
    );
    check_problem(&[file("a"), file("a/x")], EntryProblem::ParentNotDirectory);
}

#[test]
fn a_parent_looked_up_before_is_looked_up_again_after_a_replacement() {
    check(
        &[dir("t"), file("d/x"), symlink("d", "t"), file("d/y")],
        &["l /d 2", "d /t 0", "f /t/y 3"],
    );
}

#[test]
fn hardlinks_bind_to_the_file_of_that_moment() {
    let tree = Tree::build(&[
        file("a"),
        hardlink("b", "a"),
        file("a"),
        hardlink("c", "/b"),
    ])
    .unwrap();
    let children = &tree.root().children;
    let (a, b, c) = (
        children[&b"a"[..]],
        children[&b"b"[..]],
        children[&b"c"[..]],
    );
    assert_eq!((b, tree.node(b).links, tree.node(b).entry), (c, 2, Some(0)));
    assert_eq!((tree.node(a).links, tree.node(a).entry), (1, Some(2)));
    let tree = Tree::build(&[file("a"), hardlink("a", "a")]).unwrap();
    assert_eq!(tree.node(tree.root().children[&b"a"[..]]).links, 1);
}

#[test]
fn hardlinks_to_nothing_name_both_ends() {
    let missing = TreeError::HardlinkTarget {
        name: "b".into(),
        target: "a".into(),
    };
    assert_eq!(
        Tree::build(&[hardlink("b", "a"), file("a")]).unwrap_err(),
        missing
    );
    check_problem(
        &[dir("d"), hardlink("b", "d")],
        EntryProblem::HardlinkToDirectory,
    );
    check_problem(&[hardlink("b", "./")], EntryProblem::HardlinkToDirectory);
    check_problem(&[hardlink("b", "../x")], EntryProblem::LeavesRoot);
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    check_problem(&[file("../../evil")], EntryProblem::LeavesRoot);
    check_problem(&[file("a\0b")], EntryProblem::ZeroByte);
    check_problem(&[file("n".repeat(256))], EntryProblem::NameTooLong);
    check_problem(
        &[file(format!("{}/x", "n".repeat(256)))],
        EntryProblem::NameTooLong,
    );
    check_problem(&[file("d/".repeat(2000) + "x")], EntryProblem::NameTooLong);
    check_problem(&[symlink("l", "")], EntryProblem::SymlinkLength);
    check(
        &[file("n".repeat(255))],
        &[&format!("f /{} 0", "n".repeat(255))],
    );
    let mut device = entry("d", EntryKind::BlockDevice, "");
    device.dev_major = 4096;
    check_problem(&[device], EntryProblem::DeviceNumber);
}

#[test]
fn symlinks_cannot_lead_deeper_than_a_path_may_be_long() {
    let deep = "d/".repeat(1000);
    let entries = [
        file(format!("{deep}x")),
        symlink("a", &deep),
        file(format!("a/{deep}x")),
    ];
    check_problem(&entries, EntryProblem::NameTooLong);
}

#[test]
fn the_root_takes_a_directory_entry_and_ignores_other_kinds() {
    let tree = Tree::build(&[dir("./"), file("/")]).unwrap();
    assert_eq!(tree.node(ROOT).entry, Some(0));
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
