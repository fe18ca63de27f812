//! Networks by CNI plugins: bridge, loopback and host-local, as Debian has them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Esgz;
use esgz_tests::{find_program, machine, privileged, skipped};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The wrong configuration, a plugin that fails.
const OTHER: i32 = 1;

/// A network of its own for one test, whose bridge is removed at the end.
struct Net {
    conversion: Conversion,
    bridge: String,
}

impl Drop for Net {
    fn drop(&mut self) {
        // CNI leaves bridges; there is none where a test failed early.
        let _ = Command::new("ip")
            .args(["link", "delete", &self.bridge])
            .stderr(Stdio::null())
            .status();
    }
}

impl Net {
    /// Says that the test is skipped where something is missing.
    fn new(name: &str, number: u8) -> Option<Self> {
        if !Path::new("/usr/lib/cni/bridge").exists() {
            skipped(name, "containernetworking-plugins is not installed");
            return None;
        }
        if find_program("ip").is_none() {
            skipped(name, "iproute2 is not installed");
            return None;
        }
        let Some(image) = machine::with_busybox(&["ip", "wget", "httpd", "nc"]) else {
            skipped(name, "busybox is not installed");
            return None;
        };
        let conversion = Conversion::of(&image);
        let bridge = format!("esgzt{number}");
        let net = Self { conversion, bridge };
        net.configure("10-test.conflist", &[net.bridge_plugin(number)]);
        Some(net)
    }

    fn bridge_plugin(&self, number: u8) -> Value {
        json!({
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.conversion.path("leases"),
                "ranges": [[{ "subnet": format!("10.213.{number}.0/24") }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    fn configure(&self, file: &str, plugins: &[Value]) {
        let directory = self.conversion.path("net.d");
        fs::create_dir_all(&directory).unwrap();
        let list = json!({ "cniVersion": "1.0.0", "name": "esgz-test", "plugins": plugins });
        fs::write(directory.join(file), list.to_string()).unwrap();
    }

    fn record(&self, script: &str) -> Esgz {
        self.record_program(&["/bin/sh", "-c", script])
    }

    fn record_program(&self, words: &[&str]) -> Esgz {
        self.conversion
            .record_run("profile")
            .args([
                "--json",
                "--cni",
                "--cni-plugin-dir=/usr/lib/cni",
                "--cni-plugin-config-dir",
            ])
            .arg(self.conversion.path("net.d"))
            .arg("--entrypoint")
            .arg(json!(words).to_string())
    }

    /// Addresses that are in use, as host-local keeps them.
    fn leases(&self) -> Vec<String> {
        let mut leases = names(&self.conversion.path("leases/esgz-test"));
        leases.retain(|name| name.starts_with("10."));
        leases
    }

    /// Interfaces on the bridge.
    fn ports(&self) -> Vec<String> {
        names(&PathBuf::from(format!(
            "/sys/class/net/{}/brif",
            self.bridge
        )))
    }

    fn assert_nothing_left(&self, what: &str) {
        assert_eq!(self.leases(), [""; 0], "{what}");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.ports().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.ports(), [""; 0], "{what}");
    }
}

/// As in ctr-remote's manual, with a server of the test's own on the bridge.
#[test]
fn a_bridge_connects_the_container() {
    let name = "network::a_bridge_connects_the_container";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(net) = Net::new(name, 1) else {
        return;
    };
    let script = "ip -o addr; ip route";
    let finished = net.conversion.finish(net.record(script).run()).unwrap();
    let printed = finished.success().unwrap().stderr;
    assert!(
        printed.contains("eth0") && printed.contains("10.213.1.2/24"),
        "{printed}"
    );
    assert!(printed.contains("127.0.0.1/8"), "{printed}");
    assert!(printed.contains("default via 10.213.1.1"), "{printed}");
    net.assert_nothing_left("after a run");

    // The bridge has the gateway's address now: a server there is reached.
    let listener = std::net::TcpListener::bind("10.213.1.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, peer) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream
            .write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
            .unwrap();
        peer.ip().to_string()
    });
    let script = format!("wget -q -O - http://gateway:{port}/");
    let finished = net
        .record(&script)
        .arg("--add-hosts=gateway:10.213.1.1")
        .run();
    let printed = net
        .conversion
        .finish(finished)
        .unwrap()
        .success()
        .unwrap()
        .stderr;
    assert_eq!(printed, "hello\n");
    assert!(server.join().unwrap().starts_with("10.213.1."));
    // And a request of ours reaches the container.
    let script = "exec httpd -f -p 8080 -h /opt/data";
    let esgz = net
        .record(script)
        .args(["--wait-on-http=http://127.0.0.1:8080/small", "--period=30"]);
    net.conversion
        .finish(esgz.run())
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(net.conversion.json("profile")["ended"], "http");
    net.assert_nothing_left("after all");
}

/// Plugins of the test's own stand in a chain: each sees its predecessor's result, and DEL comes always, in the
/// opposite order.
#[test]
fn chains_and_their_ends() {
    let name = "network::chains_and_their_ends";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(net) = Net::new(name, 2) else {
        return;
    };
    let (plugins, log) = (net.conversion.path("plugins"), net.conversion.path("calls"));
    fs::create_dir(&plugins).unwrap();
    // Says what it is called with, and gives back the result that it got.
    let script = format!(
        "#!/bin/sh\nconfig=$(cat)\necho \"$0 $CNI_COMMAND $CNI_IFNAME $config\" >> {0}\n\
         case $CNI_COMMAND in ADD)\n\
         if test -e {0}.fail; then echo '{{\"cniVersion\":\"1.0.0\",\"code\":100,\"msg\":\"is broken\",\"details\":\"on purpose\"}}'; exit 1; fi\n\
         echo \"$config\" | sed 's/.*\"prevResult\"://; s/}}$//' ;; esac\n",
        log.display()
    );
    for plugin in ["first", "second"] {
        fs::write(plugins.join(plugin), &script).unwrap();
        fs::set_permissions(plugins.join(plugin), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let chain = [
        net.bridge_plugin(2),
        json!({"type": "first"}),
        json!({"type": "second"}),
    ];
    net.configure("10-test.conflist", &chain);
    let calls = || -> Vec<String> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        let word = |line: &str| {
            let mut words = line.split(' ');
            let plugin = words.next().unwrap().rsplit('/').next().unwrap().to_owned();
            let command = words.next().unwrap().to_owned();
            let has_result = line.contains("\"prevResult\"") && line.contains("10.213.2.");
            format!("{plugin} {command} {has_result}")
        };
        text.lines().map(word).collect()
    };
    let in_chain = |command: Esgz| command.arg("--cni-plugin-dir").arg(&plugins);
    let record = |script: &str| in_chain(net.record(script));
    let whole = [
        "first ADD true",
        "second ADD true",
        "second DEL true",
        "first DEL true",
    ];

    let ended = net.conversion.finish(record("true").run()).unwrap();
    ended.success().unwrap();
    assert_eq!(calls(), whole);
    net.assert_nothing_left("after a run");

    let failing = net.conversion.finish(record("exit 1").run()).unwrap();
    assert_eq!(failing.code, Some(3));
    assert_eq!(calls(), whole);
    let command = in_chain(net.record_program(&["/gone"]));
    let refused = net.conversion.finish(command.run()).unwrap();
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert_eq!(calls(), whole);
    net.assert_nothing_left("after a failure");

    let mut esgz = record("echo up; exec sleep 1000").into_command();
    let mut child = esgz
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut up).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(calls(), whole);
    net.assert_nothing_left("after an interruption");

    // A plugin that fails: the others are undone.
    let fail = net.conversion.path("calls.fail");
    fs::write(&fail, "").unwrap();
    let broken = net.conversion.finish(record("true").run()).unwrap();
    broken
        .failed_with(OTHER, &["\"first\" failed (ADD): is broken: on purpose"])
        .unwrap();
    assert_eq!(
        calls(),
        ["first ADD true", "second DEL false", "first DEL false"]
    );
    net.assert_nothing_left("after a broken plugin");
    fs::remove_file(&fail).unwrap();

    // Killed: the next call undoes it.
    let state = net.conversion.path("state");
    let mut esgz = record("echo up; exec sleep 1000")
        .arg("--state-dir")
        .arg(&state)
        .into_command();
    let mut child = esgz
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut up).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(net.leases().len(), 1);
    let next = net
        .conversion
        .record_run("other")
        .arg("--state-dir")
        .arg(&state);
    next.run().success().unwrap();
    assert_eq!(calls(), whole);
    assert!(names(&state).is_empty());
    net.assert_nothing_left("after a kill");
}

#[test]
fn what_is_missing_is_said() {
    let name = "network::what_is_missing_is_said";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let conversion = Conversion::of(&machine::image());
    let directory = conversion.path("net.d");
    let record = || {
        let command = conversion
            .record_run("profile")
            .args(["--cni", "--cni-plugin-conf-dir"]);
        conversion.finish(command.arg(&directory).run()).unwrap()
    };
    let expected = directory.display().to_string();
    record().failed_with(OTHER, &[&expected]).unwrap();
    fs::create_dir(&directory).unwrap();
    record().failed_with(OTHER, &["there is none"]).unwrap();
    fs::write(
        directory.join("a.conf"),
        "{\"name\":\"n\",\"type\":\"no-such-plugin\"}",
    )
    .unwrap();
    record()
        .failed_with(OTHER, &["no-such-plugin", "loopback"])
        .unwrap();
    fs::write(directory.join("a.conf"), "{\"name\":").unwrap();
    record().failed_with(OTHER, &["a.conf"]).unwrap();
}
