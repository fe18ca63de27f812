//! A file's touched ranges as a row of characters. Pure.

/// Five characters: nothing touched, up to a third, up to two, more, all.
pub(super) type Glyphs = [char; 5];

/// Of Unicode's block elements.
pub(super) const BLOCKS: Glyphs = [' ', '░', '▒', '▓', '█'];
/// For everything that is no terminal.
pub(super) const ASCII: Glyphs = [' ', '.', ':', '+', '#'];

/// One character for each of `width` equal parts of a file of `size_bytes`; a part has a byte at least. `ranges` are (offset, length),
/// ascending and disjoint. A part that was touched at all is never shown as untouched, and one that was not touched
/// wholly never as full.
pub(super) fn row(ranges: &[(u64, u64)], size_bytes: u64, width: usize, glyphs: Glyphs) -> String {
    let width = width.min(usize::try_from(size_bytes).unwrap_or(usize::MAX));
    let border = |part: usize| {
        let at = u128::from(size_bytes) * part as u128 / width as u128;
        u64::try_from(at).unwrap_or(size_bytes)
    };
    let mut rest = ranges;
    let mut row = String::with_capacity(width * 3);
    for part in 0..width {
        let (start, end) = (border(part), border(part + 1));
        while let Some((offset, len)) = rest.first()
            && offset + len <= start
        {
            rest = &rest[1..];
        }
        let touched: u64 = rest
            .iter()
            .take_while(|(offset, _)| *offset < end)
            .map(|(offset, len)| (offset + len).min(end) - (*offset).max(start))
            .sum();
        row.push(glyphs[level(touched, end - start)]);
    }
    row
}

fn level(touched: u64, of: u64) -> usize {
    match touched {
        0 => 0,
        _ if touched >= of => 4,
        _ => 1 + (touched as f64 / of as f64 * 3.0).min(2.0) as usize,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_show_how_much_was_touched() {
        let check = |ranges: &[(u64, u64)], size, width, expected: &str| {
            assert_eq!(row(ranges, size, width, ASCII), expected);
        };
        check(&[], 100, 4, "    ");
        check(&[(0, 100)], 100, 4, "####");
        check(&[(0, 1), (26, 10), (51, 20), (75, 25)], 100, 4, ".:+#");
        check(&[(20, 10)], 100, 4, "..  ");
        check(&[(99, 1)], 100, 4, "   .");
        check(&[(1, 1)], 2, 4, " #");
        check(&[(0, u64::MAX)], u64::MAX, 3, "###");
    }

    proptest! {
        #[test]
        fn nothing_touched_is_hidden(pages in proptest::collection::vec(any::<bool>(), 1..300), width in 1..100_usize) {
            let touched = (0..).zip(&pages).filter(|&(_, &is)| is);
            let ranges: Vec<(u64, u64)> = touched.map(|(page, _)| (page * 4096, 4096)).collect();
            let row = row(&ranges, pages.len() as u64 * 4096, width, ASCII);
            prop_assert_eq!(row.chars().count(), width);
            prop_assert_eq!(row.trim().is_empty(), ranges.is_empty());
            prop_assert_eq!(row.chars().all(|c| c == '#'), ranges.len() == pages.len());
        }
    }
}
