//! Names of what is not finished: hidden, beside its place, and locked by the process that makes it.
//!
//! The lock (flock(2)) ends with the process, whatever ends it. So whoever writes to the same place later can tell
//! what nobody is going to finish, and removes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use tempfile::{NamedTempFile, TempDir};

/// What all these names begin with.
const PREFIX: &str = ".esgz-";
/// What is being made. Only names of these kinds are ever removed: a user may have others.
const KINDS: [&str; 5] = ["archive", "blob", "index", "layout", "profile"];
/// What ends them, so that each is new.
const RANDOM_CHARACTERS: usize = 6;

/// A directory with a hidden name. Dropping it removes it with all that it holds.
#[derive(Debug)]
pub(crate) struct HiddenDirectory {
    directory: TempDir,
    /// Where the file system has no locks, nothing tells the unfinished one of a killed process.
    _lock: Option<File>,
}

impl HiddenDirectory {
    /// In `place`; its name begins with `.esgz-` and `kind`, one of [`KINDS`].
    pub(crate) fn new(place: &Path, kind: &str) -> io::Result<Self> {
        loop {
            let directory = tempfile::Builder::new()
                .prefix(&prefix(kind))
                .rand_bytes(RANDOM_CHARACTERS)
                .permissions(fs::Permissions::from_mode(0o755))
                .tempdir_in(place)?;
            match lock(directory.path()) {
                Ok(None) => {}
                locked => {
                    let _lock = locked.ok().flatten();
                    return Ok(Self { directory, _lock });
                }
            }
            // Another process took it for abandoned, between the two calls.
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// It has its own name now, and stays.
    pub(crate) fn keep(self) {
        let _path = self.directory.keep();
    }
}

/// A file with a hidden name in `place`, for all to read; as [`HiddenDirectory::new`].
pub(crate) fn hidden_file(place: &Path, kind: &str) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new()
            .prefix(&prefix(kind))
            .rand_bytes(RANDOM_CHARACTERS)
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(place)?;
        // Where the file system has no locks, it is as with directories.
        let _ = flock(file.as_file(), FlockOperation::NonBlockingLockExclusive);
        if is_at(file.as_file(), file.path())? {
            return Ok(file);
        }
    }
}

fn prefix(kind: &str) -> String {
    debug_assert!(KINDS.contains(&kind), "{kind}");
    format!("{PREFIX}{kind}-")
}

/// Whether a name is one that this module makes.
fn is_of_ours(name: &str) -> bool {
    let random = KINDS
        .iter()
        .find_map(|kind| name.strip_prefix(&prefix(kind)));
    random.is_some_and(|random| {
        random.len() == RANDOM_CHARACTERS && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Removes from `place` what killed processes did not finish there. What cannot be removed stays: it harms nobody.
pub(crate) fn remove_abandoned(place: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let is_hidden = entry.file_name().to_str().is_some_and(is_of_ours);
        let metadata = entry.metadata();
        let is_ours = |metadata: &fs::Metadata| {
            metadata.uid() == own && (metadata.is_dir() || metadata.is_file())
        };
        if !is_hidden || !metadata.as_ref().is_ok_and(is_ours) {
            continue;
        }
        let path = entry.path();
        let Ok(Some(_lock)) = lock(&path) else {
            continue;
        };
        let removed = match metadata {
            Ok(metadata) if metadata.is_dir() => {
                crate::sys::tree::remove(&path).map_err(io::Error::from)
            }
            _ => fs::remove_file(&path),
        };
        match removed {
            Ok(()) => tracing::info!("removed {}, which was never finished", path.display()),
            Err(error) => tracing::debug!("removing {}: {error}", path.display()),
        }
    }
}

/// Locks a file or directory, unless someone else has or it is no more.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // Whoever had the lock before may have removed it.
    Ok(is_at(&file, path)?.then_some(file))
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_makes_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let directory = HiddenDirectory::new(place.path(), "layout").unwrap();
        let file = hidden_file(place.path(), "blob").unwrap();
        // As a killed process leaves them, and what is not ours.
        fs::create_dir_all(at(".esgz-layout-dead01/blobs/sha256")).unwrap();
        fs::write(at(".esgz-layout-dead01/blobs/sha256/blob"), "x").unwrap();
        fs::write(at(".esgz-blob-dead01"), "x").unwrap();
        std::os::unix::fs::symlink("other", at(".esgz-blob-link01")).unwrap();
        // A user's own.
        let others = [
            "other",
            ".esgz-cache",
            ".esgz-index-of-mine",
            ".esgz-layout-v1.0.0",
        ];
        for name in others {
            fs::create_dir(at(name)).unwrap();
        }
        remove_abandoned(place.path());
        assert!(!at(".esgz-layout-dead01").exists() && !at(".esgz-blob-dead01").exists());
        assert!(at(".esgz-blob-link01").is_symlink());
        assert!(others.iter().all(|name| at(name).exists()));
        assert!(directory.path().exists() && file.path().exists());

        fs::rename(directory.path(), at("finished")).unwrap();
        directory.keep();
        file.persist(at("finished/file")).unwrap();
        remove_abandoned(place.path());
        assert!(at("finished/file").exists());
    }
}
