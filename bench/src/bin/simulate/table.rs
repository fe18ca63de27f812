//! Predicted beside measured.

use std::fmt::Write as _;

use esgz::simulate::Constants;

use crate::measured::Case;

/// A row for each case, and how far the predictions are from the medians.
pub(crate) fn table(title: &str, cases: &[Case], constants: &Constants) -> String {
    let mut text = format!("# {title}\n\n");
    text += "| link | image | contender | runs | s, min to max | s, median | s, predicted | off \
             | MB, median | MB, predicted | off | requests | predicted |\n";
    text += "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    let (mut worst_seconds, mut worst_bytes) = (0.0_f64, 0.0_f64);
    for case in cases {
        let group = &case.group;
        let predicted = case.predict(constants);
        let least = group.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = group.seconds.iter().copied().fold(0.0, f64::max);
        let off_seconds = predicted.seconds / group.median_seconds() - 1.0;
        let off_bytes = predicted.bytes as f64 / group.median_bytes() - 1.0;
        worst_seconds = worst_seconds.max(off_seconds.abs());
        worst_bytes = worst_bytes.max(off_bytes.abs());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {least:.1} to {most:.1} | {:.1} | {:.1} | {:+.0} % | {:.1} | {:.1} | {:+.0} % | {:.0} | {} |",
            group.link,
            group.image,
            group.contender,
            group.seconds.len(),
            group.median_seconds(),
            predicted.seconds,
            off_seconds * 100.0,
            group.median_bytes() / 1e6,
            predicted.bytes as f64 / 1e6,
            off_bytes * 100.0,
            group.median_requests(),
            predicted.requests,
        );
    }
    let _ = writeln!(
        text,
        "\nAt most {:.0} % off in seconds, {:.0} % in bytes.",
        worst_seconds * 100.0,
        worst_bytes * 100.0
    );
    text
}
