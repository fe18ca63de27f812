//! What strace and a profiler say of the same run, file by file.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::{FileType, OFlags};
use serde_json::{Value, json};

use crate::closure::closure;
use crate::metrics::Order;
use crate::scene::Scene;
use crate::subject::{Call, Seen, StraceLog};

/// What strace saw, in classes.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    /// Rows of files that were opened or executed, in order, each with what the kernel opened for it.
    pub(crate) files: Vec<usize>,
    /// Those that the kernel opened.
    by_kernel: BTreeSet<usize>,
    /// Those of which every descriptor was one of `O_PATH`.
    only_as_path: BTreeSet<usize>,
    directories: BTreeSet<String>,
    of_workload: BTreeSet<String>,
    elsewhere: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Classes {
    /// Reads files of the image: whoever looks at the page cache must have done so before.
    pub(crate) fn of(log: &StraceLog, scene: &Scene) -> Self {
        let mut classes = Self::default();
        let mut known = BTreeSet::new();
        let mut really = BTreeSet::new();
        for call in &log.calls {
            match call {
                Call::Failed { path } => drop(classes.failed.insert(path.clone())),
                Call::Elsewhere { path } => drop(classes.elsewhere.insert(path.clone())),
                Call::Executed { path } => {
                    let row = scene.row(path);
                    let by_kernel = closure(scene, path);
                    classes.by_kernel.extend(&by_kernel);
                    for row in row.into_iter().chain(by_kernel) {
                        really.insert(row);
                        if known.insert(row) {
                            classes.files.push(row);
                        }
                    }
                }
                Call::Opened { path, only_as_path } => match scene.row(path) {
                    Some(row) => {
                        if known.insert(row) {
                            classes.files.push(row);
                        }
                        if !only_as_path {
                            really.insert(row);
                        }
                    }
                    None if is_directory(scene, path) => {
                        classes.directories.insert(path.clone());
                    }
                    None => drop(classes.of_workload.insert(path.clone())),
                },
            }
        }
        classes.only_as_path = known.difference(&really).copied().collect();
        classes
    }

    /// Names of [`Self::files`].
    pub(crate) fn names(&self, scene: &Scene) -> Order {
        let name = |&row: &usize| scene.files[row].path.clone();
        self.files.iter().map(name).collect()
    }

    /// How it compares with what `seen` has: counts of each class, and every file that only one of them has.
    pub(crate) fn against(&self, seen: &Seen, scene: &Scene) -> Value {
        let expected: BTreeSet<usize> = self.files.iter().copied().collect();
        let found: BTreeSet<usize> = seen.files.iter().map(|file| file.row).collect();
        let mut differences = Vec::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let one_sided = expected
            .symmetric_difference(&found)
            .map(|&row| (row, expected.contains(&row)));
        for (row, only_strace) in one_sided {
            let class = match only_strace {
                true if self.only_as_path.contains(&row) => {
                    "opened with O_PATH, which reads nothing"
                }
                true => "not explained: strace alone",
                false if self.tried(scene, row) => {
                    "executed in vain: the kernel read its beginning"
                }
                false => "not explained: esgz alone",
            };
            *counts.entry(class).or_default() += 1;
            differences.push(json!({"path": scene.files[row].path, "class": class}));
        }
        let explained = |class: &&str| !class.starts_with("not explained");
        json!({
            "strace_files": expected.len(),
            "of_these_opened_by_the_kernel": self.by_kernel.len(),
            "esgz_files": found.len(),
            "both": expected.intersection(&found).count(),
            "not_compared": {
                "directories": self.directories.len(),
                "files_of_proc_dev_tmp": self.elsewhere.len(),
                "files_made_by_the_workload": self.of_workload.len(),
                "failed_opens": self.failed.len(),
            },
            "not_explained": counts.iter().filter(|(class, _)| !explained(class)).map(|(_, n)| n).sum::<usize>(),
            "differences": differences,
        })
    }

    fn tried(&self, scene: &Scene, row: usize) -> bool {
        self.failed.iter().any(|path| scene.row(path) == Some(row))
    }
}

fn is_directory(scene: &Scene, path: &str) -> bool {
    let Ok(file) = scene.open(path, OFlags::PATH) else {
        return false;
    };
    let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(FileType::is_dir)
}
