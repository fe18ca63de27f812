//! Directory trees of any depth.

use std::ffi::CString;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

/// Removes a directory with all that is in it, of any depth: `fs::remove_dir_all` holds a
/// descriptor a level, and a workload may have made more levels than descriptors are allowed. Here
/// every directory is first moved to the top.
///
/// # Errors
/// The first failure; the rest is left then.
pub fn remove(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    let mut moved = 0u64;
    let mut pending = vec![c".".to_owned()];
    while let Some(name) = pending.pop() {
        let directory = rustix::fs::openat(&root, &*name, flags, Mode::empty())?;
        for entry in rustix::fs::Dir::read_from(&directory)?.collect::<Result<Vec<_>, _>>()? {
            let child = entry.file_name();
            if child == c"." || child == c".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&directory, child, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode).is_dir()
                }
                kind => kind.is_dir(),
            };
            if is_directory {
                let top = CString::new(format!("removed-{moved}")).expect("digits");
                moved += 1;
                rustix::fs::renameat(&directory, child, &root, &*top)?;
                pending.push(top);
            } else {
                rustix::fs::unlinkat(&directory, child, AtFlags::empty())?;
            }
        }
        if &*name != c"." {
            rustix::fs::unlinkat(&root, &*name, AtFlags::REMOVEDIR)?;
        }
    }
    rustix::fs::rmdir(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_deeper_than_descriptors_are_allowed_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().join("top");
        fs::create_dir_all(top.join("sub/removed-0")).unwrap();
        std::os::unix::fs::symlink(scratch.path(), top.join("sub/link")).unwrap();
        // Made from the bottom up: a path may not be that long.
        let (inner, outer) = (scratch.path().join("inner"), scratch.path().join("outer"));
        fs::create_dir(&inner).unwrap();
        for _ in 0..5000 {
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("d")).unwrap();
            fs::rename(&outer, &inner).unwrap();
        }
        fs::rename(&inner, top.join("deep")).unwrap();
        fs::write(top.join("file"), "x").unwrap();
        remove(&top).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
