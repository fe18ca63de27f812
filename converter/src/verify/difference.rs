//! What differs between two file systems. Pure.

use std::cmp::Ordering;
use std::fmt;

use crate::layer::entry::{EntryKind, Timestamp};
use crate::layer::toc::type_name;
use crate::verify::tree::{Inode, Tree};

/// Differences of which more are only counted.
const NAMED: usize = 5;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// 0-based layer; `None` for the merged view.
    pub layer: Option<usize>,
    /// The path, without a leading slash.
    pub path: String,
    /// `type`, `mode`, `contents`, …; `entry` if one of the images does not have the path.
    pub what: &'static str,
    /// In the image that is checked.
    pub found: String,
    /// In the source.
    pub expected: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "layer {layer} ")?;
        }
        let Self {
            path,
            what,
            found,
            expected,
            ..
        } = self;
        write!(
            f,
            "\"/{path}\": {what} is {found}, in the source {expected}"
        )
    }
}

/// All differences; the first ones in full.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// The first ones.
    pub first: Vec<Difference>,
    /// All of them.
    pub count: u64,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, difference) in self.first.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{difference}")?;
        }
        match self.count - self.first.len() as u64 {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Differences {
    fn add(&mut self, difference: impl FnOnce() -> Difference) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(difference());
        }
    }

    /// Compares the paths of both trees.
    pub(super) fn compare(&mut self, layer: Option<usize>, found: &Tree, expected: &Tree) {
        let (mut found, mut expected) = (found.files().peekable(), expected.files().peekable());
        loop {
            let order = match (found.peek(), expected.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((found, ..)), Some((expected, ..))) => found.cmp(expected),
            };
            let ours = if order.is_le() { found.next() } else { None };
            let theirs = if order.is_ge() { expected.next() } else { None };
            let Some((path, ..)) = ours.or(theirs) else {
                return;
            };
            for (what, found, expected) in differing(ours, theirs) {
                self.add(|| Difference {
                    layer,
                    path: String::from_utf8_lossy(path).into_owned(),
                    what,
                    found,
                    expected,
                });
            }
        }
    }
}

type File<'a> = Option<(&'a [u8], &'a Inode, &'a [u8])>;

fn differing(found: File<'_>, expected: File<'_>) -> Vec<(&'static str, String, String)> {
    let (Some((_, a, a_first)), Some((_, b, b_first))) = (found, expected) else {
        let present = |file: File<'_>| {
            file.map_or("missing", |(_, inode, _)| kind(inode))
                .to_owned()
        };
        return vec![("entry", present(found), present(expected))];
    };
    if a.kind != b.kind {
        return vec![("type", kind(a).to_owned(), kind(b).to_owned())];
    }
    let text = |bytes: &[u8]| format!("\"{}\"", String::from_utf8_lossy(bytes));
    let mut fields = Vec::new();
    let mut field = |what, found: String, expected: String| {
        if found != expected {
            fields.push((what, found, expected));
        }
    };
    field("link to", text(a_first), text(b_first));
    field("mode", octal(a.mode), octal(b.mode));
    field("owner", owner(a), owner(b));
    field("mtime", time(a.mtime), time(b.mtime));
    field("target", text(&a.link), text(&b.link));
    field("device", device(a), device(b));
    field("size", a.size_bytes.to_string(), b.size_bytes.to_string());
    let digest = |inode: &Inode| inode.digest.map_or("none".to_owned(), |d| d.to_string());
    field("contents", digest(a), digest(b));
    for (name, value) in &a.xattrs {
        if !b
            .xattrs
            .iter()
            .any(|other| (&other.0, &other.1) == (name, value))
        {
            field("xattr", xattr(a, name), xattr(b, name));
        }
    }
    for (name, _) in &b.xattrs {
        if !a.xattrs.iter().any(|other| other.0 == *name) {
            field("xattr", xattr(a, name), xattr(b, name));
        }
    }
    fields
}

fn kind(inode: &Inode) -> &'static str {
    match inode.kind {
        EntryKind::Hardlink => "hardlink into a lower layer",
        kind => type_name(kind),
    }
}

fn octal(mode: u32) -> String {
    format!("{mode:#o}")
}

fn owner(inode: &Inode) -> String {
    format!("{}:{}", inode.uid, inode.gid)
}

fn device(inode: &Inode) -> String {
    format!("{}:{}", inode.device.0, inode.device.1)
}

fn time(time: Timestamp) -> String {
    format!("{}.{:09}", time.secs, time.nanos)
}

fn xattr(inode: &Inode, name: &[u8]) -> String {
    let shown = String::from_utf8_lossy(name);
    match inode.xattrs.iter().find(|(other, _)| **other == *name) {
        None => format!("{shown} missing"),
        Some((_, value)) => format!("{shown}={}", value[..value.len().min(32)].escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::tree::tests::tree;

    #[test]
    fn differences_are_named_with_both_values() {
        let check = |found: &[&str], expected: &[&str], text: &str| {
            let mut differences = Differences::default();
            differences.compare(Some(0), &tree(found), &tree(expected));
            assert_eq!(differences.to_string(), text);
        };
        check(&["a", "b"], &["a", "b"], "");
        check(
            &["a"],
            &["a", "b"],
            "layer 0 \"/b\": entry is missing, in the source reg",
        );
        check(
            &["a", "b"],
            &["b"],
            "layer 0 \"/a\": entry is reg, in the source missing; \
             layer 0 \"/b\": mode is 0o2, in the source 0o1",
        );
        check(
            &["a", "b=a"],
            &["a", "b"],
            "layer 0 \"/b\": link to is \"a\", in the source \"b\"; \
             layer 0 \"/b\": mode is 0o1, in the source 0o2",
        );
        let many: Vec<String> = (0..9).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut differences = Differences::default();
        differences.compare(None, &tree(&many), &tree(&[]));
        assert_eq!((differences.first.len(), differences.count), (NAMED, 9));
        assert!(differences.to_string().ends_with("; and 4 more"));
    }
}
