//! What is measured. A subject watches one run of a workload and says which files it touched.
//!
//! To add one, write a program that speaks the protocol of [`program`] and give it with `--subject`, or implement
//! [`Subject`] in a file of its own here and name it in [`all`].

mod none;
mod program;
mod resident;
mod strace;

use anyhow::{Context as _, Result, bail};

pub(crate) use program::Program;
pub(crate) use resident::Resident;
pub(crate) use strace::{Call, Strace, StraceLog};

use crate::scene::Scene;

/// Read-ahead of the mount in KiB, as `esgz` has it unless every page is wanted.
pub(crate) const READ_AHEAD_KIB: u32 = 24;

/// A way to watch.
pub(crate) trait Subject {
    /// Its name in results and tables.
    fn name(&self) -> &str;

    /// Read-ahead of the mount that it wants.
    fn read_ahead_kib(&self) -> u32 {
        READ_AHEAD_KIB
    }

    /// Begins to watch the scene's cgroup. When it returns, every touch must be seen.
    fn attach(&self, scene: &Scene) -> Result<Box<dyn Attached>>;
}

/// A subject at work.
pub(crate) trait Attached {
    /// Words to put in front of the workload's command, for those that start it.
    fn prefix(&self) -> Vec<String> {
        Vec::new()
    }

    /// The process that watches, if it is not started by [`Self::prefix`].
    fn pid(&self) -> Option<u32> {
        None
    }

    /// Stops, and says what was seen; None if it does not look. The workload has ended, the image is still mounted.
    fn finish(self: Box<Self>, scene: &Scene) -> Result<Option<Seen>>;
}

/// What a subject saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// In the order of their first touch.
    pub(crate) files: Vec<SeenFile>,
    /// None if it cannot know.
    pub(crate) lost_events: Option<u64>,
}

/// A file that was touched.
#[derive(Clone, Debug)]
pub(crate) struct SeenFile {
    /// In [`Scene::files`].
    pub(crate) row: usize,
    /// Offset and length in bytes of what was touched; None for whoever sees no ranges.
    pub(crate) ranges: Option<Vec<(u64, u64)>>,
}

/// The one who does not watch.
pub(crate) fn nobody() -> Box<dyn Subject> {
    Box::new(none::NONE)
}

/// All that are built in. The first is what the others are compared with.
pub(crate) fn all() -> Result<Vec<Box<dyn Subject>>> {
    let mut all: Vec<Box<dyn Subject>> = vec![
        Box::new(none::NONE),
        Box::new(none::WITH_USUAL_READ_AHEAD),
        Box::new(none::WITHOUT_READ_AHEAD),
    ];
    for (name, args, read_ahead_kib) in [
        ("esgz filemap", "filemap", READ_AHEAD_KIB),
        ("esgz page-cache", "page-cache", 0),
        ("esgz open", "open", READ_AHEAD_KIB),
        ("esgz fanotify", "fanotify", READ_AHEAD_KIB),
        ("esgz --exact", "filemap --exact", 0),
        ("esgz --missing", "filemap --missing", READ_AHEAD_KIB),
    ] {
        all.push(Box::new(Program::watch(name, args, read_ahead_kib)?));
    }
    all.push(Box::new(Strace::plain()));
    all.push(Box::new(Strace::seccomp()));
    all.push(Box::new(Resident));
    Ok(all)
}

/// Those that `wanted` names, in their own order, and then `commands`, each `NAME=COMMAND`. All that are built in where
/// nothing is wanted.
pub(crate) fn chosen(wanted: &[String], commands: &[String]) -> Result<Vec<Box<dyn Subject>>> {
    let mut chosen = all()?;
    for name in wanted {
        if !chosen.iter().any(|subject| subject.name() == name) {
            let names: Vec<_> = chosen.iter().map(|subject| subject.name()).collect();
            bail!("no subject {name:?}; there are: {}", names.join(", "));
        }
    }
    if !wanted.is_empty() {
        chosen.retain(|subject| wanted.iter().any(|name| subject.name() == name));
    }
    for command in commands {
        let (name, command) = command.split_once('=').context("--subject NAME=COMMAND")?;
        chosen.push(Box::new(Program::of_user(name, command)));
    }
    Ok(chosen)
}
