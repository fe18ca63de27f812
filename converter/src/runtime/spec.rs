//! The container's config.json: containerd's defaults for Linux, and what the user adds. Pure.

use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

use crate::runtime::Process;
use crate::runtime::cdi::{DeviceNode, Edits};
use crate::runtime::options::Mount;

/// What is around the process.
pub(super) struct Surroundings<'a> {
    pub(super) rootfs: &'a Path,
    pub(super) cgroups_path: &'a str,
    /// Files that are mounted into the container.
    pub(super) hosts: &'a Path,
    pub(super) resolv_conf: &'a Path,
    pub(super) has_terminal: bool,
    pub(super) network: NetworkNamespace<'a>,
    pub(super) mounts: &'a [Mount],
    /// What devices need.
    pub(super) edits: &'a [Edits],
    pub(super) device_nodes: &'a [DeviceNode],
}

/// Which network namespace a container has.
#[derive(Clone, Copy)]
pub(super) enum NetworkNamespace<'a> {
    New,
    OfHost,
    At(&'a Path),
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

/// The process of a container, or one that is run in it later.
pub(super) fn process(process: &Process, surroundings: &Surroundings<'_>) -> Value {
    let ids = &process.ids;
    let mut env = process.env.clone();
    for entry in surroundings.edits.iter().flat_map(|edits| &edits.env) {
        let key = |entry: &str| entry.split_once('=').map(|(key, _)| key.to_owned());
        env.retain(|known| key(known) != key(entry));
        env.push(entry.clone());
    }
    if surroundings.has_terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    let mut gids = ids.additional_gids.clone();
    for gid in surroundings
        .edits
        .iter()
        .flat_map(|edits| &edits.additional_gids)
    {
        // 0 is left out (CDI specification, additionalGids).
        if *gid != 0 && !gids.contains(gid) {
            gids.push(*gid);
        }
    }
    json!({
        "terminal": surroundings.has_terminal,
        "user": { "uid": ids.uid, "gid": ids.gid, "additionalGids": gids },
        "args": process.args,
        "env": env,
        "cwd": process.cwd,
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "permitted": CAPABILITIES,
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
    })
}

/// Writes the specification of a container that runs `process` in its surroundings.
pub(super) fn spec(
    of_process: &Process,
    surroundings: &Surroundings<'_>,
) -> Result<Spec, serde_json::Error> {
    let mut namespaces = vec![
        json!({ "type": "pid" }),
        json!({ "type": "ipc" }),
        json!({ "type": "uts" }),
        json!({ "type": "mount" }),
    ];
    match surroundings.network {
        NetworkNamespace::New => namespaces.push(json!({ "type": "network" })),
        NetworkNamespace::OfHost => {}
        NetworkNamespace::At(path) => namespaces.push(json!({ "type": "network", "path": path })),
    }
    let mut document = json!({
        "ociVersion": "1.0.2",
        "process": process(of_process, surroundings),
        "root": { "path": surroundings.rootfs },
        "mounts": mounts(surroundings),
        "linux": {
            "cgroupsPath": surroundings.cgroups_path,
            "namespaces": namespaces,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "resources": { "devices": devices(surroundings.device_nodes) },
        },
    });
    if !surroundings.device_nodes.is_empty() {
        document["linux"]["devices"] = surroundings.device_nodes.iter().map(node).collect();
    }
    let hooks = hooks(surroundings.edits);
    if !hooks.is_empty() {
        document["hooks"] = Value::Object(hooks);
    }
    serde_json::from_value(document)
}

fn hooks(edits: &[Edits]) -> Map<String, Value> {
    let mut hooks: Map<String, Value> = Map::new();
    for hook in edits.iter().flat_map(|edits| &edits.hooks) {
        let mut value = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
        if let Some(timeout) = hook.timeout {
            value["timeout"] = json!(timeout);
        }
        let of_kind = hooks.entry(hook.kind.key()).or_insert_with(|| json!([]));
        if let Some(list) = of_kind.as_array_mut() {
            list.push(value);
        }
    }
    hooks
}

fn node(device: &DeviceNode) -> Value {
    let mut value = json!({
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
    });
    for (key, number) in [
        ("fileMode", device.mode),
        ("uid", device.uid),
        ("gid", device.gid),
    ] {
        if let Some(number) = number {
            value[key] = json!(number);
        }
    }
    value
}

fn mounts(surroundings: &Surroundings<'_>) -> Value {
    let generated_file =
        |destination: &str, source: &Path| mount(destination, "bind", source, &["rbind", "ro"]);
    let tmpfs = |destination: &str, source: &str, options: &[&str]| {
        mount(destination, "tmpfs", Path::new(source), options)
    };
    let mut mounts = vec![
        mount(
            "/proc",
            "proc",
            Path::new("proc"),
            &["nosuid", "noexec", "nodev"],
        ),
        tmpfs(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
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
                "gid=5",
            ],
        ),
        tmpfs(
            "/dev/shm",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            Path::new("mqueue"),
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            Path::new("sysfs"),
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        tmpfs(
            "/run",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        generated_file("/etc/hosts", surroundings.hosts),
        generated_file("/etc/resolv.conf", surroundings.resolv_conf),
    ];
    let of_devices = surroundings.edits.iter().flat_map(|edits| &edits.mounts);
    mounts.extend(of_devices.map(|edited| {
        let options: Vec<&str> = edited.options.iter().map(String::as_str).collect();
        let kind = edited.kind.as_deref().unwrap_or("bind");
        let options = if options.is_empty() && kind == "bind" {
            vec!["rbind"]
        } else {
            options
        };
        mount(
            &edited.container_path,
            kind,
            Path::new(&edited.host_path),
            &options,
        )
    }));
    mounts.extend(surroundings.mounts.iter().map(|wanted| {
        let options: Vec<&str> = wanted.options.iter().map(String::as_str).collect();
        mount(
            &wanted.destination,
            &wanted.kind,
            Path::new(&wanted.source),
            &options,
        )
    }));
    Value::Array(mounts)
}

fn mount(destination: &str, kind: &str, source: &Path, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// Nothing is allowed but making devices, using the usual ones and `nodes`.
fn devices(nodes: &[DeviceNode]) -> Value {
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
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
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
    ];
    rules.extend(nodes.iter().map(|node| {
        let (major, minor) = (i64::from(node.major), i64::from(node.minor));
        device(&node.kind, Some(major), Some(minor), &node.access)
    }));
    Value::Array(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runtime::process::{self, tests as fixtures};

    /// As a value, its sets in order: they differ from run to run.
    fn value_of(process: &Process, surroundings: &Surroundings<'_>) -> Value {
        let mut spec = serde_json::to_value(spec(process, surroundings).unwrap()).unwrap();
        for set in ["bounding", "effective", "permitted"] {
            let list = spec["process"]["capabilities"][set].as_array_mut().unwrap();
            list.sort_by_key(ToString::to_string);
        }
        spec
    }

    fn surroundings<'a>() -> Surroundings<'a> {
        Surroundings {
            rootfs: Path::new("/rootfs"),
            cgroups_path: "/parent/child",
            hosts: Path::new("/b/hosts"),
            resolv_conf: Path::new("/b/r"),
            has_terminal: false,
            network: NetworkNamespace::New,
            mounts: &[],
            edits: &[],
            device_nodes: &[],
        }
    }

    #[test]
    fn the_specification_has_containerds_defaults() {
        let image = fixtures::config(&json!({ "Cmd": ["/bin/true"], "Env": ["A=1"] }));
        let process = process::from_config(&image, &fixtures::options()).unwrap();
        insta::assert_json_snapshot!(value_of(&process, &surroundings()));
    }

    #[test]
    fn what_the_user_adds() {
        let image = fixtures::config(&json!({ "Cmd": ["/bin/true"], "Env": ["A=1"] }));
        let process = process::from_config(&image, &fixtures::options()).unwrap();
        let mounts = [Mount {
            kind: "bind".to_owned(),
            source: "/s".to_owned(),
            destination: "/d".to_owned(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
        }];
        let edits: Edits = serde_json::from_value(json!({
            "env": ["A=2", "B=1"],
            "additionalGids": [0, 44],
            "mounts": [{ "hostPath": "/h", "containerPath": "/c" }],
            "hooks": [{ "hookName": "createContainer", "path": "/hook", "args": ["hook", "x"], "timeout": 3 }],
        }))
        .unwrap();
        let node = DeviceNode {
            path: "/dev/gpu0".to_owned(),
            kind: "c".to_owned(),
            major: 195,
            minor: 0,
            mode: Some(0o666),
            uid: None,
            gid: Some(44),
            access: "rw".to_owned(),
        };
        let spec = value_of(
            &process,
            &Surroundings {
                has_terminal: true,
                network: NetworkNamespace::At(Path::new("/run/netns")),
                mounts: &mounts,
                edits: &[edits],
                device_nodes: &[node],
                ..surroundings()
            },
        );
        assert_eq!(spec["process"]["terminal"], true);
        let env = spec["process"]["env"].as_array().unwrap();
        assert_eq!(env[1..], [json!("A=2"), json!("B=1"), json!("TERM=xterm")]);
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([44]));
        let listed = spec["mounts"].as_array().unwrap();
        let [edited, mounted] = &listed[listed.len() - 2..] else {
            panic!("two mounts");
        };
        assert_eq!(
            (&edited["destination"], &edited["options"]),
            (&json!("/c"), &json!(["rbind"]))
        );
        assert_eq!(
            (&mounted["source"], &mounted["options"]),
            (&json!("/s"), &json!(["rbind", "ro"]))
        );
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!({ "type": "network", "path": "/run/netns" })));
        assert_eq!(spec["linux"]["devices"][0]["major"], 195);
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules.last().unwrap()["access"], "rw");
        assert_eq!(
            spec["hooks"]["createContainer"][0]["args"],
            json!(["hook", "x"])
        );

        let of_host = Surroundings {
            network: NetworkNamespace::OfHost,
            ..surroundings()
        };
        let spec = value_of(&process, &of_host);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert!(
            !namespaces
                .iter()
                .any(|namespace| namespace["type"] == "network")
        );
    }
}
