//! Why watching cannot begin or end.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;
use nix::errno::Errno;

use super::Tier;
use super::offsets::FormatError;

/// The profiler could not be started, or its result could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProfilerError {
    /// The process lacks the privilege to load BPF programs.
    #[error(
        "{operation}: not permitted; watching file accesses needs root (or CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN)"
    )]
    NotPermitted {
        /// What was attempted.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What was asked for does not work here.
    #[error("the collector {} cannot be used here", .tier.name())]
    Collector {
        /// What was asked for.
        tier: Tier,
        /// Why not.
        #[source]
        source: Box<ProfilerError>,
    },
    /// No collector works here.
    #[error("no collector can be used here: {reasons}")]
    NoCollector {
        /// Of each, why not.
        reasons: String,
    },
    /// Opens cannot be watched with BPF.
    #[error("opens cannot be told apart: {reason}")]
    OpensUntracked {
        /// What is wrong with the kernel's BTF.
        reason: String,
    },
    /// The programs of [`Tier::Filemap`] cannot do without the kernel's BTF.
    #[error("the kernel's structures are not known: {reason}")]
    KernelTypes {
        /// What is wrong with the kernel's BTF.
        reason: String,
    },
    /// fanotify refuses.
    #[error("cannot {operation} with fanotify")]
    Fanotify {
        /// What was attempted.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks a tracepoint. Those of [`Tier::Filemap`] exist since Linux 6.12.
    #[error("this kernel ({kernel}) has no tracepoint {tracepoint}")]
    MissingTracepoint {
        /// Group and name.
        tracepoint: String,
        /// The running kernel's release.
        kernel: String,
    },
    /// A tracepoint does not have the fields that the programs read.
    #[error("cannot use tracepoint {tracepoint}")]
    TracepointFormat {
        /// Group and name.
        tracepoint: String,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// The tracing file system cannot be mounted or read.
    #[error("cannot {operation} {path}")]
    Tracefs {
        /// What was attempted.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The directory is no directory of a cgroup v2 hierarchy, or cannot be read.
    #[error("cannot use {path} as a cgroup v2 directory")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image has more files or bytes than the kernel's tables can hold.
    #[error("too large to watch: {files} files in {chunks} chunks of 2 MiB, at most {max} of each")]
    TooLarge {
        /// Files to watch.
        files: u64,
        /// Bitmaps they need.
        chunks: u64,
        /// Largest number of either.
        max: u64,
    },
    /// The kernel refused the BPF object's maps.
    #[error("cannot load the BPF object")]
    Object {
        /// aya's error.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// A map cannot be used.
    #[error("cannot {operation} BPF map {map}")]
    Map {
        /// What was attempted.
        operation: &'static str,
        /// The map's name.
        map: &'static str,
        /// aya's error.
        #[source]
        source: MapError,
    },
    /// A program cannot be loaded or attached.
    #[error("cannot {operation} BPF program {program}")]
    Program {
        /// What was attempted.
        operation: &'static str,
        /// The program's name.
        program: &'static str,
        /// aya's error.
        #[source]
        source: Box<ProgramError>,
    },
    /// The embedded object lacks a program or map: it and the loader are of different versions.
    #[error("the embedded BPF object has no {0}")]
    ObjectLacks(&'static str),
    /// The thread that reads events failed.
    #[error("cannot {operation} the thread {thread}")]
    Thread {
        /// What was attempted.
        operation: &'static str,
        /// The thread's name.
        thread: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl ProfilerError {
    /// `self`, or [`ProfilerError::NotPermitted`] if lack of privilege is what it comes from.
    pub(super) fn permission_first(self) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&self);
        while let Some(error) = cause {
            if let Some(code) = system_error(error)
                && self.means_no_privilege(code)
            {
                let source = io::Error::from_raw_os_error(code);
                return Self::NotPermitted {
                    operation: self.to_string(),
                    source,
                };
            }
            cause = error.source();
        }
        self
    }

    /// The error with all of its causes.
    pub(super) fn in_one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// The verifier answers EACCES to a program it rejects, whoever loads it.
    fn means_no_privilege(&self, code: i32) -> bool {
        let verifier = matches!(
            self,
            Self::Program {
                operation: "load",
                ..
            }
        );
        code == Errno::EPERM as i32 || code == Errno::EACCES as i32 && !verifier
    }
}

/// The kernel's error number, if `error` is one. aya's transparent variants do not show theirs as a
/// source.
fn system_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let program = error.downcast_ref::<Box<ProgramError>>().map(AsRef::as_ref);
    let io = match (error.downcast_ref::<MapError>(), program) {
        (Some(MapError::IoError(io)), _) | (_, Some(ProgramError::IOError(io))) => Some(io),
        _ => error.downcast_ref(),
    };
    io.and_then(io::Error::raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_program_is_no_lack_of_privilege() {
        let check = |operation, errno: Errno, expected| {
            let source = ProgramError::IOError(io::Error::from_raw_os_error(errno as i32));
            let error = ProfilerError::Program {
                operation,
                program: "p",
                source: source.into(),
            };
            let found = error.permission_first();
            assert_eq!(
                matches!(found, ProfilerError::NotPermitted { .. }),
                expected,
                "{errno}"
            );
        };
        check("load", Errno::EPERM, true);
        check("load", Errno::EACCES, false);
        check("attach", Errno::EACCES, true);
        check("attach", Errno::ENOENT, false);
    }
}
