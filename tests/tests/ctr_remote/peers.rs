//! Beside the programs of stargz-snapshotter: what ctr-remote makes of the same image, and an image that the unmodified
//! snapshotter pulls lazily.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use esgz_tests::containerd::{Containerd, Programs, versions};
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::registry::{Behaviour, Server};
use esgz_tests::{esgz, find_program, machine, privileged, skipped};

use super::{Fixture, prefetched, texts};

/// ctr-remote itself, named by this variable.
const PEER: &str = "ESGZ_PEER_CTR_REMOTE";

#[test]
fn every_file_that_ctr_remote_prioritises_is_prefetched() {
    let name = "ctr_remote::peers::every_file_that_ctr_remote_prioritises_is_prefetched";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let Some(peer) = std::env::var_os(PEER).map(PathBuf::from) else {
        return skipped(name, format!("{PEER} names no ctr-remote to compare with"));
    };
    Fixture::each(name, |fixture| {
        fixture.pull();
        let (ours, _) = fixture.optimize(&[], "ours");
        let (org, to) = (fixture.org(), fixture.name("debian:theirs"));
        let mut command = fixture.containerd.command_of(&peer);
        let args = ["image", "optimize", "--oci", "--period", "5", &org, &to];
        let done = command.args(args).stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{}", texts(&done).1);
        let theirs = fixture.taken_out(&to);
        fixture.check(&ours);
        let verify = esgz::Esgz::new("verify").arg("--source");
        let verify = verify.args([theirs.reference(), ours.reference()]);
        verify.run().success().unwrap();
        let ours = prefetched(&ours);
        let theirs = prefetched(&theirs);
        assert!(theirs.len() > 3, "{theirs:?}");
        // What is opened and not read is not prefetched here; there it is.
        let missing: Vec<&String> = theirs.iter().filter(|path| !ours.contains(path)).collect();
        let expected: Vec<&str> = vec![machine::UNREAD];
        assert_eq!(missing, expected, "ours: {ours:?}");
    });
}

/// The snapshotter, named by this variable or on PATH.
const SNAPSHOTTER: &str = "ESGZ_PEER_STARGZ_SNAPSHOTTER";

#[test]
fn pulled_lazily_it_runs() {
    let name = "ctr_remote::peers::pulled_lazily_it_runs";
    let Some(_turn) = privileged::workload(name) else {
        return;
    };
    let snapshotter = std::env::var_os(SNAPSHOTTER).map(PathBuf::from);
    let Some(snapshotter) = snapshotter.or_else(|| find_program("containerd-stargz-grpc")) else {
        return skipped(
            name,
            format!("{SNAPSHOTTER} names no containerd-stargz-grpc"),
        );
    };
    if !Path::new("/dev/fuse").exists() {
        return skipped(name, "there is no /dev/fuse");
    }
    for programs in versions(name) {
        lazily(&programs, &snapshotter);
    }
}

fn lazily(programs: &Programs, snapshotter: &Path) {
    let conversion = Conversion::of(&machine::image());
    let converted = conversion.convert("esgz", &[]).unwrap();
    let registry = Server::start(Behaviour::default());
    registry.put_layout(&converted, "debian", "esgz");
    let socket = conversion.path("stargz.sock");
    let config = conversion.path("stargz.toml");
    fs::write(&config, "").unwrap();
    let root = conversion.path("stargz");
    let log = fs::File::create(conversion.path("stargz.log")).unwrap();
    let child = Command::new(snapshotter)
        .arg("--address")
        .arg(&socket)
        .arg("--root")
        .arg(&root)
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _snapshotter = Ending(child, root.join("snapshotter/snapshots"));
    let plugins = format!("[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = {socket:?}\n");
    let link = conversion.path("ctr-remote");
    std::os::unix::fs::symlink(esgz::binary(), &link).unwrap();
    let fixture = Fixture {
        containerd: Containerd::with_plugins(programs, &plugins),
        conversion,
        registry,
        link,
    };
    let name = fixture.name("debian:esgz");
    let printed = fixture.run(&["image", "rpull", "--plain-http", &name]);
    let lines: Vec<&str> = printed.lines().collect();
    let digest = converted.manifest_digest();
    let log = fs::read_to_string(fixture.conversion.path("stargz.log")).unwrap();
    assert_eq!(lines.len(), 2, "{printed}{log}");
    let manifest = format!(
        "fetching {}... application/vnd.oci.image.manifest.v1+json",
        &digest[..15]
    );
    assert_eq!(lines[0], manifest);
    assert!(
        lines[1].ends_with("... application/vnd.oci.image.config.v1+json"),
        "{printed}"
    );
    // Manifest and configuration, and no layer.
    assert_eq!(fixture.containerd.content("default").unwrap().len(), 2);
    let args = [
        "run",
        "--rm",
        "--snapshotter=stargz",
        &name,
        "test",
        "/opt/main",
    ];
    assert_eq!(fixture.run(&args), machine::MAIN_PRINTS);
    fixture.run(&["image", "rm", "--sync", &name]);
    fixture.containerd.collect_garbage("default").unwrap();
}

/// Ends the snapshotter, and unmounts what it has mounted.
struct Ending(std::process::Child, PathBuf);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        for id in names(&self.1) {
            let mounted = self.1.join(id).join("fs");
            let _ = Command::new("umount")
                .arg("-l")
                .arg(mounted)
                .stderr(Stdio::null())
                .status();
        }
    }
}
