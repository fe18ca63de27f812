//! Access to the tracing file system, wherever it is mounted or not.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::ProfilerError;

const MOUNT_POINT: &str = "/sys/kernel/tracing";

/// The tracing file system as the calling thread sees it until this is dropped.
pub(super) struct Tracefs {
    path: PathBuf,
    /// The mount namespace to return to.
    home: Option<File>,
}

impl Tracefs {
    /// Finds the mounted tracefs, or mounts it for the calling thread alone: in a mount namespace
    /// of its own, so that nothing is left behind however the process ends. The thread must not do
    /// anything else meanwhile.
    pub(super) fn open() -> Result<Self, ProfilerError> {
        for path in [MOUNT_POINT, "/sys/kernel/debug/tracing"] {
            if Path::new(path).join("events").is_dir() {
                return Ok(Self {
                    path: path.into(),
                    home: None,
                });
            }
        }
        let failed = |operation| {
            move |source: io::Error| ProfilerError::Tracefs {
                operation,
                path: MOUNT_POINT.into(),
                source,
            }
        };
        let home =
            File::open("/proc/thread-self/ns/mnt").map_err(failed("leave mount namespace for"))?;
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|e| failed("make mount namespace for")(e.into()))?;
        let tracefs = Self {
            path: MOUNT_POINT.into(),
            home: Some(home),
        };
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|e| failed("make private mounts for")(e.into()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tracefs"), MOUNT_POINT, Some("tracefs"), flags, none)
            .map_err(|e| failed("mount tracefs on")(e.into()))?;
        Ok(tracefs)
    }

    /// The `format` file of a tracepoint; `None` if the kernel does not have the tracepoint.
    pub(super) fn format(&self, group: &str, name: &str) -> Result<Option<String>, ProfilerError> {
        let path = self
            .path
            .join("events")
            .join(group)
            .join(name)
            .join("format");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ProfilerError::Tracefs {
                operation: "read",
                path,
                source,
            }),
        }
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        // The private namespace goes with the last thread in it: with this one, if need be.
        if let Some(home) = &self.home
            && let Err(error) = setns(home, CloneFlags::CLONE_NEWNS)
        {
            tracing::debug!("cannot return to the mount namespace: {error}");
        }
    }
}
