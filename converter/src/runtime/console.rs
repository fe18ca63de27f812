//! A terminal for the container: the OCI runtime makes it, and sends its master through a socket
//! (`--console-socket` of runc's command line). Ours is put into raw mode meanwhile.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::runtime::RuntimeError;

/// Where the runtime sends the terminal to.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Makes the socket in `directory`, whose path must be short: the kernel allows 107 bytes.
    pub(super) fn bind(directory: &Path) -> Result<Self, RuntimeError> {
        let path = directory.join("console.sock");
        let listener = UnixListener::bind(&path)
            .map_err(|source| RuntimeError::io("making a socket at", &path, source))?;
        Ok(Self { listener, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master. The runtime has ended: it is there or never comes.
    pub(super) fn receive(self) -> Result<OwnedFd, RuntimeError> {
        let failed = |source: io::Error| RuntimeError::Watch {
            operation: "receiving the terminal of",
            source,
        };
        self.listener.set_nonblocking(true).map_err(failed)?;
        let (stream, _) = self.listener.accept().map_err(failed)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let mut data = [io::IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let master = { descriptors }.next();
        master.ok_or_else(|| failed(io::Error::other("the runtime sent none")))
    }
}

/// Our terminal in raw mode: every key goes to the container, Ctrl-C too. Dropping it restores the mode.
#[derive(Debug)]
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(super) fn enter() -> Result<Self, RuntimeError> {
        let failed = |errno: rustix::io::Errno| RuntimeError::Watch {
            operation: "preparing our terminal for",
            source: errno.into(),
        };
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // What is typed ahead is for the next program.
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before) {
            tracing::warn!("the terminal stays in raw mode: {error}");
        }
    }
}
