//! Whose opens count.

use std::collections::HashSet;
use std::fs;

use aya::maps::{Array, MapData};

use super::CgroupFilter;

/// The initial namespace of process ids (`PROC_PID_INIT_INO`), whose numbers the kernel side has.
const INITIAL_NAMESPACE: &str = "pid:[4026531836]";

/// Whose opens count.
pub(super) enum Counted {
    /// Everybody's but our own.
    All,
    /// Those of a cgroup's processes.
    Cgroup(Members),
}

/// The processes of a cgroup, also those that are gone: the kernel side marks each when it ends.
pub(super) struct Members {
    /// A bit for each process id.
    ended: Array<MapData, u64>,
    /// As /proc/PID/cgroup has it.
    path: Box<[u8]>,
    /// Running ones that were found to be in the cgroup.
    running: HashSet<i32>,
}

impl Counted {
    pub(super) fn has(&mut self, process: i32) -> bool {
        match self {
            Self::All => process != std::process::id().cast_signed(),
            Self::Cgroup(members) => members.has(process),
        }
    }
}

/// Where /proc says that the processes of `cgroup` are; None where that, or a process id of the kernel side, would
/// mean something else to us.
pub(super) fn path_in_proc(cgroup: &CgroupFilter) -> Option<Box<[u8]>> {
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    (namespace.to_str() == Some(INITIAL_NAMESPACE)).then_some(())?;
    cgroup.path_in_proc.clone()
}

impl Members {
    pub(super) fn new(ended: Array<MapData, u64>, path: Box<[u8]>) -> Self {
        Self {
            ended,
            path,
            running: HashSet::new(),
        }
    }

    fn has(&mut self, process: i32) -> bool {
        if self.running.contains(&process) || self.has_ended(process) {
            return true;
        }
        match super::cgroup::of_process(process) {
            Some(path) if is_below(&path, &self.path) => self.running.insert(process),
            Some(_) => false,
            // It ended just now.
            None => self.has_ended(process),
        }
    }

    fn has_ended(&self, process: i32) -> bool {
        let Ok(process) = u32::try_from(process) else {
            return false;
        };
        let word = self.ended.get(&(process / 64), 0);
        word.is_ok_and(|word| word >> (process % 64) & 1 != 0)
    }
}

/// Whether a cgroup is `above`, or below it.
fn is_below(path: &[u8], above: &[u8]) -> bool {
    let above = above.strip_suffix(b"/").unwrap_or(above);
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_below_are_told_from_others() {
        assert!(is_below(b"/a/b", b"/a/b"));
        assert!(is_below(b"/a/b/c", b"/a/b"));
        assert!(is_below(b"/a", b"/"));
        assert!(!is_below(b"/a/bc", b"/a/b"));
        assert!(!is_below(b"/a", b"/a/b"));
    }
}
