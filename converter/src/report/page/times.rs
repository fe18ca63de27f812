//! When what was read first: touched bytes over the workload's time.

use std::fmt::Write as _;

use super::Page;
use super::text::{Bytes, Files, Text};
use crate::report::usage::FileUsage;

/// The picture's own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;
/// Files that are named.
const NAMED: usize = 6;

pub(super) fn part(page: Page<'_>) -> String {
    let mut files: Vec<(u64, &FileUsage)> = page
        .usage
        .files
        .iter()
        .filter(|file| !file.touched.is_empty())
        .filter_map(|file| Some((file.first_touch_ms?, file)))
        .collect();
    let heading = "<section>\n<h2>When does it read what?</h2>\n";
    if files.is_empty() {
        return format!(
            "{heading}<p class=\"soft\">Nothing of the image was read.</p>\n</section>\n"
        );
    }
    files.sort_by_key(|(at_ms, _)| *at_ms);
    let touched: u64 = files.iter().map(|(_, file)| file.touched_bytes()).sum();
    let last_ms = files.last().map_or(0, |(at_ms, _)| *at_ms);
    let end_ms = last_ms.max(page.report.profile.duration_ms).max(1);
    let mut html = format!(
        "{heading}<p class=\"soft\">Bytes by the time of their file\u{2019}s first touch, in the profiled run: {} \
         within {last_ms}\u{a0}ms.</p>\n",
        Files(files.len() as u64)
    );
    let _ = write!(
        html,
        "<figure>\n<svg class=\"times\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-labelledby=\"times-title times-desc\"><title id=\"times-title\">Bytes read over time</title>\
         <desc id=\"times-desc\">A rising curve that ends at {} after {last_ms} ms; the list below names its highest \
         steps.</desc>",
        Bytes(touched)
    );
    let (mut all, mut prefetched) = (0, 0);
    let (mut upper, mut lower) = (String::new(), String::new());
    let y = |bytes: u64| HEIGHT - HEIGHT * bytes as f64 / touched.max(1) as f64;
    let mut column = f64::NAN;
    for (at_ms, file) in &files {
        // Files of one column are one step.
        let x = (WIDTH * *at_ms as f64 / end_ms as f64).round();
        if x != column {
            step(&mut upper, x, y(all));
            step(&mut lower, x, y(prefetched));
            column = x;
        }
        all += file.touched_bytes();
        prefetched += file.touched_bytes() - file.missed_bytes();
    }
    for (path, bytes, class) in [(upper, all, "missed"), (lower, prefetched, "touched")] {
        let _ = write!(
            html,
            "<path class=\"{class}\" d=\"M0 {HEIGHT}{path}V{:.1}H{WIDTH}V{HEIGHT}Z\"/>",
            y(bytes)
        );
    }
    let _ = write!(
        html,
        "</svg>\n<div class=\"axis\" aria-hidden=\"true\"><span>0</span><span>{}\u{a0}ms</span><span>{end_ms}\u{a0}ms</span></div>\n\
         <figcaption><ul class=\"key\"><li><i class=\"touched\"></i>prefetched</li><li><i class=\"missed\"></i>fetched when \
         asked for</li><li>at the top: {}</li></ul></figcaption>\n</figure>\n",
        end_ms / 2,
        Bytes(touched)
    );
    html.push_str(&highest(&mut files));
    html.push_str("</section>\n");
    html
}

/// Right to `x`, then up to `y` at the next step.
fn step(path: &mut String, x: f64, y: f64) {
    let _ = write!(path, "V{y:.1}H{x}");
}

fn highest(files: &mut [(u64, &FileUsage)]) -> String {
    files.sort_by_key(|(at_ms, file)| (std::cmp::Reverse(file.touched_bytes()), *at_ms));
    let named = files.len().min(NAMED);
    let shown = &mut files[..named];
    shown.sort_by_key(|(at_ms, _)| *at_ms);
    let mut html = "<ul class=\"list\">\n".to_owned();
    for (at_ms, file) in shown {
        let _ = writeln!(
            html,
            "<li><span>{at_ms}\u{a0}ms</span><span>{}</span><span class=\"path\">{}</span></li>",
            Bytes(file.touched_bytes()),
            Text(&file.path)
        );
    }
    html.push_str("</ul>\n");
    html
}
