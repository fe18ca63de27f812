//! A prefetch list: paths and patterns, one a line, in the order in which they are to be fetched.

use crate::layer::entry::clean_path;
use crate::profile::glob::Glob;

/// A list as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefetchList {
    pub(super) lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// For messages.
    pub(super) text: String,
    /// As a path below the root; a path of the image that reads so is meant, pattern or not.
    pub(super) path: Vec<u8>,
    /// Set if it is a pattern, too.
    pub(super) glob: Option<Glob>,
}

impl PrefetchList {
    /// Reads a list. Empty lines and those that begin with `#` are left out; space around a line is
    /// no part of it; a leading `/` or `./` makes no difference. Any text is a list.
    pub fn parse(text: &[u8]) -> Self {
        let lines = text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
        let lines = lines.map(|line| {
            // A name with `..` is below no root, and matches nothing.
            let path = clean_path(line).unwrap_or_else(|| line.to_vec());
            let is_pattern = path.iter().any(|b| b"*?[\\".contains(b));
            Line {
                text: String::from_utf8_lossy(line).into_owned(),
                glob: is_pattern.then(|| Glob::new(&path)),
                path,
            }
        });
        Self {
            lines: lines.collect(),
        }
    }

    /// Whether it names nothing at all.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_space_are_left_out() {
        let list = PrefetchList::parse(b"# a comment\n\n  /usr/bin/sh \r\n./lib/*.so\n../x\n");
        let lines: Vec<_> = list
            .lines
            .iter()
            .map(|l| (l.text.as_str(), &*l.path, l.glob.is_some()))
            .collect();
        assert_eq!(
            lines,
            [
                ("/usr/bin/sh", b"usr/bin/sh".as_slice(), false),
                ("./lib/*.so", b"lib/*.so", true),
                ("../x", b"../x", false)
            ]
        );
        assert!(PrefetchList::parse(b"#\n \n").is_empty());
    }
}
