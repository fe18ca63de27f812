//! What the program `profilers` printed.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::median::{Median, median};

/// All runs, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Results {
    runs: Vec<Value>,
    /// A row for each program; of the last time that it was looked at.
    pub(super) differences: Vec<Value>,
    /// Commit, cores, kernel.
    pub(super) machines: Vec<String>,
}

/// What others are compared with.
pub(super) const NONE: &str = "none";

impl Results {
    /// Lines of JSON.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut results = Self::default();
        for line in text.lines() {
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("line {line:?}"))?;
            if let Some(machine) = value["machine"].as_str() {
                if !results.machines.iter().any(|known| known == machine) {
                    results.machines.push(machine.to_owned());
                }
            } else if value["differences_of"].is_string() {
                let same = |known: &Value| known["differences_of"] == value["differences_of"];
                results.differences.retain(|known| !same(known));
                results.differences.push(value);
            } else {
                results.runs.push(value);
            }
        }
        Ok(results)
    }

    /// The number of the last round.
    pub(super) fn rounds(&self) -> usize {
        let rounds = self.runs.iter().filter_map(|run| run["round"].as_u64());
        rounds
            .max()
            .and_then(|last| usize::try_from(last).ok())
            .unwrap_or(0)
    }

    /// How many rounds there are of these workloads at most, with nobody watching.
    pub(super) fn rounds_of(&self, workloads: &[&str]) -> usize {
        let counts = workloads.iter().map(|name| self.of(name, NONE).count());
        counts.max().unwrap_or(0)
    }

    /// Names of workloads, in the order of their first runs.
    pub(super) fn workloads(&self) -> Vec<&str> {
        self.names("workload")
    }

    /// Names of subjects, the one that the others are compared with first, then the other ones that do not watch.
    pub(super) fn subjects(&self) -> Vec<&str> {
        let mut names = self.names("subject");
        names.sort_by_key(|&name| (name != NONE, !name.starts_with(NONE)));
        names
    }

    fn names(&self, key: &str) -> Vec<&str> {
        let mut names = Vec::new();
        for name in self.runs.iter().filter_map(|run| run[key].as_str()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn of<'a>(&'a self, workload: &'a str, subject: &'a str) -> impl Iterator<Item = &'a Value> {
        self.runs
            .iter()
            .filter(move |run| run["workload"] == workload && run["subject"] == subject)
    }

    /// The median of a figure (`/`-separated, as RFC 6901 has it) over rounds.
    pub(super) fn figure(&self, workload: &str, subject: &str, pointer: &str) -> Option<Median> {
        let figures: Vec<f64> = self
            .of(workload, subject)
            .filter_map(|run| run.pointer(pointer)?.as_f64())
            .collect();
        median(&figures)
    }

    /// The median of a figure's quotient by that of the same round with nobody watching, minus 1.
    pub(super) fn slow_down(&self, workload: &str, subject: &str, pointer: &str) -> Option<Median> {
        median(&self.slow_downs(workload, subject, pointer))
    }

    /// The same over all of these workloads: each counts with all its rounds.
    pub(super) fn slow_down_of_all(
        &self,
        workloads: &[&str],
        subject: &str,
        pointer: &str,
    ) -> Option<Median> {
        let all: Vec<f64> = workloads
            .iter()
            .flat_map(|workload| self.slow_downs(workload, subject, pointer))
            .collect();
        median(&all)
    }

    fn slow_downs(&self, workload: &str, subject: &str, pointer: &str) -> Vec<f64> {
        let number = |run: &Value| run.pointer(pointer).and_then(Value::as_f64);
        let none = |round: &Value| {
            let same = self.of(workload, NONE).find(|run| run["round"] == *round);
            same.and_then(number)
        };
        self.of(workload, subject)
            .filter_map(|run| Some(number(run)? / none(&run["round"])? - 1.0))
            .collect()
    }

    /// The largest of a figure.
    pub(super) fn largest(&self, subject: &str, pointer: &str) -> Option<f64> {
        let of_subject = self.runs.iter().filter(|run| run["subject"] == subject);
        of_subject
            .filter_map(|run| run.pointer(pointer)?.as_f64())
            .max_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_downs_are_those_of_the_same_round() {
        let text = r#"{"machine":"m"}
{"differences_of":"w"}
{"workload":"w","subject":"x","round":1,"wall_seconds":2.0}
{"workload":"w","subject":"none","round":1,"wall_seconds":1.0}
{"workload":"w","subject":"none","round":2,"wall_seconds":10.0}
{"workload":"w","subject":"x","round":2,"wall_seconds":11.0}
{"workload":"w","subject":"x","round":3,"wall_seconds":99.0}
"#;
        let results = Results::parse(text).unwrap();
        assert_eq!(results.rounds(), 3);
        assert_eq!(results.rounds_of(&["w", "v"]), 2);
        assert_eq!(results.subjects(), ["none", "x"]);
        assert_eq!(
            results.slow_downs("w", "x", "/wall_seconds"),
            [1.0, 11.0 / 10.0 - 1.0]
        );
        assert_eq!(results.largest("x", "/wall_seconds"), Some(99.0));
        assert_eq!(results.differences.len(), 1);
        assert!(Results::parse("x").is_err());
    }
}
