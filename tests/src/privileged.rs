//! What privileged tests need: root, and to be alone.

use std::fs::File;

/// Held while a privileged test runs; others wait, in this process and in all others.
#[derive(Debug)]
pub struct Exclusive {
    _lock: File,
}

/// Waits until no other privileged test runs. Without root, says that the test `name` is skipped and
/// returns `None`.
///
/// # Panics
/// When the lock file cannot be made in the target directory.
pub fn exclusive(name: &str) -> Option<Exclusive> {
    if !rustix::process::geteuid().is_root() {
        crate::skipped(name, "not root");
        return None;
    }
    let path = crate::profile_dir().join("privileged-tests.lock");
    let lock = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    lock.lock()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(Exclusive { _lock: lock })
}
