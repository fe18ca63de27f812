//! Runs as lines of `runs.jsonl`.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::link::{Link, Request, Traffic};
use super::node::BackgroundFetch;

/// One run, and what went through the link in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) image: String,
    pub(super) contender: String,
    pub(super) is_lazy: bool,
    pub(super) link: Link,
    pub(super) background_fetch: BackgroundFetch,
    pub(super) round: usize,
    pub(super) image_bytes: u64,
    pub(super) pull_seconds: f64,
    /// From the container's creation until it was ready.
    pub(super) start_seconds: f64,
    /// Until the image was pulled.
    pub(super) pulled: Traffic,
    /// From then until it was ready.
    pub(super) started: Traffic,
}

impl Run {
    pub(super) fn total_seconds(&self) -> f64 {
        self.pull_seconds + self.start_seconds
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pulled.bytes + self.started.bytes
    }

    pub(super) fn requests(&self) -> u64 {
        self.pulled.requests + self.started.requests
    }

    /// One line of `runs.jsonl`, without its end.
    pub(super) fn to_json(&self) -> Value {
        let traffic = |traffic: &Traffic| {
            json!({
                "bytes": traffic.bytes,
                "requests": traffic.requests,
                "connections": traffic.connections,
            })
        };
        json!({
            "image": self.image,
            "contender": self.contender,
            "lazy": self.is_lazy,
            "mb_per_second": self.link.mb_per_second,
            "round_trip_ms": self.link.round_trip_ms,
            "background_fetch": self.background_fetch == BackgroundFetch::On,
            "round": self.round,
            "image_bytes": self.image_bytes,
            "pull_seconds": micros(self.pull_seconds),
            "start_seconds": micros(self.start_seconds),
            "total_seconds": micros(self.total_seconds()),
            "pull": traffic(&self.pulled),
            "start": traffic(&self.started),
        })
    }

    /// One line of `requests.jsonl`: what was asked for once the image was pulled.
    pub(super) fn requests_json(&self, requests: &[Request]) -> Value {
        let requests = requests.iter().map(|request| {
            json!({
                "seconds": micros(request.seconds),
                "request": request.line,
                "range": request.range,
            })
        });
        json!({
            "image": self.image,
            "contender": self.contender,
            "mb_per_second": self.link.mb_per_second,
            "background_fetch": self.background_fetch == BackgroundFetch::On,
            "round": self.round,
            "requests": requests.collect::<Vec<_>>(),
        })
    }

    fn from_json(line: &Value) -> Option<Self> {
        let traffic = |name: &str| {
            let of = |figure: &str| line[name][figure].as_u64();
            Some(Traffic {
                bytes: of("bytes")?,
                requests: of("requests")?,
                connections: of("connections")?,
            })
        };
        Some(Self {
            image: line["image"].as_str()?.to_owned(),
            contender: line["contender"].as_str()?.to_owned(),
            is_lazy: line["lazy"].as_bool()?,
            link: Link {
                mb_per_second: line["mb_per_second"].as_f64()?,
                round_trip_ms: line["round_trip_ms"].as_f64()?,
            },
            background_fetch: if line["background_fetch"].as_bool()? {
                BackgroundFetch::On
            } else {
                BackgroundFetch::Off
            },
            round: usize::try_from(line["round"].as_u64()?).ok()?,
            image_bytes: line["image_bytes"].as_u64()?,
            pull_seconds: line["pull_seconds"].as_f64()?,
            start_seconds: line["start_seconds"].as_f64()?,
            pulled: traffic("pull")?,
            started: traffic("start")?,
        })
    }
}

fn micros(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

/// The runs of a `runs.jsonl`.
pub(super) fn parse(text: &str) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let run = Run::from_json(&value);
        runs.push(run.with_context(|| format!("line {} is no run: {line:?}", number + 1))?);
    }
    Ok(runs)
}

#[cfg(test)]
pub(super) fn made_up(contender: &str, round: usize, total_seconds: f64) -> Run {
    Run {
        image: "torch".to_owned(),
        contender: contender.to_owned(),
        is_lazy: contender != "plain",
        link: Link {
            mb_per_second: 125.0,
            round_trip_ms: 10.0,
        },
        background_fetch: BackgroundFetch::Off,
        round,
        image_bytes: 3_000_000_000,
        pull_seconds: 0.5,
        start_seconds: total_seconds - 0.5,
        pulled: Traffic {
            bytes: 1_000_000,
            requests: 4,
            connections: 2,
        },
        started: Traffic {
            bytes: 9_000_000,
            requests: 6,
            connections: 1,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_survives_its_line() {
        let run = made_up("esgz", 3, 14.25);
        let text = format!("{}\n{}\n", run.to_json(), run.to_json());
        assert_eq!(parse(&text).unwrap(), [run.clone(), run]);
        let error = parse("{}\n").unwrap_err().to_string();
        assert!(error.starts_with("line 1 is no run"), "{error}");
    }
}
