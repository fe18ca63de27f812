//! Rates that predict the measured seconds best: one after the other is made larger or smaller as long as that helps.

use std::fmt::Write as _;

use esgz::simulate::Constants;

use crate::measured::Case;

/// A rate, its name, and how far it may be from what is known.
struct Rate {
    name: &'static str,
    get: fn(&Constants) -> f64,
    set: fn(&mut Constants, f64),
}

const RATES: [Rate; 8] = [
    Rate {
        name: "inflate_bytes_per_second",
        get: |constants| constants.inflate_bytes_per_second,
        set: |constants, value| constants.inflate_bytes_per_second = value,
    },
    Rate {
        name: "unpack_bytes_per_second",
        get: |constants| constants.unpack_bytes_per_second,
        set: |constants, value| constants.unpack_bytes_per_second = value,
    },
    Rate {
        name: "unpack_file_seconds",
        get: |constants| constants.unpack_file_seconds,
        set: |constants, value| constants.unpack_file_seconds = value,
    },
    Rate {
        name: "workload_share",
        get: |constants| constants.workload_share,
        set: |constants, value| constants.workload_share = value,
    },
    Rate {
        name: "create_seconds",
        get: |constants| constants.create_seconds,
        set: |constants, value| constants.create_seconds = value,
    },
    Rate {
        name: "pull_seconds",
        get: |constants| constants.pull_seconds,
        set: |constants, value| constants.pull_seconds = value,
    },
    Rate {
        name: "read_seconds",
        get: |constants| constants.read_seconds,
        set: |constants, value| constants.read_seconds = value,
    },
    Rate {
        name: "open_seconds",
        get: |constants| constants.open_seconds,
        set: |constants, value| constants.open_seconds = value,
    },
];
/// No rate is believed that differs more from what is known.
const FARTHEST: f64 = 5.0;

/// The best of what was tried, from `known` on. The worst predictions weigh most.
pub(crate) fn fit(cases: &[Case], known: Constants) -> Constants {
    fit_to(known, |constants| {
        let errors = cases.iter().map(|case| {
            let ratio = case.predict(constants).seconds / case.group.median_seconds();
            ratio.ln().powi(4)
        });
        errors.sum()
    })
}

fn fit_to(known: Constants, error: impl Fn(&Constants) -> f64) -> Constants {
    let mut best = (error(&known), known);
    for step in [1.4, 1.15, 1.05, 1.02] {
        loop {
            let before = best.0;
            for rate in &RATES {
                for factor in [step, 1.0 / step] {
                    loop {
                        let mut tried = best.1;
                        let value = (rate.get)(&tried) * factor;
                        let from_known = value / (rate.get)(&known);
                        if !(1.0 / FARTHEST..=FARTHEST).contains(&from_known) {
                            break;
                        }
                        (rate.set)(&mut tried, value);
                        let error = error(&tried);
                        if error >= best.0 {
                            break;
                        }
                        best = (error, tried);
                    }
                }
            }
            if best.0 > before * 0.999 {
                break;
            }
        }
    }
    best.1
}

/// The rates, before and after.
pub(crate) fn describe(known: &Constants, fitted: &Constants) -> String {
    let mut text = String::from("\n| constant | committed | fitted |\n|---|--:|--:|\n");
    for rate in &RATES {
        let short = |value: f64| match value {
            large if large >= 1000.0 => format!("{:.1}e6", large / 1e6),
            small => format!("{small:.5}"),
        };
        let (before, after) = ((rate.get)(known), (rate.get)(fitted));
        let _ = writeln!(
            text,
            "| `{}` | {} | {} |",
            rate.name,
            short(before),
            short(after)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_the_runs_is_found_again() {
        let known = Constants::measured();
        let wanted = [1.7, 0.6];
        let fitted = fit_to(known, |constants| {
            let inflate = constants.inflate_bytes_per_second / known.inflate_bytes_per_second;
            let create = constants.create_seconds / known.create_seconds;
            (inflate / wanted[0]).ln().powi(2) + (create / wanted[1]).ln().powi(2)
        });
        let inflate = fitted.inflate_bytes_per_second / known.inflate_bytes_per_second;
        assert!((inflate / 1.7).ln().abs() < 0.03, "{inflate}");
        assert!(
            (fitted.create_seconds / known.create_seconds / 0.6)
                .ln()
                .abs()
                < 0.03
        );
        assert_eq!(fitted.open_seconds, known.open_seconds);
        // Not beyond what is believed.
        let far = fit_to(known, |constants| 1.0 / constants.read_seconds);
        assert!(far.read_seconds <= known.read_seconds * FARTHEST);
        assert!(describe(&known, &far).contains("`read_seconds`"));
    }
}
