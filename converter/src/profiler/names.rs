//! Names that were looked up in vain, as paths below the image's root. Pure.

use esgz_ebpf_abi::base;

/// The path below the root that `name` meant, `.` and `..` resolved by name only; `None` if it is
/// unknown what `name` was relative to.
pub(super) fn resolve(base: u32, name: &[u8], cwd: &[u8]) -> Option<Box<[u8]>> {
    let start: &[u8] = match base {
        base::ROOT => &[],
        base::CWD => cwd,
        _ => return None,
    };
    let mut components: Vec<&[u8]> = Vec::new();
    for component in start
        .split(|&b| b == b'/')
        .chain(name.split(|&b| b == b'/'))
    {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            _ => components.push(component),
        }
    }
    Some(components.join(&b'/').into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_and_cleaned() {
        let check = |base, name: &str, expected: Option<&str>| {
            let found = resolve(base, name.as_bytes(), b"/srv/app");
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name}");
        };
        check(base::ROOT, "/etc//ld.so.preload", Some("etc/ld.so.preload"));
        check(base::ROOT, "/../a/./b/../c", Some("a/c"));
        check(base::CWD, "x.py", Some("srv/app/x.py"));
        check(base::CWD, "../../../x", Some("x"));
        check(base::DIRECTORY, "x.py", None);
    }
}
