//! The container's config.json: containerd's defaults for Linux. Pure.

use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::runtime::Process;

/// Files that are mounted into the container.
pub(super) struct Generated<'a> {
    pub(super) hosts: &'a Path,
    pub(super) resolv_conf: &'a Path,
}

/// What containerd gives every container.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED_PATHS: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Writes the specification of a container that runs `process` in `rootfs`.
pub(super) fn spec(
    process: &Process,
    rootfs: &Path,
    cgroups_path: &str,
    generated: &Generated<'_>,
) -> Result<Spec, serde_json::Error> {
    let ids = &process.ids;
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": ids.uid, "gid": ids.gid, "additionalGids": ids.additional_gids },
            "args": process.args,
            "env": process.env,
            "cwd": process.cwd,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": rootfs },
        "mounts": mounts(generated),
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [
                { "type": "pid" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
                { "type": "network" },
            ],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "resources": { "devices": devices() },
        },
    }))
}

fn mounts(generated: &Generated<'_>) -> Value {
    let generated_file =
        |destination: &str, source: &Path| mount(destination, "bind", source, &["rbind", "ro"]);
    let tmpfs = |destination: &str, source: &str, options: &[&str]| {
        mount(destination, "tmpfs", Path::new(source), options)
    };
    json!([
        mount(
            "/proc",
            "proc",
            Path::new("proc"),
            &["nosuid", "noexec", "nodev"]
        ),
        tmpfs(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "/dev/pts",
            "devpts",
            Path::new("devpts"),
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5"
            ],
        ),
        tmpfs(
            "/dev/shm",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            Path::new("mqueue"),
            &["nosuid", "noexec", "nodev"]
        ),
        mount(
            "/sys",
            "sysfs",
            Path::new("sysfs"),
            &["nosuid", "noexec", "nodev", "ro"]
        ),
        tmpfs(
            "/run",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        generated_file("/etc/hosts", generated.hosts),
        generated_file("/etc/resolv.conf", generated.resolv_conf),
    ])
}

fn mount(destination: &str, kind: &str, source: &Path, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// Nothing is allowed but making devices and using the usual ones.
fn devices() -> Value {
    let device = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        if let Some(major) = major {
            rule["major"] = json!(major);
        }
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    json!([
        { "allow": false, "access": "rwm" },
        device("c", None, None, "m"),
        device("b", None, None, "m"),
        // null, zero, full, random, urandom
        device("c", Some(1), Some(3), "rwm"),
        device("c", Some(1), Some(5), "rwm"),
        device("c", Some(1), Some(7), "rwm"),
        device("c", Some(1), Some(8), "rwm"),
        device("c", Some(1), Some(9), "rwm"),
        // tty, console, ptmx, pts
        device("c", Some(5), Some(0), "rwm"),
        device("c", Some(5), Some(1), "rwm"),
        device("c", Some(5), Some(2), "rwm"),
        device("c", Some(136), None, "rwm"),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::process::{self, tests as fixtures};

    #[test]
    fn the_specification_has_containerds_defaults() {
        let image = fixtures::config(&json!({ "Cmd": ["/bin/true"], "Env": ["A=1"] }));
        let process = process::from_config(&image, &fixtures::options()).unwrap();
        let generated = Generated {
            hosts: Path::new("/b/hosts"),
            resolv_conf: Path::new("/b/r"),
        };
        let spec = spec(&process, Path::new("/rootfs"), "/parent/child", &generated).unwrap();
        insta::assert_json_snapshot!(spec);
    }
}
