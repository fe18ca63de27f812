//! The tables of a `bench profiler`.

use std::fmt::Write as _;

use anyhow::Result;

use super::median::Median;
use super::results::{NONE, Results};

/// Workloads that are no programs.
const GENERATORS: [&str; 5] = ["ways", "odd", "scripts", "order", "storm"];
/// The workload beside which something is timed.
const BYSTANDER: &str = "bystander";

/// Names of workloads whose files were cached beforehand end with this.
const WARM: &str = "-warm";

/// What the page cache holds before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    Cold,
    Warm,
}

/// Those that count for the slow-down of all.
pub(super) fn programs(results: &Results, cache: Cache) -> Vec<&str> {
    let is_program = |name: &&str| {
        let of = name.trim_end_matches(WARM);
        !GENERATORS.contains(&of) && of != BYSTANDER
    };
    let is_wanted = |name: &&str| name.ends_with(WARM) == (cache == Cache::Warm);
    let names = results.workloads().into_iter();
    names.filter(is_program).filter(is_wanted).collect()
}

/// Markdown.
pub(super) fn table(results: &Results) -> Result<String> {
    let mut text = format!(
        "Profilers side by side, {}.\n\n\
        Medians over rounds. Behind them the interval that holds the true median with at least 95 %: order statistics of \
        the sign test, from the smallest to the largest figure where there are too few rounds for that (five: 93.8 %). \
        Slow-downs are quotients with the run of the same round and workload under nobody, the row `{NONE}`.\n",
        results.machines.join("; "),
    );
    for (cache, what) in [
        (Cache::Cold, "nothing cached, as `esgz` runs it"),
        (Cache::Warm, "everything cached before"),
    ] {
        let title = |how: &str| format!("Slow-down of the workload {how}, %; {what}");
        let columns = (cache, title("by the clock"), "/wall_seconds");
        slow_down(&mut text, results, columns)?;
        slow_down(
            &mut text,
            results,
            (cache, title("in CPU time"), "/cpu_seconds"),
        )?;
    }
    bystander(&mut text, results)?;
    agreement(&mut text, results)?;
    cost(&mut text, results)?;
    Ok(text)
}

/// A column for each workload, one for all programs together.
fn slow_down(
    text: &mut String,
    results: &Results,
    (cache, title, pointer): (Cache, String, &str),
) -> Result<()> {
    let programs = programs(results, cache);
    let mut columns = programs.clone();
    let storm = match cache {
        Cache::Cold => "storm",
        Cache::Warm => "storm-warm",
    };
    let all = results.workloads().into_iter();
    columns.extend(all.filter(|name| *name == storm));
    if columns.is_empty() {
        return Ok(());
    }
    let aligned = "--:|".repeat(columns.len() + 1);
    let columns_row = columns.join(" | ");
    writeln!(
        text,
        "\n## {title}\n\n{} rounds.\n\n| | all programs | {columns_row} |\n|---|{aligned}",
        results.rounds_of(&columns),
    )?;
    let seconds: Vec<String> = columns
        .iter()
        .map(|name| {
            let none = results.figure(name, NONE, pointer);
            none.map_or_else(String::new, |none| format!("{:.3} s", none.value))
        })
        .collect();
    writeln!(text, "| {NONE} | | {} |", seconds.join(" | "))?;
    for subject in results.subjects().into_iter().filter(|name| *name != NONE) {
        let of_columns = results.slow_down_of_all(&columns, subject, pointer);
        if of_columns.is_none() {
            continue;
        }
        let all = percent(results.slow_down_of_all(&programs, subject, pointer));
        let cells: Vec<String> = columns
            .iter()
            .map(|name| percent(results.slow_down(name, subject, pointer)))
            .collect();
        writeln!(text, "| {subject} | {all} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

/// `+1.2 [0.3, 2.0]`.
fn percent(slow_down: Option<Median>) -> String {
    slow_down.map_or_else(String::new, |of| {
        let [value, low, high] = [of.value, of.low, of.high].map(|part| {
            // No negative zero.
            let percent = (part * 1000.0).round() / 10.0 + 0.0;
            if percent.abs() >= 100.0 {
                format!("{percent:+.0}")
            } else {
                format!("{percent:+.1}")
            }
        });
        format!("{value} [{low}, {high}]")
    })
}

fn bystander(text: &mut String, results: &Results) -> Result<()> {
    if !results.workloads().contains(&BYSTANDER) {
        return Ok(());
    }
    writeln!(
        text,
        "\n## Slow-down of a bystander, %\n\n\
        {} rounds. A process outside of the cgroup, while a workload in it opens, reads and maps files without end. *reading*: files \
        of 64 KiB are opened, read and hashed; *opening*: a file is opened and closed, nothing else.\n\n\
        | | reading, clock | reading, CPU | opening, clock | opening, CPU |\n|---|--:|--:|--:|--:|",
        results.rounds_of(&[BYSTANDER]),
    )?;
    let figures = ["reading", "opening"].map(|work| {
        ["wall_seconds", "cpu_seconds"].map(|figure| format!("/bystander/{work}/{figure}"))
    });
    let figures: Vec<&String> = figures.iter().flatten().collect();
    for subject in results.subjects() {
        let cells: Vec<String> = figures
            .iter()
            .map(|pointer| match subject {
                NONE => results
                    .figure(BYSTANDER, NONE, pointer)
                    .map_or_else(String::new, |none| format!("{:.3} s", none.value)),
                _ => percent(results.slow_down(BYSTANDER, subject, pointer)),
            })
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            writeln!(text, "| {subject} | {} |", cells.join(" | "))?;
        }
    }
    Ok(())
}

/// What was seen, beside the truth.
fn agreement(text: &mut String, results: &Results) -> Result<()> {
    let compared = |workload: &&str| {
        let mut subjects = results.subjects().into_iter();
        subjects.any(|name| {
            results
                .figure(workload, name, "/truth/files/truth")
                .is_some()
        })
    };
    let workloads: Vec<&str> = results.workloads().into_iter().filter(compared).collect();
    if workloads.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n## What was seen\n\n\
        Medians of recall and precision. The truth of a program: files that `strace -f` saw, and what the kernel opens \
        for them; ranges are what mincore(2) finds in the page cache after a run without read-ahead. The truth of a \
        generator is what it does; only its own files count. Whoever sees no ranges is taken to mean whole files. Order: \
        Kendall's τ of first touches.\n\n\
        | workload | subject | files: recall | precision | 64 KiB: recall | precision | pages: recall | precision | order | lost |\n\
        |---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for workload in workloads {
        for subject in results.subjects() {
            if results
                .figure(workload, subject, "/truth/files/truth")
                .is_none()
            {
                continue;
            }
            let share = |pointer: &str| {
                let median = results.figure(workload, subject, pointer);
                median.map_or_else(String::new, |median| rounded_down(median.value))
            };
            let lost = results.figure(workload, subject, "/lost_events");
            writeln!(
                text,
                "| {workload} | {subject} | {} | {} | {} | {} | {} | {} | {} | {} |",
                share("/truth/files/recall"),
                share("/truth/files/precision"),
                share("/truth/windows/recall"),
                share("/truth/windows/precision"),
                share("/truth/pages/recall"),
                share("/truth/pages/precision"),
                share("/truth/order_tau"),
                lost.map_or_else(String::new, |lost| format!("{}", lost.high)),
            )?;
        }
    }
    Ok(())
}

/// Three decimals; 1 is said of nothing less.
fn rounded_down(share: f64) -> String {
    format!("{:.3}", (share * 1000.0).floor() / 1000.0)
}

fn cost(text: &mut String, results: &Results) -> Result<()> {
    let programs = [Cache::Cold, Cache::Warm].map(|cache| programs(results, cache));
    let programs = programs.concat();
    writeln!(
        text,
        "\n## What the subject itself takes\n\n\
        Its own processes, not what the kernel does for it in the workload's. CPU time includes the start and the \
        evaluation, memory does not include the latter. Largest median of the programs.\n\n\
        | | to attach, s | to finish, s | CPU, s | peak memory, MiB |\n|---|--:|--:|--:|--:|"
    )?;
    for subject in results.subjects() {
        let worst = |pointer: &str| {
            let medians = programs
                .iter()
                .filter_map(|workload| Some(results.figure(workload, subject, pointer)?.value));
            medians
                .max_by(f64::total_cmp)
                .map_or_else(String::new, |seconds| format!("{seconds:.3}"))
        };
        let memory = results.largest(subject, "/subject_peak_bytes");
        writeln!(
            text,
            "| {subject} | {} | {} | {} | {} |",
            worst("/attach_seconds"),
            worst("/finish_seconds"),
            worst("/subject_cpu_seconds"),
            memory.map_or_else(String::new, |bytes| format!("{:.0}", bytes / 1_048_576.0)),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_rows() {
        let text = r#"{"machine":"m"}
{"workload":"gcc","subject":"none","round":1,"wall_seconds":1.0,"cpu_seconds":1.0,"attach_seconds":0.0}
{"workload":"gcc","subject":"x","round":1,"wall_seconds":3.5,"cpu_seconds":1.01,"subject_peak_bytes":2097152,"lost_events":0,"truth":{"files":{"truth":3,"recall":1.0,"precision":0.99999}}}
{"workload":"bystander","subject":"none","round":1,"bystander":{"reading":{"wall_seconds":1.0,"cpu_seconds":1.0}}}
{"workload":"bystander","subject":"x","round":1,"bystander":{"reading":{"wall_seconds":0.9996,"cpu_seconds":1.2}}}
"#;
        let table = table(&Results::parse(text).unwrap()).unwrap();
        for row in [
            "| none | | 1.000 s |",
            "| x | +250 [+250, +250] | +250 [+250, +250] |",
            "| x | +1.0 [+1.0, +1.0] | +1.0 [+1.0, +1.0] |",
            "| x | +0.0 [+0.0, +0.0] | +20.0 [+20.0, +20.0] |  |  |",
            "| gcc | x | 1.000 | 0.999 |  |  |  |  |  | 0 |",
            "| x |  |  |  | 2 |",
        ] {
            assert!(table.contains(row), "{row} not in {table}");
        }
    }
}
