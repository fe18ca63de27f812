//! An image, its conversion as a layout, and a real registry where there is one.

mod arriving;
mod early;
mod faults;
mod library;
mod mirrors;
mod passed_on;
mod profiles;
mod tls;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use esgz_tests::conversion::{Conversion, names};
use esgz_tests::esgz::Esgz;
use esgz_tests::layout::{Layout, LayoutBuilder};
use esgz_tests::{find_program, sets, skipped};
use serde_json::Value;
use tempfile::TempDir;

/// A source image, and what esgz makes of it in a layout.
pub(crate) struct Fixture {
    pub(crate) conversion: Conversion,
    pub(crate) expected: Layout,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::of(&sets::several_layers())
    }

    pub(crate) fn of(image: &LayoutBuilder) -> Self {
        let conversion = Conversion::of(image);
        let expected = conversion.convert("expected", &[]).unwrap();
        Self {
            conversion,
            expected,
        }
    }

    /// `esgz convert FROM TO`, without anything of this machine's credentials.
    pub(crate) fn esgz(&self, from: &str, to: &str) -> Esgz {
        let scratch = self.conversion.path("scratch");
        self.call("convert", &[from, to])
            .arg("--scratch")
            .arg(scratch)
    }

    /// `esgz SUBCOMMAND ARGS`, likewise.
    pub(crate) fn call(&self, subcommand: &str, args: &[&str]) -> Esgz {
        let home = self.conversion.path("home");
        let path = std::env::var("PATH").unwrap_or_default();
        let helpers = self.conversion.path("");
        Esgz::new(subcommand)
            .args(args)
            .env("HOME", &home)
            .env("DOCKER_CONFIG", &home)
            .env("XDG_RUNTIME_DIR", &home)
            .env("XDG_CONFIG_HOME", &home)
            .env("REGISTRY_AUTH_FILE", home.join("auth.json"))
            .env("TMPDIR", self.conversion.path("scratch"))
            .env("PATH", format!("{}:{path}", helpers.display()))
    }

    pub(crate) fn write_docker_config(&self, config: &Value) {
        let home = self.conversion.path("home");
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("config.json"), config.to_string()).unwrap();
    }

    pub(crate) fn left_in_scratch(&self) -> Vec<String> {
        names(&self.conversion.path("scratch"))
    }
}

/// The distribution project's registry, in a directory of its own.
pub(crate) struct RealRegistry {
    address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl RealRegistry {
    /// Starts it, or says that the test is skipped.
    pub(crate) fn for_test(name: &str) -> Option<Self> {
        let program = ["docker-registry", "registry"]
            .into_iter()
            .find_map(find_program);
        let Some(program) = program else {
            skipped(
                name,
                "there is no docker-registry (Debian package docker-registry)",
            );
            return None;
        };
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{address}\"}}\n",
            dir.path().join("data").display()
        );
        let config_path = dir.path().join("config.yml");
        fs::write(&config_path, config).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(config_path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            address,
            child,
            _dir: dir,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
