//! Where in the biggest files is what is read, and what is prefetched?

use std::fmt::Write as _;

use super::Page;
use super::text::{Bytes, Percent, Text};
use crate::report::ranges::Range;
use crate::report::usage::FileUsage;

/// Columns of a map.
const COLUMNS: u64 = 1000;
const SHOWN: usize = 12;
/// Smaller files say nothing.
const FROM_BYTES: u64 = 1 << 20;

pub(super) fn part(page: Page<'_>) -> String {
    // Sparse: some of it, and not nearly all.
    let is_sparse = |file: &&FileUsage| {
        let touched = file.touched_bytes();
        file.size_bytes >= FROM_BYTES && touched > 0 && touched < file.size_bytes / 10 * 9
    };
    let mut files: Vec<&FileUsage> = page.usage.files.iter().filter(is_sparse).collect();
    files.sort_by(|a, b| {
        let largest = b.size_bytes.cmp(&a.size_bytes);
        largest.then_with(|| a.path.cmp(&b.path))
    });
    let mut html = "<section>\n<h2>Where in the big files?</h2>\n".to_owned();
    if files.is_empty() {
        html.push_str(
            "<p class=\"soft\">No file of 1\u{a0}MB or more was read in part: there is nothing to choose from.</p>\n</section>\n",
        );
        return html;
    }
    let shown = files.len().min(SHOWN);
    let _ = writeln!(
        html,
        "<p class=\"soft\">The {shown} biggest of {} files that were read in part, from their first byte to their last. \
         A column is a thousandth of the file, and coloured if anything in it is.</p>\n\
         <ul class=\"key\"><li><i class=\"touched\"></i>above: read</li><li><i class=\"wasted\"></i>below: prefetched</li></ul>\n\
         <div class=\"maps\">",
        files.len()
    );
    for (number, file) in files.iter().take(SHOWN).enumerate() {
        html.push_str(&map(number, file));
    }
    html.push_str("</div>\n</section>\n");
    html
}

fn map(number: usize, file: &FileUsage) -> String {
    let (touched, prefetched) = (file.touched_bytes(), file.prefetched_bytes());
    let mut html = format!(
        "<figure>\n<figcaption><span class=\"path\">{path}</span>{size}; {} read ({}), {} prefetched ({}), {} of what is read \
         is missed</figcaption>\n<svg class=\"map\" viewBox=\"0 0 {COLUMNS} 21\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-labelledby=\"map-{number}\"><title id=\"map-{number}\">{path}: {} of {size} read, {} prefetched</title>",
        Bytes(touched),
        Percent(touched, file.size_bytes),
        Bytes(prefetched),
        Percent(prefetched, file.size_bytes),
        Percent(file.missed_bytes(), touched),
        Bytes(touched),
        Bytes(prefetched),
        path = Text(&file.path),
        size = Bytes(file.size_bytes),
    );
    for (class, top, ranges) in [
        ("touched", 0, &file.touched),
        ("wasted", 11, &file.prefetched),
    ] {
        let mut path = String::new();
        for (begin, end) in columns(ranges, file.size_bytes) {
            let _ = write!(path, "M{begin} {top}h{}v10h-{}z", end - begin, end - begin);
        }
        if !path.is_empty() {
            let _ = write!(html, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }
    let _ = write!(
        html,
        "<path class=\"half\" d=\"M0 10h{COLUMNS}v1h-{COLUMNS}z\"/></svg>\n</figure>\n"
    );
    html
}

/// The columns that have something of `ranges`, as runs of them.
fn columns(ranges: &[Range], size_bytes: u64) -> Vec<(u64, u64)> {
    let column = |byte: u64| {
        let at = u128::from(byte) * u128::from(COLUMNS) / u128::from(size_bytes.max(1));
        u64::try_from(at).unwrap_or(COLUMNS).min(COLUMNS - 1)
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &(offset, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        let (begin, end) = (column(offset), column(offset + len - 1) + 1);
        match runs.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => runs.push((begin, end)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_touched_byte_has_its_column() {
        let check = |ranges: &[Range], size, expected: &[(u64, u64)]| {
            assert_eq!(columns(ranges, size), expected, "{ranges:?} of {size}");
        };
        check(&[], 5000, &[]);
        check(&[(0, 1), (4999, 1)], 5000, &[(0, 1), (999, 1000)]);
        check(&[(0, 5), (5, 5), (20, 1)], 5000, &[(0, 2), (4, 5)]);
        check(&[(0, u64::MAX)], u64::MAX, &[(0, 1000)]);
        check(&[(1, 1)], 3, &[(333, 334)]);
    }
}
