//! Medians and how sure they are. Pure.

/// A median with an interval that holds the true one with a certain probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Median {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// How sure the interval is, of 1: at least [`WANTED`], unless there are too few figures for that. Then the interval
    /// is from the smallest to the largest.
    pub(super) confidence: f64,
}

const WANTED: f64 = 0.95;

/// The median of `figures`, and the narrowest symmetric interval of their order statistics that is sure enough: the k-th
/// smallest and the k-th largest enclose the median with probability 1 − 2·P(X < k) for X binomial of n and ½, whatever
/// the figures' distribution. None without figures.
pub(super) fn median(figures: &[f64]) -> Option<Median> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let middle = n.checked_sub(1)? / 2;
    let value = f64::midpoint(sorted[middle], sorted[n / 2]);
    let mut rank = 1;
    while 2 * (rank + 1) <= n && confidence(n, rank + 1) >= WANTED {
        rank += 1;
    }
    Some(Median {
        value,
        low: sorted[rank - 1],
        high: sorted[n - rank],
        confidence: confidence(n, rank).max(0.0),
    })
}

/// 1 − 2·P(X < rank) for X binomial of `n` and ½.
fn confidence(n: usize, rank: usize) -> f64 {
    let mut term = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut below = 0.0;
    for k in 0..rank {
        below += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    1.0 - 2.0 * below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        assert_eq!(median(&[]), None);
        let one = median(&[3.0]).unwrap();
        assert_eq!(
            (one.value, one.low, one.high, one.confidence),
            (3.0, 3.0, 3.0, 0.0)
        );
        let five = median(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((five.value, five.low, five.high), (3.0, 1.0, 5.0));
        assert_eq!(five.confidence, 0.9375);
        // Tables of the sign test: 15 figures, the 4th smallest and largest, 96.5 %.
        let figures: Vec<f64> = (1..=15).map(f64::from).collect();
        let fifteen = median(&figures).unwrap();
        assert_eq!((fifteen.value, fifteen.low, fifteen.high), (8.0, 4.0, 12.0));
        assert!((fifteen.confidence - 0.9648).abs() < 1e-4, "{fifteen:?}");
        assert_eq!(median(&[1.0, 2.0]).unwrap().value, 1.5);
    }
}
