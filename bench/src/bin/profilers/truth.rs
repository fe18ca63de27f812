//! What a workload touches, and how that compares with what was seen.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::differences::Classes;
use crate::measure::{Launched, launch};
use crate::metrics::{Order, PagesOf, of_files, of_order, of_ranges, pages};
use crate::scene::Scene;
use crate::subject::{Program, READ_AHEAD_KIB, Resident, Seen, Strace, Subject as _};
use crate::workload::Workload;

/// So many files that were missed, or seen in vain, stand in the results.
const EXAMPLES: usize = 8;

/// What one run touched. None: not known.
pub(crate) struct Truth {
    files: Order,
    is_ordered: bool,
    pages: Option<PagesOf>,
    /// Only files of this layer count.
    layer: Option<u32>,
}

impl Truth {
    /// What the generator knows; or for a program: files as strace and the closure of interpreters have them, pages as
    /// mincore(2) has them after a run without read-ahead. The second value is how esgz compares with strace on the same
    /// run.
    pub(crate) fn of(workload: &Workload, scratch: &Path) -> Result<(Self, Option<Value>)> {
        if let Some(known) = &workload.known {
            let truth = Self {
                files: known.files.clone(),
                is_ordered: known.is_ordered,
                pages: (!known.pages.is_empty()).then(|| known.pages.clone()),
                layer: Some(u32::try_from(workload.image.layers.len() - 1)?),
            };
            return Ok((truth, None));
        }
        let (files, differences) = traced(workload, scratch)?;
        let truth = Self {
            files,
            is_ordered: true,
            pages: Some(resident(workload, scratch)?),
            layer: None,
        };
        Ok((truth, Some(differences)))
    }

    /// Recall and precision of files, of stretches of 64 KiB and of pages, and the order's correlation.
    pub(crate) fn compare(&self, seen: &Seen, scene: &Scene) -> Value {
        let counted = |row: usize| {
            let file = &scene.files[row];
            self.layer.is_none_or(|layer| file.layer == layer)
        };
        let rows = || seen.files.iter().filter(|file| counted(file.row));
        let order: Order = rows()
            .map(|file| scene.files[file.row].path.clone())
            .collect();
        let mut result = json!({"files": of_files(&self.files, &order).json()});
        let without = |some: &Order, others: &Order| -> Vec<String> {
            let lacking = some.iter().filter(|name| !others.contains(name));
            lacking.take(EXAMPLES).cloned().collect()
        };
        result["missed"] = without(&self.files, &order).into();
        result["extra"] = without(&order, &self.files).into();
        if self.is_ordered {
            result["order_tau"] = of_order(&self.files, &order).into();
        }
        if let Some(truth) = &self.pages {
            let mut found = PagesOf::new();
            for file in rows() {
                let image_file = &scene.files[file.row];
                // Of a generator's files only some have known pages.
                if self.layer.is_some() && !truth.contains_key(&image_file.path) {
                    continue;
                }
                let touched = match &file.ranges {
                    Some(ranges) => pages(ranges),
                    None => pages(&[(0, image_file.size_bytes)]),
                };
                found.insert(image_file.path.clone(), touched);
            }
            let (by_page, by_window) = of_ranges(truth, &found);
            result["windows"] = by_window.json();
            result["pages"] = by_page.json();
        }
        result
    }
}

/// One run under strace, and esgz beside it.
fn traced(workload: &Workload, scratch: &Path) -> Result<(Order, Value)> {
    let scene = Scene::set(&workload.image, READ_AHEAD_KIB, scratch)?;
    let esgz = Program::watch("esgz", "filemap", READ_AHEAD_KIB)?.attach(&scene)?;
    let tracer = Strace::seccomp().start(&scene);
    let launched = launch(workload, &scene, &tracer, scratch)?;
    launched.finish(&scene)?;
    let seen = esgz.finish(&scene)?.context("esgz sees something")?;
    let log = tracer.read(&scene)?;
    let classes = Classes::of(&log, &scene);
    let names = classes.names(&scene);
    let mut differences = classes.against(&seen, &scene);
    differences["differences_of"] = workload.name.clone().into();
    differences["esgz_lost_events"] = seen.lost_events.into();
    scene.strike()?;
    Ok((names, differences))
}

fn resident(workload: &Workload, scratch: &Path) -> Result<PagesOf> {
    let subject = Resident;
    let scene = Scene::set(&workload.image, subject.read_ahead_kib(), scratch)?;
    let attached = subject.attach(&scene)?;
    let launched: Launched = launch(workload, &scene, attached.as_ref(), scratch)?;
    launched.finish(&scene)?;
    let seen = attached.finish(&scene)?.context("mincore sees something")?;
    let mut found = PagesOf::new();
    for file in seen.files {
        let name = scene.files[file.row].path.clone();
        found.insert(name, pages(&file.ranges.unwrap_or_default()));
    }
    scene.strike()?;
    Ok(found)
}
