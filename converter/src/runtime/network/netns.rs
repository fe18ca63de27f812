//! Network namespaces with a name (ip-netns(8) does the same): a file on which one is mounted lives without
//! processes.

use std::fs::File;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::runtime::RuntimeError;

/// Makes a namespace, and mounts it on the new file `path`.
pub(super) fn make(path: &Path) -> Result<(), RuntimeError> {
    let failed =
        |source: std::io::Error| RuntimeError::io("making a network namespace at", path, source);
    File::create(path).map_err(failed)?;
    // Only the thread changes its namespace, and it ends then.
    let work = || -> std::io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?;
        let panicked = |_| std::io::Error::other("its thread panicked");
        thread.join().map_err(panicked)?
    })
    .map_err(failed)
}

/// Unmounts the namespace and removes the file. What is in it ends with its last user.
pub(super) fn remove(path: &Path) -> Result<(), RuntimeError> {
    let failed =
        |source: std::io::Error| RuntimeError::io("removing the network namespace", path, source);
    match unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        // Not mounted, not there: it was not made.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}
