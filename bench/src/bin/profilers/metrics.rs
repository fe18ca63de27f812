//! How well what was seen agrees with the truth. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use esgz::profile::kendall_tau;
use esgz_tests::touch::cases::{Pages, windows};
use serde_json::{Value, json};

pub(crate) const PAGE: u64 = 4096;

/// Files in order of their first touch, without repetition.
pub(crate) type Order = Vec<String>;
/// Touched pages of files.
pub(crate) type PagesOf = BTreeMap<String, Pages>;

/// Counts of what is in the truth, what was seen, and what is in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub(crate) truth: usize,
    pub(crate) seen: usize,
    pub(crate) both: usize,
}

impl Agreement {
    fn add<T: Ord>(&mut self, truth: &BTreeSet<T>, seen: &BTreeSet<T>) {
        self.truth += truth.len();
        self.seen += seen.len();
        self.both += truth.intersection(seen).count();
    }

    /// With recall and precision; null where there is nothing to divide by.
    pub(crate) fn json(self) -> Value {
        let share = |whole: usize| (whole > 0).then(|| self.both as f64 / whole as f64);
        json!({
            "truth": self.truth, "seen": self.seen, "both": self.both,
            "recall": share(self.truth), "precision": share(self.seen),
        })
    }
}

/// Of files, by name.
pub(crate) fn of_files(truth: &Order, seen: &Order) -> Agreement {
    let mut agreement = Agreement::default();
    agreement.add(
        &truth.iter().collect::<BTreeSet<_>>(),
        &seen.iter().collect::<BTreeSet<_>>(),
    );
    agreement
}

/// Of pages, and of stretches of 64 KiB.
pub(crate) fn of_ranges(truth: &PagesOf, seen: &PagesOf) -> (Agreement, Agreement) {
    let (mut by_page, mut by_window) = (Agreement::default(), Agreement::default());
    let nothing = Pages::new();
    let names: BTreeSet<&String> = truth.keys().chain(seen.keys()).collect();
    for name in names {
        let [truth, seen] = [truth, seen].map(|of| of.get(name).unwrap_or(&nothing));
        by_page.add(truth, seen);
        by_window.add(&windows(truth), &windows(seen));
    }
    (by_page, by_window)
}

/// Kendall's rank correlation of what both have; None for fewer than two files.
pub(crate) fn of_order(truth: &Order, seen: &Order) -> Option<f64> {
    let ranks: HashMap<&String, usize> = truth.iter().zip(0..).collect();
    let mut ranks: Vec<usize> = seen
        .iter()
        .filter_map(|name| ranks.get(name).copied())
        .collect();
    kendall_tau(&mut ranks)
}

/// The pages of byte ranges.
pub(crate) fn pages(ranges: &[(u64, u64)]) -> Pages {
    ranges
        .iter()
        .filter(|(_, len)| *len > 0)
        .flat_map(|&(at, len)| at / PAGE..(at + len).div_ceil(PAGE))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Order {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn recall_and_precision_count_what_is_in_both() {
        let agreement = of_files(&names(&["a", "b", "c", "d"]), &names(&["a", "b", "x"]));
        let json = agreement.json();
        assert_eq!(json["recall"], 0.5);
        assert_eq!(json["precision"], 2.0 / 3.0);
        assert_eq!(Agreement::default().json()["recall"], Value::Null);
    }

    #[test]
    fn order_is_that_of_common_files() {
        let truth = names(&["a", "b", "c", "d"]);
        assert_eq!(of_order(&truth, &names(&["a", "x", "c", "d"])), Some(1.0));
        assert_eq!(of_order(&truth, &names(&["d", "c", "a"])), Some(-1.0));
        assert_eq!(of_order(&truth, &names(&["d", "x"])), None);
    }

    #[test]
    fn ranges_count_by_page_and_by_64_kib() {
        assert_eq!(pages(&[(4095, 2), (40960, 0)]), Pages::from([0, 1]));
        let truth = PagesOf::from([("a".to_owned(), Pages::from([0, 1, 20]))]);
        let seen = PagesOf::from([
            ("a".to_owned(), Pages::from([0, 2, 3, 21])),
            ("b".to_owned(), Pages::from([0])),
        ]);
        let (by_page, by_window) = of_ranges(&truth, &seen);
        assert_eq!((by_page.truth, by_page.seen, by_page.both), (3, 5, 1));
        assert_eq!((by_window.truth, by_window.seen, by_window.both), (2, 3, 2));
    }
}
