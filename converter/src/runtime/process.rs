//! What is run: the image's configuration with the user's wishes. Pure.

use oci_spec::image::ImageConfiguration;

use crate::runtime::user::Ids;
use crate::runtime::{RuntimeError, WorkloadOptions};

/// What an image without `PATH` gets, as containerd has it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// As image or user name it; empty for root.
    pub user: String,
    pub(super) ids: Ids,
    /// The signal that asks it to end, as the image gives it.
    pub(super) stop_signal: Option<String>,
}

/// Puts image and options together, without looking into the root file system.
pub(super) fn from_config(
    config: &ImageConfiguration,
    options: &WorkloadOptions,
) -> Result<Process, RuntimeError> {
    let config = config.config().as_ref();
    // As ctr-remote: each flag replaces its own half, an empty list leaves the image's.
    let half = |flag: &Option<Vec<String>>, image: Option<Vec<String>>| match flag {
        Some(list) if !list.is_empty() => list.clone(),
        _ => image.unwrap_or_default(),
    };
    let mut args = half(
        &options.entrypoint,
        config.and_then(|config| config.entrypoint().clone()),
    );
    args.extend(half(
        &options.args,
        config.and_then(|config| config.cmd().clone()),
    ));
    if args.is_empty() {
        return Err(RuntimeError::NothingToRun);
    }
    let mut env = vec![DEFAULT_PATH.to_owned()];
    let image_env = config
        .and_then(|config| config.env().clone())
        .unwrap_or_default();
    for entry in image_env.iter().chain(&options.env) {
        set_env(&mut env, entry)?;
    }
    let image_cwd = config
        .and_then(|config| config.working_dir().clone())
        .unwrap_or_default();
    let cwd = options.cwd.clone().unwrap_or(image_cwd);
    let cwd = if cwd.is_empty() { "/".to_owned() } else { cwd };
    if !cwd.starts_with('/') {
        let reason = "is not absolute";
        return Err(RuntimeError::Malformed {
            what: "working directory",
            value: cwd,
            reason,
        });
    }
    let image_user = config
        .and_then(|config| config.user().clone())
        .unwrap_or_default();
    Ok(Process {
        args,
        env,
        cwd,
        user: options.user.clone().unwrap_or(image_user),
        ids: Ids::default(),
        stop_signal: config.and_then(|config| config.stop_signal().clone()),
    })
}

fn set_env(env: &mut Vec<String>, entry: &str) -> Result<(), RuntimeError> {
    let Some((key, _)) = entry.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        // Without a value it takes the variable away, as containerd has it.
        env.retain(|known| known.split_once('=').is_none_or(|(key, _)| key != entry));
        return Ok(());
    };
    if entry.contains('\0') {
        let (what, value) = ("environment entry", entry.escape_default().to_string());
        return Err(RuntimeError::Malformed {
            what,
            value,
            reason: "holds a NUL",
        });
    }
    let same = |known: &String| known.split_once('=').is_some_and(|(k, _)| k == key);
    match env.iter().position(same) {
        Some(at) => env[at] = entry.to_owned(),
        None => env.push(entry.to_owned()),
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::runtime) fn options() -> WorkloadOptions {
        WorkloadOptions::default()
    }

    pub(in crate::runtime) fn config(config: &serde_json::Value) -> ImageConfiguration {
        let document = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        serde_json::from_value(document).unwrap()
    }

    fn list(items: &[&str]) -> Option<Vec<String>> {
        Some(items.iter().map(|&item| item.to_owned()).collect())
    }

    #[test]
    fn each_flag_replaces_its_own_half() {
        let image = config(&json!({ "Entrypoint": ["e"], "Cmd": ["c", "d"] }));
        let check = |entrypoint, args, expected: &[&str]| {
            let options = WorkloadOptions {
                entrypoint,
                args,
                ..options()
            };
            assert_eq!(from_config(&image, &options).unwrap().args, expected);
        };
        check(None, None, &["e", "c", "d"]);
        check(list(&["x", "y"]), None, &["x", "y", "c", "d"]);
        check(None, list(&["z"]), &["e", "z"]);
        check(list(&["x"]), list(&["z"]), &["x", "z"]);
        check(list(&[]), list(&[]), &["e", "c", "d"]);
        let nothing = from_config(&config(&json!({})), &options());
        assert!(matches!(nothing, Err(RuntimeError::NothingToRun)));
    }

    #[test]
    fn the_environment_is_merged_by_key() {
        let image = config(&json!({ "Cmd": ["c"], "Env": ["A=1", "B=2", "PATH=/x"] }));
        let env = ["B=3", "C=", "A"].map(str::to_owned).to_vec();
        let process = from_config(&image, &WorkloadOptions { env, ..options() }).unwrap();
        assert_eq!(process.env, ["PATH=/x", "B=3", "C="]);
        let bare = from_config(&config(&json!({ "Cmd": ["c"] })), &options()).unwrap();
        assert_eq!(bare.env, [DEFAULT_PATH]);
        assert_eq!((bare.cwd.as_str(), bare.user.as_str()), ("/", ""));
    }

    #[test]
    fn a_relative_directory_is_refused() {
        let image = config(&json!({ "Cmd": ["c"], "WorkingDir": "x" }));
        assert!(matches!(
            from_config(&image, &options()),
            Err(RuntimeError::Malformed { .. })
        ));
    }
}
