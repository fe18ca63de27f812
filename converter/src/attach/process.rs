//! A process of the container, looked at in /proc.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::mountinfo::{self, Mount};
use super::{AttachError, open_directory};

/// A process that was alive when it was opened; its number is not another one's as long as it lives.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Its directory in /proc.
    pub(super) proc: PathBuf,
    handle: OwnedFd,
}

impl Process {
    pub(super) fn open(pid: u32) -> Result<Self, AttachError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(AttachError::NoProcess { pid })?;
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let handle = pidfd_open(number, PidfdFlags::empty()).map_err(|errno| match errno {
            // EINVAL: a thread's number.
            rustix::io::Errno::SRCH | rustix::io::Errno::INVAL => AttachError::NoProcess { pid },
            errno => AttachError::io("open", &proc)(errno),
        })?;
        let process = Self { pid, proc, handle };
        if process.has_ended() {
            return Err(AttachError::NoProcess { pid });
        }
        Ok(process)
    }

    /// Whether it is a zombie, or gone.
    pub(super) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = rustix::time::Timespec::default();
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    pub(super) fn must_live(&self) -> Result<(), AttachError> {
        if self.has_ended() {
            return Err(AttachError::Ended { pid: self.pid });
        }
        Ok(())
    }

    /// What it says in `file`; that it has ended counts first.
    pub(super) fn read(&self, file: &str) -> Result<Vec<u8>, AttachError> {
        let path = self.proc.join(file);
        let read = fs::read(&path);
        self.must_live()?;
        read.map_err(AttachError::io("read", &path))
    }

    pub(super) fn mounts(&self) -> Result<Vec<Mount>, AttachError> {
        Ok(mountinfo::parse(&self.read("mountinfo")?))
    }

    pub(super) fn root(&self) -> Result<OwnedFd, AttachError> {
        let path = self.proc.join("root");
        let root = open_directory(&path);
        self.must_live()?;
        root.map_err(AttachError::io("open", &path))
    }

    /// Whether its root directory is ours.
    pub(super) fn has_our_root(&self) -> Result<bool, AttachError> {
        let identity = |path: &Path| {
            let stat = rustix::fs::statat(CWD, path, AtFlags::empty());
            let stat = stat.map_err(AttachError::io("look at", path))?;
            Ok::<_, AttachError>((stat.st_dev, stat.st_ino))
        };
        let found = identity(&self.proc.join("root"));
        self.must_live()?;
        Ok(found? == identity(Path::new("/"))?)
    }

    pub(super) fn args(&self) -> Vec<String> {
        let line = self.read("cmdline").unwrap_or_default();
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        let args = line.split(|&b| b == 0);
        args.map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect()
    }

    pub(super) fn user(&self) -> String {
        let status = self.read("status").unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        // Real, effective, saved, of the file system.
        let effective = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|ids| ids.split_whitespace().nth(1))
                .unwrap_or("0")
                .to_owned()
        };
        format!("{}:{}", effective("Uid:"), effective("Gid:"))
    }

    pub(super) fn cwd(&self) -> String {
        let path = fs::read_link(self.proc.join("cwd")).unwrap_or_default();
        let path = path.to_string_lossy().into_owned();
        if path.starts_with('/') {
            path
        } else {
            "/".to_owned()
        }
    }
}
