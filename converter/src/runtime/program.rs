//! Whether the kernel will find what the workload's program needs to be executed: the interpreter of a script,
//! the dynamic linker of a binary. The runtime notices that only when it is too late to say it well.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::runtime::options::Mount;
use crate::runtime::user::open_confined;
use crate::runtime::{Process, RuntimeError};

/// What the kernel reads of a program to recognise it is less; program headers lie in the first page.
const HEAD_BYTES: usize = 4096;
/// How many scripts may interpret one another (`BINPRM_MAX_RECURSION` of Linux has one more).
const MAX_DEPTH: usize = 5;

/// Checks the program of `process` in `rootfs`. A program that is not found is left to the OCI runtime, and so
/// is everything below one of `mounts`.
///
/// # Errors
/// [`RuntimeError::NotExecutable`].
pub(super) fn check(
    process: &Process,
    rootfs: &Path,
    mounts: &[Mount],
) -> Result<(), RuntimeError> {
    let Some(mut path) = find(process, rootfs) else {
        return Ok(());
    };
    let refused = |reason: String| RuntimeError::NotExecutable {
        program: process.args[0].clone(),
        reason,
    };
    for _ in 0..MAX_DEPTH {
        if mounts
            .iter()
            .any(|mount| path.starts_with(&mount.destination))
        {
            return Ok(());
        }
        let Some(head) = head(rootfs, &path) else {
            return Ok(());
        };
        let next = match kind(&head) {
            Kind::Script(interpreter) => PathBuf::from(interpreter),
            Kind::Linked { by, machine } => {
                check_machine(machine).map_err(refused)?;
                PathBuf::from(by)
            }
            Kind::Static { machine } => return check_machine(machine).map_err(refused),
            Kind::Unknown if has_other_formats() => return Ok(()),
            Kind::Unknown => {
                let reason = "it is neither an ELF binary nor a script that begins with #!";
                return Err(refused(reason.to_owned()));
            }
        };
        // A relative one is looked for in the working directory.
        let next = Path::new(&process.cwd).join(next);
        let is_mounted = mounts
            .iter()
            .any(|mount| next.starts_with(&mount.destination));
        if !is_mounted && matches!(open_confined(rootfs, &next), Ok(None)) {
            return Err(refused(format!(
                "its interpreter \"{}\" is not in the image",
                next.display()
            )));
        }
        path = next;
    }
    Ok(())
}

/// The program's path in the container, found as the runtime does.
fn find(process: &Process, rootfs: &Path) -> Option<PathBuf> {
    let program = process.args.first()?;
    let cwd = Path::new(&process.cwd);
    if program.contains('/') {
        return Some(cwd.join(program));
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))?;
    let candidates = path
        .split(':')
        .map(|directory| cwd.join(directory).join(program));
    { candidates }.find(|candidate| {
        let file = open_confined(rootfs, candidate).ok().flatten();
        let metadata = file.and_then(|file| file.metadata().ok());
        metadata.is_some_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

fn head(rootfs: &Path, path: &Path) -> Option<Vec<u8>> {
    let file = open_confined(rootfs, path).ok().flatten()?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return None;
    }
    // No more than that is to be cached: the workload has not begun.
    let _ = fadvise(&file, 0, None, Advice::Random);
    let mut head = vec![0; HEAD_BYTES];
    let read = file.read_at(&mut head, 0);
    // A page that is cached already would not be seen to enter the cache when the workload begins.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    head.truncate(read.ok()?);
    Some(head)
}

/// How the kernel executes a file.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Script(String),
    /// With the dynamic linker that it names.
    Linked {
        by: String,
        machine: u16,
    },
    Static {
        machine: u16,
    },
    Unknown,
}

fn kind(head: &[u8]) -> Kind {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        return match line.split([' ', '\t']).find(|word| !word.is_empty()) {
            Some(interpreter) => Kind::Script(interpreter.to_owned()),
            None => Kind::Unknown,
        };
    }
    elf(head).unwrap_or(Kind::Unknown)
}

/// Reads the ELF header and the program headers (elf(5)), of either class, in this machine's byte order.
fn elf(head: &[u8]) -> Option<Kind> {
    const PT_INTERP: u64 = 3;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let is_64 = head.get(4) == Some(&2);
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        // Both machines that we are built for are little-endian.
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
        )
    };
    let machine = number(18, 2)? as u16;
    let (table, size, count) = if is_64 {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    let (offset_at, length_at, word) = if is_64 { (8, 32, 8) } else { (4, 16, 4) };
    for index in 0..count {
        let header = usize::try_from(table.checked_add(index * size)?).ok()?;
        let Some(segment) = number(header, 4) else {
            break;
        };
        if segment != PT_INTERP {
            continue;
        }
        let start = usize::try_from(number(header.checked_add(offset_at)?, word)?).ok()?;
        let length = usize::try_from(number(header.checked_add(length_at)?, word)?).ok()?;
        // One that lies further behind is not looked at: too much would be read.
        let Some(name) = head.get(start..start.checked_add(length)?) else {
            break;
        };
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let by = String::from_utf8_lossy(name).into_owned();
        return Some(Kind::Linked { by, machine });
    }
    Some(Kind::Static { machine })
}

fn check_machine(machine: u16) -> Result<(), String> {
    /// 32-bit x86, which 64-bit kernels run as well; and 32-bit ARM.
    const ALSO_RUN: [u16; 2] = [3, 40];
    let own = fs::File::open("/proc/self/exe").ok().and_then(|file| {
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 18).ok()?;
        Some(u16::from_le_bytes(bytes))
    });
    match own {
        Some(own) if own != machine && !ALSO_RUN.contains(&machine) && !has_other_formats() => Err(
            format!("it is made for another machine (ELF machine {machine}, not {own})"),
        ),
        _ => Ok(()),
    }
}

/// Whether the kernel was told of more formats (binfmt_misc), such as emulators.
fn has_other_formats() -> bool {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc")
        .into_iter()
        .flatten()
        .flatten();
    { entries }.any(|entry| entry.file_name() != "register" && entry.file_name() != "status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognised() {
        let script = |text: &str| kind(text.as_bytes());
        assert_eq!(
            script("#!/bin/sh\necho"),
            Kind::Script("/bin/sh".to_owned())
        );
        assert_eq!(
            script("#! \t/usr/bin/env python3"),
            Kind::Script("/usr/bin/env".to_owned())
        );
        assert_eq!(script("#!\n"), Kind::Unknown);
        assert_eq!(script("echo"), Kind::Unknown);
        assert_eq!(script(""), Kind::Unknown);
        let own = fs::read("/proc/self/exe").unwrap();
        let Kind::Linked { by, machine } = kind(&own[..HEAD_BYTES]) else {
            panic!("tests are linked dynamically");
        };
        assert!(Path::new(&by).exists(), "{by}");
        check_machine(machine).unwrap();
        for len in [4, 5, 20, 64, 100, 300] {
            // Cut short it is something, but no reason to panic.
            let _ = kind(&own[..len]);
        }
    }
}
