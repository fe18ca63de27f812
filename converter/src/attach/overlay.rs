//! Which directories an overlayfs stacks, from its options as the kernel shows them.
//!
//! `lowerdir=A:B` has the topmost first, with `\` before a colon that belongs to a name; newer kernels also take, and
//! show, each for itself as `lowerdir+=A` (Documentation/filesystems/overlayfs.rst, "Multiple lower layers"). The
//! names are as whoever mounted them gave them: containerd leaves a common directory out where they would be too long
//! for one page, Docker and Podman name links in a directory `l` and do the same.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::AttachError;
use crate::runtime::unescape_mount_field;

/// The directories, absolute, links followed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stacked {
    /// The topmost first.
    pub(super) lowers: Vec<PathBuf>,
    pub(super) upper: Option<PathBuf>,
}

/// Finds the directories that `options` name. `points` are the places at which the file system is mounted for us.
pub(super) fn resolve(options: &[u8], points: &[&Path]) -> Result<Stacked, AttachError> {
    let named = parse(options)?;
    let unseen = |path: &Path| AttachError::Unseen {
        directory: path.to_string_lossy().into_owned(),
    };
    let relative: Vec<&Path> = named.all().filter(|path| path.is_relative()).collect();
    let base = match relative.first() {
        None => PathBuf::new(),
        // Whoever mounted it stood in the directory that all have in common.
        Some(first) => {
            let absolute = named.all().filter(|path| path.is_absolute());
            let candidates = absolute.chain(points.iter().copied());
            let mut candidates = candidates.flat_map(Path::ancestors);
            let fits = |base: &&Path| relative.iter().all(|path| base.join(path).is_dir());
            candidates
                .find(fits)
                .ok_or_else(|| unseen(first))?
                .to_owned()
        }
    };
    let find = |path: &PathBuf| {
        let found = base.join(path).canonicalize().ok();
        found
            .filter(|found| found.is_dir())
            .ok_or_else(|| unseen(path))
    };
    Ok(Stacked {
        lowers: named.lowers.iter().map(find).collect::<Result<_, _>>()?,
        upper: named.upper.as_ref().map(find).transpose()?,
    })
}

/// The directories as they are named.
#[derive(Debug, Default, PartialEq, Eq)]
struct Named {
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
}

impl Named {
    fn all(&self) -> impl Iterator<Item = &Path> {
        let others = self.upper.iter().chain(&self.work);
        self.lowers.iter().chain(others).map(PathBuf::as_path)
    }
}

fn parse(options: &[u8]) -> Result<Named, AttachError> {
    let mut named = Named::default();
    // A comma in a value is escaped.
    for option in options.split(|&b| b == b',') {
        let Some(at) = option.iter().position(|&b| b == b'=') else {
            continue;
        };
        let value = unescape_mount_field(&option[at + 1..]);
        let path = |bytes: Vec<u8>| PathBuf::from(OsString::from_vec(bytes));
        match &option[..at] {
            b"lowerdir" => {
                for name in split_lowers(&value) {
                    if name.is_empty() {
                        // `::` begins those of which only contents are used.
                        return Err(no_names("it keeps contents apart from names"));
                    }
                    named.lowers.push(path(name));
                }
            }
            b"lowerdir+" => named.lowers.push(path(value)),
            b"datadir+" => return Err(no_names("it keeps contents apart from names")),
            b"upperdir" => named.upper = Some(path(value)),
            b"workdir" => named.work = Some(path(value)),
            _ => {}
        }
    }
    if named.lowers.is_empty() {
        return Err(no_names("it names no lower directory"));
    }
    Ok(named)
}

fn no_names(reason: &'static str) -> AttachError {
    AttachError::Options { reason }
}

fn split_lowers(value: &[u8]) -> Vec<Vec<u8>> {
    let mut names = vec![Vec::new()];
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        let name = names.last_mut().expect("there is always one");
        match byte {
            b':' => names.push(Vec::new()),
            b'\\' => name.extend(bytes.next()),
            byte => name.push(byte),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lowers(options: &str) -> Vec<String> {
        let named = parse(options.as_bytes()).unwrap();
        let names = named.lowers.iter();
        names.map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn options_name_directories() {
        assert_eq!(
            lowers("rw,lowerdir=/b:/a,upperdir=/u,workdir=/w,xino=off"),
            ["/b", "/a"]
        );
        assert_eq!(
            lowers("ro,lowerdir+=/b:c,lowerdir+=/a,redirect_dir=on"),
            ["/b:c", "/a"]
        );
        // The kernel's escapes, then overlayfs's own.
        assert_eq!(
            lowers("rw,lowerdir=/a\\054\\040b\\134:c:/d"),
            ["/a, b:c", "/d"]
        );
        for bad in [
            "rw",
            "rw,lowerdir=/a::/b",
            "rw,lowerdir+=/a,datadir+=/b",
            "rw,lowerdir=",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let named = parse(b"rw,lowerdir=a,upperdir=/u").unwrap();
        assert_eq!((named.upper, named.work), (Some("/u".into()), None));
    }

    #[test]
    fn short_names_are_found() {
        let root = tempfile::tempdir_in("/tmp").unwrap();
        let root = root.path().canonicalize().unwrap();
        let snapshots = root.join("snapshots");
        for name in [
            "1/fs",
            "2/fs",
            "3/fs",
            "3/work",
            "l",
            "ID/diff",
            "ID/merged",
        ] {
            fs::create_dir_all(snapshots.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("../1/fs", snapshots.join("l/AB")).unwrap();
        let check = |options: &str, points: &[&str], lowers: &[&str], upper: &str| {
            let options = options.replace('@', &snapshots.display().to_string());
            let points: Vec<PathBuf> = points.iter().map(|p| snapshots.join(p)).collect();
            let points: Vec<&Path> = points.iter().map(PathBuf::as_path).collect();
            let found = resolve(options.as_bytes(), &points).unwrap();
            let lowers: Vec<PathBuf> = lowers.iter().map(|p| snapshots.join(p)).collect();
            assert_eq!(found.lowers, lowers, "{options}");
            assert_eq!(found.upper, Some(snapshots.join(upper)));
        };
        // containerd, as it is and shortened; Podman; Docker shortened.
        check(
            "rw,lowerdir=@/2/fs:@/1/fs,upperdir=@/3/fs,workdir=@/3/work",
            &[],
            &["2/fs", "1/fs"],
            "3/fs",
        );
        check(
            "rw,lowerdir=2/fs:1/fs,upperdir=@/3/fs,workdir=@/3/work",
            &[],
            &["2/fs", "1/fs"],
            "3/fs",
        );
        check(
            "rw,lowerdir=@/l/AB,upperdir=@/ID/diff",
            &[],
            &["1/fs"],
            "ID/diff",
        );
        check(
            "rw,lowerdir=l/AB,upperdir=ID/diff",
            &["ID/merged"],
            &["1/fs"],
            "ID/diff",
        );
        let nowhere = resolve(b"rw,lowerdir=l/AB,upperdir=ID/diff", &[]);
        assert!(nowhere.unwrap_err().to_string().contains("\"l/AB\""));
        let gone = resolve(b"rw,lowerdir=/nowhere/at/all,upperdir=/u", &[]);
        assert!(gone.unwrap_err().to_string().contains("/nowhere/at/all"));
    }
}
