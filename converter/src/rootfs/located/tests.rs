use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::layer::scan::tests::scan_bytes;

/// Names with contents; a name that ends in `/` is a directory, contents that begin with `->` a symlink's target.
type Files<'a> = &'a [(&'a str, &'a str)];

fn layer(files: Files<'_>) -> ScannedLayer {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_000_000);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, name, &b""[..]).unwrap();
        } else if let Some(target) = contents.strip_prefix("->") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
        } else {
            header.set_size(contents.len() as u64);
            builder
                .append_data(&mut header, name, contents.as_bytes())
                .unwrap();
        }
    }
    scan_bytes(&builder.into_inner().unwrap()).unwrap()
}

fn unpack(root: &Path, files: Files<'_>) {
    for (name, contents) in files {
        let path = root.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(&path).unwrap();
        } else if let Some(target) = contents.strip_prefix("->") {
            std::os::unix::fs::symlink(target, &path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, contents).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(time).unwrap();
        }
    }
}

struct Directories(tempfile::TempDir);

impl Directories {
    fn new(names_and_files: &[(&str, Files<'_>)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (name, files) in names_and_files {
            fs::create_dir_all(root.path().join(name)).unwrap();
            unpack(&root.path().join(name), files);
        }
        Self(root)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// With `base`, `top` and so on as lower directories.
    fn locate(
        &self,
        layers: &[ScannedLayer],
        lowers: &[&str],
        upper: Option<&str>,
    ) -> Result<Located, LocateError> {
        let device = unpack::device_of(self.0.path()).unwrap();
        let lowers: Vec<Lower> = lowers
            .iter()
            .map(|name| Lower {
                directory: self.path(name),
                device,
            })
            .collect();
        let merged = open_directory(self.0.path()).unwrap();
        let upper = upper.map(|name| self.path(name));
        let stack = Stack {
            lowers: &lowers,
            upper: upper.as_deref(),
            merged: merged.as_fd(),
            device: 99,
        };
        locate(layers, &stack, &Cancel::default())
    }
}

const BASE: Files<'_> = &[
    ("d/", ""),
    ("d/a", "12345"),
    ("d/b", "b"),
    ("link", "->d/a"),
    ("e/c", "c"),
];
const TOP: Files<'_> = &[("d/", ""), ("d/b", "new b")];

#[test]
fn files_are_found_by_their_inodes() {
    let directories = Directories::new(&[("base", BASE), ("top", TOP)]);
    let layers = [layer(BASE), layer(TOP)];
    let found = directories.locate(&layers, &["base", "top"], None).unwrap();
    assert_eq!(found.files.len(), 4);
    for (layer, name, path) in [(0, "base", "d/a"), (0, "base", "d/b"), (1, "top", "d/b")] {
        let inode = directories.path(name).join(path).metadata().unwrap().ino();
        let entries = &layers[layer].entries;
        let entry = entries.iter().position(|e| &*e.name == path.as_bytes());
        let row = found.files.iter().find(|row| row.inode == inode).unwrap();
        let expected = (layer as u32, entry.unwrap() as u32);
        assert_eq!((row.file.layer, row.file.entry), expected, "{path}");
    }
    // Of `d/b` the upper one shows.
    let opened: Vec<_> = found.opened_as.iter().map(|row| row.file.layer).collect();
    assert_eq!(opened.len(), 3);
    assert_eq!(opened.iter().filter(|&&layer| layer == 1).count(), 1);
    assert!(found.opened_as.iter().all(|row| row.device == 99));
}

#[test]
fn what_the_container_has_replaced_is_no_more_opened() {
    let upper: Files<'_> = &[("d/a", "mine"), ("e", "a file now")];
    let directories = Directories::new(&[("base", BASE), ("upper", upper)]);
    let layers = [layer(BASE)];
    let found = directories
        .locate(&layers, &["base"], Some("upper"))
        .unwrap();
    let names = found.opened_as.iter().map(|row| {
        let entry = &layers[0].entries[row.file.entry as usize];
        String::from_utf8_lossy(&entry.name).into_owned()
    });
    assert_eq!(names.collect::<Vec<_>>(), ["d/b"]);
    assert_eq!(found.files.len(), 3);
}

#[test]
fn layers_without_entries_need_no_directory() {
    let empty: Files<'_> = &[];
    let directories = Directories::new(&[("base", BASE), ("top", TOP), ("none", empty)]);
    let layers = || {
        [
            layer(empty),
            layer(BASE),
            layer(empty),
            layer(TOP),
            layer(empty),
        ]
    };
    for lowers in [
        &["base", "top"][..],
        &["none", "base", "top"],
        &["none", "base", "none", "top", "none"],
    ] {
        let found = directories.locate(&layers(), lowers, None).unwrap();
        assert_eq!(found.files.len(), 4, "{lowers:?}");
    }
}

#[test]
fn another_image_is_refused() {
    let directories = Directories::new(&[
        ("base", BASE),
        ("top", TOP),
        ("0123-init/diff", &[("dev/", "")]),
        ("diff", &[("dev/", "")]),
    ]);
    let check = |layers: &[Files<'_>], lowers: &[&str], message: &str| {
        let layers: Vec<ScannedLayer> = layers.iter().map(|files| layer(files)).collect();
        let error = directories.locate(&layers, lowers, None).unwrap_err();
        assert!(error.to_string().contains(message), "{error}: {message}");
    };
    let counts = "made of 2 layers, and the image has 1";
    check(&[BASE], &["base", "top"], counts);
    check(&[BASE], &["base", "diff"], counts);
    check(
        &[BASE, TOP],
        &["base"],
        "made of 1 layers, and the image has 2",
    );
    check(&[TOP, BASE], &["base", "top"], "layer 0 is not what is in");
    let mut other = BASE.to_vec();
    other[1] = ("d/a", "123456");
    check(
        &[&other],
        &["base"],
        "\"d/a\" has 5 bytes there, and 6 in the layer",
    );
    other[1] = ("d/a", "->b");
    check(&[&other], &["base"], "\"d/a\" is of another kind there");
    other.remove(1);
    check(
        &[&other],
        &["base"],
        "\"d/a\" is there, and not in the layer",
    );
    other.push(("z", ""));
    other.push(("d/a", "12345"));
    check(&[&other], &["base"], "\"z\" is missing there");
    let touched = directories.path("base/e/c");
    let now = std::time::SystemTime::now();
    let file = fs::File::options().write(true).open(touched).unwrap();
    file.set_modified(now).unwrap();
    check(
        &[BASE],
        &["base"],
        "\"e/c\" has another modification time there",
    );
    // Docker's own layer.
    let found = directories.locate(&[layer(TOP)], &["top", "0123-init/diff"], None);
    assert_eq!(found.unwrap().files.len(), 1);
}
