//! Commands that are run inside a running container, one after the other.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};

use crate::runtime::step;

/// A command, ready to be started.
#[derive(Debug)]
pub(super) struct Prepared {
    /// For messages.
    pub(super) words: Vec<String>,
    pub(super) command: Command,
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCommand {
    /// Program and arguments.
    pub args: Vec<String>,
    /// How it ended, in words.
    pub status: String,
}

/// Dropping it kills the one that runs.
#[derive(Debug)]
pub(super) struct Commands {
    waiting: VecDeque<Prepared>,
    running: Option<(Vec<String>, Child)>,
    failed: Vec<FailedCommand>,
}

impl Commands {
    pub(super) fn new(commands: Vec<Prepared>) -> Self {
        Self {
            waiting: commands.into(),
            running: None,
            failed: Vec::new(),
        }
    }

    /// Starts what is next, if nothing runs. Returns whether all have ended.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        loop {
            if let Some((words, child)) = &mut self.running {
                let Some(status) = child.try_wait()? else {
                    return Ok(false);
                };
                let words = std::mem::take(words);
                self.running = None;
                if !status.success() {
                    self.failed.push(failed(words, status));
                }
            }
            let Some(Prepared { words, mut command }) = self.waiting.pop_front() else {
                return Ok(true);
            };
            self.running = Some((words, command.process_group(0).spawn()?));
        }
    }

    /// Those that failed, and those that the end of the run left no time for.
    pub(super) fn finish(mut self) -> Vec<FailedCommand> {
        let mut failed = std::mem::take(&mut self.failed);
        let running = self.running.take();
        let unfinished = |args| FailedCommand {
            args,
            status: "did not end before the workload".to_owned(),
        };
        if let Some((words, mut child)) = running {
            let _ = step::kill(&mut child);
            failed.push(unfinished(words));
        }
        failed.extend(self.waiting.drain(..).map(|prepared| FailedCommand {
            status: "was not reached".to_owned(),
            ..unfinished(prepared.words)
        }));
        failed
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if let Some((_, mut child)) = self.running.take() {
            let _ = step::kill(&mut child);
        }
    }
}

fn failed(args: Vec<String>, status: ExitStatus) -> FailedCommand {
    FailedCommand {
        args,
        status: format!("failed: {status}"),
    }
}
