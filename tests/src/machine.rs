//! An image of this machine's own programs: a shell, a few tools, the libraries that they need, and
//! files of which a script touches a known part.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use crate::archive::{Entry, Kind};
use crate::compress::Compression;
use crate::layout::{Layer, LayoutBuilder};
use crate::{find_program, sets};

/// The programs of the image, by name.
pub const PROGRAMS: [&str; 8] = ["sh", "cat", "dd", "env", "id", "pwd", "sleep", "true"];

/// What the image runs. Touches, in this order: itself, its interpreter, [`UNREAD`], the tool, the
/// hardlink, a path that a whiteout hides, pages of [`BIG`], and a file of the upper layer.
pub const MAIN: &str = "#!/bin/sh
exec 3< /opt/data/unread
/opt/tool /opt/data/hard
/opt/tool /opt/data/gone 2> /tmp/gone
dd if=/opt/data/big of=/tmp/out bs=4096 skip=10 count=2 status=none
dd if=/opt/data/big of=/tmp/out bs=4096 skip=700 count=1 status=none
dd if=/opt/data/big of=/tmp/out bs=4096 skip=1024 count=9 status=none
read line < /opt/data/new
echo \"$line\"
";

/// The standard output of [`MAIN`].
pub const MAIN_PRINTS: &str = "hello\nof the upper layer\n";
/// Opened and not read.
pub const UNREAD: &str = "opt/data/unread";
/// Read in parts, [`BIG_RANGES`].
pub const BIG: &str = "opt/data/big";
/// Size of [`BIG`] in bytes: it ends within a page.
pub const BIG_BYTES: u64 = 1024 * 4096 + 100;
/// Offset and length of what is read of [`BIG`].
pub const BIG_RANGES: [(u64, u64); 3] = [(10 * 4096, 8192), (700 * 4096, 4096), (1024 * 4096, 100)];

/// The image, with [`MAIN`] as its entrypoint. It is made once.
pub fn image() -> LayoutBuilder {
    static IMAGE: OnceLock<LayoutBuilder> = OnceLock::new();
    let build = || {
        let config = json!({
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "IN_IMAGE=yes"],
            "Entrypoint": ["/opt/main"],
        });
        let image = LayoutBuilder::new().config(config);
        let layers = layers().iter();
        layers.fold(image, |image, entries| {
            image.layer(Layer::new(entries, Compression::Gzip(6)))
        })
    };
    IMAGE.get_or_init(build).clone()
}

/// The image's two layers, base first.
pub fn layers() -> &'static [Vec<Entry>; 2] {
    static LAYERS: OnceLock<[Vec<Entry>; 2]> = OnceLock::new();
    LAYERS.get_or_init(|| [base(), upper()])
}

/// The image with a third layer: busybox, and links to it of the names in `applets`. `None` where the machine
/// has no busybox.
pub fn with_busybox(applets: &[&str]) -> Option<LayoutBuilder> {
    let busybox = find_program("busybox")?;
    let mut copied = Copied::default();
    copied.add(&busybox);
    libraries(&busybox).iter().for_each(|path| copied.add(path));
    let target = format!("/{}", resolved(&busybox));
    let local = [
        Entry::dir("usr"),
        Entry::dir("usr/local"),
        Entry::dir("usr/local/bin"),
    ];
    let link = |name: &&str| Entry::symlink(format!("usr/local/bin/{name}"), target.clone());
    let entries: Vec<Entry> = copied
        .entries
        .into_values()
        .chain(local)
        .chain(applets.iter().map(link))
        .collect();
    Some(image().layer(Layer::new(&entries, Compression::Gzip(1))))
}

/// A program's path in the image, through all symlinks.
///
/// # Panics
/// When the machine does not have it.
pub fn program(name: &str) -> String {
    let path = find_program(name).unwrap_or_else(|| panic!("{name} is not in PATH"));
    resolved(&path)
}

/// The shared libraries of the shell in the image, through all symlinks; the dynamic linker is one.
pub fn libraries_of_sh() -> Vec<String> {
    let sh = find_program("sh").expect("a machine has a shell");
    libraries(&sh).iter().map(|path| resolved(path)).collect()
}

fn resolved(path: &Path) -> String {
    let path = fs::canonicalize(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    relative(&path).display().to_string()
}

fn base() -> Vec<Entry> {
    let mut copied = Copied::default();
    for name in PROGRAMS {
        let program = find_program(name).unwrap_or_else(|| panic!("{name} is not in PATH"));
        copied.add(&program);
        libraries(&program).iter().for_each(|path| copied.add(path));
    }
    // What scripts name: `bin` is a symlink on most machines.
    copied.add(Path::new("/bin/sh"));
    let own = [
        Entry::dir("etc"),
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
        ),
        Entry::file("etc/group", "root:x:0:\napp:x:1001:\nvideo:x:44:app\n"),
        Entry::dir("tmp").mode(0o1777),
        Entry::dir("opt"),
        Entry::dir("opt/data"),
        Entry::file(BIG, sets::noise(7, BIG_BYTES as usize)),
        Entry::file("opt/data/gone", "the upper layer takes it away"),
        Entry::file("opt/data/new", "of the base layer\n"),
        Entry::file("opt/data/never", "nobody opens it"),
        Entry::file("opt/data/small", "hello\n"),
        Entry::hardlink("opt/data/hard", "opt/data/small"),
        Entry::file(UNREAD, sets::noise(8, 10_000)),
    ];
    copied.entries.into_values().chain(own).collect()
}

fn upper() -> Vec<Entry> {
    vec![
        Entry::dir("opt"),
        Entry::dir("opt/data"),
        Entry::file("opt/data/.wh.gone", ""),
        Entry::file("opt/data/new", "of the upper layer\n"),
        Entry::file("opt/main", MAIN).mode(0o755),
        Entry::symlink("opt/tool", format!("../{}", program("cat"))),
    ]
}

/// Files of this machine under their own paths, with the directories and symlinks on the way.
#[derive(Default)]
struct Copied {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Copied {
    fn add(&mut self, path: &Path) {
        let mut at = PathBuf::from("/");
        let mut pending = names_reversed(path);
        while let Some(name) = pending.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(name);
            let entry_name = relative(&next).to_owned();
            let metadata = fs::symlink_metadata(&next);
            let metadata = metadata.unwrap_or_else(|e| panic!("{}: {e}", next.display()));
            let name = entry_name.as_os_str().as_bytes().to_vec();
            let entry = if metadata.is_symlink() {
                let target = fs::read_link(&next).expect("a symlink has a target");
                pending.extend(names_reversed(&target));
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                Entry::symlink(name, target.as_os_str().as_bytes())
            } else {
                at.clone_from(&next);
                let mode = metadata.mode() & 0o7777;
                if metadata.is_dir() {
                    Entry::dir(name).mode(mode)
                } else {
                    let contents = fs::read(&next);
                    let contents = contents.unwrap_or_else(|e| panic!("{}: {e}", next.display()));
                    Entry::file(name, contents).mode(mode)
                }
            };
            self.entries.insert(entry_name, entry);
        }
    }
}

fn names_reversed(path: &Path) -> Vec<OsString> {
    let names = path
        .components()
        .rev()
        .filter_map(|component| match component {
            Component::ParentDir | Component::Normal(_) => Some(component.as_os_str().to_owned()),
            _ => None,
        });
    names.collect()
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").expect("the path is absolute")
}

fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.expect("ldd can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

/// Writes the merged view of [`layers`] into `root`, for another tool to run [`MAIN`] in.
///
/// # Panics
/// When it cannot be written.
pub fn write_tree(root: &Path) {
    fs::create_dir(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    for entry in layers().iter().flatten() {
        let name = String::from_utf8(entry.name.clone()).expect("the image's names are UTF-8");
        let link = String::from_utf8(entry.link.clone()).expect("the image's names are UTF-8");
        let path = root.join(&name);
        let hidden = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(".wh."));
        let written = match entry.kind {
            _ if hidden.is_some() => fs::remove_file(path.with_file_name(hidden.unwrap_or(""))),
            Kind::Dir => fs::create_dir_all(&path),
            Kind::Symlink => std::os::unix::fs::symlink(&link, &path),
            Kind::Hardlink => fs::hard_link(root.join(&link), &path),
            _ => fs::write(&path, &entry.contents),
        };
        let with_mode = written.and_then(|()| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(entry.mode);
            match entry.kind {
                Kind::Symlink | Kind::Hardlink => Ok(()),
                _ if hidden.is_some() => Ok(()),
                _ => fs::set_permissions(&path, permissions),
            }
        });
        with_mode.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
