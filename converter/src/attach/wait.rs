//! Until when a container is watched that runs on afterwards.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::AttachError;
use super::process::Process;
use crate::cancel::{Cancel, EndOfRun};
use crate::runtime::{Requests, is_listened_on};

/// How often is looked.
const TICK: Duration = Duration::from_millis(50);

/// When watching ends, if the container does not end before.
#[derive(Clone, Debug, Default)]
pub struct Until {
    /// After this time.
    pub period: Option<Duration>,
    /// When something listens on this TCP port in the container.
    pub port: Option<u16>,
    /// When a request for this URL, from inside the container's network, is answered with success.
    pub http: Option<String>,
    /// When the user asks for it.
    pub signal: Option<EndOfRun>,
}

/// Why watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The container ended.
    Exit,
    /// The time was over.
    Period,
    /// The awaited port is listened on.
    Port,
    /// The awaited request was answered.
    Http,
    /// The user asked for the end.
    Signal,
}

pub(super) fn wait(
    process: &Process,
    cgroup: &Path,
    until: &Until,
    cancel: &Cancel,
) -> Result<Ended, AttachError> {
    if let Some(port) = until.port
        && is_listened_on(&process.proc, port)
    {
        return Err(AttachError::Listens { port });
    }
    if let Some(signal) = &until.signal {
        signal.begin();
    }
    tracing::info!("watching {}", cgroup.display());
    let ended = watch(process, cgroup, until, cancel);
    if let Some(signal) = &until.signal {
        signal.over();
    }
    ended
}

fn watch(
    process: &Process,
    cgroup: &Path,
    until: &Until,
    cancel: &Cancel,
) -> Result<Ended, AttachError> {
    let started = Instant::now();
    let requests = match &until.http {
        Some(url) => Some(Requests::start(&process.proc, url)?),
        None => None,
    };
    loop {
        cancel.check()?;
        if until.signal.as_ref().is_some_and(EndOfRun::is_asked) {
            return Ok(Ended::Signal);
        }
        // The process may be one of several.
        if process.has_ended() && !is_populated(cgroup) {
            return Ok(Ended::Exit);
        }
        let listens = |port| !process.has_ended() && is_listened_on(&process.proc, port);
        if until.port.is_some_and(listens) {
            return Ok(Ended::Port);
        }
        if requests.as_ref().is_some_and(Requests::are_answered) {
            return Ok(Ended::Http);
        }
        let left = until
            .period
            .map(|period| period.saturating_sub(started.elapsed()));
        match left {
            Some(left) if left.is_zero() => {
                if until.port.is_some() || until.http.is_some() {
                    tracing::warn!("the time is over, and what was waited for did not happen");
                }
                return Ok(Ended::Period);
            }
            left => thread::sleep(left.unwrap_or(TICK).min(TICK)),
        }
    }
}

/// Whether any process is in the cgroup or below it (cgroups(7), "cgroup.events").
fn is_populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}
