//! User names to numbers, by the passwd and group files of the image.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::runtime::RuntimeError;

/// Files larger than this are not read: a passwd file of a thousand users has 60 KiB.
const MAX_BYTES: u64 = 16 << 20;

/// The numbers that a process runs under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) additional_gids: Vec<u32>,
    pub(super) home: Option<String>,
}

/// Resolves `user[:group]`, each a name or a number, in the image mounted at `rootfs`.
pub(super) fn resolve(rootfs: &Path, spec: &str) -> Result<Ids, RuntimeError> {
    let passwd = read_confined(rootfs, "etc/passwd")?;
    let group = read_confined(rootfs, "etc/group")?;
    resolve_in(&passwd, &group, spec)
}

/// Reads a file without following a link out of the root; a missing one is empty.
fn read_confined(rootfs: &Path, path: &str) -> Result<String, RuntimeError> {
    let failed = |source| RuntimeError::io("reading", rootfs.join(path), source);
    let Some(file) = open_confined(rootfs, Path::new(path)).map_err(failed)? else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a file for reading without following a link out of the root, where `/` is meant by absolute
/// paths; none if it is missing.
pub(super) fn open_confined(rootfs: &Path, path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let root = openat(
        CWD,
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn resolve_in(passwd: &str, group: &str, spec: &str) -> Result<Ids, RuntimeError> {
    let (user, group_name) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let known = lines(passwd, 7)
        .find(|fields| fields[0] == user)
        .or_else(|| lines(passwd, 7).find(|fields| fields[2] == user));
    let (mut ids, name) = match (known, user.parse()) {
        (Some(fields), _) => {
            let number = |field: &str| field.parse().ok();
            match (number(fields[2]), number(fields[3])) {
                (Some(uid), Some(gid)) => {
                    let home = Some(fields[5].to_owned()).filter(|home| !home.is_empty());
                    (
                        Ids {
                            uid,
                            gid,
                            additional_gids: Vec::new(),
                            home,
                        },
                        Some(fields[0]),
                    )
                }
                _ => return Err(unknown("user", user, "/etc/passwd")),
            }
        }
        (None, Ok(uid)) => {
            // A number needs no entry; its group is root's, as containerd has it.
            let home = (uid == 0).then(|| "/root".to_owned());
            (
                Ids {
                    uid,
                    gid: 0,
                    additional_gids: Vec::new(),
                    home,
                },
                None,
            )
        }
        (None, Err(_)) => return Err(unknown("user", user, "/etc/passwd")),
    };
    if let Some(wanted) = group_name {
        let known = lines(group, 3).find(|fields| fields[0] == wanted);
        ids.gid = match (
            known.and_then(|fields| fields[2].parse().ok()),
            wanted.parse(),
        ) {
            (Some(gid), _) | (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(unknown("group", wanted, "/etc/group")),
        };
    }
    // The process is in its own group, and in those that list its name.
    let mut gids = vec![ids.gid];
    for fields in lines(group, 4) {
        let member = name.is_some_and(|name| fields[3].split(',').any(|member| member == name));
        if let (true, Ok(gid)) = (member, fields[2].parse())
            && !gids.contains(&gid)
        {
            gids.push(gid);
        }
    }
    ids.additional_gids = gids;
    Ok(ids)
}

fn unknown(what: &'static str, name: &str, file: &'static str) -> RuntimeError {
    RuntimeError::UnknownUser {
        what,
        name: name.to_owned(),
        file,
    }
}

/// The colon-separated fields of each line that has at least `count` of them.
fn lines(text: &str, count: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(|line| line.split(':').map(str::trim).collect::<Vec<_>>())
        .filter(move |fields| fields.len() >= count && !fields[0].starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n#c:x:1:1::/:\nbad\n7:x:70:71::/seven:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\naudio:x:29:app,root\nvideo:x:44:app\n";

    #[test]
    fn names_and_numbers_are_resolved_as_containerd_does() {
        let check = |spec: &str, uid, gid, gids: &[u32]| {
            let ids = resolve_in(PASSWD, GROUP, spec).unwrap();
            assert_eq!((ids.uid, ids.gid), (uid, gid), "{spec}");
            assert_eq!(ids.additional_gids, gids, "{spec}");
        };
        check("", 0, 0, &[0, 29]);
        check("app", 1000, 1001, &[1001, 29, 44]);
        check("1000", 1000, 1001, &[1001, 29, 44]);
        check("app:audio", 1000, 29, &[29, 44]);
        check("app:5", 1000, 5, &[5, 29, 44]);
        check("4242", 4242, 0, &[0]);
        check("4242:4343", 4242, 4343, &[4343]);
        check("7", 70, 71, &[71]);
        check("app:", 1000, 1001, &[1001, 29, 44]);
        for bad in ["nobody", "app:nogroup", "-1", "99999999999"] {
            assert!(resolve_in(PASSWD, GROUP, bad).is_err(), "{bad}");
        }
        assert_eq!(resolve_in("", "", "").unwrap().uid, 0);
    }
}
