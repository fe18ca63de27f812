//! What the kernel opens by itself to execute a file: the interpreter that a script names, and the dynamic linker that a
//! program names (`PT_INTERP`).

use std::io::{Read as _, Seek as _, SeekFrom};

use anyhow::Result;
use rustix::fs::OFlags;

use crate::scene::Scene;

/// The kernel follows five interpreters (`exec_binprm` of `fs/exec.c`).
const DEPTH: usize = 6;

/// The files, besides `path` itself, that executing it takes; in order.
pub(crate) fn closure(scene: &Scene, path: &str) -> Vec<usize> {
    let mut rows = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..DEPTH {
        let Ok(Some(next)) = interpreter(scene, &path) else {
            break;
        };
        rows.extend(scene.row(&next));
        path = next;
    }
    rows
}

fn interpreter(scene: &Scene, path: &str) -> Result<Option<String>> {
    let mut file = scene.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut head = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut head)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        return Ok(named_by_script(line));
    }
    let Some((offset, len)) = interp_segment(&head) else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut name = Vec::new();
    file.take(len.min(4096)).read_to_end(&mut name)?;
    name.retain(|&byte| byte != 0);
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

fn named_by_script(line: &[u8]) -> Option<String> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let text = String::from_utf8_lossy(line);
    Some(text.split_whitespace().next()?.to_owned())
}

/// Offset and length of the segment `PT_INTERP` of a little-endian 64-bit ELF file whose program headers lie in `head`.
fn interp_segment(head: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let mut wide = [0; 8];
        wide[..bytes].copy_from_slice(head.get(at..at + bytes)?);
        Some(u64::from_le_bytes(wide))
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let start = usize::try_from(number(32, 8)?).ok()?;
    let size = usize::try_from(number(54, 2)?).ok()?;
    let count = usize::try_from(number(56, 2)?).ok()?;
    (0..count)
        .map(|header| start + header * size)
        .find(|&at| number(at, 4) == Some(3))
        .and_then(|at| Some((number(at + 8, 8)?, number(at + 32, 8)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_of_scripts_and_programs_are_found() {
        assert_eq!(
            named_by_script(b" /bin/sh -e\nx").as_deref(),
            Some("/bin/sh")
        );
        assert_eq!(named_by_script(b"\n"), None);
        let this = std::fs::read("/proc/self/exe").unwrap();
        let (offset, len) = interp_segment(&this).unwrap();
        let name = &this[offset as usize..(offset + len - 1) as usize];
        assert!(std::path::Path::new(std::str::from_utf8(name).unwrap()).exists());
        assert_eq!(interp_segment(b"\x7fELF\x02\x01"), None);
    }
}
