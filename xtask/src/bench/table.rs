//! The table of a `bench convert`: medians, and how they compare.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::Value;

use crate::bench::contender::{Contender, LIMITS_LEVEL};

/// What each contender's runs gave, in the order of their turns.
pub(super) type Results = [(Contender, Vec<Value>)];

/// Minimum, median and maximum; of an even number the higher one of the two in the middle.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

fn spread(results: &[Value], figure: &str) -> Option<Spread> {
    let mut figures: Vec<f64> = results
        .iter()
        .filter_map(|run| run[figure].as_f64())
        .collect();
    figures.sort_by(f64::total_cmp);
    Some(Spread {
        min: *figures.first()?,
        median: figures[figures.len() / 2],
        max: *figures.last()?,
    })
}

/// Markdown, below the line `title`.
pub(super) fn table(title: &str, results: &Results) -> Result<String> {
    let wall = |contender: Contender| {
        let found = results.iter().find(|(other, _)| *other == contender)?;
        Some(spread(&found.1, "wall_seconds")?.median)
    };
    let esgz = results
        .iter()
        .find(|(contender, _)| *contender == Contender::EsgzDefault);
    let source_bytes = esgz.and_then(|(_, runs)| Some(spread(runs, "source_bytes")?.median));
    let limit = wall(Contender::Limits(LIMITS_LEVEL));
    let mut text = format!(
        "{title}\n\n\
        | | runs | wall, s: median | min | max | of the loop | peer's ÷ it | peer's default ÷ it | CPU, s | output, MB | of the source | peak memory, MiB |\n\
        |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for (contender, runs) in results {
        let Some(seconds) = spread(runs, "wall_seconds") else {
            continue;
        };
        let figure = |name| spread(runs, name).map(|figure| figure.median);
        let is_esgz = contender.same_of_peer().is_some();
        let peer = contender.same_of_peer().and_then(wall);
        let peer_default = wall(Contender::PeerDefault).filter(|_| is_esgz);
        let output = figure("output_bytes");
        let percent = output
            .zip(source_bytes)
            .map(|(output, source)| 100.0 * output / source);
        writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} | {} | {} | {} |",
            contender.name(),
            runs.len(),
            seconds.median,
            seconds.min,
            seconds.max,
            shown(limit.map(|limit| seconds.median / limit), 2, " ×"),
            shown(peer.map(|peer| peer / seconds.median), 2, " ×"),
            shown(peer_default.map(|peer| peer / seconds.median), 2, " ×"),
            shown(figure("cpu_seconds"), 2, ""),
            shown(output.map(|bytes| bytes / 1e6), 1, ""),
            shown(percent, 1, " %"),
            shown(
                figure("peak_memory_bytes").map(|bytes| bytes / 1048576.0),
                0,
                ""
            ),
        )?;
    }
    Ok(text)
}

fn shown(figure: Option<f64>, decimals: usize, unit: &str) -> String {
    figure.map_or_else(String::new, |figure| format!("{figure:.decimals$}{unit}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn medians_are_compared_with_loop_and_peer() {
        let runs = |seconds: &[f64]| -> Vec<Value> {
            let run = |seconds: &f64| json!({"wall_seconds": seconds, "source_bytes": 200, "output_bytes": 100});
            seconds.iter().map(run).collect()
        };
        let results = [
            (Contender::Limits(6), runs(&[2.0])),
            (Contender::EsgzDefault, runs(&[1.0])),
            (Contender::Esgz(6), runs(&[9.0, 3.0, 4.0])),
            (Contender::PeerDefault, runs(&[40.0])),
            (Contender::Peer(6), runs(&[20.0])),
        ];
        let text = table("title", &results).unwrap();
        let row = text
            .lines()
            .find(|line| line.starts_with("| esgz, level 6 "))
            .unwrap();
        assert_eq!(
            row,
            "| esgz, level 6 | 3 | 4.00 | 3.00 | 9.00 | 2.00 × | 5.00 × | 10.00 × |  | 0.0 | 50.0 % |  |"
        );
        let row = text
            .lines()
            .find(|line| line.starts_with("| ctr-remote, level 6 "))
            .unwrap();
        assert!(
            row.contains("| 1 | 20.00 | 20.00 | 20.00 | 10.00 × |  |  |"),
            "{row}"
        );
    }
}
