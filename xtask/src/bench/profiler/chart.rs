//! A picture of the slow-downs: a dot for each subject, with its interval, on a logarithmic scale.

use std::fmt::Write as _;

use anyhow::Result;

use super::median::Median;
use super::results::{NONE, Results};
use super::table::{Cache, programs};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 200.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 54.0;
const ROW: f64 = 34.0;
/// The scale in percent; what is less stands at its beginning.
const SCALE: (f64, f64) = (0.1, 1000.0);
/// What the workload may lose, in percent.
const LIMIT: f64 = 3.0;

/// SVG.
pub(super) fn chart(results: &Results) -> Result<String> {
    // What is cached is not slowed down by the disk: of both the harder measure.
    let warm = programs(results, Cache::Warm);
    let (programs, cached) = match warm.is_empty() {
        true => (programs(results, Cache::Cold), "nothing cached"),
        false => (warm, "everything cached"),
    };
    let is_measured = |name: &&str| {
        let wall = results.slow_down_of_all(&programs, name, "/wall_seconds");
        *name != NONE && wall.is_some()
    };
    let subjects: Vec<&str> = results.subjects().into_iter().filter(is_measured).collect();
    let bottom = TOP + ROW * subjects.len() as f64;
    let height = bottom + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
        <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
        <text x=\"10\" y=\"20\" font-size=\"14\">Slow-down of all programs, {cached}, % (median and 95 % interval, {} rounds)</text>\n\
        <circle cx=\"16\" cy=\"36\" r=\"4\" fill=\"#1f5fa8\"/><text x=\"26\" y=\"40\">by the clock</text>\n\
        <circle cx=\"126\" cy=\"36\" r=\"4\" fill=\"#c8641e\"/><text x=\"136\" y=\"40\">CPU time</text>\n",
        results.rounds_of(&programs)
    );
    for percent in [0.1, 1.0, 10.0, 100.0, 1000.0] {
        let x = place(percent);
        writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#dddddd\"/>\
            <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}{percent}</text>",
            bottom + 16.0,
            if percent <= SCALE.0 { "≤ " } else { "" },
        )?;
    }
    let limit = place(LIMIT);
    writeln!(
        svg,
        "<line x1=\"{limit:.1}\" y1=\"{TOP}\" x2=\"{limit:.1}\" y2=\"{bottom}\" stroke=\"#888888\" stroke-dasharray=\"4 3\"/>\
        <text x=\"{limit:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#888888\">{LIMIT} %</text>",
        bottom + 32.0
    )?;
    for (number, subject) in subjects.iter().enumerate() {
        let y = TOP + ROW * (number as f64 + 0.5);
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 12.0,
            y + 4.0,
            escaped(subject)
        )?;
        for (pointer, colour, shift) in [
            ("/wall_seconds", "#1f5fa8", -6.0),
            ("/cpu_seconds", "#c8641e", 6.0),
        ] {
            if let Some(median) = results.slow_down_of_all(&programs, subject, pointer) {
                dot(&mut svg, median, y + shift, colour)?;
            }
        }
    }
    svg += "</svg>\n";
    Ok(svg)
}

fn dot(svg: &mut String, median: Median, y: f64, colour: &str) -> Result<()> {
    let [value, low, high] =
        [median.value, median.low, median.high].map(|part| place(part * 100.0));
    Ok(writeln!(
        svg,
        "<line x1=\"{low:.1}\" y1=\"{y:.1}\" x2=\"{high:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
        <circle cx=\"{value:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
    )?)
}

/// Where a slow-down stands.
fn place(percent: f64) -> f64 {
    let (least, most) = SCALE;
    let share = (percent.clamp(least, most) / least).log10() / (most / least).log10();
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_two_dots() {
        let text = r#"{"workload":"gcc","subject":"none","round":1,"wall_seconds":1.0,"cpu_seconds":1.0}
{"workload":"gcc","subject":"a<b","round":1,"wall_seconds":1.1,"cpu_seconds":0.5}
"#;
        let svg = chart(&Results::parse(text).unwrap()).unwrap();
        // Two of the legend.
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("a&lt;b"));
        // 10 % is half of the scale; what is faster stands at its beginning.
        assert_eq!(place(10.0), LEFT + (WIDTH - LEFT - RIGHT) / 2.0);
        assert_eq!(place(-50.0), LEFT);
    }
}
