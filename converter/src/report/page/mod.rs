//! The page: what the figures look like. All styles and pictures are in it.

mod files;
mod head;
mod layers;
mod maps;
mod starts;
mod text;
mod times;

use std::fmt::Write as _;

use super::Report;
use super::expected::Expected;
use super::usage::Usage;
use crate::profile::{Ended, Profile};
use text::{Count, Text};

const STYLE: &str = include_str!("style.css");

/// What all parts of a page are made of.
#[derive(Clone, Copy)]
struct Page<'a> {
    report: &'a Report<'a>,
    usage: &'a Usage,
    expected: &'a Expected,
}

/// The whole page.
pub(super) fn page(report: &Report<'_>, usage: &Usage, expected: &Expected) -> String {
    let page = Page {
        report,
        usage,
        expected,
    };
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{} \u{2013} esgz report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        Text(report.reference)
    );
    let parts = [
        head::part(page),
        starts::part(page),
        layers::part(page),
        times::part(page),
        maps::part(page),
        files::costs(page),
        files::part(page),
        method(page),
    ];
    for part in parts {
        html.push_str(&part);
    }
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

/// What the figures hold for.
fn method(page: Page<'_>) -> String {
    let profile = page.report.profile;
    let mut rows: Vec<(&str, String)> = vec![
        (
            "workload",
            format!("<code>{}</code>", Text(&profile.workload.args.join(" "))),
        ),
        ("ran", ran(profile)),
        (
            "watched by",
            format!(
                "{}, Linux {}{}",
                Text(&profile.collector.tier),
                Text(&profile.collector.kernel),
                if profile.complete {
                    String::new()
                } else {
                    format!(
                        "; not complete, {} events were lost",
                        Count(profile.lost_events)
                    )
                }
            ),
        ),
        (
            "profiled image",
            format!("<code>{}</code>", Text(&profile.image.reference)),
        ),
    ];
    match profile.collector.ranges.as_deref() {
        Some("partial") => {
            rows.push(("note", "ranges of mapped files are lower bounds".to_owned()));
        }
        Some(_) => rows.push((
            "note",
            "ranges are not known: a file stands as a whole".to_owned(),
        )),
        None => {}
    }
    if page.usage.unknown_files > 0 {
        let files = text::Files(page.usage.unknown_files);
        let text = format!("not in this image: {files} of the profile");
        rows.push(("note", text));
    }
    let mut html = "<section>\n<h2>What this holds for</h2>\n<dl>\n".to_owned();
    for (name, text) in rows {
        let _ = writeln!(html, "<dt>{name}</dt><dd>{text}</dd>");
    }
    let _ = write!(
        html,
        "</dl>\n<p class=\"soft\">Predicted seconds replay the profile against tables of contents, by the rules of an \
         unmodified Stargz Snapshotter without background fetch, on {} cores with every cache empty. The other ways to \
         ship the image are estimated from this one\u{2019}s chunks. Compare them with each other rather than with a \
         clock. Made by esgz {}.</p>\n</section>\n",
        page.report.constants.cores,
        env!("CARGO_PKG_VERSION"),
    );
    html
}

fn ran(profile: &Profile) -> String {
    let until = match profile.ended {
        Ended::Exit => "until it ended",
        Ended::Period => "until its time was over",
        Ended::Line => "until it printed the awaited line",
        Ended::Port => "until it listened on the awaited port",
        Ended::Http => "until it answered the awaited request",
        Ended::Signal => "until it was told to end",
    };
    let seconds = text::Seconds(profile.duration_ms as f64 / 1e3);
    match profile.runs {
        1 => format!("{seconds}, {until}"),
        runs => format!("{runs} times, {seconds} at most, {until}"),
    }
}
