//! The answer in one look.

use std::fmt::Write as _;

use super::Page;
use super::text::{Bytes, Count, Percent, Seconds, Text};
use crate::report::expected::{OverLink, Way};
use crate::report::usage::FileUsage;

/// Times that differ by less are the same.
const SAME: f64 = 0.05;

pub(super) fn part(page: Page<'_>) -> String {
    let usage = page.usage;
    let mut html = format!("<header>\n<h1>{}</h1>\n", Text(page.report.reference));
    let over = page.expected.headline();
    if let Some(over) = over {
        let _ = writeln!(html, "<p class=\"headline\">{}</p>", headline(over));
    }
    let (file_bytes, files) = (
        usage
            .layers
            .iter()
            .map(|layer| layer.file_bytes)
            .sum::<u64>(),
        usage.layers.iter().map(|layer| layer.files).sum::<u64>(),
    );
    let touched = usage.sum(FileUsage::touched_bytes);
    let touched_files = usage.count(|file| !file.touched.is_empty());
    let prefetched = usage.sum(FileUsage::prefetched_bytes);
    let compressed: u64 = usage.layers.iter().map(|layer| layer.prefetch_bytes).sum();
    let read = prefetched - usage.sum(FileUsage::wasted_bytes);
    let _ = writeln!(
        html,
        "<p class=\"lead\">Its start reads {} of the {} in it ({}). Prefetched are {}, which are {} compressed: {} of \
         what is read is there before it is asked for.</p>",
        Bytes(touched),
        Bytes(file_bytes),
        Percent(touched, file_bytes),
        Bytes(prefetched),
        Bytes(compressed),
        Percent(read, touched),
    );
    html.push_str("<ul class=\"figures\">\n");
    let mut figure = |number: String, text: String| {
        let _ = writeln!(html, "<li><b>{number}</b><span>{text}</span></li>");
    };
    figure(
        Bytes(touched).to_string(),
        format!(
            "read at the start, in {} of {} files",
            Count(touched_files as u64),
            Count(files)
        ),
    );
    figure(
        Bytes(prefetched).to_string(),
        format!("prefetched, {} of it read", Percent(read, prefetched)),
    );
    figure(
        Bytes(touched - read).to_string(),
        "read, and fetched when asked for".to_owned(),
    );
    if let Some(over) = over {
        let start = over.start(Way::This);
        let how = if start.measured.is_some() {
            "measured"
        } else {
            "predicted"
        };
        figure(
            Seconds(start.seconds()).to_string(),
            format!("until ready, {how} at {}", over.link),
        );
    }
    html.push_str("</ul>\n</header>\n");
    html
}

/// How much sooner, in a sentence.
fn headline(over: &OverLink) -> String {
    let this = over.start(Way::This);
    let against = |way: Way| {
        let other = over.start(way);
        let seconds = Seconds(other.seconds());
        let name = match way {
            Way::WholeFiles => "with ctr-remote\u{2019}s plan",
            Way::Unoptimized => "not optimised",
            Way::Plain => "pulled whole",
            Way::This => "as it is",
        };
        let ratio = other.seconds() / this.seconds().max(1e-9);
        if ratio > 1.0 + SAME {
            format!("{ratio:.1} times as soon as {name} ({seconds})")
        } else if ratio < 1.0 - SAME {
            format!("later than {name} ({seconds})")
        } else {
            format!("as soon as {name} ({seconds})")
        }
    };
    let how = if this.measured.is_some() {
        ""
    } else {
        ", as predicted"
    };
    // Said only where it should not be so.
    let is_sooner = over.start(Way::Unoptimized).seconds() < this.seconds() * (1.0 - SAME);
    let but = is_sooner.then(|| format!("; but {}", against(Way::Unoptimized)));
    format!(
        "Ready after <em>{}</em> at {}{how}: {}, {}{}.",
        Seconds(this.seconds()),
        over.link,
        against(Way::WholeFiles),
        against(Way::Plain),
        but.unwrap_or_default(),
    )
}
