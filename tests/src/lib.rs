//! What all tests share: images made byte by byte, faults put into them, the `esgz` binary and the
//! Go oracle.
//!
//! A test that cannot run here calls [`skipped`] once, with its own name, and returns.

pub mod archive;
pub mod compress;
pub mod compressors;
pub mod containerd;
pub mod conversion;
pub mod corrupt;
pub mod drafts;
pub mod esgz;
pub mod fixed;
pub mod golang;
mod header;
pub mod hold;
pub mod inject;
pub mod layers;
pub mod layout;
pub mod machine;
pub mod oracle;
pub mod packed;
pub mod platforms;
pub mod privileged;
pub mod registry;
pub mod residue;
pub mod running;
pub mod sets;
mod sparse;
pub mod touch;
pub mod tree;

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Says loudly that the test `name` did not run, and why. The test harness captures what `eprintln!`
/// writes, so this writes to the file itself; `cargo xtask test` counts these lines.
pub fn skipped(name: &str, reason: impl std::fmt::Display) {
    // Without a stderr there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "skipped: {name}: {reason}");
}

/// The workspace's directory.
pub fn workspace_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
        .to_owned()
}

/// The directory of this build's profile, `target/debug` or `target/release`, wherever the target
/// directory is: the parent of the `deps` directory that holds the test executable.
///
/// # Panics
/// When the test executable does not lie where cargo puts it.
pub fn profile_dir() -> PathBuf {
    let executable = std::env::current_exe().expect("the test executable has a path");
    let dir = executable
        .ancestors()
        .nth(2)
        .expect("the test executable lies in deps/");
    dir.to_owned()
}

/// The first executable file called `name` in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
