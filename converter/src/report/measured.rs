//! Measured runs: the `runs.jsonl` that `cargo xtask bench readiness` writes. Pure: text to medians.

use serde::Deserialize;

use crate::simulate::Link;

/// Runs of one contender over one link.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// `plain`, `estargz`, `ctr-remote`, `esgz`, or another.
    pub contender: String,
    /// What they went through.
    pub link: Link,
    /// Until ready, of each run, ascending.
    pub seconds: Vec<f64>,
}

/// Why a file is no list of runs, or not of this image's.
#[derive(Debug, thiserror::Error)]
pub enum MeasuredError {
    /// Not JSON, or a key is missing.
    #[error("line {number} is no run of a readiness benchmark")]
    Line {
        /// From 1 on.
        number: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Several images, and none is named.
    #[error("holds runs of {}: which is meant?", known.join(", "))]
    Ambiguous {
        /// The names there.
        known: Vec<String>,
    },
    /// No runs of that image.
    #[error("holds runs of {}, and none of {wanted}", known.join(", "))]
    Unknown {
        /// The names there.
        known: Vec<String>,
        /// The name that was given.
        wanted: String,
    },
    /// There are no runs.
    #[error("holds no runs")]
    Empty,
}

#[derive(Deserialize)]
struct Run {
    image: String,
    contender: String,
    mb_per_second: f64,
    round_trip_ms: f64,
    background_fetch: bool,
    total_seconds: f64,
}

impl Measured {
    /// The runs of the image called `image`, or of the only one, without background fetch.
    ///
    /// # Errors
    /// [`MeasuredError`] says which line is no run, or which images there are.
    pub fn parse(text: &str, image: Option<&str>) -> Result<Vec<Self>, MeasuredError> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let run = serde_json::from_str(line);
            runs.push(run.map_err(|source| MeasuredError::Line { number, source })?);
        }
        let mut known: Vec<String> = runs.iter().map(|run| run.image.clone()).collect();
        known.sort_unstable();
        known.dedup();
        let image = match (image, known.as_slice()) {
            (_, []) => return Err(MeasuredError::Empty),
            (Some(name), names) if names.iter().any(|known| known == name) => name.to_owned(),
            (None, [only]) => only.clone(),
            (None, _) => return Err(MeasuredError::Ambiguous { known }),
            (Some(wanted), _) => {
                let wanted = wanted.to_owned();
                return Err(MeasuredError::Unknown { known, wanted });
            }
        };
        let mut groups: Vec<Self> = Vec::new();
        for run in runs {
            if run.image != image || run.background_fetch {
                continue;
            }
            let link = Link {
                bytes_per_second: run.mb_per_second * 1e6,
                round_trip_seconds: run.round_trip_ms / 1e3,
            };
            let is_same =
                |group: &&mut Self| group.contender == run.contender && group.link == link;
            match groups.iter_mut().find(is_same) {
                Some(group) => group.seconds.push(run.total_seconds),
                None => groups.push(Self {
                    contender: run.contender,
                    link,
                    seconds: vec![run.total_seconds],
                }),
            }
        }
        for group in &mut groups {
            group.seconds.sort_by(f64::total_cmp);
        }
        Ok(groups)
    }

    /// The median.
    pub fn median_seconds(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        match self.seconds.len() % 2 {
            1 => self.seconds[middle],
            _ => f64::midpoint(self.seconds[middle - 1], self.seconds[middle]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(image: &str, contender: &str, seconds: f64, background_fetch: bool) -> String {
        format!(
            r#"{{"image":"{image}","contender":"{contender}","lazy":true,"mb_per_second":125.0,"round_trip_ms":10.0,"background_fetch":{background_fetch},"total_seconds":{seconds}}}"#
        )
    }

    #[test]
    fn runs_are_grouped() {
        let text = [
            line("a", "esgz", 9.0, false),
            line("a", "plain", 60.0, false),
            line("b", "esgz", 1.0, false),
            line("a", "esgz", 5.0, false),
            line("a", "esgz", 99.0, true),
        ]
        .join("\n");
        let groups = Measured::parse(&text, Some("a")).unwrap();
        assert_eq!(groups.len(), 2);
        assert_eq!(
            (groups[0].seconds.as_slice(), groups[0].median_seconds()),
            (&[5.0, 9.0][..], 7.0)
        );
        assert_eq!(groups[0].link, Link::FAST);
        assert_eq!(
            Measured::parse(&line("a", "x", 3.0, false), None).unwrap()[0].median_seconds(),
            3.0
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let check = |text: &str, image, message: &str| {
            let error = Measured::parse(text, image).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        let two = format!(
            "{}\n{}",
            line("a", "x", 1.0, false),
            line("b", "x", 1.0, false)
        );
        check("", None, "no runs");
        check(&two, None, "holds runs of a, b: which");
        check(&two, Some("c"), "and none of c");
        check(&format!("{two}\nx"), None, "line 3");
    }
}
