//! The commands of ctr-remote's manual, through a link called `ctr-remote`, against a real containerd: the image is
//! one of this machine's programs, and the registry one of the tests' own, as there is no internet here.

mod ctr_remote {
    mod peers;

    use super::{Fixture, prefetched, texts};
}

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use esgz_tests::containerd::{Containerd, Programs, versions};
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::layout::{Layout, LayoutBuilder};
use esgz_tests::platforms::{self, IndexBuilder};
use esgz_tests::registry::{Behaviour, Server};
use esgz_tests::{esgz, find_program, golang, machine, privileged, skipped};
use serde_json::{Value, json};

/// A containerd, a registry with an image, and a link to esgz.
struct Fixture {
    conversion: Conversion,
    containerd: Containerd,
    registry: Server,
    link: PathBuf,
}

impl Fixture {
    fn each(name: &str, test: impl Fn(&Self)) {
        for programs in versions(name) {
            test(&Self::of(&programs, &machine::image()));
        }
    }

    fn of(programs: &Programs, image: &LayoutBuilder) -> Self {
        let conversion = Conversion::of(image);
        let registry = Server::start(Behaviour::default());
        registry.put_layout(&conversion.source, "debian", "org");
        let link = conversion.path("ctr-remote");
        std::os::unix::fs::symlink(esgz::binary(), &link).unwrap();
        Self {
            containerd: Containerd::start(programs),
            conversion,
            registry,
            link,
        }
    }

    /// The source in the registry, and in containerd.
    fn org(&self) -> String {
        self.name("debian:org")
    }

    /// An image of the registry's, which is also its name in containerd.
    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.containerd.command_of(&self.link);
        command
            .args(args)
            .env("TMPDIR", self.conversion.path("scratch"))
            .env("DOCKER_CONFIG", self.conversion.path("no-docker-config"))
            .stdin(Stdio::null());
        command
    }

    /// What `ctr-remote ARGS` prints.
    fn run(&self, args: &[&str]) -> String {
        let (stdout, _) = self.run_both(args);
        stdout
    }

    /// The same, with its stderr.
    fn run_both(&self, args: &[&str]) -> (String, String) {
        let done = self.command(args).output().unwrap();
        let (stdout, stderr) = texts(&done);
        assert!(done.status.success(), "{args:?}: {}: {stderr}", done.status);
        (stdout, stderr)
    }

    fn pull(&self) {
        self.run(&["image", "pull", "--plain-http", &self.org()]);
    }

    /// What `ctr-remote image optimize` makes of the source with `args`, as a layout; and what it prints.
    fn optimize(&self, args: &[&str], tag: &str) -> (Layout, String) {
        let (org, to) = (self.org(), self.name(&format!("debian:{tag}")));
        let head = ["image", "optimize", "--oci"];
        let args: Vec<&str> = head
            .into_iter()
            .chain(args.iter().copied())
            .chain([&*org, &to])
            .collect();
        let printed = self.run(&args);
        (self.taken_out(&to), printed)
    }

    /// An image of containerd's, as a layout.
    fn taken_out(&self, name: &str) -> Layout {
        let out = Layout {
            dir: self
                .conversion
                .path(&format!("out-{}", names(&self.conversion.path("")).len())),
            tag: Some("esgz".to_owned()),
        };
        let to = out.reference();
        let copied =
            self.containerd
                .esgz("convert")
                .args(["--reuse", "--all-platforms", name, &to]);
        copied.run().success().unwrap();
        out
    }

    /// Names of files in front of the landmarks.
    fn prefetched(&self, image: &Layout) -> Vec<String> {
        prefetched(image)
    }

    /// Equal file systems, and nothing left over.
    fn check(&self, result: &Layout) {
        let verify = esgz::Esgz::new("verify").arg("--source");
        let verify = verify.args([self.conversion.source.reference(), result.reference()]);
        verify.run().success().unwrap();
        assert_eq!(
            self.containerd.unfinished("default").unwrap(),
            Vec::<String>::new()
        );
        assert_eq!(
            names(&self.conversion.path("scratch")),
            Vec::<String>::new()
        );
    }
}

fn texts(done: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&done.stdout), text(&done.stderr))
}

/// Paths of the files in front of each layer's landmark.
fn prefetched(image: &Layout) -> Vec<String> {
    let mut paths = Vec::new();
    for number in 0..image.manifest()["layers"].as_array().unwrap().len() {
        let inspect = esgz::Esgz::new("inspect").args(["--json", "--layer", &number.to_string()]);
        let toc = inspect.arg(image.reference()).run().success().unwrap();
        let toc: Value = serde_json::from_str(&toc.stdout).unwrap();
        let entries = toc["entries"].as_array().unwrap();
        let names = entries.iter().map(|entry| entry["name"].as_str().unwrap());
        let names: Vec<&str> = names.map(|name| name.trim_start_matches("./")).collect();
        if let Some(landmark) = names.iter().position(|name| *name == ".prefetch.landmark") {
            let before = entries[..landmark].iter().zip(&names);
            let files = before.filter(|(entry, _)| entry["type"] == "reg");
            paths.extend(files.map(|(_, name)| (*name).to_owned()));
        }
    }
    paths
}

#[test]
fn pulled_optimized_and_pushed() {
    let name = "ctr_remote::pulled_optimized_and_pushed";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    Fixture::each(name, |fixture| {
        fixture.pull();
        let (esgz, org) = (fixture.name("debian:esgz"), fixture.org());
        let (result, printed) = fixture.optimize(&[], "esgz");
        // The workload's own output, then the digest.
        let expected = format!("{}{}\n", machine::MAIN_PRINTS, result.manifest_digest());
        assert_eq!(printed, expected);
        fixture.check(&result);
        let prefetched = fixture.prefetched(&result);
        assert!(
            prefetched.iter().any(|path| path == "opt/main"),
            "{prefetched:?}"
        );
        fixture.run(&["image", "push", "--plain-http", &esgz]);
        let pushed = fixture.registry.tag("debian", "esgz");
        assert_eq!(pushed, Some(result.manifest_digest()));
        assert_eq!(
            fixture.registry.missing("debian", "esgz"),
            Vec::<String>::new()
        );

        // The aliases, and what is ctr's own.
        let list = fixture.run(&["i", "ls", "-q"]);
        assert!(list.lines().any(|line| line == esgz), "{list}");
        assert!(list.lines().any(|line| line == org), "{list}");
        let file = fixture.conversion.path("exported.tar");
        let file = file.to_str().unwrap();
        fixture.run(&["--namespace=default", "images", "export", file, &esgz]);
        let manifest = fixture.run(&["content", "get", &result.manifest_digest()]);
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest, result.manifest());

        let layer = result.layer_digest(0);
        let toc = fixture.run(&["image", "get-toc-digest", &layer]);
        let annotations = &manifest["layers"][0]["annotations"];
        assert_eq!(
            toc.trim_end(),
            annotations["containerd.io/snapshot/stargz/toc.digest"]
        );
        let toc = fixture.run(&["image", "get-toc-digest", "--dump-toc", &layer]);
        assert!(
            toc.starts_with("{\n\t\"version\": 1,\n\t\"entries\": ["),
            "{toc}"
        );
    });
}

#[test]
fn a_pulled_image_runs() {
    let name = "ctr_remote::a_pulled_image_runs";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    Fixture::each(name, |fixture| {
        let org = fixture.org();
        let printed = fixture.run(&["image", "pull", "--plain-http", &org]);
        assert!(printed.starts_with("unpacking linux/"), "{printed}");
        let snapshots = fixture.run(&["snapshots", "ls"]);
        assert_eq!(snapshots.lines().count(), 3, "{snapshots}");
        // What was unpacked is held by the image.
        fixture.containerd.collect_garbage("default").unwrap();
        assert_eq!(fixture.run(&["snapshots", "ls"]), snapshots);
        assert_eq!(
            fixture.containerd.unfinished("default").unwrap(),
            Vec::<String>::new()
        );
        fixture.run(&["image", "rm", "--sync", &org]);
        fixture.containerd.collect_garbage("default").unwrap();
        assert_eq!(
            fixture.containerd.content("default").unwrap(),
            Vec::<String>::new()
        );
        assert_eq!(fixture.run(&["snapshots", "ls"]).lines().count(), 1);
    });
}

#[test]
fn levels_and_workloads_as_in_the_manual() {
    let name = "ctr_remote::levels_and_workloads_as_in_the_manual";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    Fixture::each(name, |fixture| {
        fixture.pull();
        let (fast, _) = fixture.optimize(&["--estargz-compression-level", "1"], "1");
        fixture.check(&fast);
        let (own, printed) = fixture.optimize(
            &[
                "--entrypoint=[ \"/bin/sh\", \"-c\" ]",
                "--args=[ \"exec /bin/cat /opt/data/new\" ]",
            ],
            "go-version",
        );
        fixture.check(&own);
        assert!(printed.starts_with("of the upper layer\n"), "{printed}");
        let prefetched = fixture.prefetched(&own);
        assert!(
            !prefetched.iter().any(|path| path == "opt/main"),
            "{prefetched:?}"
        );
        assert!(
            prefetched.iter().any(|path| path == "opt/data/new"),
            "{prefetched:?}"
        );

        let hello = fixture.conversion.path("hello.go");
        fs::write(&hello, "package main\n").unwrap();
        let mount = format!(
            "--mount=type=bind,source={},destination=/hello.go,options=bind:ro",
            hello.display()
        );
        let (mounted, printed) = fixture.optimize(
            &[
                &mount,
                "--net-host",
                "--entrypoint=[ \"/bin/sh\", \"-c\" ]",
                "--args=[ \"cat /hello.go\" ]",
            ],
            "hello-world",
        );
        fixture.check(&mounted);
        assert!(printed.starts_with("package main\n"), "{printed}");
    });
}

#[test]
fn a_terminal_on_the_hosts_network_as_in_the_manual() {
    let name = "ctr_remote::a_terminal_on_the_hosts_network_as_in_the_manual";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    Fixture::each(name, |fixture| {
        fixture.pull();
        let (org, to) = (fixture.org(), fixture.name("debian:terminal"));
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut command = fixture.command(&[
            "i",
            "optimize",
            "-t",
            "-i",
            "--oci",
            "--entrypoint=[ \"/bin/sh\", \"-c\" ]",
            "--net-host",
            "--args=[ \"[ -t 0 ] && [ -t 1 ] && cat /proc/net/dev && read answer && echo got $answer\" ]",
            &org,
            &to,
        ]);
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // With its ends the terminal ends.
        drop((command, pty.slave));
        let mut master = fs::File::from(pty.master);
        master.write_all(b"it\n").unwrap();
        let mut printed = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = master.read(&mut buffer) {
            printed.extend_from_slice(&buffer[..len]);
        }
        let done = child.wait_with_output().unwrap();
        let (_, stderr) = texts(&done);
        assert!(done.status.success(), "{stderr}");
        let printed = String::from_utf8(printed).unwrap();
        assert!(printed.contains("got it\r\n"), "{printed}");
        let here = fs::read_to_string("/proc/net/dev").unwrap();
        for line in here.lines().skip(2) {
            let interface = line.split(':').next().unwrap().trim();
            assert!(printed.contains(interface), "{interface}: {printed}");
        }
        fixture.check(&fixture.taken_out(&to));
    });
}

/// The manual's main example, its `go version` and its `hello.go`, with Debian's Go.
#[test]
fn go_programs_as_in_the_manual() {
    let name = "ctr_remote::go_programs_as_in_the_manual";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let image = match golang::image() {
        Ok(image) => image,
        Err(reason) => return skipped(name, reason),
    };
    for programs in versions(name) {
        let fixture = Fixture::of(&programs, &image);
        fixture.pull();
        let bash = "--entrypoint=[ \"/bin/bash\", \"-c\" ]";
        let (version, printed) = fixture.optimize(&[bash, "--args=[ \"go version\" ]"], "version");
        fixture.check(&version);
        assert!(printed.starts_with("go version go1."), "{printed}");

        let source =
            "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"hello world\")\n}\n";
        let hello = fixture.conversion.path("hello.go");
        fs::write(&hello, source).unwrap();
        let mount = format!(
            "--mount=type=bind,source={},destination=/hello.go,options=bind:ro",
            hello.display()
        );
        let build = "--args=[ \"go build -o /hello /hello.go && /hello\" ]";
        let (built, printed) = fixture.optimize(&[&mount, bash, build], "hello-world");
        fixture.check(&built);
        assert!(printed.starts_with("hello world\n"), "{printed}");
        let (few, many) = (fixture.prefetched(&version), fixture.prefetched(&built));
        let is_compiler = |path: &String| path.ends_with("/compile");
        assert!(!few.iter().any(is_compiler), "{few:?}");
        assert!(many.iter().any(is_compiler), "{many:?}");
        assert!(few.len() < many.len());

        let to = fixture.name("debian:hello-world");
        fixture.run(&["image", "push", "--plain-http", &to]);
        fixture.run(&["image", "rm", &to]);
        fixture.run(&["image", "pull", "--plain-http", &to]);
        fixture.check(&fixture.taken_out(&to));
    }
}

/// Removes the bridge of a test's network.
struct Bridge(&'static str);

impl Drop for Bridge {
    fn drop(&mut self) {
        let delete = ["link", "delete", self.0];
        let _ = Command::new("ip")
            .args(delete)
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn networks_and_devices_as_in_the_manual() {
    let name = "ctr_remote::networks_and_devices_as_in_the_manual";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    if !Path::new("/usr/lib/cni/bridge").exists() || find_program("ip").is_none() {
        return skipped(
            name,
            "containernetworking-plugins or iproute2 is not installed",
        );
    }
    Fixture::each(name, |fixture| {
        let bridge = Bridge("esgzt90");
        let directory = fixture.conversion.path("net.d");
        fs::create_dir(&directory).unwrap();
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "esgz-test-ctr",
            "plugins": [{
                "type": "bridge",
                "bridge": bridge.0,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": fixture.conversion.path("leases"),
                    "ranges": [[{ "subnet": "10.213.90.0/24" }]],
                },
            }],
        });
        fs::write(directory.join("10-test.conflist"), network.to_string()).unwrap();
        let devices = fixture.conversion.path("cdi");
        fs::create_dir(&devices).unwrap();
        let gpu = json!({
            "cdiVersion": "0.6.0",
            "kind": "nvidia.com/gpu",
            "devices": [{ "name": "0", "containerEdits": { "env": ["GPU=zero"] } }],
        });
        fs::write(devices.join("gpu.json"), gpu.to_string()).unwrap();
        fixture.pull();
        let (result, printed) = fixture.optimize(
            &[
                "--gpus",
                "0",
                "--cdi-spec-dir",
                devices.to_str().unwrap(),
                "--cni",
                "--cni-plugin-conf-dir",
                directory.to_str().unwrap(),
                "--cni-plugin-dir=/usr/lib/cni",
                "--dns-nameservers=1.1.1.1,9.9.9.9",
                "--add-hosts=registry2:10.213.90.9",
                "--entrypoint=[ \"/bin/sh\", \"-c\" ]",
                "--args=[ \"echo $GPU; cat /proc/net/dev /etc/hosts /etc/resolv.conf\" ]",
            ],
            "curl",
        );
        fixture.check(&result);
        for word in [
            "zero\n",
            "eth0",
            "10.213.90.9\tregistry2",
            "nameserver 9.9.9.9",
        ] {
            assert!(printed.contains(word), "{word}: {printed}");
        }
    });
}

#[test]
fn reused_layers_are_said() {
    let name = "ctr_remote::reused_layers_are_said";
    Fixture::each(name, |fixture| {
        fixture.pull();
        let (first, second) = (fixture.name("debian:1"), fixture.name("debian:2"));
        let convert = [
            "image",
            "convert",
            "--estargz",
            "--oci",
            &fixture.org(),
            &first,
        ];
        let digest = fixture.run(&convert);
        let optimize = [
            "image",
            "optimize",
            "--oci",
            "--reuse",
            "--no-optimize",
            &first,
            &second,
        ];
        let (again, said) = fixture.run_both(&optimize);
        assert_eq!(again, digest);
        let result = fixture.taken_out(&second);
        for number in 0..2 {
            let line = format!(
                "reusing \"{}\" without conversion",
                result.layer_digest(number)
            );
            assert!(said.contains(&line), "{said}");
        }
        let record = fixture.conversion.record(&[(1, "opt/data/new")]);
        let record = format!("--estargz-record-in={}", record.display());
        fixture.run(&[
            "image",
            "convert",
            "--estargz",
            "--oci",
            &record,
            &first,
            &second,
        ]);
        let prefetched = fixture.prefetched(&fixture.taken_out(&second));
        assert_eq!(prefetched, ["opt/data/new"]);
        fixture.run(&["image", "convert", "--uncompress", "--oci", &first, &second]);
    });
}

#[test]
fn all_platforms_are_converted() {
    let name = "ctr_remote::all_platforms_are_converted";
    Fixture::each(name, |fixture| {
        let source = IndexBuilder::new(&fixture.conversion.path("platforms"))
            .image(&platforms::here())
            .image(platforms::ELSEWHERE)
            .finish();
        fixture.registry.put_layout(&source, "fat", "org");
        let (from, to) = (fixture.name("fat:org"), fixture.name("fat:esgz"));
        fixture.run(&[
            "image",
            "pull",
            "--plain-http",
            "--all-platforms",
            "--no-unpack",
            &from,
        ]);
        let target = fixture.containerd.target("default", &from).unwrap();
        assert_eq!(target, source.manifest_digest());
        fixture.run(&[
            "image",
            "optimize",
            "--oci",
            "--all-platforms",
            "--no-optimize",
            &from,
            &to,
        ]);
        let result = fixture.taken_out(&to);
        assert_eq!(result.manifest()["manifests"].as_array().unwrap().len(), 2);
        fixture.run(&["image", "push", "--plain-http", &to]);
        assert_eq!(
            fixture.registry.missing("fat", "esgz"),
            Vec::<String>::new()
        );

        // One platform of the index: all of the index, and this platform's blobs.
        fixture
            .containerd
            .ctr(&["images", "rm", "--sync", &from, &to])
            .unwrap();
        fixture.containerd.collect_garbage("default").unwrap();
        fixture.run(&["image", "pull", "--plain-http", "--no-unpack", &from]);
        assert_eq!(fixture.containerd.target("default", &from).unwrap(), target);
        let whole = names(&source.dir.join("blobs/sha256")).len();
        assert!(fixture.containerd.content("default").unwrap().len() < whole);
        fixture.run(&["image", "optimize", "--oci", "--no-optimize", &from, &to]);
        let missing = fixture
            .command(&["image", "push", "--plain-http", &from])
            .output()
            .unwrap();
        assert_eq!(missing.status.code(), Some(6), "{}", texts(&missing).1);
        fixture.run(&[
            "image",
            "push",
            "--plain-http",
            "--platform",
            &platforms::here(),
            &from,
        ]);
    });
}

#[test]
fn labels_say_where_a_pulled_blob_is_from() {
    let name = "ctr_remote::labels_say_where_a_pulled_blob_is_from";
    Fixture::each(name, |fixture| {
        let args = [
            "image",
            "pull",
            "--plain-http",
            "--no-unpack",
            "--label",
            "a=b",
            &fixture.org(),
        ];
        fixture.run(&args);
        let source = &fixture.conversion.source;
        let address = fixture.registry.address();
        let origin = format!("containerd.io/distribution.source.{address}=debian");
        for digest in [
            source.manifest_digest(),
            source.layer_digest(0),
            source.layer_digest(1),
        ] {
            let labels = fixture
                .containerd
                .labels("default", &digest)
                .unwrap()
                .unwrap();
            assert!(labels.contains(&origin), "{labels:?}");
        }
        let list = fixture.run(&["images", "ls"]);
        assert!(list.contains("a=b"), "{list}");
        let to = fixture.name("debian:2");
        fixture.run(&[
            "image",
            "convert",
            "--estargz",
            "--oci",
            &fixture.org(),
            &to,
        ]);
        let converted = fixture.containerd.target("default", &to).unwrap();
        let labels = fixture
            .containerd
            .labels("default", &converted)
            .unwrap()
            .unwrap();
        assert!(labels.contains(&origin), "{labels:?}");
    });
}

#[test]
fn what_esgz_does_not_do_is_refused() {
    let name = "ctr_remote::what_esgz_does_not_do_is_refused";
    Fixture::each(name, |fixture| {
        for (args, line) in [
            (
                &["optimize", "--zstdchunked", "a", "b"][..],
                "--zstdchunked is not supported",
            ),
            (
                &["optimize", "--estargz-external-toc", "a", "b"],
                "--estargz-external-toc",
            ),
            (&["convert", "a", "b"], "--estargz or --uncompress"),
            (
                &["convert", "--estargz", "--estargz-keep-diff-id", "a", "b"],
                "keep-diff-id",
            ),
            (
                &["get-toc-digest", "--zstdchunked", ANY_DIGEST],
                "--zstdchunked",
            ),
        ] {
            let args: Vec<&str> = ["image"].iter().chain(args).copied().collect();
            let refused = fixture.command(&args).output().unwrap();
            let (_, said) = texts(&refused);
            assert_eq!(refused.status.code(), Some(2), "{args:?}: {said}");
            assert!(said.contains(line), "{args:?}: {said}");
        }
        let missing = fixture
            .command(&["image", "get-toc-digest", ANY_DIGEST])
            .output()
            .unwrap();
        assert_eq!(missing.status.code(), Some(6), "{}", texts(&missing).1);
        let no_ctr = fixture
            .command(&["run", "a", "b"])
            .env("PATH", "/nowhere")
            .output()
            .unwrap();
        assert_eq!(no_ctr.status.code(), Some(1));
        let (_, said) = texts(&no_ctr);
        assert!(said.contains("ctr, which is not on PATH"), "{said}");
        // ctr's own words and exit code come through.
        let wrong = fixture
            .command(&["snapshots", "info", "nothing"])
            .output()
            .unwrap();
        assert!(
            texts(&wrong).1.contains("ctr: snapshot nothing"),
            "{}",
            texts(&wrong).1
        );
    });
}

const ANY_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
