//! Files: those that cost something, and all that play a part.

use std::fmt::Write as _;

use super::Page;
use super::text::{Bytes, Count, Files, Seconds, Text};
use crate::report::expected::Way;
use crate::report::usage::FileUsage;

/// Of each list.
const COSTLY: usize = 8;
/// Of each layer.
const LISTED: usize = 400;

/// What could be better: prefetched in vain, and waited for.
pub(super) fn costs(page: Page<'_>) -> String {
    let mut html = "<section>\n<h2>What could be better?</h2>\n".to_owned();
    let mut wasted: Vec<&FileUsage> = page
        .usage
        .files
        .iter()
        .filter(|file| file.wasted_bytes() > 0)
        .collect();
    wasted.sort_by(|a, b| {
        let most = b.wasted_bytes().cmp(&a.wasted_bytes());
        most.then_with(|| a.path.cmp(&b.path))
    });
    let all: u64 = wasted.iter().map(|file| file.wasted_bytes()).sum();
    let _ = writeln!(
        html,
        "<h3>Prefetched and not read: {} in {}</h3>",
        Bytes(all),
        Files(wasted.len() as u64)
    );
    html.push_str("<ul class=\"list\">\n");
    for file in wasted.iter().take(COSTLY) {
        let _ = writeln!(
            html,
            "<li><span>{}</span><span class=\"soft\">of {}</span><span class=\"path\">{}</span></li>",
            Bytes(file.wasted_bytes()),
            Bytes(file.prefetched_bytes()),
            Text(&file.path)
        );
    }
    html.push_str("</ul>\n");
    if let Some(over) = page.expected.headline() {
        let predicted = &over.start(Way::This).predicted;
        let waited = predicted
            .missed
            .iter()
            .fold(0.0, |sum, file| sum + file.seconds);
        let _ = writeln!(
            html,
            "<h3>Waited for, as predicted at {}: {} for {}</h3>\n<ul class=\"list\">",
            over.link,
            Seconds(waited),
            Files(predicted.missed.len() as u64)
        );
        for file in predicted.missed.iter().take(COSTLY) {
            let _ = writeln!(
                html,
                "<li><span>{}</span><span class=\"soft\">{}</span><span class=\"path\">{}</span></li>",
                Seconds(file.seconds),
                Bytes(file.bytes),
                Text(&file.path)
            );
        }
        html.push_str("</ul>\n");
    }
    html.push_str("</section>\n");
    html
}

/// All, layer by layer.
pub(super) fn part(page: Page<'_>) -> String {
    let mut html = "<section>\n<h2>Which files?</h2>\n\
        <p class=\"soft\">All that were opened, read or prefetched, by what is read of them.</p>\n"
        .to_owned();
    for (number, _) in (0..).zip(&page.usage.layers) {
        let mut files: Vec<&FileUsage> = page.usage.files_of(number).collect();
        if files.is_empty() {
            continue;
        }
        files.sort_by(|a, b| {
            let most = (b.touched_bytes(), b.prefetched_bytes())
                .cmp(&(a.touched_bytes(), a.prefetched_bytes()));
            most.then_with(|| a.path.cmp(&b.path))
        });
        let _ = write!(
            html,
            "<details><summary>Layer {number}: {}</summary>\n<div class=\"scroll\"><table>\n\
             <thead><tr><th scope=\"col\">file</th><th scope=\"col\">size</th><th scope=\"col\">how</th>\
             <th scope=\"col\">first, ms</th><th scope=\"col\">read</th><th scope=\"col\">prefetched</th>\
             <th scope=\"col\">not read of it</th><th scope=\"col\">missed</th></tr></thead>\n<tbody>\n",
            Files(files.len() as u64)
        );
        for file in files.iter().take(LISTED) {
            html.push_str(&row(file));
        }
        html.push_str("</tbody></table></div>\n");
        if let Some(more) = files.len().checked_sub(LISTED).filter(|&more| more > 0) {
            let _ = writeln!(
                html,
                "<p class=\"soft\">and {} more</p>",
                Count(more as u64)
            );
        }
        html.push_str("</details>\n");
    }
    html.push_str("</section>\n");
    html
}

fn row(file: &FileUsage) -> String {
    let first = file
        .first_touch_ms
        .map_or_else(String::new, |ms| ms.to_string());
    format!(
        "<tr><td><span class=\"path\">{}</span></td><td>{}</td><td>{}</td><td>{first}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        Text(&file.path),
        Bytes(file.size_bytes),
        how(file),
        Bytes(file.touched_bytes()),
        Bytes(file.prefetched_bytes()),
        Bytes(file.wasted_bytes()),
        Bytes(file.missed_bytes()),
    )
}

fn how(file: &FileUsage) -> &'static str {
    match (
        file.is_executed,
        file.touched.is_empty(),
        file.first_touch_ms,
    ) {
        (_, _, None) => "not opened",
        (true, _, _) => "executed",
        (false, true, _) if file.is_opened => "opened only",
        (false, true, _) => "not read",
        (false, false, _) => "read",
    }
}
