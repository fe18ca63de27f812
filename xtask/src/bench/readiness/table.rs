//! `table.md`: medians of the runs, and how they compare with the peer's.

use std::fmt::Write as _;

use anyhow::Result;

use super::link::Link;
use super::node::BackgroundFetch;
use super::results::Run;

/// What is compared with: ctr-remote's image.
const PEER: &str = "ctr-remote";

/// Runs of the same image, contender, link and configuration.
struct Group<'a> {
    runs: Vec<&'a Run>,
}

impl<'a> Group<'a> {
    fn first(&self) -> &'a Run {
        self.runs[0]
    }

    fn median(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.runs.iter().map(|run| figure(run)).collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        if figures.len() % 2 == 1 {
            figures[middle]
        } else {
            f64::midpoint(figures[middle - 1], figures[middle])
        }
    }

    fn total(&self) -> f64 {
        self.median(Run::total_seconds)
    }

    fn range(&self) -> (f64, f64) {
        let totals = || self.runs.iter().map(|run| run.total_seconds());
        (
            totals().fold(f64::INFINITY, f64::min),
            totals().fold(0.0, f64::max),
        )
    }
}

/// In the order of the first of each.
fn groups(runs: &[Run]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for run in runs {
        let is_same = |group: &&mut Group<'_>| {
            let first = group.first();
            first.image == run.image
                && first.contender == run.contender
                && first.link == run.link
                && first.background_fetch == run.background_fetch
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { runs: vec![run] }),
        }
    }
    groups
}

/// What stands below one heading.
#[derive(Clone, PartialEq)]
struct Section {
    image: String,
    link: Link,
    background_fetch: BackgroundFetch,
}

impl Section {
    fn of(run: &Run) -> Self {
        Self {
            image: run.image.clone(),
            link: run.link,
            background_fetch: run.background_fetch,
        }
    }

    /// Whole pulls know no background fetch: they stand in both kinds of section.
    fn has(&self, group: &Group<'_>) -> bool {
        let run = group.first();
        run.image == self.image
            && run.link == self.link
            && (run.background_fetch == self.background_fetch || !run.is_lazy)
    }

    fn name(&self) -> String {
        let background_fetch = match self.background_fetch {
            BackgroundFetch::Off => "",
            BackgroundFetch::On => ", background fetch on",
        };
        format!("{}, {}{background_fetch}", self.image, self.link)
    }
}

/// Markdown: one table of all medians, then one for each image, link and configuration.
pub(super) fn table(title: &str, runs: &[Run]) -> Result<String> {
    let groups = groups(runs);
    let mut sections: Vec<Section> = Vec::new();
    for group in groups.iter().filter(|group| group.first().is_lazy) {
        let section = Section::of(group.first());
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    let mut text = format!("{title}\n\n");
    summary(&mut text, &sections, &groups)?;
    for section in &sections {
        let members = groups.iter().filter(|group| section.has(group));
        details(&mut text, section, &members.collect::<Vec<_>>())?;
    }
    Ok(text)
}

fn summary(text: &mut String, sections: &[Section], groups: &[Group<'_>]) -> Result<()> {
    let mut contenders: Vec<&str> = Vec::new();
    for group in groups {
        let name = group.first().contender.as_str();
        if !contenders.contains(&name) {
            contenders.push(name);
        }
    }
    writeln!(
        text,
        "Seconds until ready, medians; in brackets, how many times as soon as {PEER}'s image.\n"
    )?;
    writeln!(text, "| | {} |", contenders.join(" | "))?;
    writeln!(text, "|---{}|", "|--:".repeat(contenders.len()))?;
    for section in sections {
        let total = |name: &str| {
            let mut members = groups.iter().filter(|group| section.has(group));
            let found = members.find(|group| group.first().contender == name)?;
            Some(found.total())
        };
        let peer = total(PEER);
        let cells = contenders.iter().map(|name| match (total(name), peer) {
            (None, _) => String::new(),
            (Some(seconds), Some(peer)) if *name != PEER => {
                format!("{seconds:.2} ({:.2} ×)", peer / seconds)
            }
            (Some(seconds), _) => format!("{seconds:.2}"),
        });
        let cells: Vec<String> = cells.collect();
        writeln!(text, "| {} | {} |", section.name(), cells.join(" | "))?;
    }
    Ok(())
}

fn details(text: &mut String, section: &Section, groups: &[&Group<'_>]) -> Result<()> {
    writeln!(text, "\n## {}\n", section.name())?;
    writeln!(
        text,
        "| | runs | pull, s | create and run, s | ready, s | min | max | MB through the link | requests | image, MB |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for group in groups {
        let first = group.first();
        let (min, max) = group.range();
        let how = if first.is_lazy { "" } else { ", pulled whole" };
        writeln!(
            text,
            "| {}{how} | {} | {:.2} | {:.2} | **{:.2}** | {min:.2} | {max:.2} | {:.1} | {:.0} | {:.1} |",
            first.contender,
            group.runs.len(),
            group.median(|run| run.pull_seconds),
            group.median(|run| run.start_seconds),
            group.total(),
            group.median(|run| run.bytes() as f64 / 1e6),
            group.median(|run| run.requests() as f64),
            first.image_bytes as f64 / 1e6,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::results::made_up;
    use super::*;

    #[test]
    fn medians_are_compared_with_the_peers() {
        let mut runs = vec![
            made_up("esgz", 1, 10.0),
            made_up("plain", 1, 60.0),
            made_up(PEER, 1, 30.0),
            made_up("esgz", 2, 20.0),
            made_up(PEER, 2, 24.0),
        ];
        let mut default = made_up("esgz", 1, 16.0);
        default.background_fetch = BackgroundFetch::On;
        runs.push(default);
        let text = table("title", &runs).unwrap();
        let expected = "title

Seconds until ready, medians; in brackets, how many times as soon as ctr-remote's image.

| | esgz | plain | ctr-remote |
|---|--:|--:|--:|
| torch, 125 MB/s, 10 ms | 15.00 (1.80 ×) | 60.00 (0.45 ×) | 27.00 |
| torch, 125 MB/s, 10 ms, background fetch on | 16.00 | 60.00 |  |

## torch, 125 MB/s, 10 ms

| | runs | pull, s | create and run, s | ready, s | min | max | MB through the link | requests | image, MB |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| esgz | 2 | 0.50 | 14.50 | **15.00** | 10.00 | 20.00 | 10.0 | 10 | 3000.0 |
| plain, pulled whole | 1 | 0.50 | 59.50 | **60.00** | 60.00 | 60.00 | 10.0 | 10 | 3000.0 |
| ctr-remote | 2 | 0.50 | 26.50 | **27.00** | 24.00 | 30.00 | 10.0 | 10 | 3000.0 |
";
        assert!(text.starts_with(expected), "{text}");
    }
}
