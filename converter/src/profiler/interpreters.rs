//! What the kernel opens by itself in order to execute a program, for a tier that sees system calls
//! alone: the script, the interpreter that it names after `#!`, and the dynamic linker that a program
//! names in `PT_INTERP`.
//!
//! Enters: the names that were executed, and the workload's root as it is at the end. Leaves: signs of
//! those files.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use object::elf::{FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::Phase;
use super::drain::{EventLog, FirstSign, SeenName};
use super::index::{FileIndex, FilesByInode};
use super::names;

/// Interpreters that may follow one another: the kernel's own limit for scripts, and the linker.
const MAX_CHAIN: usize = 6;
/// How much of a file is looked at. The kernel itself reads 256 bytes of a script; the headers of a
/// program and the name of its linker come first in practice.
const HEAD_BYTES: u64 = 64 << 10;

/// Adds a sign for every file that the kernel opened to execute what `log` says was executed.
pub(super) fn add(log: &mut EventLog, index: &FileIndex, root: &Path, cwd: &[u8]) {
    let root_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::openat(CWD, root, root_flags, Mode::empty()) {
        Ok(root) => root,
        Err(error) => {
            tracing::warn!("interpreters are unknown: open {}: {error}", root.display());
            return;
        }
    };
    let open = |path: &[u8]| -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let path = std::ffi::OsStr::from_bytes(path);
        rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            .ok()
            .map(File::from)
    };
    let files = index.by_inode();
    for name in std::mem::take(&mut log.executed_names) {
        follow(log, &files, &open, &name, cwd);
    }
}

fn follow(
    log: &mut EventLog,
    files: &FilesByInode,
    open: &dyn Fn(&[u8]) -> Option<File>,
    name: &SeenName,
    cwd: &[u8],
) {
    let mut next = names::resolve(name.base, &name.name, cwd);
    for _ in 0..MAX_CHAIN {
        let Some(file) = next.as_deref().and_then(open) else {
            return;
        };
        let number = rustix::fs::fstat(&file)
            .ok()
            .and_then(|stat| files.number(&stat));
        if let Some(number) = number {
            let run = log.run_time_ns.is_some_and(|began| began <= name.time_ns);
            let sign = FirstSign {
                sequence: name.sequence,
                time_ns: name.time_ns,
                phase: if run { Phase::Run } else { Phase::Setup },
                opened: false,
                executed: true,
            };
            log.note(number, sign);
        }
        let mut head = Vec::new();
        if file.take(HEAD_BYTES).read_to_end(&mut head).is_err() {
            return;
        }
        next = interpreter(&head);
    }
}

/// What a file that begins with `head` names as its interpreter.
fn interpreter(head: &[u8]) -> Option<Box<[u8]>> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next()?;
        let mut words = line.split(|byte| b" \t".contains(byte));
        return words.find(|word| !word.is_empty()).map(Into::into);
    }
    match FileKind::parse(head) {
        Ok(FileKind::Elf64) => linker::<FileHeader64<Endianness>>(head),
        Ok(FileKind::Elf32) => linker::<FileHeader32<Endianness>>(head),
        _ => None,
    }
}

fn linker<Header: FileHeader<Endian = Endianness>>(head: &[u8]) -> Option<Box<[u8]>> {
    let header = Header::parse(head).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, head).ok()?;
    let named = segments
        .iter()
        .find_map(|segment| segment.interpreter(endian, head).ok().flatten());
    named.map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_and_programs_name_their_interpreters() {
        let check = |head: &[u8], expected: Option<&[u8]>| {
            assert_eq!(interpreter(head).as_deref(), expected);
        };
        check(b"#!/bin/sh\necho", Some(b"/bin/sh"));
        check(b"#! \t/usr/bin/env -S a b", Some(b"/usr/bin/env"));
        check(b"#!\n", None);
        check(b"#", None);
        check(b"\x7fELF", None);
        check(b"", None);
    }

    #[test]
    fn the_linker_of_our_own_program_is_found() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let found = interpreter(&own[..own.len().min(HEAD_BYTES as usize)]).unwrap();
        let found = String::from_utf8(found.into()).unwrap();
        assert!(found.starts_with('/') && found.contains("ld"), "{found}");
        for len in 0..512 {
            let _ = interpreter(&own[..len]);
        }
    }
}
