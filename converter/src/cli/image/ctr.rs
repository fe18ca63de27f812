//! What ctr-remote inherits from `ctr` is handed to `ctr`, unchanged.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::cli::failure::{Failure, OTHER};

/// Commands of ctr's that esgz has not.
const CTR: [&str; 30] = [
    "c",
    "container",
    "containers",
    "content",
    "deprecations",
    "event",
    "events",
    "info",
    "install",
    "lease",
    "leases",
    "namespace",
    "namespaces",
    "ns",
    "oci",
    "plugin",
    "plugins",
    "pprof",
    "run",
    "s",
    "sandbox",
    "sandboxes",
    "sb",
    "shim",
    "snapshot",
    "snapshots",
    "t",
    "task",
    "tasks",
    "version",
];
/// Names of [`crate::cli::args::Command::Image`].
const IMAGE: [&str; 3] = ["image", "images", "i"];
/// What is done here of it.
const OURS: [&str; 7] = [
    "optimize",
    "convert",
    "pull",
    "push",
    "rpull",
    "get-toc-digest",
    "help",
];
/// Flags before the command that have a value of their own.
const VALUED: [&str; 8] = [
    "--address",
    "-a",
    "--namespace",
    "-n",
    "--timeout",
    "--connect-timeout",
    "--log-level",
    "--progress",
];

/// Whether these arguments, without the program's name, are for `ctr`.
pub(in crate::cli) fn is_meant(args: &[OsString]) -> bool {
    let Some((command, rest)) = next_word(args, &VALUED) else {
        return false;
    };
    if CTR.contains(&command) {
        return true;
    }
    // Its flags come behind what is done to images.
    let done = rest.first().and_then(|next| next.to_str());
    let done = done.filter(|word| !word.starts_with('-'));
    IMAGE.contains(&command) && done.is_some_and(|done| !OURS.contains(&done))
}

/// The first word that is no flag, and what comes behind it.
fn next_word<'a>(mut args: &'a [OsString], valued: &[&str]) -> Option<(&'a str, &'a [OsString])> {
    while let [first, rest @ ..] = args {
        let word = first.to_str()?;
        if !word.starts_with('-') {
            return Some((word, rest));
        }
        let skipped = usize::from(valued.contains(&word));
        args = rest.get(skipped..)?;
    }
    None
}

/// Becomes `ctr`. Comes back only if that cannot be.
pub(in crate::cli) fn hand_over(args: &[OsString]) -> Failure {
    let error = Command::new("ctr").args(args).exec();
    let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
    let words = words.join(" ");
    if error.kind() == std::io::ErrorKind::NotFound {
        let message = format!(
            "\"{words}\" is for containerd's program ctr, which is not on PATH (Debian package containerd)"
        );
        return Failure::message(OTHER, message);
    }
    Failure::new(OTHER, error).context(format!("running ctr {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: bool) {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        assert_eq!(is_meant(&args), expected, "{line}");
    }

    #[test]
    fn only_what_is_ctrs_is_handed_over() {
        for ctrs in [
            "run --rm -t --snapshotter=stargz image name echo hello",
            "-n k8s.io -a /run/x.sock content get sha256:00",
            "--namespace=x images ls",
            "i export out.tar image",
            "image rm convert",
            "--debug images tag a b",
            "version",
        ] {
            check(ctrs, true);
        }
        for ours in [
            "",
            "--help",
            "--version",
            "image",
            "image --help",
            "i optimize --oci a b",
            "images rpull ref",
            "-n x image get-toc-digest sha256:00",
            "optimize run b",
            "convert a content",
            "-n run",
            "inspect images",
            "nonsense",
        ] {
            check(ours, false);
        }
    }
}
