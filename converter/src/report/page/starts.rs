//! How soon is it ready, shipped in each way, over each link?

use std::fmt::Write as _;

use super::Page;
use super::text::{Bytes, Count, Seconds, share};
use crate::report::expected::{OverLink, Start, Way};

pub(super) fn part(page: Page<'_>) -> String {
    let is_measured = page.expected.is_measured();
    let mut html = "<section>\n<h2>How soon is it ready?</h2>\n".to_owned();
    let what = if is_measured {
        "Bars are predicted, marks are medians of measured runs."
    } else {
        "Predicted seconds from an empty node until the workload has done what it did when it was profiled."
    };
    let _ = writeln!(html, "<p class=\"soft\">{what}</p>");
    for over in &page.expected.links {
        html.push_str(&bars(over));
    }
    html.push_str("<ul class=\"key\">");
    for way in Way::ALL {
        let _ = write!(
            html,
            "<li><i class=\"{}\"></i>{}: {}</li>",
            way.class(),
            way.name(),
            way.meaning()
        );
    }
    if is_measured {
        html.push_str("<li><i class=\"mark\"></i>measured</li>");
    }
    html.push_str("</ul>\n");
    html.push_str(&table(&page.expected.links, is_measured));
    html.push_str("</section>\n");
    html
}

/// Longest of all, predicted or measured.
fn longest(over: &OverLink) -> f64 {
    let all = over.starts.iter().map(|start| {
        let measured = start.measured.map_or(0.0, |(_, _, most)| most);
        start.predicted.seconds.max(measured)
    });
    all.fold(0.0, f64::max)
}

fn bars(over: &OverLink) -> String {
    let whole = longest(over);
    let mut html = format!(
        "<h3>{}</h3>\n<div class=\"bars\" aria-hidden=\"true\">\n",
        over.link
    );
    for start in &over.starts {
        let mark = start.measured.map_or_else(String::new, |(median, ..)| {
            format!(
                "<i class=\"mark\" style=\"left:{:.2}%\"></i>",
                share(median, whole)
            )
        });
        let best = if start.way == Way::This { " best" } else { "" };
        let _ = writeln!(
            html,
            "<span class=\"label{best}\">{}</span><span class=\"track\"><i class=\"{}\" style=\"width:{:.2}%\"></i>{mark}</span>\
             <span class=\"value{best}\">{}</span>",
            start.way.name(),
            start.way.class(),
            share(start.predicted.seconds, whole),
            value(start),
        );
    }
    html.push_str("</div>\n");
    html
}

fn value(start: &Start) -> String {
    match start.measured {
        Some((median, ..)) => format!(
            "{} <span class=\"soft\">({} predicted)</span>",
            Seconds(median),
            Seconds(start.predicted.seconds)
        ),
        None => Seconds(start.predicted.seconds).to_string(),
    }
}

fn table(links: &[OverLink], is_measured: bool) -> String {
    let mut html = "<details><summary>As a table</summary>\n\n\
        <p class=\"soft\">Seconds until ready, and what goes through the link until then.</p>\n\
        <div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">link, way</th><th scope=\"col\">predicted</th>"
        .to_owned();
    if is_measured {
        html.push_str("<th scope=\"col\">measured</th><th scope=\"col\">least to most</th>");
    }
    html.push_str(
        "<th scope=\"col\">waiting for prefetch</th><th scope=\"col\">for misses</th>\
         <th scope=\"col\">through the link</th><th scope=\"col\">requests</th></tr></thead>\n<tbody>\n",
    );
    for over in links {
        for start in &over.starts {
            let predicted = &start.predicted;
            let _ = write!(
                html,
                "<tr><th scope=\"row\">{}, {}</th><td>{}</td>",
                over.link,
                start.way.name(),
                Seconds(predicted.seconds)
            );
            match start.measured {
                Some((median, least, most)) => {
                    let _ = write!(
                        html,
                        "<td>{}</td><td>{} \u{2013} {}</td>",
                        Seconds(median),
                        Seconds(least),
                        Seconds(most)
                    );
                }
                None if is_measured => html.push_str("<td></td><td></td>"),
                None => {}
            }
            let _ = writeln!(
                html,
                "<td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                Seconds(predicted.prefetch_wait_seconds),
                Seconds(predicted.network_wait_seconds + predicted.inflate_wait_seconds),
                Bytes(predicted.bytes),
                Count(predicted.requests),
            );
        }
    }
    html.push_str("</tbody></table></div></details>\n");
    html
}
