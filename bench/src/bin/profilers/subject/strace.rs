//! strace(1): it starts the workload, and writes down every open and execution. It sees no ranges, and nothing that the
//! kernel itself opens.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::{Attached, Seen, SeenFile, Subject};
use crate::scene::Scene;

/// `strace -f`, with or without its filter in the kernel.
pub(crate) struct Strace {
    name: &'static str,
    flags: &'static [&'static str],
}

/// Calls that open or execute, and the one behind which the workload's part of the log begins.
const CALLS: &str = "trace=open,openat,openat2,creat,open_by_handle_at,execve,execveat,chroot";

impl Strace {
    /// Stops the workload at every system call.
    pub(crate) fn plain() -> Self {
        Self {
            name: "strace -f",
            flags: &[],
        }
    }

    /// Stops it only at those that count.
    pub(crate) fn seccomp() -> Self {
        Self {
            name: "strace -f --seccomp-bpf",
            flags: &["--seccomp-bpf"],
        }
    }

    /// As [`Subject::attach`], for those who want to read the log themselves.
    pub(crate) fn start(&self, scene: &Scene) -> Traced {
        Traced {
            log: scene.table().with_file_name("strace.log"),
            flags: self.flags,
        }
    }
}

impl Subject for Strace {
    fn name(&self) -> &str {
        self.name
    }

    fn attach(&self, scene: &Scene) -> Result<Box<dyn Attached>> {
        Ok(Box::new(self.start(scene)))
    }
}

/// What it takes to trace one run.
pub(crate) struct Traced {
    log: PathBuf,
    flags: &'static [&'static str],
}

impl Traced {
    /// Reads the log.
    pub(crate) fn read(&self, scene: &Scene) -> Result<StraceLog> {
        let text =
            fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let root = scene.root().to_str().context("the root is UTF-8")?;
        StraceLog::parse(&text, root)
    }
}

impl Attached for Traced {
    fn prefix(&self) -> Vec<String> {
        // -y: names of descriptors as the kernel has them, all links followed.
        let mut words: Vec<String> = ["strace", "-f", "-y", "-qq", "-e", CALLS, "-o"]
            .map(str::to_owned)
            .to_vec();
        words.push(self.log.display().to_string());
        words.extend(self.flags.iter().map(|&flag| flag.to_owned()));
        words
    }

    fn finish(self: Box<Self>, scene: &Scene) -> Result<Option<Seen>> {
        let log = self.read(scene)?;
        let mut known = HashSet::new();
        let rows = log.calls.iter().filter_map(|call| match call {
            Call::Opened { path, .. } | Call::Executed { path } => scene.row(path),
            Call::Elsewhere { .. } | Call::Failed { .. } => None,
        });
        let files = rows
            .filter(|&row| known.insert(row))
            .map(|row| SeenFile { row, ranges: None })
            .collect();
        Ok(Some(Seen {
            files,
            lost_events: None,
        }))
    }
}

/// One call of the workload. Paths are the image's, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A descriptor of something in the image's mount.
    Opened { path: String, only_as_path: bool },
    /// A descriptor of something else: /proc, /dev, /tmp.
    Elsewhere { path: String },
    /// A program, by the name that was given.
    Executed { path: String },
    /// Neither.
    Failed { path: String },
}

/// What the workload did, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StraceLog {
    pub(crate) calls: Vec<Call>,
}

/// Mounts below the root that are no part of the image.
const NOT_OF_THE_IMAGE: [&str; 4] = ["/proc", "/dev", "/tmp", "/sys"];

impl StraceLog {
    /// Parses what `strace -f -y` wrote of a workload whose root is `root`. What was before the change of the root does
    /// not count.
    pub(crate) fn parse(text: &str, root: &str) -> Result<Self> {
        let mut unfinished: HashMap<&str, &str> = HashMap::new();
        let mut inside = false;
        let mut calls = Vec::new();
        for line in text.lines() {
            let Some((pid, what)) = line.trim_start().split_once(' ') else {
                continue;
            };
            let what = what.trim_start();
            if !inside {
                inside = what.starts_with("chroot(") && what.ends_with("= 0");
                continue;
            }
            if let Some(start) = what.strip_suffix("<unfinished ...>") {
                unfinished.insert(pid, start);
                continue;
            }
            let whole = match what.strip_prefix("<... ") {
                Some(rest) => match (unfinished.remove(pid), rest.split_once(" resumed>")) {
                    (Some(start), Some((_, end))) => format!("{start}{end}"),
                    _ => continue,
                },
                None => what.to_owned(),
            };
            calls.extend(call(&whole, root));
        }
        ensure!(inside, "strace saw no chroot");
        Ok(Self { calls })
    }
}

fn call(text: &str, root: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (args, result) = rest.rsplit_once(") = ").or_else(|| {
        // Results are aligned.
        let (args, result) = rest.rsplit_once(" = ")?;
        Some((args.trim_end().strip_suffix(')')?, result))
    })?;
    let given = args.split('"').nth(1).unwrap_or_default();
    if result.starts_with('-') || result.starts_with('?') {
        let path = given.to_owned();
        return Some(Call::Failed { path });
    }
    if name.starts_with("exec") {
        let path = given.to_owned();
        return Some(Call::Executed { path });
    }
    let (_, named) = result.split_once('<')?;
    let named = named.trim_end_matches("(deleted)").trim_end_matches('>');
    let path = named
        .strip_prefix(root)
        .filter(|path| path.starts_with('/'));
    match path {
        Some(path) if !NOT_OF_THE_IMAGE.iter().any(|dir| is_below(path, dir)) => {
            Some(Call::Opened {
                path: path.to_owned(),
                only_as_path: args.contains("O_PATH"),
            })
        }
        _ => Some(Call::Elsewhere {
            path: path.unwrap_or(named).to_owned(),
        }),
    }
}

fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_behind_the_change_of_root_count() {
        let log = r#"7 execve("/usr/bin/x", ["x"], 0x7ff /* 4 vars */) = 0
7 openat(AT_FDCWD</>, "/etc/ld.so.cache", O_RDONLY) = 3</etc/ld.so.cache>
7 chroot("/m") = 0
7 execve("/bin/sh", ["sh", "-c", "(a) = 1"], 0x7ff /* 4 vars */) = 0
7 openat(AT_FDCWD</m>, "lib", O_RDONLY|O_PATH) = 3</m/usr/lib>
7 openat(AT_FDCWD</m>, "x", O_RDONLY <unfinished ...>
8 openat(AT_FDCWD</m>, "y", O_RDONLY)     = -1 ENOENT (No such file or directory)
7 <... openat resumed>)                   = 4</m/etc/x>(deleted)
8 openat(AT_FDCWD</m>, "/dev/null", O_RDWR) = 5</m/dev/null<char 1:3>>
8 openat(AT_FDCWD</m>, "/proc/self/maps", O_RDONLY) = 5</proc/8/maps>
8 +++ exited with 0 +++
"#;
        let parsed = StraceLog::parse(log, "/m").unwrap();
        let owned = str::to_owned;
        let expected = [
            Call::Executed {
                path: owned("/bin/sh"),
            },
            Call::Opened {
                path: owned("/usr/lib"),
                only_as_path: true,
            },
            Call::Failed { path: owned("y") },
            Call::Opened {
                path: owned("/etc/x"),
                only_as_path: false,
            },
            Call::Elsewhere {
                path: owned("/dev/null<char 1:3"),
            },
            Call::Elsewhere {
                path: owned("/proc/8/maps"),
            },
        ];
        assert_eq!(parsed.calls, expected);
        assert!(StraceLog::parse("7 execve(\"/x\", [], []) = 0\n", "/m").is_err());
    }
}
