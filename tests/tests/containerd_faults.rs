//! What goes wrong on the way into and out of containerd: it finishes, or fails with one line and leaves no name
//! and no garbage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression;
use esgz_tests::containerd::{Containerd, versions};
use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layer, Layout, LayoutBuilder};
use esgz_tests::{privileged, sets};

const RESULT: &str = "registry.example/tests/result:1";
const MIB: usize = 1 << 20;
/// No manifest or configuration here has more bytes.
const A_DOCUMENT: u64 = 64 << 10;

/// An image with one layer of so much that does not compress, and what it becomes in a layout.
fn image(len: usize) -> (Conversion, Layout) {
    let entries = [Entry::file("random", random(len))];
    let image = LayoutBuilder::new().layer(Layer::new(&entries, Compression::Gzip(1)));
    let conversion = Conversion::of(&image);
    let expected = conversion.convert("expected", &[]).unwrap();
    (conversion, expected)
}

/// Bytes that do not compress: what is ingested is as long as they are.
fn random(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn convert(conversion: &Conversion, containerd: &Containerd) -> Esgz {
    containerd
        .esgz("convert")
        .arg("--scratch")
        .arg(conversion.path("scratch"))
        .arg(conversion.source.reference())
        .arg(RESULT)
}

/// Directories of ingests that have more than so many bytes.
fn ingests(containerd: &Containerd, bytes: u64) -> Vec<PathBuf> {
    let directory = containerd.blobs().join("../../ingest");
    let all = names(&directory)
        .into_iter()
        .map(|name| directory.join(name));
    let is_larger = |path: &PathBuf| fs::metadata(path.join("data")).is_ok_and(|m| m.len() > bytes);
    all.filter(is_larger).collect()
}

/// Starts the conversion, and waits until a layer is on its way.
fn begin(conversion: &Conversion, containerd: &Containerd) -> Child {
    // The layer is on its way for some 100 ms, and may be missed where the processors are busy.
    for _ in 0..5 {
        let mut command = convert(conversion, containerd).into_command();
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let priority = ["-n", "19", "-p", &child.id().to_string()].map(str::to_owned);
        let reniced = Command::new("renice").args(priority).output().unwrap();
        assert!(reniced.status.success(), "{reniced:?}");
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            if !ingests(containerd, A_DOCUMENT).is_empty() {
                return child;
            }
            assert!(Instant::now() < deadline, "nothing is ingested");
            std::thread::sleep(Duration::from_millis(1));
        }
        forget(containerd);
    }
    panic!("no layer was seen on its way");
}

/// Removes what a conversion made.
fn forget(containerd: &Containerd) {
    containerd.ctr(&["images", "rm", "--sync", RESULT]).unwrap();
    for lease in containerd.unfinished("default").unwrap() {
        containerd.ctr(&["leases", "rm", "--sync", &lease]).unwrap();
    }
    containerd.collect_garbage("default").unwrap();
    assert_eq!(containerd.content("default").unwrap(), Vec::<String>::new());
}

fn nothing_is_left(conversion: &Conversion, containerd: &Containerd) {
    assert_eq!(
        containerd.unfinished("default").unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(names(&conversion.path("scratch")), Vec::<String>::new());
    assert_eq!(ingests(containerd, 0), Vec::<PathBuf>::new());
}

#[test]
fn a_restart_in_the_middle_is_survived() {
    let name = "containerd_faults::a_restart_in_the_middle_is_survived";
    for programs in versions(name) {
        let (conversion, expected) = image(24 * MIB);
        let mut containerd = Containerd::start(&programs);
        let child = begin(&conversion, &containerd);
        containerd.restart();
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        let target = containerd.target("default", RESULT).unwrap();
        assert_eq!(target, expected.manifest_digest());
        nothing_is_left(&conversion, &containerd);
        containerd
            .esgz("verify")
            .arg(RESULT)
            .run()
            .success()
            .unwrap();
    }
}

#[test]
fn a_killed_ingest_goes_on_where_it_was() {
    let name = "containerd_faults::a_killed_ingest_goes_on_where_it_was";
    for programs in versions(name) {
        let (conversion, expected) = image(24 * MIB);
        let containerd = Containerd::start(&programs);
        for is_damaged in [false, true] {
            let mut child = begin(&conversion, &containerd);
            child.kill().unwrap();
            child.wait().unwrap();
            // The lease ends by itself.
            let leases = containerd.ctr(&["leases", "ls"]).unwrap();
            assert!(
                leases.contains("esgz-") && leases.contains("containerd.io/gc.expire="),
                "{leases}"
            );
            let left = ingests(&containerd, A_DOCUMENT);
            assert_eq!(left.len(), 1, "{left:?}");
            if is_damaged {
                overwrite(&left[0].join("data"));
            }
            let again = convert(&conversion, &containerd).arg("--log-level=debug");
            let again = again.run().success().unwrap();
            let target = containerd.target("default", RESULT).unwrap();
            assert_eq!(target, expected.manifest_digest());
            assert!(
                again.stderr.contains(" goes on at byte "),
                "{}",
                again.stderr
            );
            assert_eq!(
                again.stderr.contains("begun anew"),
                is_damaged,
                "{}",
                again.stderr
            );
            assert_eq!(ingests(&containerd, 0), Vec::<PathBuf>::new());
            forget(&containerd);
        }
    }
}

fn overwrite(path: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"something else", 1000).unwrap();
}

#[test]
fn an_interruption_leaves_nothing() {
    let name = "containerd_faults::an_interruption_leaves_nothing";
    for programs in versions(name) {
        let (conversion, _) = image(24 * MIB);
        let containerd = Containerd::start(&programs);
        let child = begin(&conversion, &containerd);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(130));
        nothing_is_left(&conversion, &containerd);
        assert!(containerd.target("default", RESULT).is_err());
        assert_eq!(containerd.content("default").unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_full_content_store_is_left_as_it_was() {
    let name = "containerd_faults::a_full_content_store_is_left_as_it_was";
    let Some(_turn) = privileged::exclusive(name) else {
        return;
    };
    for programs in versions(name) {
        let (conversion, _) = image(24 * MIB);
        let root = conversion.path("small");
        let _mounted = Small::mount(&root);
        let containerd = Containerd::with_root(&programs, &root);
        let full = convert(&conversion, &containerd).run();
        full.failed_with(6, &["no space left on device"]).unwrap();
        nothing_is_left(&conversion, &containerd);
        assert!(containerd.target("default", RESULT).is_err());
        assert_eq!(containerd.content("default").unwrap(), Vec::<String>::new());
    }
}

/// A file system of 6 MiB.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Self {
        fs::create_dir(path).unwrap();
        let none = None::<&str>;
        nix::mount::mount(
            none,
            path,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=6m"),
        )
        .unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_damaged_blob_is_noticed() {
    let name = "containerd_faults::a_damaged_blob_is_noticed";
    for programs in versions(name) {
        let conversion = Conversion::of(&sets::several_layers());
        let containerd = Containerd::start(&programs);
        containerd.import(&conversion.source, "source:1").unwrap();
        let source = &conversion.source;
        let manifest = source.manifest_digest();
        let config = source.manifest()["config"]["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        for digest in [source.layer_digest(0), config, manifest] {
            let path = containerd
                .blobs()
                .join(digest.trim_start_matches("sha256:"));
            let good = fs::read(&path).unwrap();
            let mut bad = good.clone();
            let last = bad.len() - 9;
            bad[last] ^= 1;
            fs::write(&path, &bad).unwrap();
            for more in [&[][..], &["--content-over-socket"]] {
                let out = conversion.output("out");
                let refused = containerd
                    .esgz("convert")
                    .arg("--scratch")
                    .arg(conversion.path("scratch"))
                    .args(["source:1", &out.reference()])
                    .args(more)
                    .run();
                refused.failed_with(6, &[&digest]).unwrap();
                assert!(!out.dir.exists());
                nothing_is_left(&conversion, &containerd);
            }
            fs::write(&path, &good).unwrap();
        }
    }
}
