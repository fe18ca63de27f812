//! Sets of bytes as (offset, length), ascending and disjoint. Pure.

/// Bytes of a file: offset, length.
pub(super) type Range = (u64, u64);

/// The same bytes in order, what overlaps or meets joined.
pub(super) fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|&(_, len)| len > 0);
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for (offset, len) in ranges {
        match joined.last_mut() {
            Some((start, length)) if offset <= *start + *length => {
                *length = (*length).max(offset + len - *start);
            }
            _ => joined.push((offset, len)),
        }
    }
    joined
}

/// How many bytes.
pub(super) fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(|&(_, len)| len).sum()
}

/// How many bytes both have.
pub(super) fn common(one: &[Range], other: &[Range]) -> u64 {
    let (mut i, mut j, mut bytes) = (0, 0, 0);
    while let (Some(&(a, a_len)), Some(&(b, b_len))) = (one.get(i), other.get(j)) {
        let end = (a + a_len).min(b + b_len);
        bytes += end.saturating_sub(a.max(b));
        if a + a_len <= end {
            i += 1;
        } else {
            j += 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn bytes(ranges: &[Range]) -> std::collections::BTreeSet<u64> {
        let each = ranges
            .iter()
            .flat_map(|&(offset, len)| offset..offset + len);
        each.collect()
    }

    proptest! {
        #[test]
        fn sets_are_those_of_their_bytes(one in vec((0..60_u64, 0..9_u64), 0..9), other in vec((0..60_u64, 0..9_u64), 0..9)) {
            let (a, b) = (union(one.clone()), union(other.clone()));
            prop_assert_eq!(bytes(&a), bytes(&one));
            prop_assert!(a.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
            prop_assert_eq!(total(&a), bytes(&one).len() as u64);
            let both = bytes(&one).intersection(&bytes(&other)).count() as u64;
            prop_assert_eq!(common(&a, &b), both);
        }
    }
}
