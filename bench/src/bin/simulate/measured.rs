//! Measured runs, grouped by what was the same in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use esgz::cancel::Cancel;
use esgz::image::{Digest, ImageRef};
use esgz::profile::Profile;
use esgz::registry::RegistryOptions;
use esgz::simulate::{Constants, ImageModel, LayerModel, Link, Prediction, Pulling, simulate};
use esgz::source::{self, OpenOptions, Selection};
use serde_json::Value;

/// Runs of one image over one link.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) image: String,
    pub(crate) contender: String,
    pub(crate) link: Link,
    pub(crate) pulling: Pulling,
    pub(crate) image_bytes: u64,
    /// Of each run.
    pub(crate) seconds: Vec<f64>,
    bytes: Vec<f64>,
    requests: Vec<f64>,
}

impl Group {
    pub(crate) fn median_seconds(&self) -> f64 {
        median(&self.seconds)
    }

    pub(crate) fn median_bytes(&self) -> f64 {
        median(&self.bytes)
    }

    pub(crate) fn median_requests(&self) -> f64 {
        median(&self.requests)
    }
}

/// What was measured, and what it is predicted from.
pub(crate) struct Case {
    pub(crate) group: Group,
    model: ImageModel,
    profile: Profile,
}

impl Case {
    pub(crate) fn predict(&self, constants: &Constants) -> Prediction {
        let group = &self.group;
        simulate(
            &self.model,
            &self.profile,
            group.link,
            group.pulling,
            constants,
        )
    }
}

/// Reads a `runs.jsonl`. Runs with background fetch are left out: it is not simulated.
pub(crate) fn groups(text: &str) -> Result<Vec<Group>> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let run = parse(line).with_context(|| format!("line {number} is no run"))?;
        let Some((key, run)) = run else {
            continue;
        };
        match groups.entry(key) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(run);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                let group = slot.get_mut();
                group.seconds.extend(run.seconds);
                group.bytes.extend(run.bytes);
                group.requests.extend(run.requests);
            }
        }
    }
    Ok(groups.into_values().collect())
}

fn parse(line: &str) -> Result<Option<(String, Group)>> {
    let run: Value = serde_json::from_str(line)?;
    let number = |value: &Value| value.as_f64().context("a number is missing");
    let text = |key: &str| {
        let text = run[key].as_str().map(str::to_owned);
        text.with_context(|| format!("{key} is missing"))
    };
    if run["background_fetch"]
        .as_bool()
        .context("background_fetch is missing")?
    {
        return Ok(None);
    }
    let sum = |figure: &str| -> Result<f64> {
        Ok(number(&run["pull"][figure])? + number(&run["start"][figure])?)
    };
    let link = Link {
        bytes_per_second: number(&run["mb_per_second"])? * 1e6,
        round_trip_seconds: number(&run["round_trip_ms"])? / 1e3,
    };
    let group = Group {
        image: text("image")?,
        contender: text("contender")?,
        link,
        pulling: match run["lazy"].as_bool().context("lazy is missing")? {
            true => Pulling::Lazy,
            false => Pulling::Eager,
        },
        image_bytes: run["image_bytes"]
            .as_u64()
            .context("image_bytes is missing")?,
        seconds: vec![number(&run["total_seconds"])?],
        bytes: vec![sum("bytes")?],
        requests: vec![sum("requests")?],
    };
    // From fast to slow links.
    let slowness = 1e15 - link.bytes_per_second;
    let key = format!(
        "{} {slowness:016.0} {link} {}",
        group.image, group.contender
    );
    Ok(Some((key, group)))
}

/// Reads the images' TOCs and profiles. Runs whose image is not there any more are left out.
pub(crate) fn cases(groups: Vec<Group>, images: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for group in groups {
        let dir = images.join(&group.image);
        let own = dir.join(&group.contender);
        // The source lies elsewhere. Layers of what was made of it are of about its sizes.
        let layout = if own.exists() {
            own
        } else {
            dir.join("estargz")
        };
        let profile = dir.join("profile.json");
        if !layout.exists() || !profile.exists() {
            println!(
                "{} of {}: the image is not there",
                group.contender, group.image
            );
            continue;
        }
        let json = fs::read(&profile).with_context(|| format!("reading {}", profile.display()))?;
        let mut model = read_model(&layout)?;
        if group.pulling == Pulling::Eager {
            model = scaled(&model, group.image_bytes);
        }
        cases.push(Case {
            group,
            model,
            profile: Profile::parse(&json)?,
        });
    }
    Ok(cases)
}

fn read_model(layout: &Path) -> Result<ImageModel> {
    let reference: ImageRef = format!("oci:{}", layout.display()).parse()?;
    let options = OpenOptions {
        scratch: std::env::temp_dir(),
        max_unpacked_bytes: u64::MAX,
        registry: RegistryOptions::default(),
        containerd: esgz::containerd::ContainerdOptions::default(),
    };
    let opened = source::open(
        &reference,
        &Selection::ThisMachine,
        &options,
        &Cancel::default(),
    )?;
    Ok(ImageModel::read(&opened.into_image()?)?)
}

/// Layers of the same proportions and files, `bytes` together.
fn scaled(model: &ImageModel, bytes: u64) -> ImageModel {
    let all: u64 = model.layers.iter().map(|layer| layer.size_bytes).sum();
    let factor = bytes as f64 / all.max(1) as f64;
    let layers = model.layers.iter().map(|layer| LayerModel {
        digest: Digest::of(layer.digest.to_string().as_bytes()),
        size_bytes: (layer.size_bytes as f64 * factor) as u64,
        // Not fetched by it; but files that are unpacked take time.
        contents: layer.contents.clone(),
    });
    ImageModel {
        document_bytes: model.document_bytes,
        layers: layers.collect(),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => f64::NAN,
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_grouped() {
        let run = |contender: &str, background_fetch: bool, seconds: f64| {
            serde_json::json!({"image": "torch", "contender": contender, "lazy": contender != "plain",
                "mb_per_second": 25.0, "round_trip_ms": 40.0, "background_fetch": background_fetch,
                "round": 1, "image_bytes": 9, "pull_seconds": 1.0, "start_seconds": seconds - 1.0,
                "total_seconds": seconds, "pull": {"bytes": 5, "requests": 1, "connections": 1},
                "start": {"bytes": 7, "requests": 2, "connections": 1}})
            .to_string()
        };
        let text = [
            run("esgz", false, 3.0),
            run("plain", false, 9.0),
            run("esgz", false, 5.0),
            run("esgz", true, 99.0),
            run("esgz", false, 4.5),
        ]
        .join("\n");
        let groups = groups(&text).unwrap();
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].seconds, [3.0, 5.0, 4.5]);
        let figures = (groups[0].median_seconds(), groups[0].median_bytes());
        assert_eq!(figures, (4.5, 12.0));
        assert_eq!(groups[1].pulling, Pulling::Eager);
        assert!(
            super::groups("{}")
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
    }

    #[test]
    fn medians_lie_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
